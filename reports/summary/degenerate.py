"""Whether full depth, which everything is compared with, says anything: it may repeat one token, or fail throughout.

Weights that are damaged or overflow look like that. Every exit then agrees with full depth, at any layer, so that the
ordinary numbers are the best there are. Declared once: it is the first note of a report and why a run does not rank.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.records import Manifest
from reports.summary.measured import Measured

__all__ = ["degenerate"]

ENOUGH = 4
"""Completions of two tokens or more, of one token all of them, that are no chance."""


def degenerate(manifest: Manifest, cells: Iterable[Measured]) -> str | None:
    """Say what is wrong with full depth on the first task where something is; ``None`` where nothing is.

    Args:
        manifest: full depth is its first operating point.
        cells: what counts of the run, in any order.
    """
    for cell in cells:
        if cell.point.name == manifest.operating_points[0].name and (found := _wrong_with(cell)):
            return f"full depth on {cell.task.name} {found}"
    return None


def _wrong_with(full: Measured) -> str | None:
    failed = [sample.error for sample in full.failed.values() if sample.prompt_ids]  # the others are bad rows
    if failed and not full.samples:
        return f"failed on every sample (the first one: {str(failed[0]).rstrip('.')})"
    made = {token for sample in full.scored for token in sample.token_ids}
    if len(made) == 1 and sum(len(sample.token_ids) > 1 for sample in full.scored) >= ENOUGH:
        return f"makes token {made.pop()} and no other, in all of its {len(full.scored)} completions"
    return None
