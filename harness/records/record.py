"""The base of every record in a file: frozen, tolerant of fields it does not know, free of NaN, and bounded."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things, a place or an id: no more than a double counts exactly."""
Positive = Annotated[int, Field(ge=1, le=2**53)]
"""A number of things of which there is one at least."""


class Record(BaseModel):
    """A line or a document of a file. Readers ignore fields of later versions; a number is finite or ``None``."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
