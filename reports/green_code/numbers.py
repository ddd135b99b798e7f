"""One operating point in numbers: what it skips, saves, keeps and spends on deciding, against full depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import (
    MINIMUM_PAIRS,
    Pair,
    paired_ratio,
    pooled,
    ratio_interval,
    replicate_interval,
    resampled,
    score_interval,
)
from reports.summary.attribution import price_per_check
from reports.summary.energy import has_energy, total
from reports.summary.measured import Measured

__all__ = ["Estimate", "Numbers", "measured_numbers", "overhead"]

RESAMPLES = 4_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A fraction with its 95 % interval; no interval where it was published, cannot be paired, or has too few pairs."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Numbers:
    """One operating point; ``None``: not measured, not published, or not defined.

    Attributes:
        operating_point: label of ours, or ``published``.
        samples: finished.
        energy_source: where joules come from; ``mixed`` where windows differ, which then have no joules.
        layers_skipped, time_saving, energy_saving: shares of full depth under the same KV policy.
        rouge_l_kept, codebleu_kept: score over full depth's; none of random weights.
        overhead_time, overhead_energy: the agent's share of the operating point's own cost.
        overhead_time_of_full, overhead_energy_of_full: the same over full depth's cost.
        time_s, energy_j: means per sample; ``…_std…`` the standard deviation over samples.
        rouge_l, codebleu: 0…1; none of random weights.
    """

    operating_point: str
    samples: int
    energy_source: str
    layers_skipped: Estimate | None = None
    time_saving: Estimate | None = None
    energy_saving: Estimate | None = None
    rouge_l_kept: Estimate | None = None
    codebleu_kept: Estimate | None = None
    overhead_time: Estimate | None = None
    overhead_energy: Estimate | None = None
    overhead_time_of_full: Estimate | None = None
    overhead_energy_of_full: Estimate | None = None
    time_s: float | None = None
    time_std_s: float | None = None
    energy_j: float | None = None
    energy_std_j: float | None = None
    rouge_l: float | None = None
    codebleu: float | None = None


def measured_numbers(
    cell: Measured,
    full: Measured,
    num_layers: int,
    codebleu: tuple[float | None, float | None],
    *,
    never: Measured | None = None,
    paired: bool = True,
    scored: bool = True,
) -> Numbers:
    """Compare an operating point with full depth.

    Args:
        cell: the operating point.
        full: full depth, under the same KV policy unless the cache itself is compared.
        num_layers: decoder layers of the model.
        codebleu: of both, over the corpus.
        never: the same strategy, asked and never obeyed; without it there is no overhead.
        paired: their windows were interleaved; otherwise costs have no interval.
        scored: scores mean something; with random weights they do not, and there are none.
    """
    same = cell is full
    windows = [(cell.windows[number], len(samples)) for number, samples in cell.whole.items()]
    seconds = [window.duration_s / count for window, count in windows if window.duration_s is not None]
    joules = [window.energy_j / count for window, count in windows if window.energy_j is not None]
    source, spent = total(cell.windows.values())
    has_joules = spent is not None and bool(joules)
    scores = [score for sample in cell.scored if (score := sample.scores.get("rouge_l")) is not None]
    mine, theirs = codebleu if scored else (None, None)
    return Numbers(
        operating_point=cell.point.name,
        samples=len(cell.scored),
        energy_source=source,
        layers_skipped=_skipped(cell, num_layers),
        time_saving=Estimate(0.0) if same else _saving(cell.window_pairs(full), interval=paired),
        energy_saving=_energy_saving(cell, full, interval=paired),
        rouge_l_kept=None if not scored else Estimate(1.0) if same else _kept(cell, full),
        codebleu_kept=Estimate(mine / theirs) if mine is not None and theirs else None,
        overhead_time=overhead(cell, full, never, "time"),
        overhead_energy=overhead(cell, full, never, "energy"),
        overhead_time_of_full=overhead(cell, full, never, "time", of_full=True),
        overhead_energy_of_full=overhead(cell, full, never, "energy", of_full=True),
        time_s=mean(seconds) if seconds else None,
        time_std_s=_spread(cell, seconds),
        energy_j=mean(joules) if has_joules else None,
        energy_std_j=_spread(cell, joules) if has_joules else None,
        rouge_l=mean(scores) if scores and scored else None,
        codebleu=mine,
    )


def overhead(
    cell: Measured, full: Measured, never: Measured | None, quantity: str, *, of_full: bool = False
) -> Estimate | None:
    """Return what asking cost an operating point, as a share of its own cost or of full depth's.

    The price of a check (:func:`reports.summary.attribution.price_per_check`) times the checks, totals over the blocks
    that all three finished. A block's repeats are added up and resampled together.

    Args:
        cell: the operating point; full depth and strategies without a probe have none.
        full: full depth.
        never: the strategy asked everywhere, never obeyed.
        quantity: ``time`` or ``energy``.
        of_full: over full depth's cost.
    """
    if never is None or cell is full:
        return None
    if quantity == "energy" and not (has_energy(cell, full) and has_energy(never, full)):
        return None
    full_windows, never_windows, cell_windows = (_by_window(one, quantity) for one in (full, never, cell))
    # a row a block, its repeats added up; columns: full's cost, never's cost and checks, the point's cost and checks
    blocks: dict[int, NDArray[np.float64]] = {}
    for key in sorted(full_windows.keys() & never_windows.keys() & cell_windows.keys()):
        row = np.array([full_windows[key][0], *never_windows[key], *cell_windows[key]])
        blocks[key[0]] = blocks[key[0]] + row if key[0] in blocks else row
    if not blocks:
        return None
    rows = np.stack(list(blocks.values()))

    def share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        whole, asked, asked_checks, cost, checks = sums.T
        found: NDArray[np.float64] = price_per_check(asked, whole, asked_checks) * checks / (whole if of_full else cost)
        return found

    total = rows.sum(axis=0, keepdims=True)
    if not total[0, 2]:
        return None
    value = float(share(total)[0])
    if len(blocks) < MINIMUM_PAIRS:
        return Estimate(value)
    sums = np.vstack([counts @ rows for counts in resampled(len(blocks), RESAMPLES, 0)])
    interval = replicate_interval(share(sums), len(blocks))
    return Estimate(value) if interval is None else Estimate(value, *interval)


def _by_window(cell: Measured, quantity: str) -> dict[tuple[int, int], tuple[float, float]]:
    """Cost and exit checks of each block and repeat that finished whole."""
    found = {}
    for number, samples in cell.whole.items():
        window = cell.windows[number]
        cost = window.duration_s if quantity == "time" else window.energy_j
        if cost is not None:
            found[window.block, window.repeat] = (cost, float(sum(sample.exit_checks for sample in samples)))
    return found


def _saving(pairs: Sequence[Pair], *, interval: bool) -> Estimate | None:
    """1 − the share of full depth's cost that is left."""
    ratio = paired_ratio(pairs)
    if not ratio:
        return None
    bounds = ratio_interval(pairs) if interval else None
    if not isinstance(bounds, tuple):
        return Estimate(1 - 1 / ratio)
    return Estimate(1 - 1 / ratio, 1 - 1 / bounds[0], 1 - 1 / bounds[1])


