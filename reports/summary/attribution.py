"""Where a request's time and energy went, per operating point, found in two independent ways.

**The fit.** The cost of a window is a sum of things done times what one of them costs: requests and prompt tokens
(prefill), layer steps and the positions they attend to, LM-head evaluations, exits, KV fills, and exit checks of each
strategy (:func:`counts_of`). Over the windows of all operating points but the probes this is a
linear system with more rows than unknowns, solved by least squares on relative errors with no cost below zero (Lawson
and Hanson 1974). Prefill and the rest of a window are two rows, since the time to the first token is measured. Energy
has no such second reading, and where all completions are equally long, layer steps and KV fills add up to the same
number per request and cannot be told from its fixed cost: there the prefill's share of the window's time is laid beside
as a row of little weight, which decides nothing else.

**The direct way.** A probe asks a strategy at every exit point and never exits. What it costs more than full depth on
the same blocks, over its checks, is the price of asking; nothing is fitted and no sensor window is nested.

**Lossless decoding** is taken apart a second time, with the same prices: into drafting (layers, checks and heads of
passes that end in a draft), verifying (passes that go deep, with the LM head over all of their places), and what was
rolled back: both, of drafts that did not stand.

Lossless decoding is counted by passes, not by tokens. A pass that goes deep and verifies reads each layer and the LM
head once, for several rows; rows beyond the first are counted apart, since they cost little where weights are all that
takes time, and a lot where they are not.

The two ways share no window except full depth's, so that they can contradict each other; the intervals of both come
from resampling blocks of samples, all operating points of a block together. Not promised: batches above 1 and runs
without a KV cache, where counts of one sample do not say what was done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from harness.contracts import Amounts, price
from harness.records import DraftWork, MeterRecord, SampleRecord, WindowRecord
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
"""Counts that every operating point has; each strategy adds its checks.

