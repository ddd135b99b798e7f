"""Costs against full depth, paired by block of samples: how much faster, and with how much less energy.

Ratios of totals, full depth's cost over this one's. Each is stated twice: over full depth in the row's own weights
format, and over the fastest full depth in a format that keeps the model's tokens: a slow format flatters the first.
Times are also held against the fastest lossless decoding without exits, which a practitioner would run instead. In
editor sessions all have the row's own ``keep``; where a run compares several, one more is over its first full depth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from harness.contracts import Metric, Wording
from harness.contracts.metrics import Against
from reports.metrics.point import Point, Units, blocks, joined, rates
from reports.metrics.vocabulary import AGAINST_FULL, BYTE_MODEL, ENERGY, HEADLINE, LEADERBOARD, REPEATS, SESSIONS
from reports.statistics.intervals import Pair, paired_ratio
from reports.summary.measured import Measured, after_first, has_energy, idle_power_w

_ratio = partial(Metric, paired="ratio", form="ratio", unit="×", better="higher", black_box=True)


def _requests(point: Point, full: Measured, repeat: int | None = None) -> list[Pair]:
    return list(point.cell.block_pairs(full, Measured.request_s, repeat).values())


def speedup_pairs(point: Point) -> list[Pair]:
    """Return what requests took over full depth of the same weights format and here, by block."""
    return _requests(point, point.own_full)


def _decoding(point: Point, full: Measured, repeat: int | None = None) -> list[Pair]:
    return point.cell.decode_pairs(full, repeat)


def _energy(point: Point, full: Measured) -> list[Pair] | None:
    return point.cell.energy_pairs(full) if has_energy(point.cell, full) else None


def _net_energy(point: Point, full: Measured) -> list[Pair] | None:
    idle_w = idle_power_w(point.cell, point.idle, point.manifest.meter)
    if idle_w is None or not has_energy(point.cell, full):
        return None
    return point.cell.energy_pairs(full, idle_w)


_Costs: TypeAlias = Callable[[Point, Measured], list[Pair] | None]


def _held(costs: _Costs, against: Against, point: Point) -> list[Pair] | None:
    """Pair costs with those of a full depth; ``None`` where the run has no such one."""
    full = point.reference(against)
    return None if full is None else costs(point, full)


def _stated_twice(
    costs: _Costs, name: str, header: str, meaning: str, over_fastest: str, **facts: Any
) -> tuple[Metric, Metric]:
    """Declare a ratio over full depth in the row's own weights format, what a strategy gives, and over the fastest."""
    own = _ratio(name, header, meaning, compute=partial(_held, costs, "own_full"), against="own_full", **facts)
    sections = {title: at + 0.1 for title, at in own.sections.items() if title not in (BYTE_MODEL, LEADERBOARD)}
    meaning = (
        f"{over_fastest} over the fastest full depth of the run in a format that keeps the model's tokens; where none "
        "does, over its first"
    )
    return own, _over("fastest", own, costs, meaning, against="fastest_full", restates=name, sections=sections)


def _over(name: str, own: Metric, costs: _Costs, meaning: str, *, against: Against, **facts: Any) -> Metric:
    """Declare a ratio over something else than a full depth of the row's own format."""
    return replace(
        own,
        name=f"{own.name}_over_{name}",
        header=f"{own.header} over {name}",
        meaning=meaning,
        compute=partial(_held, costs, against),
        against=against,
        units=None,
        change=None,
        **facts,
    )


def _over_first(costs: _Costs, point: Point) -> list[Pair] | None:
    several = len({cell.conditions.keep for cell in point.cells}) > 1
    return costs(point, point.full) if several else None


def _request_units(point: Point) -> Units:
    cells = (point.own_full, point.cell)
    return joined(*(blocks(cell, cell.request_s) for cell in cells))


def _decoding_units(point: Point) -> Units:
    return joined(*(rates(cell, after_first) for cell in (point.own_full, point.cell)))


def _over_repeats(
    pairs: Callable[[Point, Measured, int], Sequence[Pair]], choose: Callable[[list[float]], float], point: Point
) -> float | None:
    """A choice of the ratios of each repeat by itself, each from a process of its own; ``None`` with a single one.

    What another process might have given (another memory layout, other code paths chosen at start) is as different as
    the repeats are from each other; with a few of them a range says more than an interval would.
    """
    repeats, full = sorted({window.repeat for window in point.windows}), point.own_full
    if point.cell is full or len(repeats) < 2 or point.cell.disturbed or full.disturbed:
        return None
    found = (paired_ratio(pairs(point, full, repeat)) for repeat in repeats)
    ratios = [ratio for ratio in found if ratio is not None]
    return choose(ratios) if len(ratios) > 1 else None


