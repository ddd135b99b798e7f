"""What the grid is as data: per model and task, each setting with the paper's numbers and ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from reports.green_code.numbers import Estimate, Numbers

__all__ = ["NEAR", "NEVER", "QUANTITIES", "GridComparison", "GridPoint", "GridTable", "MatchedPoint"]

QUANTITIES = {
    "layers_skipped": "layers skipped",
    "time_saving": "time saved",
    "energy_saving": "energy saved",
    "rouge_l_kept": "ROUGE-L kept",
    "codebleu_kept": "CodeBLEU kept",
    "overhead_time": "agent over own time",
    "overhead_energy": "agent over own energy",
    "overhead_time_of_full": "agent over full depth, time",
    "overhead_energy_of_full": "agent over full depth, energy",
}
"""Relative quantities, fractions, by field of :class:`reports.green_code.numbers.Numbers`.

Kept: over full depth's score. Own: over the operating point's own cost. All others: over full depth's cost or depth.
"""

NEVER = 1.0
"""The threshold under which ours is asked and never exits."""

NEAR = 0.05
"""Share of the layers within which two operating points count as equally deep."""


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One setting of the grid.

    Attributes:
        key: ``base``, ``full``, ``never``, or the threshold as text.
        label: for a reader.
        threshold: of the agent, or ``None``.
        published: the paper's model → its numbers; without those that the paper does not have.
        uncached, cached: ours without and with a KV cache; ``None`` where not measured.
    """

    key: str
    label: str
    threshold: float | None
    published: Mapping[str, Numbers]
    uncached: Numbers | None
    cached: Numbers | None


@dataclass(frozen=True, slots=True)
class MatchedPoint:
    """A published point and the measured operating point that skips the most similar share of layers.

    Attributes:
        paper_model, threshold, published: the paper's.
        operating_point: ours, without its KV policy.
        near: whether the two depths differ by at most 5 % of the layers.
        uncached, cached: ours.
    """

    paper_model: str
    threshold: float
    published: Numbers
    operating_point: str
    near: bool
    uncached: Numbers
    cached: Numbers | None


@dataclass(frozen=True, slots=True)
class GridTable:
    """One model on one task.

    Attributes:
        model, weights, exit_head, dtype: ours.
        task, language, source_kind, source: data of ours. samples: finished by full depth without a cache.
        stands_for: the paper's models. agent: ours, by name.
        energy_source: where our joules come from. energy_measured: a sensor measured them.
        machine: ours.
        points: the grid, in the paper's order.
        matched: at matched depth.
        cache: what switching the cache on saves full depth of ours (time, energy), the whole request.
        published_cache: the same of the paper's models; their cached runs have longer prompts.
        thresholds_differ: our agent skips at no threshold of the paper as much as the paper's.
        notes: what the runs' own reports say under their tables.
    """

    model: str
    weights: str
    exit_head: str
    dtype: str
    task: str
    language: str
    source_kind: str
    source: str
    samples: int
    stands_for: tuple[str, ...]
    agent: str
    energy_source: str
    energy_measured: bool
    machine: str
    points: tuple[GridPoint, ...]
    matched: tuple[MatchedPoint, ...]
    cache: tuple[Estimate | None, Estimate | None]
    published_cache: Mapping[str, tuple[float, float]]
    thresholds_differ: bool
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class GridComparison:
    """The whole grid.

    Attributes:
        tables: one per model and task.
        thresholds: the paper's.
    """

    tables: tuple[GridTable, ...]
    thresholds: tuple[float, ...]
