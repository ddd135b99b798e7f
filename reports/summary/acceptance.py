"""Which drafted tokens stood: by draft source, by the layer an exit drafted at, and by kind of token.

Every drafted token counts once, under what drafted it and under the kind it would have been in the text it was drafted
in, whatever full depth said in its place. Those behind a replaced one count as discarded, as they do in the acceptance
of the whole row: what is drafted in vain costs the same whether or not it was right. All repeats count; blocks of
samples are resampled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product, zip_longest

from harness.records import SampleRecord
from harness.records.acceptance import EXIT, Acceptance
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.completions.token_kinds import KINDS, kinds_of
from reports.statistics.intervals import MINIMUM_DIFFERING
from reports.summary.measured import Measured
from reports.summary.resampling import Resampling

__all__ = ["acceptances", "tells_discarded"]

Group = tuple[str | None, int | None, str | None]  # source, layer, kind


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A drafted token: layers that ran before it, its kind and whether it stood."""

    layer: int
    kind: str | None
    stood: bool


def acceptances(cells: Sequence[Measured]) -> Iterator[Acceptance]:
    """Yield what stood of the drafts of the lossless operating points of one task, in their order.

    An operating point of which a sample does not say what was discarded is left out, and one that drafted nothing.
    """
    drafting = [cell for cell in cells if cell.point.lossless and tells_discarded(cell)]
    resampling = Resampling(drafting)
    for cell in drafting:
        by_block: Counter[tuple[Group, int, bool]] = Counter()
        counts: Counter[tuple[Group, bool]] = Counter()
        for sample in cell.samples.values():
            block = cell.windows[sample.window].block
            for token in _drafted(sample, cell.task.language):
                for group in _groups(token, _source(cell)):
                    by_block[group, block, token.stood] += 1
                    counts[group, token.stood] += 1
        terms = ((group, block, stood * count, count) for (group, block, stood), count in by_block.items())
        found = resampling.ratio_by(terms)
        for group in sorted(found, key=_place):
            kept, lost = counts[group, True], counts[group, False]
            yield Acceptance(
                task=cell.task.name,
                operating_point=cell.point.name,
                source=group[0],
                layer=group[1],
                kind=group[2],
                drafted=kept + lost,
                accepted=kept,
                share=Estimate.of(found[group].value, _interval(found[group].ci, kept, lost)),
            )


def _interval(ci: Interval | None, kept: int, lost: int) -> Interval | NoInterval:
    return NoInterval.FEW_DIFFERING if min(kept, lost) < MINIMUM_DIFFERING else ci or NoInterval.FEW_PAIRS


def tells_discarded(cell: Measured) -> bool:
    """Whether the samples of a lossless operating point say of all drafted tokens what became of them."""
    return all(
        sample.drafts == sum(sample.accepted) + sum(len(one.token_ids) for one in sample.discarded)
        for sample in cell.samples.values()
    )


def _drafted(sample: SampleRecord, language: str) -> Iterator[_Drafted]:
    kinds = kinds_of(sample.token_texts, language)
    for layer, stood, kind in zip_longest(sample.drafted_at, sample.accepted, kinds):
        if stood and layer is not None:
            yield _Drafted(layer, kind, True)
    for one in sample.discarded:
        before = sample.token_texts[: one.place]
        there = kinds_of([*before, *one.token_texts], language)[len(before) :]
        for layer, kind in zip(one.drafted_at, there, strict=True):
            yield _Drafted(layer, kind, False)


def _source(cell: Measured) -> str:
    """What proposes tokens without running a layer: a draft source, or the strategy's own rule."""
    return " or ".join(cell.point.draft_sources) or cell.point.strategy


def _groups(token: _Drafted, source: str) -> Iterator[Group]:
    """Yield the groups that a token counts in."""
    origins: list[tuple[str | None, int | None]] = [(None, None)]
    origins += [(EXIT, None), (EXIT, token.layer)] if token.layer else [(source, None)]
    for (name, layer), kind in product(origins, dict.fromkeys((None, token.kind))):
        yield name, layer, kind


def _place(group: Group) -> tuple[int, str, int, int]:
    """Sources before exits, all of them last; the same of layers and kinds."""
    source, layer, kind = group
    order = 2 if source is None else int(source == EXIT)
    return order, source or "", 2**53 if layer is None else layer, -1 if kind is None else KINDS.index(kind)
