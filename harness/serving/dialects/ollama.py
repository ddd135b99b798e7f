"""Ollama's dialect: ``POST /api/generate``, streamed unless the client sets ``stream`` to false.

The prompt is always read as it stands, as with ``raw``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar

from pydantic import Field

from harness.decoding.generation import Token
from harness.serving.completions import Finished, Job, early_exit_report
from harness.serving.dialects.dialect import (
    PENALTIES,
    SAMPLING,
    Dialect,
    Fields,
    Flag,
    Seed,
    Texts,
    limit_of,
    token_report,
)


class OllamaOptions(Fields):
    """``options`` of a request."""

    unchanging: ClassVar = {**SAMPLING, **PENALTIES, "typical_p": (1,), "repeat_penalty": (1,), "mirostat": (0,)}

    num_predict: int | None = Field(default=None, description="From 1; -1, -2: the server's cap.")
    stop: Texts = Field(default=(), description="A text or a list; omitted from the completion.")
    seed: Seed = 0


class Ollama(Dialect):
    """A request to Ollama's ``/api/generate``."""

    client = "Ollama"
    paths: ClassVar = {"/api/generate": "Complete a text, as Ollama does."}
    answers = "Ollama's object; as a stream one line of JSON for each token, and the last with done = true"
    media_type = "application/x-ndjson"
    frame = (b"", b"\n")
    reasons = ("stop", "stop", "length")
    unchanging: ClassVar = {
        "system": ("",), "template": ("",), "context": ([],), "images": ([],), "format": ("",), "think": (False,),
    }  # fmt: skip

    prompt: str = Field(min_length=1, description="Text before the cursor.")
    suffix: str | None = Field(default=None, description="Text after the cursor.")
    stream: Flag = Field(default=True, description="false: one object.")
    truncate: Flag = Field(default=True, description="false: refuse a prompt that is too long, not cut its start.")
    options: OllamaOptions = OllamaOptions()

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        limits = {"max_new_tokens": limit_of(self.options.num_predict), "truncate": self.truncate}
        return [make(self.prompt, self.suffix, stop=self.options.stop, seed=self.options.seed, **limits)]

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        return [self._piece(token.text, done=False) | token_report(token)]

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        return [self._ending(done.rest, done)]

    def whole(self, endings: Sequence[Finished]) -> dict[str, Any]:
        return self._ending(endings[0].text, endings[0])

    def _ending(self, text: str, done: Finished) -> dict[str, Any]:
        return self._piece(text, done=True) | {
            "done_reason": self.reason(done.ending),
            "total_duration": _nanoseconds(done.total_s),
            "load_duration": 0,
            "prompt_eval_count": done.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(done.prefill_s),
            "eval_count": done.new_tokens,
            "eval_duration": _nanoseconds(done.decode_s),
            "x_early_exit": early_exit_report(done),
        }

    def _piece(self, text: str, *, done: bool) -> dict[str, Any]:
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {"model": self._service.model_name, "created_at": now, "response": text, "done": done}


def _nanoseconds(seconds: float) -> int:
    return max(round(seconds * 1e9), 0)
