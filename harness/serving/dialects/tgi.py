"""Hugging Face's dialect: ``/generate`` and ``/generate_stream`` of TGI, and the addresses its clients use.

The text that ended a completion belongs to it here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, model_validator

from harness.decoding.generation import Token
from harness.serving.completions import Finished, Wanted, early_exit_report
from harness.serving.dialects.dialect import (
    Dialect,
    Flag,
    Limit,
    Texts,
    Whole,
    finite,
    read_object,
    refused,
    token_report,
)


class TgiParameters(BaseModel):
    """``parameters`` of a request; what is not named here changes nothing."""

    max_new_tokens: Annotated[Limit, Field(description="From 1; default: the server's cap.")] = None
    stop: Annotated[Texts, Field(description="A text or a list; kept in the completion.")] = ()
    details: Annotated[Flag, Field(description="true: each token, and why it ended.")] = False
    return_full_text: Annotated[Flag, Field(description="true: begin with the prompt.")] = False
    truncate: Annotated[Whole, Field(description="Any number: a prompt that is too long loses its beginning.")] = None
    seed: Whole = None

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """llm-ls nests ``parameters.parameters`` where its user set none."""
        inner = given.get("parameters") or {}
        if not isinstance(inner, Mapping):
            raise refused("parameters.parameters", inner, "an object")
        return {name: value for each in (inner, given) for name, value in each.items() if value is not None}


class Tgi(Dialect):
    """A request to TGI's ``/generate``."""

    client = "TGI"
    paths: ClassVar = {"/generate": "Complete a text."}
    answers = "TGI's, a list of one at / and /models; as events one for each token, the last with generated_text"
    frame = (b"data:", b"\n\n")
    reasons = ("eos_token", "stop_sequence", "length")

    inputs: Annotated[str, Field(min_length=1, description="Text before the cursor.")]
    parameters: Annotated[TgiParameters, read_object] = TgiParameters()
    _latest: Token | None = None

    def wanted(self) -> list[Wanted]:
        asked = self.parameters
        return [
            Wanted(
                self.inputs,
                max_new_tokens=asked.max_new_tokens,
                stop=asked.stop,
                keep_stop=True,
                early_exit=self.early_exit,
                truncate=asked.truncate is not None,
                seed=(asked.seed or 0) % 2**63,
            )
        ]

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
        "/models/{model:path}": "Complete a text as / does; any model name is accepted.",
    }
    stream: Annotated[Flag, Field(description="true: server-sent events.")] = False

    def whole(self, endings: Sequence[Finished]) -> Any:
        return [super().whole(endings)]


def _token(token: Token, rest: str = "") -> dict[str, Any]:
    """Return a token; what was held back until the ending is the last one's."""
    said = {"id": token.token_id, "text": token.text + rest, "logprob": finite(token.logprob), "special": token.special}
    return said | token_report(token)
