"""Whether lossless rows are: their tokens against full depth's, asserted and not averaged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.contracts import common_prefix
from reports.summary.acceptance import tells_discarded
from reports.summary.measured import Measured, full_depths

__all__ = ["about_lossless"]


def about_lossless(cells: Sequence[Measured]) -> Iterator[str]:
    """Say of all lossless operating points of all tasks whether their tokens are full depth's in the same format."""
    compared, wrong = 0, []
    for cell in cells:
        if not cell.point.lossless:
            continue
        full = full_depths(other for other in cells if other.task == cell.task).get(cell.conditions.weights_format)
        keys = [] if full is None else [key for key in cell.shared(full) if key[1] == 0]
        for key in keys:
            assert full is not None
            compared += 1
            mine, reference = cell.samples[key].token_ids, full.samples[key].token_ids
            if cell.samples[key].finish_reason == "stop" and cell.point.stop:  # it ends a completion that would go on
                reference = reference[: len(mine)]
            if mine != reference:
                wrong.append((cell, key[0], common_prefix(mine, reference) + 1))
    if wrong:
        cell, sample_id, place = wrong[0]
        yield (
            f"lossless rows differ from full depth in {len(wrong)} of {compared} completions, first {cell.point.name} "
            f"in {sample_id} at token {place}. Products of several rows may round otherwise than those of one, and tip "
            "a near-tie; anything else is a defect. `harness verify` tells one from the other."
        )
    elif compared:
        cut = (
            ", up to where a stop rule ends them"
            if any(cell.point.lossless and cell.point.stop for cell in cells)
            else ""
        )
        yield f"lossless rows: the tokens are full depth's in all {compared} completions{cut}."
    if not all(tells_discarded(cell) for cell in cells if cell.point.lossless):
        yield (
            "which drafts stood, by source, layer and kind, is not known: the run was recorded before discarded drafts "
            "were. Run it again for that."
        )
