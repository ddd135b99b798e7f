"""Where a request's time and energy went, per operating point, found in two independent ways.

**The fit.** The cost of a window is a sum of things done times what one of them costs. Over the windows of all
operating points but the probes this is a linear system, solved by least squares on relative errors with no cost below
zero (Lawson and Hanson 1974). Prefill and the rest of a window are two rows, since the time to the first token is
measured; of energy the prefill's share of the time is laid beside as a row of little weight.

**The direct way.** A probe asks a strategy at every exit point and never exits; what it costs more than full depth on
the same blocks, over its checks, is the price of asking. Intervals of both resample blocks of samples.

Lossless decoding is counted by passes and taken apart a second time into drafting, verifying, and what was rolled
back. Not promised: batches above 1 and runs without a KV cache, where counts of one sample do not say what was done.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Amounts, price
from harness.records import DraftWork, MeterRecord, SampleRecord
from harness.records.cost import PARTS, PHASES, Attribution, CheckCost, OperatingPointCost, Quantity
from harness.records.estimate import Estimate
from reports.statistics.intervals import MINIMUM_PAIRS, estimate_of
from reports.summary.measured import Measured, is_measured

Array = NDArray[np.float64]
Cost = TypeVar("Cost", float, Array)

RESAMPLES = 1_000
TIE_BREAKER = 0.03
"""Weight of the assumed prefill energy beside a window's measured one."""

PREFILL = ("request", "prompt token")
COMMON = (
    *(*PREFILL, "layer step", "layer row", "attended position", "LM head", "LM head row", "draft head", "exit"),
    "KV fill",
)
"""Counts that every operating point has.

A layer step is a layer that a pass runs, a layer row one more token that it takes along; likewise with the LM head,
whose rows are the places of a verification. A draft head is a cheap head that reads a draft. An exit costs something
once, however deep it lies (the map to the exit head, starting the fill, waiting); without a count of its own that price
would fall to the checks, which never exit under a probe.
"""


def attribute(cells: Sequence[Measured], meter: MeterRecord | None = None, *, seed: int = 0) -> tuple[Attribution, ...]:
    """Return the attribution of one task, in time and, where every window has it from one source, in energy.

    Nothing where the run has no probe, several samples in a batch, no KV cache, requests that arrive at a fixed rate
    (their windows hold idle time) or those of editor sessions (theirs hold overtaken ones). Full depth comes first in
    ``cells``; without a ``meter`` energy is an estimate.
    """
    usable = [cell for cell in cells if cell.conditions.cached and not cell.point.rehearsed]
    if not any(cell.point.never_exits for cell in cells) or any(cell.conditions.batch_size > 1 for cell in cells):
        return ()
    made = [sample for cell in cells for sample in cell.samples.values()]
    if any(sample.arrival_s is not None or sample.session for sample in made):
        return ()
    windows = [window for cell in usable for window in cell.windows.values()]
    energy = {window.energy_source for window in windows}
    found = []
    quantities: tuple[tuple[Quantity, str, set[str]], ...] = (
        ("time", "duration_s", {"clock"}),
        ("energy", "energy_j", energy),
    )
    for quantity, field, sources in quantities:
        if len(sources) == 1 and all(getattr(window, field) is not None for window in windows):
            system, (source,) = _System.of(usable, field), sources
            if system.blocks and np.all(system.cost > 0):
                measured = quantity == "time" or (meter is not None and is_measured(source, meter))
                found.append(system.solve(quantity, source, seed).model_copy(update={"measured": measured}))
    return tuple(found)


def price_per_check(never: Cost, full: Cost, checks: Cost) -> Cost:
    """Return what one exit check costs, from what a probe and full depth cost on the same blocks."""
    return (never - full) / checks


