"""What commands over many directories say about those they leave out: never more lines than a reader wants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands.console import escape

if TYPE_CHECKING:
    from rich.console import Console

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
    for path, reason in refused[:LISTED]:
        text = reason if str(path) in reason else f"{path}: {reason}"
        console.print(f"[yellow]{mark}:[/] {escape(text)}", highlight=False, soft_wrap=True)
    rest = refused[LISTED:]
    kinds = Counter(reason.replace(str(path), "…") for path, reason in rest)
    for reason, count in kinds.most_common(LISTED):
        console.print(f"[yellow]{mark}:[/] {count} more: {escape(reason)}", highlight=False, soft_wrap=True)
    if len(kinds) > LISTED:
        others = sum(count for _, count in kinds.most_common()[LISTED:])
        console.print(f"[yellow]{mark}:[/] {others} more for other reasons", soft_wrap=True)
