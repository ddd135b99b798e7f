"""Messages of commands over many directories about those they leave out: never more lines than a reader wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.appearance.visible_text import one_line
from harness.commands.console import tell

if TYPE_CHECKING:
    from harness.appearance.terminal import Console

__all__ = ["LISTED", "tell_refused"]

LISTED = 20
"""Refusals that are printed one by one."""


def tell_refused(refused: Sequence[tuple[Path, str]], console: Console, mark: str = "left out") -> None:
    """Say what was left out and why: one line each, or one per kind of reason when there are many.

    Args:
        refused: paths and reasons.
        console: where to say it.
        mark: what became of them, before each line.
    """
    shown = [(one_line(str(path)), one_line(reason)) for path, reason in refused]
    for path, reason in shown[:LISTED]:
        tell(console, mark, reason if path in reason else f"{path}: {reason}")
    kinds = Counter(reason.replace(path, "…") for path, reason in shown[LISTED:])
    for reason, count in kinds.most_common(LISTED):
        tell(console, mark, f"{count} more: {reason}")
    if len(kinds) > LISTED:
        others = sum(count for _, count in kinds.most_common()[LISTED:])
        tell(console, mark, f"{others} more for other reasons")
