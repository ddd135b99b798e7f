"""Drafts of lossless decoding: how many, how much of them full depth agrees with, and their cost.

Totals over totals, all repeats; rows that are lossy have none of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

from harness.contracts import Metric
from harness.records import SampleRecord
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.metrics.point import Point, Units, over_blocks, rates
from reports.metrics.vocabulary import DRAFTS
from reports.statistics.intervals import Pair, ratio, ratio_interval, share_interval
from reports.summary.measured import after_first

_Count = Callable[[SampleRecord], float]
_OfPairs = Callable[[Sequence[Pair]], Interval | NoInterval]


def _decoded(sample: SampleRecord) -> int:
    """Tokens behind the first one, which prefill yields."""
    return max(len(sample.token_ids) - 1, 0)


def _total(over: _Count, under: _Count, interval: _OfPairs | None, point: Point) -> Estimate | float | None:
    if not point.cell.point.lossless:
        return None
    if interval is None:
        return ratio(sum(map(over, point.samples)), sum(map(under, point.samples)))
    return over_blocks(point.cell, ((one, Pair(over(one), under(one))) for one in point.samples), interval)


def _units(over: _Count, under: _Count, point: Point) -> Units:
    """The two counts of each sample; none of a lossy row, and none of samples that the ratio does not count."""
    if not point.cell.point.lossless:
        return {}
    return rates(point.cell, lambda sample: (float(over(sample)), float(under(sample))) if under(sample) else None)


def _share(
    name: str, header: str, meaning: str, *, over: _Count, under: _Count, interval: _OfPairs | None = None, **facts: Any
) -> Metric:
    return Metric(
        name,
        header,
        meaning,
        compute=partial(_total, over, under, interval),
        interval=interval is not None,
        units=partial(_units, over, under),
        **{"kind": "work", **facts},
    )


TOKENS_PER_VERIFICATION = _share(
    "tokens_per_verification",
    "tokens /\nverification",
    "tokens that came out of a pass through all layers",
    over=_decoded,
    under=attrgetter("verifications"),
    interval=ratio_interval,
    better="higher",
    sections={DRAFTS: 1},
)
ACCEPTANCE = _share(
    "acceptance",
    "accepted",
    "share of drafted tokens that full depth agreed with",
    over=attrgetter("accepted_tokens"),
    under=attrgetter("drafts"),
    interval=share_interval,
    better="higher",
    form="fraction",
    sections={DRAFTS: 2},
)
DRAFTED = _share(
    "drafted_per_token",
    "drafted\n/token",
    "tokens drafted, those that were discarded included",
    over=attrgetter("drafts"),
    under=_decoded,
    sections={DRAFTS: 3},
)
_layers = partial(_share, under=_decoded, better="lower", unit="layers")
LAYERS_READ = _layers(
    "layers_read_per_token",
    "layers read\n/token",
    "decoder layers whose weights were read; one that several tokens ran in one pass counts once",
    over=attrgetter("layers_read"),
    sections={DRAFTS: 4},
)
LAYERS_DISCARDED = _layers(
    "layers_discarded_per_token",
    "discarded\n/token",
    "layers run for drafts that full depth did not agree with",
    over=attrgetter("layers_discarded"),
    sections={DRAFTS: 5},
)
VERIFIED_TIME = _share(
    "verified_token_s",
    "time/verified\ntoken",
    "time after the first token over the tokens after it, all of which full depth verified",
    over=lambda sample: (after_first(sample) or (0.0, 0))[0],
    under=_decoded,
    kind="cost",
    better="lower",
    unit="s",
    form="seconds",
    sections={DRAFTS: 6},
)