@dataclass(frozen=True)
class _System:
    """The windows of one task as counts and costs, of every operating point and the blocks that all finished."""

    cells: Sequence[Measured]  # full depth first
    names: tuple[str, ...]  # of the counts
    counts: Array  # [all, drafting, rolled back; operating points; blocks; names]
    cost: Array  # [operating points, blocks], seconds or joules
    prefill_share: Array  # of the windows' time
    free_heads: Array  # LM heads that any decoding needs
    finished: int  # blocks that any operating point finished

    @property
    def blocks(self) -> int:
        return int(self.cost.shape[1])

    @classmethod
    def of(cls, cells: Sequence[Measured], field: str) -> _System:
        """Gather what every operating point finished, with the windows' readings of one field as costs."""
        asked = dict.fromkeys(cell.point.strategy for cell in cells if cell.point.exit_points)
        names = (*COMMON, *(f"check {strategy}" for strategy in asked))
        tables = [_by_block(cell, names, field) for cell in cells]
        shared = sorted(set.intersection(*map(set, tables))) if tables else []  # block and repeat
        blocks = list(dict.fromkeys(block for block, _ in shared))
        pooled = np.zeros((len(tables), len(blocks), 3 * len(names) + 4))
        for place, table in enumerate(tables):
            for block, repeat in shared:
                pooled[place, blocks.index(block)] += table[block, repeat]
        cost, seconds, prefill, free = np.moveaxis(pooled[..., -4:], -1, 0)
        counts = np.moveaxis(pooled[..., :-4].reshape(*pooled.shape[:2], 3, len(names)), 2, 0)
        finished = len({block for table in tables for block, _ in table})
        return cls(cells, names, counts, cost, prefill / seconds, free, finished)

    def solve(self, quantity: Quantity, source: str, seed: int) -> Attribution:
        """Attribute, with intervals over resampled blocks."""
        learned = np.array([not cell.point.never_exits for cell in self.cells])
        rows, wanted = (each[learned] for each in self._rows_of_fit(quantity))
        gram = np.einsum("pbri,pbrj->bij", rows, rows)
        right = np.einsum("pbri,pbr->bi", rows, wanted)
        draws = np.ones((1, self.blocks))
        if self.blocks >= MINIMUM_PAIRS:
            drawn = np.random.default_rng(seed).multinomial(self.blocks, draws[0] / self.blocks, size=RESAMPLES)
            draws = np.concatenate([draws, drawn])
        results = [
            self._results(_least_squares(draw @ gram.reshape(self.blocks, -1), draw @ right), draw) for draw in draws
        ]
        costs = _least_squares(gram.sum(0).reshape(-1), right.sum(0))
        off = np.abs((self.counts[0] @ costs - self.cost)[learned] / self.cost[learned])
        found = {
            name: estimate_of(np.array([result.get(name, math.nan) for result in results]), self.blocks)
            for name, value in results[0].items()
            if math.isfinite(value)  # in a resampling without a check it has no price, and then no interval
        }
        return Attribution(
            task=self.cells[0].task.name,
            quantity=quantity,
            source=source,
            blocks=self.blocks,
            blocks_left_out=self.finished - self.blocks,
            residual=float(np.median(off)),
            unit_costs=dict(zip(self.names, costs.tolist(), strict=True)),
            rows=tuple(_row(cell, found) for cell in self.cells if not cell.point.never_exits),
            checks=tuple(_checks(self.names[len(COMMON) :], found)),
        )

    def _rows_of_fit(self, quantity: Quantity) -> tuple[Array, Array]:
        """Return the two rows of each window, ``[operating points, blocks, 2, names]``, and their right sides."""
        counts, share = self.counts[0], self.prefill_share
        prefill = counts * np.isin(self.names, PREFILL)
        if quantity == "time":
            parts, shares = (prefill, counts - prefill), (share, 1 - share)
        else:
            parts, shares = (prefill * TIE_BREAKER, counts), (share * TIE_BREAKER, np.ones_like(share))
        return np.stack(parts, axis=2) / self.cost[..., None, None], np.stack(shares, axis=2)

    def _results(self, costs: Array, draw: Array) -> dict[str, float]:
        """Everything that is reported, for one resampling of the blocks."""
        cost = dict(zip(self.names, costs, strict=True))
        totals, free = self.cost @ draw, self.free_heads @ draw
        counts, drafting, back = np.einsum("kpbi,b->kpi", self.counts, draw)
        done = [dict(zip(self.names, row, strict=True)) for row in counts]
        found: dict[str, float] = {}
        direct, wanted = {}, {}  # seconds or joules per check, and LM heads that a check wants
        for place, cell in enumerate(self.cells):
            strategy, did = cell.point.strategy, done[place]
            if cell.point.never_exits and (checks := did.get(f"check {strategy}", 0.0)):
                direct[strategy] = price_per_check(totals[place], totals[0], checks)
                wanted[strategy] = (did["LM head"] - free[place]) / checks
                found[f"direct {strategy}"] = direct[strategy]
                found[f"fitted {strategy}"] = cost[f"check {strategy}"] + wanted[strategy] * cost["LM head"]
                found[f"apart {strategy}"] = found[f"direct {strategy}"] - found[f"fitted {strategy}"]
        for place, cell in enumerate(self.cells):
            if cell.point.never_exits:
                continue
            name, strategy, did = cell.point.name, cell.point.strategy, done[place]
            requests, checks = did["request"], did.get(f"check {strategy}", 0.0)
            extra = max(0.0, did["LM head"] - free[place])
            needed = did | {"LM head": did["LM head"] - extra}
            parts = {
                "prefill": _priced(did, cost, *PREFILL),
                "layers": _priced(did, cost, "layer step", "layer row", "attended position"),
                "exit_checks": price({f"check {strategy}": checks}, cost),
                "check_heads": price({"LM head": extra, "draft head": did["draft head"]}, cost),
                "output_head": _priced(needed, cost, "LM head", "LM head row"),
                "kv_fill": _priced(did, cost, "exit", "KV fill"),
            }
            parts["rest"] = totals[place] - sum(parts.values())
            found |= {f"part {name} {part}": value / requests for part, value in parts.items()}
            found[f"total {name}"] = totals[place] / requests
            if _verified(cell):
                phases = {"drafting": drafting[place] @ costs, "rolled_back": back[place] @ costs}
                phases["verifying"] = totals[place] - parts["prefill"] - parts["rest"] - sum(phases.values())
                found |= {f"phase {name} {phase}": value / requests for phase, value in phases.items()}
            if strategy in direct:
                served = max(0.0, wanted[strategy] * checks - extra)  # heads of checks that became the output
                overhead = direct[strategy] * checks - served * cost["LM head"]
                found[f"overhead {name}"] = overhead / requests
                found[f"of run {name}"] = overhead / totals[place]
                found[f"of full {name}"] = overhead / requests / (totals[0] / counts[0][0])
        return found


