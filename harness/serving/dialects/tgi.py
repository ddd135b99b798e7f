"""Hugging Face's dialect: ``/generate`` and ``/generate_stream`` of TGI, and the addresses its clients use.

The text that ended a completion belongs to it here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, model_validator

from harness.decoding.generation import Token
from harness.serving.completions import Finished, Job, early_exit_report
from harness.serving.dialects.dialect import SAMPLING, Dialect, Fields, Flag, Texts, finite, token_report


class TgiParameters(Fields):
    """``parameters`` of a request."""

    unchanging: ClassVar = {
        **SAMPLING, "do_sample": (False,), "typical_p": (1,), "repetition_penalty": (1,), "frequency_penalty": (0,),
        "best_of": (1,), "watermark": (False,), "decoder_input_details": (False,), "top_n_tokens": (0,),
        "grammar": ({},), "adapter_id": ("",),
    }  # fmt: skip

    max_new_tokens: int | None = Field(default=None, description="From 1; default: the server's cap.")
    stop: Texts = Field(default=(), description="A text or a list; kept in the completion.")
    details: Flag = Field(default=False, description="true: each token, and why it ended.")
    return_full_text: Flag = Field(default=False, description="true: begin with the prompt.")
    truncate: int | None = Field(default=None, description="Any number: a prompt that is too long loses its beginning.")
    seed: int | None = None
    cache_prompt: Flag = Field(default=True, description="false: read the whole prompt, and keep nothing of it.")

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, given: Any) -> Any:
        """llm-ls nests ``parameters.parameters`` where its user set none."""
        inner = given.get("parameters") if isinstance(given, Mapping) else None
        if not isinstance(inner, Mapping):
            return given
        return {**inner, **{name: value for name, value in given.items() if value is not None}}


class Tgi(Dialect):
    """A request to TGI's ``/generate``."""

    client = "TGI"
    paths: ClassVar = {"/generate": "Complete a text."}
    answers = "TGI's, a list of one at / and /models; as events one for each token, the last with generated_text"
    frame = (b"data:", b"\n\n")
    reasons = ("eos_token", "stop_sequence", "length")

    inputs: str = Field(min_length=1, description="Text before the cursor.")
    parameters: TgiParameters = TgiParameters()
    _latest: Token | None = None

    def jobs(self, make: Callable[..., Job]) -> list[Job]:
        asked = self.parameters
        return [
            make(
                self.inputs, max_new_tokens=asked.max_new_tokens, stop=asked.stop, keep_stop=True,
                truncate=asked.truncate is not None, seed=asked.seed or 0, reuse=asked.cache_prompt,
            )
        ]  # fmt: skip

    def chunk(self, place: int, token: Token) -> Sequence[dict[str, Any]]:
        self._latest = token
        return [] if token.last else [self._event(token, "")]  # the last one comes with the ending

    def last(self, place: int, done: Finished) -> Sequence[dict[str, Any]]:
        assert self._latest is not None, "an ending comes after its last token"
        token = self._latest
        if not token.last:  # a strategy ended it, and the token is sent: its index comes again, without its text
            token = replace(token, text="", special=not done.rest)
        details = self._details(done) | {"input_length": done.prompt_tokens}
        ending = {"generated_text": self._text(done), "details": details, "x_early_exit": early_exit_report(done)}
        return [self._event(token, done.rest) | ending]

    def whole(self, endings: Sequence[Finished]) -> Any:
        (done,) = endings
        answer = {"generated_text": self._text(done), "x_early_exit": early_exit_report(done)}
        if self.parameters.details:
            *others, last = done.tokens
            tokens = [*map(_token, others), _token(last, done.rest)]
            answer["details"] = self._details(done) | {"prefill": [], "tokens": tokens}
        return answer

    def _text(self, done: Finished) -> str:
        return (self.inputs if self.parameters.return_full_text else "") + done.text

    def _details(self, done: Finished) -> dict[str, Any]:
        reason = self.reason(done.ending)
        return {"finish_reason": reason, "generated_tokens": done.new_tokens, "seed": self.parameters.seed}

    def _event(self, token: Token, rest: str) -> dict[str, Any]:
        # clients expect null for the text and the details
        return {"index": token.index + 1, "token": _token(token, rest), "generated_text": None, "details": None}


class TgiStream(Tgi):
    """A request to TGI's ``/generate_stream``."""

    paths: ClassVar = {"/generate_stream": "Complete a text, token by token."}

    @property
    def streams(self) -> bool:
        """Always."""
        return True


class TgiAnywhere(Tgi):
    """A request to ``/``, or to any model's name as with Hugging Face's hosted models."""

    paths: ClassVar = {
        "/": "Complete a text: a list of one, or events where ``stream`` is true.",
        "/models/{model:path}": "Complete a text as / does, of the model that is served.",
    }
    stream: Flag = Field(default=False, description="true: server-sent events.")

    def whole(self, endings: Sequence[Finished]) -> Any:
        return [super().whole(endings)]


def _token(token: Token, rest: str = "") -> dict[str, Any]:
    """Return a token; what was held back until the ending is the last one's."""
    said = {"id": token.token_id, "text": token.text + rest, "logprob": finite(token.logprob), "special": token.special}
    return said | token_report(token)
