"""Bodies of Hugging Face's text-generation-inference (TGI)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.serving.http.schemas.early_exit import Accepted, Answer, DraftedAt, EarlyExitReport
from harness.serving.http.schemas.values import Controls, Flag, Object, flag, object_of

__all__ = ["Details", "FinishReason", "Generate", "Generation", "StreamDetails", "StreamEvent", "TgiToken"]

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Generate(BaseModel):
    """A request. Unknown fields are accepted and ignored, also inside ``parameters``."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "inputs": "def add(a, b):\n",
                    "parameters": {"max_new_tokens": 20, "early_exit": {"threshold": 0.9}},
                }
            ]
        },
    )

    inputs: Annotated[str, Field(min_length=1, description="Text before the cursor.")]
    parameters: Annotated[
        Object,
        Field(
            description="An object. Used: max_new_tokens (from 1; default: the server's cap), stop (a text or a list; "
            "kept in the completion), details, return_full_text (default false), truncate (any number: a prompt that "
            "is too long loses its beginning), seed, early_exit. Decoding is greedy: temperature, top_p … change "
            "nothing.",
        ),
    ] = None
    stream: Annotated[Flag, Field(description="true: server-sent events, at / and /models/… only.")] = None
    early_exit: Controls = None

    def asked(self) -> dict[str, Any]:
        """Return the parameters that are set, both switches, also where a client nests ``parameters.parameters``."""
        outer = object_of("parameters", self.parameters)
        inner = object_of("parameters.parameters", outer.get("parameters"))
        said = {name: value for name, value in inner.items() if value is not None}
        said |= {name: value for name, value in outer.items() if value is not None and name != "parameters"}
        return said | {name: flag(name, said.get(name)) for name in ("details", "return_full_text")}


class TgiToken(Answer):
    """One token."""

    id: int
    text: Annotated[str, Field(description="What it adds to the text; nothing while a character is incomplete.")]
    logprob: Annotated[float | None, Field(description="Under the exit head that chose it.")]
    special: bool
    exit_layer: Annotated[int, Field(description="Decoder layers executed for it.")]
    drafted_at: DraftedAt
    accepted: Accepted


class Details(Answer):
    """``details`` of a whole answer."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: Annotated[list[TgiToken], Field(max_length=0, description="Always empty.")]
    tokens: list[TgiToken]


class Generation(Answer):
    """A whole answer; ``details`` only where asked for."""

    generated_text: str
    details: Details | None = None
    x_early_exit: EarlyExitReport


class StreamDetails(Answer):
    """``details`` of a stream's last event."""

    finish_reason: FinishReason
    generated_tokens: int
    input_length: int
    seed: int | None


class StreamEvent(Answer):
    """One token of a stream; the last one has the whole text, ``details`` and ``x_early_exit``."""

    index: Annotated[int, Field(description="Counted from 1, as TGI does.")]
    token: TgiToken
    generated_text: str | None = None
    details: StreamDetails | None = None
    x_early_exit: EarlyExitReport | None = None
