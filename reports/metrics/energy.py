"""The energy that completions take: per request and per token, gross and net of idle, and at what power.

What counts as an energy is in :mod:`reports.summary.measured`.
"""

from __future__ import annotations

from functools import partial
from operator import attrgetter

from harness.contracts import Metric, Wording
from reports.metrics.point import Point, blocks, tokens
from reports.metrics.time import total_s
from reports.metrics.vocabulary import DRAFTS, ENERGY, HEADLINE
from reports.statistics.intervals import ratio
from reports.summary.measured import idle_power_w, total

_power = partial(Metric, kind="energy", black_box=True, unit="W")
_energy = partial(Metric, kind="energy", black_box=True, better="lower", unit="J")


def _of_finished(point: Point) -> float | None:
    """Joules of windows without a failed sample, where all windows have a reading."""
    return None if total(point.windows)[1] is None else total(point.cell.whole_windows)[1]


def _per(point: Point, count: float | None) -> float | None:
    joules = _of_finished(point)
    return None if joules is None or count is None else ratio(joules, count)


def _per_token(point: Point) -> float | None:
    return _per(point, tokens(point.cell))


def _idle_power(point: Point) -> float | None:
    return idle_power_w(point.cell, point.idle, point.manifest.meter)


def _net_per_token(point: Point) -> float | None:
    joules, idle_w, made = _of_finished(point), _idle_power(point), tokens(point.cell)
    return None if joules is None or idle_w is None or made is None else ratio(joules - idle_w * total_s(point), made)


ENERGY_PER_TOKEN = _energy(
    "energy_j_per_token",
    "J/token",
    "energy over generated tokens, prefill included",
    compute=_per_token,
    units=lambda point: blocks(point.cell, attrgetter("energy_j"), per_token=True),
    sections={HEADLINE: 8, ENERGY: 1},
    priority=4,
    change=Wording("{} less energy", "{} more energy"),
)
VERIFIED_ENERGY = _energy(  # no units: two runs are compared by J/token, which says the same
    "energy_j_per_verified_token",
    "J/verified\ntoken",
    "the same as J/token of lossless rows, whose tokens are all verified but the first; prefill included",
    compute=lambda point: _per_token(point) if point.cell.point.lossless else None,
    sections={DRAFTS: 7},
)
ENERGY_PER_REQUEST = _energy(
    "energy_j_per_request",
    "J/re-\nquest",
    "energy over finished samples",
    compute=lambda point: _per(point, sum(map(len, point.cell.whole.values()))),
    sections={ENERGY: 2},
)
NET_ENERGY_PER_TOKEN = _energy(
    "energy_net_j_per_token",
    "net\nJ/token",
    "the same as J/token less idle power",
    compute=_net_per_token,
    sections={ENERGY: 3},
)
MEAN_POWER = _power(
    "mean_power_w",
    "mean\nW",
    "energy over time",
    compute=lambda point: _per(point, total_s(point)),
    sections={ENERGY: 4},
)
IDLE_POWER = _power(
    "idle_power_w",
    "idle\nW",
    "power with the model loaded and nothing running",
    compute=_idle_power,
    sections={ENERGY: 5},
)
TOTAL_ENERGY = _energy(
    "energy_j",
    "J total",
    "energy of all windows",
    compute=lambda point: total(point.windows)[1],
    sections={ENERGY: 8},
)
