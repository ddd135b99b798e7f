"""Bodies of Ollama's ``/api/generate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.serving.http.schemas.early_exit import Accepted, Answer, DraftedAt, EarlyExitReport
from harness.serving.http.schemas.values import Controls, Flag, Object, Text, object_of

__all__ = ["DoneReason", "Generate", "Generated"]

DoneReason = Literal["stop", "length"]


class Generate(BaseModel):
    """A request. Unknown fields are accepted and ignored, also inside ``options``."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"examples": [{"prompt": "def add(a, b):\n", "options": {"num_predict": 20}}]},
    )

    prompt: Annotated[str, Field(min_length=1, description="Text before the cursor.")]
    suffix: Annotated[Text, Field(description="Text after the cursor.")] = None
    stream: Annotated[Flag, Field(description="false: one object. Else one line of JSON per token, and the last.")] = (
        None
    )
    truncate: Annotated[
        Flag, Field(description="false: refuse a prompt that is too long. Else it loses its beginning.")
    ] = None
    options: Annotated[
        Object,
        Field(
            description="An object. Used: num_predict (from 1; -1, -2: the server's cap), stop (a text or a list), "
            "seed, early_exit. Decoding is greedy: temperature, top_p … change nothing."
        ),
    ] = None
    early_exit: Controls = None

    def asked(self) -> Mapping[str, Any]:
        """Return the options."""
        return object_of("options", self.options)


class Generated(Answer):
    """The whole answer, one token of it, or its ending."""

    model: str
    created_at: str
    response: Annotated[str, Field(description="The completion, or what this line adds to it.")]
    done: bool
    exit_layer: Annotated[int | None, Field(description="Of a token: decoder layers executed for it.")] = None
    drafted_at: DraftedAt = None
    accepted: Accepted = None
    done_reason: Annotated[DoneReason | None, Field(description="A deadline is a length too.")] = None
    total_duration: Annotated[int | None, Field(description="Nanoseconds from arrival to the last token.")] = None
    load_duration: Annotated[int | None, Field(description="Always 0: the model is there.")] = None
    prompt_eval_count: Annotated[int | None, Field(description="Tokens read.")] = None
    prompt_eval_duration: Annotated[
        int | None, Field(description="Nanoseconds until the first token, without the queue.")
    ] = None
    eval_count: Annotated[int | None, Field(description="Tokens made.")] = None
    eval_duration: Annotated[int | None, Field(description="Nanoseconds from the first token to the last.")] = None
    x_early_exit: EarlyExitReport | None = None
