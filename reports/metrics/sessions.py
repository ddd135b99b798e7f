"""The measures of an editor session: how long its user waits, for how much, and what is computed for nothing.

Only requests that are waited for have a latency; what typing overtakes is waste, and its energy counts. **Accepted
characters** are those of the longest common beginning of a completion and the true text
(:class:`tasks.scores.match.AcceptedPrefix`). Requests of one session are alike, so intervals are over sessions, each of
one document.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from harness.contracts import Metric
from harness.contracts.metrics import Kind
from harness.records import SampleRecord
from harness.records.estimate import Estimate, Interval, NoInterval
from reports.metrics.point import Point, Units, over_blocks, rates
from reports.metrics.stopping import Cost, accepted_units, joules, seconds, spent
from reports.metrics.vocabulary import HEADLINE, SESSIONS
from reports.statistics.intervals import Pair, ratio_interval, share_bounds, share_interval

_Parts = Callable[[SampleRecord], tuple[float, float] | None]
"""Part and whole that a request adds to a share; ``None`` where it has none."""


def _ttft(sample: SampleRecord) -> float | None:
    return sample.ttft_s if sample.session else None


def _latency(sample: SampleRecord) -> float | None:
    return sample.latency_s if sample.session else None


def _within(limit_s: float, sample: SampleRecord) -> tuple[float, float] | None:
    latency = _latency(sample)
    return None if latency is None else (float(latency < limit_s), 1.0)


def _overtaken(sample: SampleRecord) -> tuple[float, float] | None:
    latency = _latency(sample)
    if latency is None or sample.overtaken_s is None:
        return None
    return sample.overtaken_s, sample.overtaken_s + latency - (sample.queue_s or 0.0)


def _reused(sample: SampleRecord) -> tuple[float, float] | None:
    return (float(sample.prompt_reused), float(len(sample.prompt_ids))) if sample.session else None


def _prefetch(sample: SampleRecord) -> tuple[float, float] | None:
    return None if sample.prefetch_s is None else (sample.prefetch_s, 1.0)


def _prefetch_share(sample: SampleRecord) -> tuple[float, float] | None:
    if sample.prefetch_s is None or (overtaken := _overtaken(sample)) is None:
        return None
    return sample.prefetch_s, sample.prefetch_s + overtaken[1]


def _unused(sample: SampleRecord) -> tuple[float, float] | None:
    """A request may use what was prefetched before another one."""
    return float(sample.prefetched - sample.prefetch_used), float(sample.prefetched)


def _share(parts: _Parts, interval: Callable[[Sequence[Pair]], Interval | NoInterval], point: Point) -> Estimate | None:
    counted = ((sample, Pair(*found)) for sample in point.samples if (found := parts(sample)) is not None)
    return over_blocks(point.cell, counted, interval)


def _idle(parts: _Parts, point: Point) -> Estimate | None:
    return _share(parts, ratio_interval, point) if point.cell.conditions.prefetch else None


def _idle_units(parts: _Parts, point: Point) -> Units:
    return rates(point.cell, parts) if point.cell.conditions.prefetch else {}


def _accepted(cost: Cost, point: Point) -> Estimate | None:
    if not point.cell.conditions.keep:
        return None
    counted = ((samples[0], Pair(characters, paid)) for samples, paid, characters in spent(cost, point))
    return over_blocks(point.cell, counted, ratio_interval)


def _accepted_units(cost: Cost, point: Point) -> Units:
    units = accepted_units(cost, point) if point.cell.conditions.keep else {}
    return {key: row[::-1] for key, row in units.items()}


_of_session = partial(Metric, interval=True, black_box=True)
_wait = partial(_of_session, unit="s", form="seconds", better="lower")
_of_requests = partial(_of_session, form="percent")

SESSION_TTFT_P50, SESSION_TTFT_P95, SESSION_LATENCY_P50, SESSION_LATENCY_P95 = (
    _wait(
        f"session_{name}_p{percent}_s",
        f"{header}\np{percent}",
        f"{'median' if percent == 50 else f'{percent}th percentile of the'} wait for {what}",
        of_sample=read,
        percentile=percent,
        sections={SESSIONS: place, **headline},
        priority=5,
    )
    for place, name, header, what, read, percent, headline in (
        (3, "ttft", "first token", "the first token", _ttft, 50, {HEADLINE: 6.8}),
        (4, "ttft", "first token", "the first token", _ttft, 95, {}),
        (5, "latency", "whole", "the whole completion", _latency, 50, {}),
        (6, "latency", "whole", "the whole completion", _latency, 95, {}),
    )
)
"""median wait for the first token
95th percentile of the wait for the first token
median wait for the whole completion
95th percentile of the wait for the whole completion
"""
WITHIN_100_MS, WITHIN_200_MS = (
    _of_requests(
        f"within_{limit}_ms",
        f"under\n{limit} ms",
        f"share of whole completions in less than {limit} ms",
        compute=partial(_share, partial(_within, limit / 1000), share_interval),
        units=lambda point, limit=limit: rates(point.cell, partial(_within, limit / 1000)),
        better="higher",
        sections={SESSIONS: place},
    )
    for place, limit in ((7, 100), (8, 200))
)
"""share of whole completions in less than 100 ms
share of whole completions in less than 200 ms
"""
_COSTS: tuple[tuple[int, str, str, str, Cost, Kind], ...] = (
    (9, "s", "s", "the seconds of waiting for whole completions", seconds, "cost"),
    (10, "j", "J", "all energy, that of overtaken requests included", joules, "energy"),
)
ACCEPTED_PER_S, ACCEPTED_PER_J = (
    _of_session(
        f"accepted_characters_per_{unit}",
        f"accepted/{name}",
        f"characters until completions differ from the true text, over {over}",
        title=f"accepted characters/{name}",
        compute=partial(_accepted, cost),
        units=partial(_accepted_units, cost),
        kind=kind,
        better="higher",
        unit=f"1/{name}",
        sections={SESSIONS: place},
    )
    for place, unit, name, over, cost, kind in _COSTS
)
"""characters until completions differ from the true text, over the seconds of waiting for whole completions
the same over all energy, that of overtaken requests included
"""
WASTE = _of_requests(
    "overtaken_share",
    "waste",
    "share of the time of computing that went to requests that typing overtook",
    compute=partial(_share, _overtaken, share_bounds),
    units=lambda point: rates(point.cell, _overtaken),
    better="lower",
    sections={SESSIONS: 11},
)
PROMPT_REUSED = _of_requests(
    "prompt_reused",
    "prompt\nreused",
    "share of prompt tokens whose keys and values earlier requests had left",
    compute=partial(_share, _reused, share_bounds),
    units=lambda point: rates(point.cell, _reused),
    kind="work",
    black_box=False,
    sections={SESSIONS: 12},
)
_of_idle = partial(_of_session, better="lower", black_box=False)
PREFETCH_S, PREFETCH_SHARE, PREFETCH_UNUSED = (
    _of_idle(
        name,
        header,
        description,
        compute=partial(_idle, parts),
        units=partial(_idle_units, parts),
        sections={SESSIONS: place},
        **how,
    )
    for place, name, header, description, parts, how in (
        (11.2, "prefetch_s", "prefetch", "seconds of computing before a request, while its user typed", _prefetch,
         {"unit": "s", "form": "seconds"}),
        (11.4, "prefetch_share", "prefetch\nshare", "share of the time of computing that prefetch took",
         _prefetch_share, {"form": "percent"}),
        (11.6, "prefetch_unused", "prefetch\nunused", "share of the tokens decoded while the user typed that no "
         "request accepted", _unused, {"form": "percent", "kind": "work"}),
    )
)  # fmt: skip
"""seconds of computing before a request, while its user typed
share of the time of computing that prefetch took
share of the tokens decoded while the user typed that no request accepted
"""
