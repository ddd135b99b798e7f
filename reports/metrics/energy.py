"""The energy that completions take: per request and per token, gross and net of idle, and at what power.

The rules of what counts as an energy are in :mod:`reports.summary.measured`. **Mean power** tells whether energy is
evidence of its own: where all rows draw the same, energy saved is time saved (:mod:`reports.summary.notes` says so).
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

_energy = partial(Metric, kind="energy", better="lower", black_box=True)


def _total(point: Point) -> float | None:
    return total(point.windows)[1]


def _of_finished(point: Point) -> float | None:
    """Joules of windows without a failed sample, where all windows have a reading."""
    return None if _total(point) is None else total(point.cell.whole_windows)[1]


def _per(point: Point, count: float | None) -> float | None:
    joules = _of_finished(point)
    return None if joules is None or count is None else ratio(joules, count)


def _per_token(point: Point) -> float | None:
    return _per(point, tokens(point.cell))


def _idle_power(point: Point) -> float | None:
    return idle_power_w(point.cell, point.idle, point.manifest.meter)


def _net_per_token(point: Point) -> float | None:
    joules, idle_w, made = _of_finished(point), _idle_power(point), tokens(point.cell)
    if joules is None or idle_w is None or made is None:
        return None
    return ratio(joules - idle_w * total_s(point), made)


ENERGY_PER_TOKEN = _energy(
    name="energy_j_per_token",
    header="J/token",
    meaning="energy over generated tokens, prefill included",
    compute=_per_token,
    units=lambda point: blocks(point.cell, attrgetter("energy_j"), per_token=True),
    unit="J",
    sections={HEADLINE: 8, ENERGY: 1},
    priority=4,
    change=Wording("{} less energy", "{} more energy"),
)
VERIFIED_ENERGY = _energy(  # no units: two runs are compared by J/token, which says the same
    name="energy_j_per_verified_token",
    header="J/verified\ntoken",
    meaning="the same as J/token of lossless rows, whose tokens are all verified but the first; prefill included",
    compute=lambda point: _per_token(point) if point.cell.point.lossless else None,
    unit="J",
    sections={DRAFTS: 7},
)
ENERGY_PER_REQUEST = _energy(
    name="energy_j_per_request",
    header="J/re-\nquest",
    meaning="energy over finished samples",
    compute=lambda point: _per(point, sum(map(len, point.cell.whole.values()))),
    unit="J",
    sections={ENERGY: 2},
)
NET_ENERGY_PER_TOKEN = _energy(
    name="energy_net_j_per_token",
    header="net\nJ/token",
    meaning="the same as J/token less idle power",
    compute=_net_per_token,
    unit="J",
    sections={ENERGY: 3},
)
MEAN_POWER = _energy(
    name="mean_power_w",
    header="mean\nW",
    meaning="energy over time",
    compute=lambda point: _per(point, total_s(point)),
    unit="W",
    better=None,
    sections={ENERGY: 4},
)
IDLE_POWER = _energy(
    name="idle_power_w",
    header="idle\nW",
    meaning="power with the model loaded and nothing running",
    compute=_idle_power,
    unit="W",
    better=None,
    sections={ENERGY: 5},
)
TOTAL_ENERGY = _energy(
    name="energy_j",
    header="J total",
    meaning="energy of all windows",
    compute=_total,
    unit="J",
    sections={ENERGY: 8},
)