def _energy_saving(cell: Measured, full: Measured, *, interval: bool) -> Estimate | None:
    if not has_energy(cell, full):
        return None
    return Estimate(0.0) if cell is full else _saving(cell.energy_pairs(full), interval=interval)


def _skipped(cell: Measured, num_layers: int) -> Estimate | None:
    pairs = _by_block(
        cell,
        {
            sample.sample_id: Pair(float(sum(layers)), float(len(layers)))
            for sample in cell.scored
            if (layers := cell.decoded_layers(sample))
        },
    )
    executed = paired_ratio(pairs)
    if executed is None:
        return None
    bounds = ratio_interval(pairs)
    value = 1 - executed / num_layers
    if not isinstance(bounds, tuple):
        return Estimate(value)
    return Estimate(value, 1 - bounds[1] / num_layers, 1 - bounds[0] / num_layers)


def _kept(cell: Measured, full: Measured) -> Estimate | None:
    """Mean ROUGE-L over full depth's, on the samples both finished; no interval where too few of them tell it."""
    mine = {sample.sample_id: sample.scores.get("rouge_l") for sample in cell.scored}
    theirs = {sample.sample_id: sample.scores.get("rouge_l") for sample in full.scored}
    both = {
        key: Pair(here, there)
        for key, here in mine.items()
        if here is not None and (there := theirs.get(key)) is not None
    }
    pairs = _by_block(cell, both)
    ratio = paired_ratio(pairs)
    if ratio is None:
        return None
    differences = cell.by_block({key: pair.baseline - pair.other for key, pair in both.items()})
    bounds = ratio_interval(pairs) if isinstance(score_interval(differences), tuple) else None
    return Estimate(ratio, *bounds) if isinstance(bounds, tuple) else Estimate(ratio)


def _by_block(cell: Measured, pairs: Mapping[str, Pair]) -> list[Pair]:
    return pooled((place, pair) for place, block in enumerate(cell.by_block(pairs)) for pair in block)


def _spread(cell: Measured, values: Sequence[float]) -> float | None:
    """Standard deviation over samples; where a window holds several, there is none."""
    alone = all(len(samples) == 1 for samples in cell.whole.values())
    return stdev(values) if alone and len(values) > 1 else None
