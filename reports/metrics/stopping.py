"""The savings of ending a completion early, and the cost of the text that can be kept; totals over totals.

**Tokens saved** are held against full depth without a stop rule, in the same weights format, on the same prompts. Only
rows that a stop rule or a strategy may end have them; they are negative where such a row generates more.

**Accepted characters** are those until a completion differs from its reference, what an editor's user can keep
(:class:`tasks.scores.match.AcceptedPrefix`). All time and energy, prefill included, of all completions count for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from harness.contracts import Metric
from harness.records import SampleRecord, WindowRecord
from harness.records.estimate import Estimate
from reports.metrics.point import Point, Units, added, over_blocks
from reports.metrics.vocabulary import STOPS
from reports.statistics.intervals import Pair, ratio_interval, share_interval
from reports.summary.measured import total

ACCEPTED_SCORE = "accepted_prefix"
"""The score that counts accepted characters."""

Cost = Callable[[Point, WindowRecord], float | None]


def _is_stopped(sample: SampleRecord, point: Point) -> bool:
    """Whether its own stop rule or its strategy ended a completion; the protocol's rule is everybody's."""
    by_rule = sample.finish_reason == "stop" and sample.stop_rule == point.cell.point.stop.partition(":")[0] != ""
    return by_rule or sample.finish_reason == "strategy"


def _of_stopped(counted: Callable[[Point], Iterator[tuple[SampleRecord, Pair]]], point: Point) -> Estimate | None:
    """A share of samples that a rule or strategy may have ended."""
    if not (point.cell.point.stop or any(sample.finish_reason == "strategy" for sample in point.samples)):
        return None
    return over_blocks(point.cell, counted(point), share_interval)


def _saved(point: Point) -> Iterator[tuple[SampleRecord, Pair]]:
    for key in point.cell.shared(point.own_full):
        mine, theirs = (len(cell.samples[key].token_ids) for cell in (point.cell, point.own_full))
        yield point.cell.samples[key], Pair(theirs - mine, theirs)


def _stopped(point: Point) -> Iterator[tuple[SampleRecord, Pair]]:
    yield from ((sample, Pair(_is_stopped(sample, point), 1)) for sample in point.samples)


def spent(cost: Cost, point: Point) -> list[tuple[list[SampleRecord], float, float]]:
    """Return each window's samples, cost and accepted characters; nothing where one of these is not known."""
    found = []
    for number, samples in point.cell.whole.items():
        paid = cost(point, point.cell.windows[number])
        characters = [sample.scores.get(ACCEPTED_SCORE) for sample in samples]
        if paid is None or None in characters:
            return []
        found.append((list(samples), paid, sum(one for one in characters if one is not None)))
    return found


def _per_character(cost: Cost, point: Point) -> Estimate | None:
    counted = ((samples[0], Pair(paid, characters)) for samples, paid, characters in spent(cost, point))
    return over_blocks(point.cell, counted, ratio_interval)


def accepted_units(cost: Cost, point: Point) -> Units:
    """Return cost and accepted characters by the prompts of a window."""
    rows: dict[frozenset[str], list[tuple[float, ...]]] = {}
    for samples, *row in spent(cost, point):
        rows.setdefault(frozenset(sample.sample_id for sample in samples), []).append(tuple(row))
    return {key: added(ACCEPTED_TIME, each) for key, each in rows.items()}


def seconds(point: Point, window: WindowRecord) -> float | None:
    """Return what the requests of a window took."""
    return point.cell.request_s(window)


def joules(point: Point, window: WindowRecord) -> float | None:
    """Return what a window used, where all windows have a reading."""
    return None if total(point.windows)[1] is None else window.energy_j


_of_text = partial(Metric, interval=True, kind="work", form="percent")
_per_accepted = partial(Metric, interval=True, better="lower")

TOKENS_SAVED = _of_text(
    "tokens_saved",
    "tokens\nsaved",
    "of the tokens that full depth generates without a stop rule for the same prompts, the share not generated",
    compute=partial(_of_stopped, _saved),
    better="higher",
    sections={STOPS: 1},
)
STOPPED = _of_text(
    "stopped",
    "stopped\nearly",
    "share of completions that the row's stop rule, or its strategy, ended",
    compute=partial(_of_stopped, _stopped),
    sections={STOPS: 2},
)
ACCEPTED_TIME = _per_accepted(
    "accepted_character_s",
    "time/accepted\ncharacter",
    "time of all requests over the characters until they differ from their references",
    compute=partial(_per_character, seconds),
    units=partial(accepted_units, seconds),
    unit="s",
    form="seconds",
    sections={STOPS: 3},
)
ACCEPTED_ENERGY = _per_accepted(
    "energy_j_per_accepted_character",
    "J/accepted\ncharacter",
    "energy of all requests over the characters until they differ from their references",
    compute=partial(_per_character, joules),
    units=partial(accepted_units, joules),
    kind="energy",
    unit="J",
    sections={STOPS: 4},
)
