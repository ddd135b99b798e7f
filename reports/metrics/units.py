"""The independent units of a metric: what each prompt, or each block of prompts, cost or scored.

A unit is named by the prompts in it, so that units of two runs pair by their names. Costs that only a whole window has
(requests back to back, energy, throughput) come by block, everything else by prompt until :func:`by_block` adds up the
prompts of a block: they share a window, and whatever disturbed it. Repeats of a prompt belong to its unit: they say
nothing new about other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

from harness.contracts import Metric
from harness.records import SampleRecord, WindowRecord
from reports.metrics.point import Point
from reports.statistics.plausible import all_plausible
from reports.summary.measured import Measured

Units: TypeAlias = Mapping[frozenset[str], tuple[float, ...]]
"""Prompts of a unit → its row: totals (of what stands above and below the line of a rate), or one value per repeat."""


def units_of(metric: Metric, point: Point) -> Units | None:
    """Return what a metric is made of, unit by unit: empty if it was not measured, ``None`` if it has none."""
    if not point.can_have(metric):
        return {}
    if metric.units is not None:
        units: Units = metric.units(point)
        return units
    if metric.of_sample is None:
        return None
    if metric.percentile is None:
        return rates(point.cell, metric.of_sample)
    found: dict[frozenset[str], list[float]] = {}
    for sample in point.samples:
        value = metric.of_sample(sample)
        if value is not None:
            found.setdefault(frozenset([sample.sample_id]), []).append(value)
    return {key: tuple(values) for key, values in found.items()}


def usable(units: Units) -> Units:
    """Return the units whose numbers can all be true: neither NaN nor infinite, nor beyond all reason."""
    return {key: row for key, row in units.items() if all_plausible(row)}


def by_block(metric: Metric, units: Units, cell: Measured) -> Units:
    """Return units with those joined whose prompts share a block of an operating point."""
    keys = cell.by_block({next(iter(key)): key for key in units})
    return {frozenset[str]().union(*block): added(metric, [units[key] for key in block]) for block in keys}


def added(metric: Metric, rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return the row of several units together: those of a percentile are strung together, those of a rate added up."""
    return tuple(chain(*rows)) if metric.percentile is not None else tuple(map(sum, zip(*rows, strict=True)))


def rates(cell: Measured, read: Callable[[SampleRecord], tuple[float, float] | float | None]) -> Units:
    """Return units by prompt.

    Args:
        cell: the operating point.
        read: numerator and denominator of a sample, a number to take the mean of, or ``None`` where it has none.
    """
    rows = []
    for sample in cell.samples.values():
        found = read(sample)
        if found is not None:
            rows.append((frozenset([sample.sample_id]), found if isinstance(found, tuple) else (found, 1.0)))
    return _added(rows)


def tokens(cell: Measured) -> int | None:
    """Return the tokens of windows without a failed sample; ``None`` where a black box does not count its own."""
    counts = [window.tokens for window in cell.whole_windows]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def blocks(cell: Measured, cost: Callable[[WindowRecord], float | None], *, per_token: bool = False) -> Units:
    """Return a cost of whole windows, and the windows or tokens it bought; a window with a failed sample has none."""
    rows = []
    for number, members in cell.whole.items():
        window = cell.windows[number]
        spent, bought = cost(window), window.tokens if per_token else 1
        if spent is not None and bought is not None:
            rows.append((frozenset(sample.sample_id for sample in members), (spent, float(bought))))
    return _added(rows)


def joined(above: Units, below: Units) -> Units:
    """Return the units of a ratio of two rates."""
    return {key: (*row, *below[key]) for key, row in above.items() if key in below}


def _added(rows: Iterable[tuple[frozenset[str], tuple[float, ...]]]) -> Units:
    found: dict[frozenset[str], tuple[float, ...]] = {}
    for key, row in rows:
        found[key] = tuple(map(sum, zip(found[key], row, strict=True))) if key in found else row
    return found