DECODE_SPEEDUP, DECODE_SPEEDUP_OVER_FASTEST = _stated_twice(
    _decoding,
    "decode_speedup",
    "decoding speed-up",
    "speed-up of the time per token after the first",
    "decoding speed-up",
    black_box=False,
    units=_decoding_units,
    sections={AGAINST_FULL: 1, BYTE_MODEL: 5, LEADERBOARD: 6.5},
    verdict=Wording("decodes {} faster", "decodes {} slower", "decoding speed"),
    always_told=True,
    change=Wording("decoding speed-up {} higher", "decoding speed-up {} lower"),
)
"""speed-up of the time per token after the first
decoding speed-up over the fastest full depth of the run in a format that keeps the model's tokens
"""
SPEEDUP, SPEEDUP_OVER_FASTEST = _stated_twice(
    _requests,
    "speedup",
    "speed-up",
    "full depth's time over this one's, whole request, same prompts and weights format",
    "speed-up",
    units=_request_units,
    sections={HEADLINE: 0.5, AGAINST_FULL: 2},
    priority=1,
    verdict=Wording("whole requests {} faster", "whole requests {} slower", "request time"),
    always_told=True,
    change=Wording("speed-up over its own full depth {} higher", "speed-up over its own full depth {} lower"),
)
"""full depth's time over this one's, whole request, same prompts and weights format
speed-up over the fastest full depth of the run in a format that keeps the model's tokens
"""
ENERGY_RATIO, ENERGY_RATIO_OVER_FASTEST = _stated_twice(
    _energy,
    "energy_ratio",
    "energy ratio",
    "full depth's energy over this one's, same prompts",
    "energy ratio",
    kind="energy",
    sections={AGAINST_FULL: 3, ENERGY: 6, LEADERBOARD: 9},
    verdict=Wording("{} less energy", "{} more energy", "energy", saving=True),
    always_told=True,
)
"""full depth's energy over this one's, same prompts
energy ratio over the fastest full depth of the run in a format that keeps the model's tokens
"""
NET_ENERGY_RATIO, NET_ENERGY_RATIO_OVER_FASTEST = _stated_twice(
    _net_energy,
    "energy_net_ratio",
    "net energy ratio",
    "energy ratio net of idle power",
    "net energy ratio",
    kind="energy",
    sections={ENERGY: 7},
)
"""energy ratio net of idle power
net energy ratio over the fastest full depth of the run in a format that keeps the model's tokens
"""
DECODE_SPEEDUP_OVER_LOSSLESS, SPEEDUP_OVER_LOSSLESS = (
    _over(
        "lossless",
        own,
        costs,
        f"{meaning} over the fastest lossless row of the run that only text drafts for",
        against="fastest_lossless",
        sections={AGAINST_FULL: own.sections[AGAINST_FULL] + 0.2},
        verdict=None,
    )
    for own, costs, meaning in ((DECODE_SPEEDUP, _decoding, "decoding speed-up"), (SPEEDUP, _requests, "speed-up"))
)
"""decoding speed-up over the fastest lossless row of the run that only text drafts for
speed-up over the fastest lossless row of the run that only text drafts for
"""
SPEEDUP_OVER_FIRST, ENERGY_RATIO_OVER_FIRST = (
    replace(
        own,
        name=f"{own.name}_over_first",
        header=f"{own.header} over first",
        meaning=f"{own.header} over the run's first full depth, whatever a request leaves to the next",
        compute=partial(_over_first, costs),
        against="full",
        restates=own.name,
        units=None,
        sections=sections,
        change=None,
    )
    for own, costs, sections in (
        (SPEEDUP, _requests, {HEADLINE: 0.6, SESSIONS: 1}),
        (ENERGY_RATIO, _energy, {SESSIONS: 2}),
    )
)
"""speed-up over the run's first full depth, whatever a request leaves to the next
energy ratio over the run's first full depth
"""

SPEEDUP_LOWEST, SPEEDUP_HIGHEST, DECODE_SPEEDUP_LOWEST, DECODE_SPEEDUP_HIGHEST = (
    Metric(
        name,
        header,
        f"{meaning} of a repeat by itself, each of a process of its own",
        compute=partial(_over_repeats, costs, choose),
        black_box=costs is _requests,
        form="ratio",
        unit="×",
        sections={REPEATS: place},
    )
    for place, name, header, meaning, costs, choose in (
        (1, "speedup_range_low", "lowest\nspeed-up", "smallest speed-up", _requests, min),
        (2, "speedup_range_high", "highest\nspeed-up", "largest speed-up", _requests, max),
        (3, "decode_speedup_range_low", "lowest\ndecoding", "smallest decoding speed-up", _decoding, min),
        (4, "decode_speedup_range_high", "highest\ndecoding", "largest decoding speed-up", _decoding, max),
    )
)
"""smallest speed-up of a repeat by itself, each of a process of its own
largest speed-up of a repeat by itself
smallest decoding speed-up of a repeat by itself
largest decoding speed-up of a repeat by itself
"""
