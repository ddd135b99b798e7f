"""What every record in a file has in common: frozen, tolerant of fields it does not know, and free of NaN."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["Record"]


class Record(BaseModel):
    """A line or a document of a file. Readers ignore fields of later versions; a number is finite or ``None``."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)
