"""Costs against full depth, paired: how much faster, and with how much less energy.

Ratios of totals, full depth's cost over this one's, paired by block of samples. Full depth itself has 1 by definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from harness.contracts import Metric, Wording
from harness.records import SampleRecord
from reports.metrics.point import Point
from reports.metrics.sections import AGAINST_FULL, BYTE_MODEL, ENERGY, HEADLINE, LEADERBOARD, REPEATS
from reports.metrics.units import Units, blocks, joined, rates
from reports.statistics.intervals import Pair, paired_ratio
from reports.summary.energy import has_energy, idle_power_w
from reports.summary.measured import Measured

__all__ = [
    "DECODE_SPEEDUP",
    "DECODE_SPEEDUP_HIGHEST",
    "DECODE_SPEEDUP_LOWEST",
    "ENERGY_RATIO",
    "NET_ENERGY_RATIO",
    "SPEEDUP",
    "SPEEDUP_HIGHEST",
    "SPEEDUP_LOWEST",
]

_ratio = partial(Metric, paired="ratio", form="ratio", unit="×", better="higher")


def _requests(point: Point) -> list[Pair]:
    return point.cell.window_pairs(point.full)


def _decoding(point: Point) -> list[Pair]:
    return point.cell.decode_pairs(point.full)


def _energy(point: Point) -> list[Pair] | None:
    return point.cell.energy_pairs(point.full) if has_energy(point.cell, point.full) else None


def _net_energy(point: Point) -> list[Pair] | None:
    idle_w = idle_power_w(point.cell, point.idle, point.manifest.meter)
    if idle_w is None or not has_energy(point.cell, point.full):
        return None
    return point.cell.energy_pairs(point.full, idle_w)


def _request_units(point: Point) -> Units:
    return joined(*(blocks(cell, cell.request_s) for cell in (point.full, point.cell)))


def _decoding_units(point: Point) -> Units:
    def seconds_and_tokens(sample: SampleRecord) -> tuple[float, float] | None:
        times = sample.token_times_s
        return (times[-1] - times[0], len(times) - 1.0) if len(times) >= 2 else None

    return joined(*(rates(cell, seconds_and_tokens) for cell in (point.full, point.cell)))


def _over_repeats(
    pairs: Callable[[Measured, Measured, int], Sequence[Pair]], choose: Callable[[list[float]], float], point: Point
) -> float | None:
    """A choice of the ratios of each repeat by itself, each from a process of its own; ``None`` with a single one.

    Intervals come from blocks, so they say what other prompts might have given. What another process might have given
    (another memory layout, other code paths chosen at start) is as different as the repeats are from each other; with
    a few of them a range says more than an interval would.
    """
    repeats = sorted({window.repeat for window in point.windows})
    if point.is_full or len(repeats) < 2:
        return None
    found = (paired_ratio(pairs(point.cell, point.full, repeat)) for repeat in repeats)
    ratios = [ratio for ratio in found if ratio is not None]
    return choose(ratios) if len(ratios) > 1 else None


DECODE_SPEEDUP = _ratio(
    name="decode_speedup",
    header="decoding speed-up",
    meaning="speed-up of the time per token after the first",
    compute=_decoding,
    units=_decoding_units,
    sections={AGAINST_FULL: 1, BYTE_MODEL: 5, LEADERBOARD: 6.5},
    verdict=Wording("decodes {} faster", "decodes {} slower", "decoding speed"),
    always_told=True,
    change=Wording("decoding speed-up {} higher", "decoding speed-up {} lower"),
)
SPEEDUP = _ratio(
    name="speedup",
    header="speed-up",
    meaning="full depth's time over this one's, whole request, same prompts",
    compute=_requests,
    units=_request_units,
    sections={HEADLINE: 6, AGAINST_FULL: 2},
    priority=1,
    verdict=Wording("whole requests {} faster", "whole requests {} slower", "request time"),
    always_told=True,
    change=Wording("speed-up over its own full depth {} higher", "speed-up over its own full depth {} lower"),
)
ENERGY_RATIO = _ratio(
    name="energy_ratio",
    header="energy ratio",
    meaning="full depth's energy over this one's, same prompts",
    compute=_energy,
    kind="energy",
    sections={AGAINST_FULL: 3, ENERGY: 6, LEADERBOARD: 9},
    verdict=Wording("{} less energy", "{} more energy", "energy", saving=True),
    always_told=True,
)
NET_ENERGY_RATIO = _ratio(
    name="energy_net_ratio",
    header="net energy ratio",
    meaning="the same net of idle power",
    compute=_net_energy,
    kind="energy",
    sections={ENERGY: 7},
)

_extreme = partial(Metric, form="ratio", unit="×")

SPEEDUP_LOWEST = _extreme(
    name="speedup_range_low",
    header="lowest\nspeed-up",
    meaning="smallest speed-up of a repeat by itself, each of a process of its own",
    compute=partial(_over_repeats, Measured.window_pairs, min),
    sections={REPEATS: 1},
)
SPEEDUP_HIGHEST = _extreme(
    name="speedup_range_high",
    header="highest\nspeed-up",
    meaning="largest speed-up of a repeat by itself",
    compute=partial(_over_repeats, Measured.window_pairs, max),
    sections={REPEATS: 2},
)
DECODE_SPEEDUP_LOWEST = _extreme(
    name="decode_speedup_range_low",
    header="lowest\ndecoding",
    meaning="smallest decoding speed-up of a repeat by itself",
    compute=partial(_over_repeats, Measured.decode_pairs, min),
    sections={REPEATS: 3},
)
DECODE_SPEEDUP_HIGHEST = _extreme(
    name="decode_speedup_range_high",
    header="highest\ndecoding",
    meaning="largest decoding speed-up of a repeat by itself",
    compute=partial(_over_repeats, Measured.decode_pairs, max),
    sections={REPEATS: 4},
)
