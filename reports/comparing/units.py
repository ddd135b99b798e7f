"""The independent units of a comparison: what each prompt, or each block of prompts, cost or scored in a run.

A unit is named by the prompts in it, so that units of two runs pair by their names. Costs that only a whole window has
(requests back to back, energy, throughput) come by block, and so do all times where several prompts are decoded in one
batch and share their clock; everything else comes by prompt. Repeats of a prompt belong to its
unit: they say nothing new about other prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from harness.records import SampleRecord, WindowRecord
from reports.comparing.metrics import Metric
from reports.summary.measured import Measured

__all__ = ["Matched", "Units", "agreement_units", "match", "units_of"]

Units: TypeAlias = Mapping[frozenset[str], tuple[float, ...]]
"""Prompts of a unit → its row: totals (of what stands above and below the line of a rate), or one value per repeat."""


@dataclass(frozen=True, slots=True)
class Matched:
    """Prompts that two operating points have in common.

    Attributes:
        same: ids with the same prompt tokens in both, finished in both.
        same_reference: those of them that are also scored against the same reference.
        in_a, in_b: prompts that each finished.
    """

    same: frozenset[str]
    same_reference: frozenset[str]
    in_a: int
    in_b: int

    @property
    def paired(self) -> bool:
        """Whether there is anything to pair."""
        return bool(self.same)

    @property
    def words(self) -> str:
        """How many matched."""
        if not self.same:
            return f"no prompt in common (A has {self.in_a}, B {self.in_b}): unpaired"
        if len(self.same) == self.in_a == self.in_b:
            return f"all {len(self.same)} prompts matched"
        return f"{len(self.same)} prompts matched (A has {self.in_a}, B {self.in_b})"


def match(a: Measured, b: Measured) -> Matched:
    """Return the prompts of two operating points that have the same id and the same tokens."""
    mine, theirs = _first(a), _first(b)
    same = [key for key in mine if key in theirs and mine[key].prompt_ids == theirs[key].prompt_ids]
    alike = [key for key in same if mine[key].reference == theirs[key].reference]
    return Matched(frozenset(same), frozenset(alike), len(mine), len(theirs))


def units_of(metric: Metric, cell: Measured, full: Measured, num_layers: int) -> Units:
    """Return what a metric is made of, unit by unit; empty where it was not measured.

    Args:
        metric: any but the agreement of two runs (:func:`agreement_units`).
        cell: the operating point.
        full: full depth of the same run and task.
        num_layers: decoder layers of the model.
    """
    name = metric.name
    if metric.kind == "score":
        return {_one(s): (score, 1.0) for s in cell.scored if (score := s.scores.get(name)) is not None}
    if metric.kind == "depth":
        return _depth(cell, num_layers, skipped=name == "layers_skipped")
    if metric.percentile is not None:
        return _repeats(cell, _TIMES[name.partition("_")[0]])
    if metric.in_run:
        parts = _decoding if name == "decode_speedup" else _requests
        return {} if cell is full else _joined(parts(full), parts(cell))
    if name == "tokens_per_s":
        return {key: (tokens, s) for key, (s, tokens) in _blocks(cell, _window_s, tokens=True).items()}
    return _blocks(cell, lambda _, window: window.energy_j, tokens=True)


def agreement_units(a: Measured, b: Measured, matched: Matched) -> Units:
    """Return places with the same token in both and places of the longer completion, by prompt; first repeats alone."""
    found = {}
    for sample_id in sorted(matched.same):
        mine, theirs = a.samples.get((sample_id, 0)), b.samples.get((sample_id, 0))
        if mine is not None and theirs is not None:
            alike = sum(x == y for x, y in zip(theirs.token_ids, mine.token_ids, strict=False))
            found[frozenset([sample_id])] = (float(alike), float(max(len(mine.token_ids), len(theirs.token_ids))))
    return found


def _first(cell: Measured) -> dict[str, SampleRecord]:
    found: dict[str, SampleRecord] = {}
    for (sample_id, _), sample in cell.samples.items():
        found.setdefault(sample_id, sample)
    return found


def _one(sample: SampleRecord) -> frozenset[str]:
    return frozenset([sample.sample_id])


def _depth(cell: Measured, num_layers: int, *, skipped: bool) -> Units:
    rows: list[tuple[frozenset[str], tuple[float, ...]]] = []
    for sample in cell.samples.values():
        layers = cell.decoded_layers(sample)
        if layers:
            possible, ran = float(num_layers * len(layers)), float(sum(layers))
            rows.append((_one(sample), (possible - ran, possible) if skipped else (ran, float(len(layers)))))
    return _added(rows)


def _tpot(sample: SampleRecord) -> float | None:
    times = sample.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) >= 2 else None


_TIMES: dict[str, Callable[[SampleRecord], float | None]] = {
    "latency": lambda sample: sample.latency_s,
    "ttft": lambda sample: sample.ttft_s,
    "tpot": _tpot,
}


def _repeats(cell: Measured, time: Callable[[SampleRecord], float | None]) -> Units:
    found: dict[frozenset[str], list[float]] = {}
    clocks = _clocks(cell)
    for sample in cell.samples.values():
        seconds = time(sample)
        if seconds is not None:
            found.setdefault(clocks.get(sample.sample_id, _one(sample)), []).append(seconds)
    return {key: tuple(values) for key, values in found.items()}


def _clocks(cell: Measured) -> dict[str, frozenset[str]]:
    """Prompt → the block whose clock it shares; empty where each prompt is decoded by itself."""
    if cell.regime.batch_size == 1:
        return {}
    blocks = [_names(members) for members in _windows(cell).values()]
    return {sample_id: block for block in blocks for sample_id in block}


def _decoding(cell: Measured) -> Units:
    """Seconds and tokens after the first."""
    rows, clocks = [], _clocks(cell)
    for sample in cell.samples.values():
        times = sample.token_times_s
        if len(times) >= 2:
            key = clocks.get(sample.sample_id, _one(sample))
            rows.append((key, (times[-1] - times[0], len(times) - 1.0)))
    return _added(rows)


def _request_s(members: Sequence[SampleRecord], window: WindowRecord) -> float | None:
    """As :meth:`reports.summary.measured.Measured.window_pairs`: latencies where requests arrive by a clock."""
    if all(sample.arrival_s is None for sample in members):
        return window.duration_s
    latencies = [sample.latency_s for sample in members if sample.latency_s is not None]
    return math.fsum(latencies) if len(latencies) == len(members) else None


def _requests(cell: Measured) -> Units:
    return _blocks(cell, _request_s)


def _window_s(_: Sequence[SampleRecord], window: WindowRecord) -> float | None:
    return window.duration_s


def _blocks(
    cell: Measured, cost: Callable[[Sequence[SampleRecord], WindowRecord], float | None], *, tokens: bool = False
) -> Units:
    """A cost of whole windows, and the windows or tokens it bought. A window with a failed sample has none."""
    rows = []
    for number, members in _windows(cell).items():
        window = cell.windows[number]
        spent = cost(members, window)
        if spent is not None and not window.failed:
            rows.append((_names(members), (spent, float(window.tokens) if tokens else 1.0)))
    return _added(rows)


def _windows(cell: Measured) -> dict[int, list[SampleRecord]]:
    found: dict[int, list[SampleRecord]] = {}
    for sample in cell.samples.values():
        found.setdefault(sample.window, []).append(sample)
    return found


def _names(members: Sequence[SampleRecord]) -> frozenset[str]:
    return frozenset(sample.sample_id for sample in members)


def _joined(above: Units, below: Units) -> Units:
    return {key: (*row, *below[key]) for key, row in above.items() if key in below}


def _added(rows: Iterable[tuple[frozenset[str], tuple[float, ...]]]) -> Units:
    found: dict[frozenset[str], tuple[float, ...]] = {}
    for key, row in rows:
        found[key] = tuple(map(sum, zip(found[key], row, strict=True))) if key in found else row
    return found
