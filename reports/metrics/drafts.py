"""Drafts of lossless decoding: how many, how much of them full depth agrees with, and their cost.

Totals over totals, all repeats. Rows that are lossy have none of it. Every token of a lossless row is verified, but the
first, which prefill says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from harness.contracts import Metric
from harness.records import SampleRecord
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.metrics.point import Point, Units, rates
from reports.metrics.vocabulary import DRAFTS
from reports.statistics.intervals import Pair, pooled, ratio, ratio_interval, share_interval
from reports.summary.measured import after_first

_Count = Callable[[SampleRecord], float]
_OfPairs = Callable[[Sequence[Pair]], Interval | NoInterval]


def _decoded(sample: SampleRecord) -> int:
    """Tokens behind the first one, which prefill yields."""
    return max(len(sample.token_ids) - 1, 0)


def _total(over: _Count, under: _Count, point: Point) -> float | None:
    if not point.cell.point.lossless:
        return None
    return ratio(sum(map(over, point.samples)), sum(map(under, point.samples)))


def _units(over: _Count, under: _Count, point: Point) -> Units:
    """The two counts of each sample; none of a lossy row, and none of samples that the ratio does not count."""
    if not point.cell.point.lossless:
        return {}
    return rates(point.cell, lambda sample: (float(over(sample)), float(under(sample))) if under(sample) else None)


def _ranged(over: _Count, under: _Count, of_pairs: _OfPairs, point: Point) -> Estimate | None:
    """The same with its interval over blocks of samples."""
    value = _total(over, under, point)
    if value is None:
        return None
    cell = point.cell
    blocks = ((cell.windows[one.window].block, Pair(over(one), under(one))) for one in cell.samples.values())
    pairs = pooled(blocks)
    return Estimate.of(value, of_pairs(pairs), n=len(pairs))


def _share(*, over: _Count, under: _Count, place: float, interval: _OfPairs | None = None, **facts: Any) -> Metric:
    return Metric(
        compute=partial(_ranged, over, under, interval) if interval else partial(_total, over, under),
        interval=interval is not None,
        units=partial(_units, over, under),
        sections={DRAFTS: place},
        **{"kind": "work", **facts},
    )


TOKENS_PER_VERIFICATION = _share(
    name="tokens_per_verification",
    header="tokens /\nverification",
    meaning="tokens that came out of a pass through all layers",
    over=_decoded,
    under=lambda sample: sample.verifications,
    place=1,
    interval=ratio_interval,
    better="higher",
)
ACCEPTANCE = _share(
    name="acceptance",
    header="accepted",
    meaning="share of drafted tokens that full depth agreed with",
    over=lambda sample: sample.accepted_tokens,
    under=lambda sample: sample.drafts,
    place=2,
    interval=share_interval,
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
VERIFIED_TIME = _share(
    name="verified_token_s",
    header="time/verified\ntoken",
    meaning="time after the first token over the tokens after it, all of which full depth verified",
    over=lambda sample: (after_first(sample) or (0.0, 0))[0],
    under=_decoded,
    place=6,
    kind="cost",
    better="lower",
    unit="s",
    form="seconds",
)
