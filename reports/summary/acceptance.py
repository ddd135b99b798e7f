"""Which drafted tokens stood: by draft source, by the layer an exit drafted at, and by kind of token.

Every drafted token counts once, under what drafted it and under the kind it would have been in the text it was drafted
in, whatever full depth said in its place. Those behind a replaced one count as discarded, as they do in the acceptance
of the whole row: what is drafted in vain costs the same whether or not it was right. All repeats count; blocks of
samples are resampled.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product, zip_longest

from harness.records import SampleRecord
from harness.records.estimate import Estimate
from harness.records.summary import EXIT, Acceptance
from reports.completions.token_kinds import KINDS, kinds_of
from reports.statistics.intervals import Pair, share_interval
from reports.summary.measured import Measured

Group = tuple[str | None, int | None, str | None]  # source, layer, kind


@dataclass(frozen=True, slots=True)
class _Drafted:
    """A drafted token: layers that ran before it, its kind and whether it stood."""

    layer: int
    kind: str | None
    stood: bool


def acceptances(cell: Measured) -> Iterator[Acceptance]:
    """Yield what stood of the drafts of an operating point: sources before exits, layers upwards, all of them last.

    Nothing of a lossy one, of one that drafted nothing, and where a sample does not say what was discarded.
    """
    if not cell.point.lossless or not cell.tells_discarded:
        return
    counts: dict[Group, Counter[tuple[int, bool]]] = defaultdict(Counter)
    source_of_none = " or ".join(cell.point.draft_sources) or cell.point.strategy  # what proposes and runs no layer
    for sample in cell.samples.values():
        block = cell.windows[sample.window].block
        for token in _drafted(sample, cell.task.language):
            for group in _groups(token, source_of_none):
                counts[group][block, token.stood] += 1
    blocks = sorted({cell.windows[sample.window].block for sample in cell.samples.values()})
    for group in sorted(counts, key=_place):
        count = counts[group]
        pairs = [Pair(count[block, True], count[block, True] + count[block, False]) for block in blocks]
        kept, drafted = sum(pair.baseline for pair in pairs), sum(pair.other for pair in pairs)
        source, layer, kind = group
        yield Acceptance(
            source=source,
            layer=layer,
            kind=kind,
            drafted=int(drafted),
            accepted=int(kept),
            share=Estimate.of(kept / drafted, share_interval(pairs), n=sum(pair.other > 0 for pair in pairs)),
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