def _row(cell: Measured, found: Mapping[str, Estimate]) -> OperatingPointCost:
    name = cell.point.name
    return OperatingPointCost(
        operating_point=name,
        total=found[f"total {name}"].value,
        parts={part: found[f"part {name} {part}"] for part in PARTS},
        phases={phase: found[f"phase {name} {phase}"] for phase in PHASES if _verified(cell)},
        overhead=found.get(f"overhead {name}"),
        overhead_of_run=found.get(f"of run {name}"),
        overhead_of_full=found.get(f"of full {name}"),
    )


def _checks(names: Sequence[str], found: Mapping[str, Estimate]) -> Iterator[CheckCost]:
    for strategy in (name.removeprefix("check ") for name in names):
        apart = found.get(f"apart {strategy}")  # of the same resamplings, so that what both share cancels
        agree = None if apart is None or apart.interval is None else apart.interval[0] <= 0 <= apart.interval[1]
        direct, fitted = (found.get(f"{how} {strategy}") for how in ("direct", "fitted"))
        yield CheckCost(strategy=strategy, direct=direct, fitted=fitted, agree=agree)


def _verified(cell: Measured) -> bool:
    """Whether its samples say what was drafted and verified."""
    return cell.point.lossless and all(sample.drafting is not None for sample in cell.samples.values())


def _by_block(cell: Measured, names: tuple[str, ...], field: str) -> dict[tuple[int, int], Array]:
    """Return (block, repeat) → counts, cost, seconds, those of prefill, free heads; windows with a failure left out."""
    found = {}
    for number, samples in cell.whole.items():
        window = cell.windows[number]
        counts = sum((counts_of(sample, f"check {cell.point.strategy}", names) for sample in samples), np.zeros(1))
        prefill_s = sum(sample.token_times_s[0] for sample in samples)
        free = sum(sample.verifications or len(sample.exit_layers) - 1 for sample in samples)
        row = [*counts.ravel(), getattr(window, field), window.duration_s, prefill_s, free]
        found[window.block, window.repeat] = np.array(row)
    return found


def _priced(did: Amounts, cost: Mapping[str, float], *units: str) -> float:
    return price({unit: did[unit] for unit in units}, cost)


def _least_squares(gram: Array, right: Array) -> Array:
    """Return the costs ≥ 0 that fit best, from the normal equations (flattened Gram matrix and right side).

    Counts differ by many orders of magnitude, so columns are scaled to unit length first; a column of zeros costs 0.
    """
    matrix = gram.reshape(len(right), len(right))
    length = np.sqrt(np.diag(matrix))
    used = length > 0
    values, vectors = np.linalg.eigh(matrix[np.ix_(used, used)] / np.outer(length[used], length[used]))
    root = np.sqrt(np.clip(values, values.max() * 1e-12, None))
    half = root[:, None] * vectors.T  # half.T @ half is the scaled Gram matrix
    from scipy.optimize import nnls  # late: half a second

    solution, _ = nnls(half, (vectors.T @ (right[used] / length[used])) / root, maxiter=100 * len(right))
    costs = np.zeros(len(right))
    costs[used] = solution / length[used]
    return costs


def counts_of(sample: SampleRecord, check: str, names: Sequence[str]) -> Array:
    """Return what one sample did, ``[3, names]``: everything, drafting, and what was rolled back of lossless decoding.

    Drafting is what drafted, or decided not to, and stood: passes that ended in a draft, checks, and heads that neither
    prefill nor a verification read. Rolled back is the same of drafts that did not stand, and their rows in
    verifications.
    """
    amounts = {"request": 1, "prompt token": len(sample.prompt_ids)} | sample.decode_amounts()
    if not sample.verifications:
        return _in_order(check, names, amounts, {}, {})
    works = (sample.drafting or DraftWork(), sample.rolled_back or DraftWork())
    drafting, rolled_back = (work.amounts(sample.middle) for work in works)
    extra = amounts["LM head"] - sample.verifications  # evaluations of checks and drafts
    drafts = drafting | {name: amounts[name] for name in ("draft head", "check")} | {"LM head": extra}
    discarded = sample.layers_discarded // sample.exit_layers[0]
    share = discarded / amounts["LM head row"] if discarded else 0.0  # of a verification's rows but one
    stood = {name: count - rolled_back.get(name, 0) for name, count in drafts.items()}
    back = rolled_back | {name: share * amounts[name] for name in ("layer row", "LM head row")}
    return _in_order(check, names, amounts, stood, back)


def _in_order(check: str, names: Sequence[str], *counted: Amounts) -> Array:
    return np.array([[float(did.get("check" if name == check else name, 0)) for name in names] for did in counted])
