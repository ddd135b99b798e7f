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


def _share(name: str, header: str, meaning: str, over: _Count, under: _Count, place: float, **facts: object) -> Metric:
    return Metric(
        name=name,
        header=header,
        meaning=meaning,
        compute=partial(_total, over, under),
        units=partial(_units, over, under),
        kind="work",
        sections={DRAFTS: place},
        **facts,  # type: ignore[arg-type]
    )


TOKENS_PER_VERIFICATION = _share(
    "tokens_per_verification", "tokens /\nverification", "tokens that came out of a pass through all layers",
    _decoded, lambda sample: sample.verifications, 1, better="higher",
)  # fmt: skip
ACCEPTANCE = _share(
    "acceptance", "accepted", "share of drafted tokens that full depth agreed with",
    _accepted, lambda sample: sample.drafts, 2, better="higher", form="fraction",
)  # fmt: skip
DRAFTED = _share(
    "drafted_per_token", "drafted\n/token", "tokens drafted, those that were discarded included",
    lambda sample: sample.drafts, _decoded, 3,
)  # fmt: skip
LAYERS_READ = _share(
    "layers_read_per_token", "layers read\n/token",
    "decoder layers whose weights were read; one that several tokens ran in one pass counts once",
    lambda sample: sample.layers_read, _decoded, 4, better="lower", unit="layers",
)  # fmt: skip
LAYERS_DISCARDED = _share(
    "layers_discarded_per_token", "discarded\n/token", "layers run for drafts that full depth did not agree with",
    lambda sample: sample.layers_discarded, _decoded, 5, better="lower", unit="layers",
)  # fmt: skip
