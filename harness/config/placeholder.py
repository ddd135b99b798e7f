"""What stands for a value in a command's help."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Placeholder"]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What stands for a value in a command's help: ``Annotated[Path, Placeholder("DIR")]``."""

    text: str
