"""A view on which a rule is asked for its answer alone: it ends no completion."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from harness.contracts import ExitView

__all__ = ["unheard"]


def unheard(view: ExitView) -> ExitView:
    """Return a view like another, on which ``stop`` does nothing: whoever does not leave goes on."""
    return cast("ExitView", _Unheard(view))


class _Unheard:
    """Implements :class:`harness.contracts.ExitView`."""

    def __init__(self, view: ExitView) -> None:
        self._view = view

    def __getattr__(self, name: str) -> object:
        return getattr(self._view, name)

    def stop(self, rows: Tensor) -> None:
        """Let them go on."""

    def part(self, places: list[int]) -> ExitView:
        """Of some rows, as deaf."""
        return unheard(self._view.part(places))
