"""Placeholders of values in a command's help."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Placeholder"]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The placeholder of a value in a command's help: ``Annotated[Path, Placeholder("DIR")]``."""

    text: str
