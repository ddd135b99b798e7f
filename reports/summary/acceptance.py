"""Which drafted tokens stood: by draft source, by the layer an exit drafted at, and by kind of token.

Every drafted token counts once, under what drafted it and under the kind it would have been in the text it was drafted
in. Those behind a replaced one count as discarded. All repeats count; intervals are over blocks of samples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import product, zip_longest

from harness.records import SampleRecord
from harness.records.estimate import Estimate
from harness.records.summary import EXIT, Acceptance
from reports.completions.token_kinds import KINDS, kinds_of
from reports.statistics.intervals import Pair, share_interval
from reports.summary.measured import Measured

Group = tuple[str | None, int | None, str | None]  # source, layer, kind


def acceptances(cell: Measured) -> Iterator[Acceptance]:
    """Yield what stood of the drafts of a lossless operating point: sources before exits, layers upwards, all last."""
    if not cell.point.lossless:
        return
    counts: dict[Group, Counter[tuple[int, bool]]] = defaultdict(Counter)
    source = " or ".join(cell.point.draft_sources) or cell.point.strategy  # what proposes and runs no layer
    for sample in cell.samples.values():
        block = cell.unit(sample)
        for layer, kind, stood in _drafted(sample, cell.task.language):
            origins = {(None, None), *([(EXIT, None), (EXIT, layer)] if layer else [(source, None)])}
            for origin, of in product(origins, {None, kind}):
                counts[*origin, of][block, stood] += 1
    blocks = sorted(set(map(cell.unit, cell.samples.values())))
    for group in sorted(counts, key=_place):
        count = counts[group]
        pairs = [Pair(count[block, True], count[block, True] + count[block, False]) for block in blocks]
        kept, drafted = sum(pair.baseline for pair in pairs), sum(pair.other for pair in pairs)
        share = Estimate.of(kept / drafted, share_interval(pairs), n=sum(pair.other > 0 for pair in pairs))
        name, at, of = group
        yield Acceptance(source=name, layer=at, kind=of, drafted=int(drafted), accepted=int(kept), share=share)


def _drafted(sample: SampleRecord, language: str) -> Iterator[tuple[int, str | None, bool]]:
    """Yield of each drafted token the layers that ran before it, its kind and whether it stood."""
    kinds = kinds_of(sample.token_texts, language)
    for layer, stood, kind in zip_longest(sample.drafted_at, sample.accepted, kinds):
        if stood and layer is not None:
            yield layer, kind, True
    for one in sample.discarded:
        before = sample.token_texts[: one.place]
        there = kinds_of([*before, *one.token_texts], language)[len(before) :]
        for layer, kind in zip(one.drafted_at, there, strict=True):
            yield layer, kind, False


def _place(group: Group) -> tuple[int, str, int, int]:
    """Sources before exits, all of them last; the same of layers and kinds."""
    source, layer, kind = group
    order = 2 if source is None else int(source == EXIT)
    return order, source or "", 2**53 if layer is None else layer, -1 if kind is None else KINDS.index(kind)