A layer step is a layer that a pass runs, a layer row one more token that it takes along; likewise with the LM head,
whose rows are the places of a verification. A draft head is a cheap head that reads a draft. An exit costs something
once, however deep it lies (the map to the exit head, starting the fill, waiting). Without a count of its own that price
falls to the checks, which happen where exits do and never exit under a probe: the fit then exceeds the probe for every
cheap check. Exits that draft take a draft head each and make a row of the LM head each: what tells the two apart is an
operating point that drafts without exits, as ``full@lossless+lookup``.
"""


def attribute(cells: Sequence[Measured], meter: MeterRecord | None = None, *, seed: int = 0) -> tuple[Attribution, ...]:
    """Return the attribution of one task, in time and, where every window has it from one source, in energy.

    Nothing where the run has no probe, several samples in a batch, no KV cache, or requests that arrive at a fixed rate
    (their windows hold idle time).
    """
    usable = [cell for cell in cells if cell.conditions.cached and not cell.point.rehearsed]
    if not any(cell.point.never_exits for cell in cells) or any(cell.conditions.batch_size > 1 for cell in cells):
        return ()
    if any(sample.arrival_s is not None for cell in cells for sample in cell.samples.values()):
        return ()
    found = []
    for quantity, read in _QUANTITIES:
        system = _System.of(usable, read)
        if system is not None and system.blocks and np.all(system.cost > 0):
            sources = {window.energy_source for cell in usable for window in cell.windows.values()}
            source = "clock" if quantity == "time" else next(iter(sources))
            if quantity == "time" or len(sources) == 1:
                measured = quantity == "time" or (meter is not None and is_measured(source, meter))
                found.append(system.solve(quantity, source, seed).model_copy(update={"measured": measured}))
    return tuple(found)


def price_per_check(never: Cost, full: Cost, checks: Cost) -> Cost:
    """Return what one exit check costs, in the unit of the costs."""
    return (never - full) / checks


_QUANTITIES: tuple[tuple[Quantity, Callable[[WindowRecord], float | None]], ...] = (
    ("time", attrgetter("duration_s")),
    ("energy", attrgetter("energy_j")),
)


@dataclass(frozen=True)
class _System:
    """The windows of one task as counts and costs, of every operating point and the blocks that all finished."""

    cells: Sequence[Measured]
    names: tuple[str, ...]
    counts: Array
    cost: Array
    prefill_share: Array
    free_heads: Array
    drafting: Array
    rolled_back: Array
    finished: int

    @property
    def blocks(self) -> int:
        return int(self.cost.shape[1])

    @classmethod
    def of(cls, cells: Sequence[Measured], read: Callable[[WindowRecord], float | None]) -> _System | None:
        """Gather what every operating point finished; ``None`` where a window has no such reading."""
        asked = dict.fromkeys(cell.point.strategy for cell in cells if cell.point.exit_points)
        names = (*COMMON, *(f"check {strategy}" for strategy in asked))
        tables = [_by_block(cell, names, read) for cell in cells]
        if any(table is None for table in tables):
            return None
        whole = [table for table in tables if table is not None]
        shared = sorted(set.intersection(*(set(table) for table in whole))) if whole else []  # block and repeat
        blocks = list(dict.fromkeys(block for block, _ in shared))
        size = len(names)
        pooled = np.zeros((len(whole), len(blocks), 3 * size + 4))
        for place, table in enumerate(whole):
            for block, repeat in shared:
                pooled[place, blocks.index(block)] += table[block, repeat]
        cost, seconds, prefill, tokens = np.moveaxis(pooled[..., -4:], -1, 0)
        finished = len({block for table in whole for block, _ in table})
        counts, drafting, rolled_back = (pooled[..., at : at + size] for at in (0, size, 2 * size))
        return cls(cells, names, counts, cost, prefill / seconds, tokens, drafting, rolled_back, finished)

    def solve(self, quantity: Quantity, source: str, seed: int) -> Attribution:
        """Attribute, with intervals over resampled blocks."""
        learned = np.array([not cell.point.never_exits for cell in self.cells])
        rows, wanted = self._rows_of_fit(quantity)
        rows, wanted = (
            rows[learned],
            wanted[learned],
        )  # [operating points, blocks, 2, names], [operating points, blocks, 2]
        gram = np.einsum("pbri,pbrj->bij", rows, rows)
        right = np.einsum("pbri,pbr->bi", rows, wanted)
        chance = np.random.default_rng(seed)
        every = np.ones(self.blocks)
        draws = [every, *chance.multinomial(self.blocks, every / self.blocks, size=RESAMPLES).astype(float)]
        if self.blocks < MINIMUM_PAIRS:
            draws = [every]
        results = [
            self._results(_least_squares(draw @ gram.reshape(self.blocks, -1), draw @ right), draw) for draw in draws
        ]
        costs = _least_squares(gram.sum(0).reshape(-1), right.sum(0))
        off = np.abs((self.counts @ costs - self.cost)[learned] / self.cost[learned])
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
            rows=tuple(self._rows(found)),
            checks=tuple(self._checks(found)),
        )

    def _rows_of_fit(self, quantity: Quantity) -> tuple[Array, Array]:
        """Return the two rows of each window and their right sides, over the window's cost."""
        prefill = self.counts * np.isin(self.names, PREFILL)
        if quantity == "time":
            parts, shares = (prefill, self.counts - prefill), (self.prefill_share, 1 - self.prefill_share)
        else:
            parts, shares = (
                (prefill * TIE_BREAKER, self.counts),
                (self.prefill_share * TIE_BREAKER, np.ones_like(self.cost)),
            )
        return np.stack(parts, axis=2) / self.cost[..., None, None], np.stack(shares, axis=2)

    def _results(self, costs: Array, draw: Array) -> dict[str, float]:
        """Everything that is reported, for one resampling of the blocks."""
        cost = dict(zip(self.names, costs, strict=True))
        totals, counts, drafting, back = (
            self.cost @ draw,
            *(np.einsum("pbi,b->pi", part, draw) for part in (self.counts, self.drafting, self.rolled_back)),
        )
        free = self.free_heads @ draw
        found: dict[str, float] = {}
        direct, wanted = {}, {}  # seconds or joules per check, and LM heads that a check wants
        for place, cell in enumerate(self.cells):
            if not cell.point.never_exits:
                continue
            strategy = cell.point.strategy
            checks = self._count(counts[place], f"check {strategy}")
            if checks:
                direct[strategy] = price_per_check(totals[place], totals[0], checks)
                wanted[strategy] = (self._count(counts[place], "LM head") - free[place]) / checks
                found[f"direct {strategy}"] = direct[strategy]
                found[f"fitted {strategy}"] = cost[f"check {strategy}"] + wanted[strategy] * cost["LM head"]
                found[f"apart {strategy}"] = found[f"direct {strategy}"] - found[f"fitted {strategy}"]
        for place, cell in enumerate(self.cells):
            did = dict(zip(self.names, counts[place], strict=True))
            requests, name = did["request"], cell.point.name
            if cell.point.never_exits:
                continue
            check = f"check {cell.point.strategy}"
            checks = did.get(check, 0.0)
            extra = max(0.0, did["LM head"] - free[place])
            needed = did | {"LM head": did["LM head"] - extra}
            parts = {
                "prefill": _priced(did, cost, *PREFILL),
                "layers": _priced(did, cost, "layer step", "layer row", "attended position"),
                "exit_checks": price({check: checks}, cost),
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
            if cell.point.strategy in direct:
                served = max(
                    0.0, wanted[cell.point.strategy] * checks - extra
                )  # heads of checks that became the output
                overhead = direct[cell.point.strategy] * checks - served * cost["LM head"]
                found[f"overhead {name}"] = overhead / requests
                found[f"of run {name}"] = overhead / totals[place]
                found[f"of full {name}"] = overhead / requests / (totals[0] / counts[0][0])
        return found

    def _count(self, row: Array, name: str) -> float:
        return float(row[self.names.index(name)])

    def _rows(self, found: Mapping[str, Estimate]) -> Iterator[OperatingPointCost]:
        for cell in self.cells:
            name = cell.point.name
            if cell.point.never_exits:
                continue
            yield OperatingPointCost(
                operating_point=name,
                total=found[f"total {name}"].value,
                parts={part: found[f"part {name} {part}"] for part in PARTS},
                phases={phase: found[f"phase {name} {phase}"] for phase in PHASES if _verified(cell)},
                overhead=found.get(f"overhead {name}"),
                overhead_of_run=found.get(f"of run {name}"),
                overhead_of_full=found.get(f"of full {name}"),
            )

    def _checks(self, found: Mapping[str, Estimate]) -> Iterator[CheckCost]:
        for name in self.names[len(COMMON) :]:
            strategy = name.removeprefix("check ")
            apart = found.get(f"apart {strategy}")  # of the same resamplings, so that what both share cancels
            agree = None if apart is None or apart.interval is None else apart.interval[0] <= 0 <= apart.interval[1]
            direct, fitted = (found.get(f"{how} {strategy}") for how in ("direct", "fitted"))
            yield CheckCost(strategy=strategy, direct=direct, fitted=fitted, agree=agree)


def _verified(cell: Measured) -> bool:
    """Whether its samples say what was drafted and verified; those of older runs do not."""
    return cell.point.lossless and all(sample.drafting is not None for sample in cell.samples.values())


def _by_block(
    cell: Measured, names: tuple[str, ...], read: Callable[[WindowRecord], float | None]
) -> dict[tuple[int, int], list[float]] | None:
    """Return (block, repeat) → counts of each kind, cost, seconds, those of prefill, free heads; no failed ones."""
    if any(read(window) is None for window in cell.windows.values()):
        return None
    found: dict[tuple[int, int], list[float]] = {}
    for number, samples in cell.whole.items():
        window = cell.windows[number]
        did = [counts_of(sample, f"check {cell.point.strategy}", names) for sample in samples]
        whole = sum(did[1:], did[0])
        prefill_s = sum(sample.token_times_s[0] for sample in samples)
        spent = (read(window), window.duration_s)
        row = [*whole.all, *whole.drafting, *whole.rolled_back, *spent, prefill_s, whole.free_heads]
        found[window.block, window.repeat] = row
    return found


def _priced(did: Amounts, cost: Mapping[str, float], *units: str) -> float:
    return price({unit: did[unit] for unit in units}, cost)


def _least_squares(gram: Array, right: Array) -> Array:
    """Return the costs ≥ 0 that fit best, from the normal equations (flattened Gram matrix and right side).

    Counts differ by many orders of magnitude, so columns are scaled to unit length first; a column of zeros costs 0.
    """
    from scipy.optimize import nnls  # late: no other report needs scipy

    matrix = gram.reshape(len(right), len(right))
    length = np.sqrt(np.diag(matrix))
    used = length > 0
    scaled = matrix[np.ix_(used, used)] / np.outer(length[used], length[used])
    values, vectors = np.linalg.eigh(scaled)
    root = np.sqrt(np.clip(values, values.max() * 1e-12, None))
    half = root[:, None] * vectors.T  # half.T @ half is the scaled Gram matrix
    solution, _ = nnls(half, (vectors.T @ (right[used] / length[used])) / root, maxiter=100 * len(right))
    costs = np.zeros(len(right))
    costs[used] = solution / length[used]
    return costs


@dataclass(frozen=True, slots=True)
class Counts:
    """Things that were done, each by the names of the attribution, ``[names]``."""

    all: Array
    drafting: Array
    rolled_back: Array
    free_heads: float

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.all + other.all,
            self.drafting + other.drafting,
            self.rolled_back + other.rolled_back,
            self.free_heads + other.free_heads,
        )


