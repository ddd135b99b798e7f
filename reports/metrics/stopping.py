"""The savings of ending a completion early, and the cost of the text that can be kept.

**Tokens saved** are held against full depth without a stop rule, in the same weights format, on the same prompts: the
tokens that it generates and this row does not, as a share of them; not against the limit, which full depth need not
reach either. Only rows that a stop rule or a strategy may end have them, and they are negative where such a row
generates more.

**Accepted characters** are those until a completion differs from its reference, what an editor's user can keep
(:class:`tasks.scores.match.AcceptedPrefix`). All time and all energy, prefill included, of all completions count for
them: a completion that is cut before its first accepted character still has its cost. Where no character is accepted
there is no cost of one.

Totals over totals, all repeats; intervals over blocks of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from harness.contracts import Metric
from harness.records import SampleRecord, WindowRecord
from harness.records.estimate import Estimate
from reports.metrics.point import Point, Units
from reports.metrics.vocabulary import STOPS
from reports.statistics.intervals import Pair, pooled, ratio, ratio_interval, share_interval
from reports.summary.measured import Measured, total

ACCEPTED_SCORE = "accepted_prefix"
"""The score that counts accepted characters."""

_Cost = Callable[[Point, WindowRecord], float | None]


def _is_stopped(sample: SampleRecord, point: Point) -> bool:
    """Whether its own stop rule or its strategy ended a completion; the protocol's rule is everybody's."""
    by_rule = sample.finish_reason == "stop" and sample.stop_rule == point.cell.point.stop.partition(":")[0] != ""
    return by_rule or sample.finish_reason == "strategy"


def _may_stop(point: Point) -> bool:
    return bool(point.cell.point.stop) or any(sample.finish_reason == "strategy" for sample in point.samples)


def _estimate(cell: Measured, pairs: Mapping[tuple[str, int], Pair]) -> Estimate | None:
    """A share, Σ baseline of Σ other of samples, with its interval over their blocks; ``None`` where there is none."""
    units = pooled((cell.windows[cell.samples[key].window].block, pair) for key, pair in pairs.items())
    value = ratio(sum(pair.baseline for pair in units), sum(pair.other for pair in units))
    return None if value is None else Estimate.of(value, share_interval(units), n=len(units))


def _saved(point: Point) -> Estimate | None:
    if not _may_stop(point):
        return None
    cell, full = point.cell, point.own_full
    lengths = {key: (len(cell.samples[key].token_ids), len(full.samples[key].token_ids)) for key in cell.shared(full)}
    return _estimate(cell, {key: Pair(theirs - mine, theirs) for key, (mine, theirs) in lengths.items()})


def _stopped(point: Point) -> Estimate | None:
    if not _may_stop(point):
        return None
    return _estimate(
        point.cell, {key: Pair(_is_stopped(sample, point), 1) for key, sample in point.cell.samples.items()}
    )


def _spent(cost: _Cost, point: Point) -> list[tuple[WindowRecord, Sequence[SampleRecord], float, float]] | None:
    """Each window with its samples, cost and accepted characters; ``None`` where one of these is not known."""
    found = []
    for number, samples in point.cell.whole.items():
        window = point.cell.windows[number]
        spent, characters = cost(point, window), [sample.scores.get(ACCEPTED_SCORE) for sample in samples]
        if spent is None or None in characters:
            return None
        found.append((window, samples, spent, sum(one for one in characters if one is not None)))
    return found


def _per_character(cost: _Cost, point: Point) -> Estimate | None:
    found = _spent(cost, point)
    if not found:
        return None
    units = pooled((window.block, Pair(spent, characters)) for window, _, spent, characters in found)
    value = ratio(sum(pair.baseline for pair in units), sum(pair.other for pair in units))
    return None if value is None else Estimate.of(value, ratio_interval(units), n=len(units))


def _units(cost: _Cost, point: Point) -> Units:
    units: dict[frozenset[str], tuple[float, ...]] = {}
    for _, samples, spent, characters in _spent(cost, point) or ():
        key = frozenset(sample.sample_id for sample in samples)
        before = units.get(key, (0.0, 0.0))
        units[key] = (before[0] + spent, before[1] + characters)
    return units


def _seconds(point: Point, window: WindowRecord) -> float | None:
    return point.cell.request_s(window)


def _joules(point: Point, window: WindowRecord) -> float | None:
    return None if total(point.windows)[1] is None else window.energy_j


TOKENS_SAVED = Metric(
    name="tokens_saved",
    header="tokens\nsaved",
    meaning="of the tokens that full depth generates without a stop rule for the same prompts, the share not generated",
    compute=_saved,
    interval=True,
    kind="work",
    better="higher",
    form="percent",
    sections={STOPS: 1},
)
STOPPED = Metric(
    name="stopped",
    header="stopped\nearly",
    meaning="share of completions that the row's stop rule, or its strategy, ended",
    compute=_stopped,
    interval=True,
    kind="work",
    form="percent",
    sections={STOPS: 2},
)
ACCEPTED_TIME = Metric(
    name="accepted_character_s",
    header="time/accepted\ncharacter",
    meaning="time of all requests over the characters until they differ from their references",
    compute=partial(_per_character, _seconds),
    units=partial(_units, _seconds),
    interval=True,
    better="lower",
    unit="s",
    form="seconds",
    sections={STOPS: 3},
)
ACCEPTED_ENERGY = Metric(
    name="energy_j_per_accepted_character",
    header="J/accepted\ncharacter",
    meaning="energy of all requests over the characters until they differ from their references",
    compute=partial(_per_character, _joules),
    units=partial(_units, _joules),
    interval=True,
    kind="energy",
    better="lower",
    unit="J",
    sections={STOPS: 4},
)
