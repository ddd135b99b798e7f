"""What lossless decoding drafts, how much of it full depth agrees with, and what the drafts cost.

All of it is work, not time: totals over totals, all repeats. Rows that are lossy have none of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from harness.contracts import Metric
from harness.records import SampleRecord
from reports.metrics.point import Point
from reports.metrics.sections import DRAFTS
from reports.metrics.units import Units, rates
from reports.statistics.intervals import ratio

__all__ = ["ACCEPTANCE", "DRAFTED", "LAYERS_DISCARDED", "LAYERS_READ", "TOKENS_PER_VERIFICATION"]

_Count = Callable[[SampleRecord], int]


def _decoded(sample: SampleRecord) -> int:
    """Tokens behind the first one, which prefill yields."""
    return max(len(sample.token_ids) - 1, 0)


def _accepted(sample: SampleRecord) -> int:
    return sum(sample.accepted)


def _total(over: _Count, under: _Count, point: Point) -> float | None:
    if not point.cell.point.lossless:
        return None
    return ratio(sum(map(over, point.samples)), sum(map(under, point.samples)))


def _units(over: _Count, under: _Count, point: Point) -> Units:
    """The two counts of each sample; none of a lossy row, and none of samples that the ratio does not count."""
    if not point.cell.point.lossless:
        return {}
    return rates(point.cell, lambda sample: (float(over(sample)), float(under(sample))) if under(sample) else None)


def _share(*, over: _Count, under: _Count, place: float, **facts: object) -> Metric:
    return Metric(
        compute=partial(_total, over, under),
        units=partial(_units, over, under),
        kind="work",
        sections={DRAFTS: place},
        **facts,  # type: ignore[arg-type]
    )


TOKENS_PER_VERIFICATION = _share(
    name="tokens_per_verification",
    header="tokens /\nverification",
    meaning="tokens that came out of a pass through all layers",
    over=_decoded,
    under=lambda sample: sample.verifications,
    place=1,
    better="higher",
)
ACCEPTANCE = _share(
    name="acceptance",
    header="accepted",
    meaning="share of drafted tokens that full depth agreed with",
    over=_accepted,
    under=lambda sample: sample.drafts,
    place=2,
    better="higher",
    form="fraction",
)
DRAFTED = _share(
    name="drafted_per_token",
    header="drafted\n/token",
    meaning="tokens drafted, those that were discarded included",
    over=lambda sample: sample.drafts,
    under=_decoded,
    place=3,
)
LAYERS_READ = _share(
    name="layers_read_per_token",
    header="layers read\n/token",
    meaning="decoder layers whose weights were read; one that several tokens ran in one pass counts once",
    over=lambda sample: sample.layers_read,
    under=_decoded,
    place=4,
    better="lower",
    unit="layers",
)
LAYERS_DISCARDED = _share(
    name="layers_discarded_per_token",
    header="discarded\n/token",
    meaning="layers run for drafts that full depth did not agree with",
    over=lambda sample: sample.layers_discarded,
    under=_decoded,
    place=5,
    better="lower",
    unit="layers",
)