def counts_of(sample: SampleRecord, check: str, names: Sequence[str]) -> Counts:
    """Return what one sample did."""
    amounts = {"request": 1, "prompt token": len(sample.prompt_ids)} | sample.decode_amounts()
    did = _in_order(amounts, check, names)
    if not sample.verifications:
        nothing = np.zeros(len(names))
        return Counts(did, nothing, nothing, len(sample.exit_layers) - 1)
    drafting, rolled_back = (
        work.amounts(sample.middle) for work in (sample.drafting or DraftWork(), sample.rolled_back or DraftWork())
    )
    rows = {name: amounts[name] for name in ("layer row", "LM head row")}
    extra = amounts["LM head"] - sample.verifications  # evaluations of checks and drafts
    drafts = drafting | {name: amounts[name] for name in ("draft head", "check")} | {"LM head": extra}
    discarded = sample.layers_discarded // sample.exit_layers[0]
    share = discarded / rows["LM head row"] if discarded else 0.0  # of a verification's rows but one
    back = rolled_back | {name: share * count for name, count in rows.items()}
    return Counts(
        did,
        _in_order(drafts, check, names) - _in_order(rolled_back, check, names),
        _in_order(back, check, names),
        sample.verifications,
    )


def _in_order(did: Amounts, check: str, names: Sequence[str]) -> Array:
    return np.array([float(did.get("check" if name == check else name, 0)) for name in names])
