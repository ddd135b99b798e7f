"""What long work tells the one who waits for it."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Silent", "Watch"]


class Watch(Protocol):
    """Is told how training goes on; the command line draws a progress bar from it."""

    def stage(self, text: str) -> None:
        """Something slow begins that has no steps to count."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """So many steps are to be done, so many of them were before."""

    def step(self, done: int, note: str = "") -> None:
        """So many steps are done now."""


class Silent:
    """Tells nobody."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def step(self, done: int, note: str = "") -> None:
        """Say nothing."""
