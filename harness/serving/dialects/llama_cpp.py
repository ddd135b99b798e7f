"""llama.cpp's dialect: ``POST /infill`` for llama.vim and llama.vscode, and ``POST /completion``.

Answers are compact JSON with ``content`` first, since llama.vim looks for ``"content":"`` in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import FailFast, Field

from harness.decoding.generation import Token
from harness.serving.completions import Finished, InvalidRequestError, Job, ServingError, early_exit_report
from harness.serving.dialects.dialect import (
    PENALTIES,
    SAMPLING,
    Dialect,
    Flag,
    OnePrompt,
    Seed,
    Texts,
    limit_of,
    token_report,
)


class _LlamaCpp(Dialect):
    """Fields that both routes read, and their answers."""

    client = "llama.cpp"
    answers = "llama.cpp's; as events one for each token, the last with stop = true; response_fields choose among them"
    reasons = ("eos", "word", "limit")
    unchanging: ClassVar = {
        **SAMPLING, **PENALTIES, "typical_p": (1,), "repeat_penalty": (1,), "mirostat": (0,), "dynatemp_range": (0,),
        "xtc_probability": (0,), "dry_multiplier": (0,), "ignore_eos": (False,), "logit_bias": ([], {}),
        "grammar": ("",), "json_schema": ({},), "lora": ([],), "n_probs": (0,), "n_cmpl": (1,),
    }  # fmt: skip

    n_predict: int | None = Field(
        default=None,
        description="Limit of new tokens; -1, -2: the server's cap; 0: nothing is made, nothing evaluated.",
    )
    stop: Texts = Field(default=(), description="Texts that end the completion; omitted from it.")
    t_max_predict_ms: float = Field(
        default=0, description="Milliseconds after the first token when it ends, once there is a line break."
    )
    stream: Flag = Field(default=False, description="true: server-sent events.")
    response_fields: Annotated[list[str], FailFast()] = Field(
        default=[], description="Fields to be answered, as timings/prompt_n: one flat entry for each path that exists."
    )
    seed: Seed = 0
    cache_prompt: Flag = Field(default=True, description="false: read the whole prompt, and keep nothing of it.")

    def at_once(self) -> dict[str, Any] | None:
        """Answer a client that warms a cache with ``input_extra``, which this server does not read."""
        if self.n_predict != 0:
            return None
        counts = {"tokens_predicted": 0, "tokens_evaluated": 0, "tokens_cached": 0}
        return self._chosen(self._ending("", stop_type="limit", truncated=False) | counts)

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        made = {"tokens": [token.token_id], "tokens_predicted": token.index + 1}
        return [{"content": token.text, "stop": False} | made | token_report(token)]

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        return [self._finished(done.rest, done)]

    def whole(self, endings: Sequence[Finished]) -> dict[str, Any]:
        return self._finished(endings[0].text, endings[0])

    @classmethod
    def error(cls, message: str, error: ServingError) -> dict[str, Any]:
        return {"error": {"code": error.status, "message": message, "type": error.kind}}

    def _job(self, make: Callable[..., Job], prompt: str | list[int], suffix: str | None = None) -> Job:
        return make(
            prompt, suffix, max_new_tokens=limit_of(self.n_predict), stop=self.stop, truncate=True, seed=self.seed,
            generate_s=self.t_max_predict_ms / 1000 if 0 < self.t_max_predict_ms < 1e12 else None,
            reuse=self.cache_prompt,
        )  # fmt: skip

    def _ending(self, text: str, *, stop_type: str, truncated: bool) -> dict[str, Any]:
        facts = {"model": self._service.model_name, "stop_type": stop_type, "truncated": truncated}
        return {"content": text, "stop": True} | facts

    def _finished(self, text: str, done: Finished) -> dict[str, Any]:
        answer = self._ending(text, stop_type=self.reason(done.ending), truncated=done.prompt.truncated > 0)
        return self._chosen(
            answer
            | {
                "tokens_predicted": done.new_tokens,
                "tokens_evaluated": done.prompt_tokens,
                "tokens_cached": done.prompt_reused,
                "generation_settings": {},
                "timings": _timings(done),
                "x_early_exit": early_exit_report(done),
            }
        )

    def _chosen(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Return the fields asked for, each under its path, and what early exit did."""
        if not self.response_fields:
            return answer
        flat = answer | {f"timings/{name}": value for name, value in answer.get("timings", {}).items()}
        return {name: flat[name] for name in (*self.response_fields, "x_early_exit") if name in flat}


class Infill(_LlamaCpp):
    """A request to llama.cpp's ``/infill``.

    llama.vim and llama.vscode always send ``top_k``, ``top_p``, ``n_indent`` and ``input_extra``, without a setting for
    them: here alone they are ignored, and what is most probable is answered.
    """

    unchanging: ClassVar = {
        name: accepted for name, accepted in _LlamaCpp.unchanging.items() if name not in ("top_k", "top_p")
    }
    paths: ClassVar = {"/infill": "Complete a text at the cursor; a prompt that is too long is cut at its beginning."}

    input_prefix: str = Field(default="", description="Text before the cursor's line.")
    prompt: str = Field(default="", description="Text of that line before the cursor.")
    input_suffix: str = Field(default="", description="Text after the cursor.")

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        prefix, fim = self.input_prefix + self.prompt, self._service.fim
        # llama.vim always sends a line break; a model that fills no middle loses nothing
        suffix = self.input_suffix if fim or self.input_suffix.strip() else None
        if not prefix and not (suffix and fim):
            raise InvalidRequestError(
                "input_prefix and prompt are empty: there is nothing to complete. Send one of them."
            )
        return [self._job(make, prefix, suffix)]


class Completion(_LlamaCpp):
    """A request to llama.cpp's ``/completion``."""

    paths: ClassVar = {"/completion": "Complete a text; a prompt that is too long is cut at its beginning."}

    prompt: OnePrompt = Field(description="Text before the cursor, or its tokens.")

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        if len(self.prompt) > 1:
            raise InvalidRequestError(f"prompt has {len(self.prompt)} prompts. Send one, a text or its token ids.")
        return [self._job(make, self.prompt[0])]


def _timings(done: Finished) -> dict[str, float]:
    """Return llama.cpp's timings. The first token comes out of reading the prompt, so that ``predicted_ms`` and the
    rates are those of the others; what was not measured is omitted.
    """
    timings: dict[str, float] = {"cache_n": done.prompt_reused}
    for name, counted, tokens, seconds in (
        ("prompt", done.prompt_computed, done.prompt_computed, done.prefill_s),
        ("predicted", done.new_tokens, done.new_tokens - 1, done.decode_s),
    ):
        timings |= {f"{name}_n": counted, f"{name}_ms": round(seconds * 1000, 3)}
        if tokens > 0 and seconds > 0:
            timings |= {f"{name}_per_token_ms": seconds * 1000 / tokens, f"{name}_per_second": tokens / seconds}
    return timings
