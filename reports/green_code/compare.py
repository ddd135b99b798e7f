"""GREEN-CODE's grid, the paper's numbers and ours point by point, as plain data.

Everything relative is to the same system's own full depth *under the same KV policy*: what can be compared across
models and machines. One quantity is not: the agent's share is of the operating point's own cost, as in the paper's
Table IV; the agent's cost over full depth stands beside it. The paper's full depth is tuned; ours has the weights of
the run. The paper's numbers have no interval (one run each); ours are paired by block of samples, with 95 %
intervals where enough samples were measured. CodeBLEU is a score of a whole corpus and has none. Untuned full depth
is a run of its own, so its cost is not paired and has no interval either. Random weights have no scores.

**Overhead of the agent** is measured without nesting windows: the agent asked at every exit point and never obeyed,
less full depth, gives the price of one check; times the checks of an operating point. Blocks are resampled together.

**Matched depth.** Thresholds are probabilities of two different agents, so equal thresholds are not equal settings. For
each published point there is also the measured operating point whose share of skipped layers is nearest, whatever its
strategy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reports.green_code.numbers import Estimate, Numbers, measured_numbers
from reports.green_code.paper_points import cache_savings, published_points
from reports.green_code.published_runs import PublishedRun
from reports.green_code.table import NEAR, NEVER, GridComparison, GridPoint, GridTable, MatchedPoint
from reports.recorded import RecordedRun
from reports.summary.energy import is_measured
from reports.summary.measured import Measured

__all__ = ["compare_grid"]


def compare_grid(
    thresholds: Sequence[float], runs: Sequence[tuple[str, tuple[str, ...], RecordedRun]]
) -> GridComparison:
    """Lay measured runs beside the paper's.

    Args:
        thresholds: of the grid.
        runs: kind (``tuned`` or ``base``), the paper's models it stands for, and the run, of one task each.
    """
    base = {_place(run): run for kind, _, run in runs if kind == "base"}
    tables = [
        _table(tuple(thresholds), stands_for, run, base.get(_place(run)))
        for kind, stands_for, run in runs
        if kind == "tuned"
    ]
    return GridComparison(tuple(tables), tuple(thresholds))


def _place(run: RecordedRun) -> tuple[str, str]:
    return run.manifest.model.name, run.manifest.tasks[0].name


def _table(
    thresholds: tuple[float, ...], stands_for: tuple[str, ...], run: RecordedRun, base: RecordedRun | None
) -> GridTable:
    task, model = run.manifest.tasks[0], run.manifest.model
    ours = _Ours(run)
    points = (
        *([_base_point(stands_for, task.language, ours, base)] if base else []),
        _point(
            "full",
            "full depth, tuned" if model.weights == "tuned" else "full depth",
            None,
            stands_for,
            task.language,
            ours,
        ),
        *(_point(f"{t:g}", f"threshold {t:g}", t, stands_for, task.language, ours) for t in thresholds),
        _point("never", "asked, never exits", NEVER, stands_for, task.language, ours),
    )
    agent = [point for point in points if point.threshold in thresholds]
    full = ours.numbers("full", None, "none")
    return GridTable(
        model=model.name,
        weights=model.weights,
        exit_head=model.exit_head,
        dtype=model.numbers,
        task=task.name,
        language=task.language,
        source_kind=task.source_kind,
        source=task.source,
        samples=full.samples if full else 0,
        stands_for=stands_for,
        agent=next((str(c.point.options["agent"]) for c in ours.cells if c.point.options.get("agent")), "rl"),
        energy_source=full.energy_source if full else "none",
        energy_measured=full is not None and is_measured(full.energy_source, run.manifest.meter),
        machine=run.summary.machine,
        points=points,
        matched=tuple(_matched(agent, ours)),
        cache=ours.cache_saving(),
        published_cache={name: cache_savings(name, task.language) for name in stands_for},
        thresholds_differ=_differ(agent),
        notes=(*run.summary.notes, *_only_of(base, run)),
    )


def _only_of(base: RecordedRun | None, run: RecordedRun) -> Iterator[str]:
    """Further notes of the untuned run."""
    for note in base.summary.notes if base else ():
        if note not in run.summary.notes:
            yield f"untuned run: {note}"


def _differ(agent: Sequence[GridPoint]) -> bool:
    """Whether our agent is at none of the thresholds as deep as one of the paper's at the same."""
    apart = [
        abs(point.uncached.layers_skipped.value - theirs.layers_skipped.value) > NEAR
        for point in agent
        for theirs in point.published.values()
        if point.uncached and point.uncached.layers_skipped and theirs.layers_skipped
    ]
    return bool(apart) and all(apart)


class _Ours:
    """The operating points of one tuned run, in its first weights format, by what they are."""

    def __init__(self, run: RecordedRun) -> None:
        self._run = run
        stored = run.manifest.model.stored_in
        self.cells = [cell for cell in run.cells.values() if cell.conditions.weights_format == stored]
        self.scored = run.manifest.model.weights != "random"
        self.codebleu = {row.operating_point: row.value("codebleu") for row in run.summary.rows}

    def find(self, strategy: str, options: Mapping[str, Any], kv: str) -> Measured | None:
        """The operating point of a strategy under a KV policy that has these options, whatever its others are."""
        for cell in self.cells:
            if (cell.point.strategy, cell.conditions.kv) == (
                strategy,
                kv,
            ) and options.items() <= cell.point.options.items():
                return cell
        return None

    def numbers(self, strategy: str, threshold: float | None, kv: str) -> Numbers | None:
        cell = self.find(strategy, {} if threshold is None else {"threshold": threshold}, kv)
        return None if cell is None else self.numbers_of(cell)

    def numbers_of(self, cell: Measured) -> Numbers | None:
        full = self.find("full", {}, cell.conditions.kv)
        if full is None or not cell.samples or not full.samples:
            return None
        never = self.find("rl", {"threshold": NEVER}, cell.conditions.kv) if cell.point.strategy == "rl" else None
        return measured_numbers(
            cell,
            full,
            self._run.manifest.model.num_layers,
            (self.codebleu.get(cell.point.name), self.codebleu.get(full.point.name)),
            never=never,
            scored=self.scored,
        )

    def cache_saving(self) -> tuple[Estimate | None, Estimate | None]:
        here, there = self.find("full", {}, "propagate"), self.find("full", {}, "none")
        if here is None or there is None or not here.samples or not there.samples:
            return None, None
        numbers = measured_numbers(here, there, self._run.manifest.model.num_layers, (None, None))
        return numbers.time_saving, numbers.energy_saving


def _point(
    key: str, label: str, threshold: float | None, stands_for: Sequence[str], language: str, ours: _Ours
) -> GridPoint:
    strategy = "full" if threshold is None else "rl"

    def is_this(run: PublishedRun) -> bool:
        if key == "never":
            return run.strategy == "rl" and run.layers_skipped == 0
        return (run.strategy, run.weights, run.threshold) == (strategy, "tuned", threshold)

    return GridPoint(
        key,
        label,
        threshold,
        published_points(stands_for, language, is_this),
        ours.numbers(strategy, threshold, "none"),
        ours.numbers(strategy, threshold, "propagate"),
    )


def _base_point(stands_for: Sequence[str], language: str, ours: _Ours, base: RecordedRun) -> GridPoint:
    """Untuned full depth beside tuned full depth, both with a cache: another run, so its costs are not paired."""
    (cell,) = base.cells.values()
    full = ours.find("full", {}, "propagate")
    cached = None
    if full is not None and cell.samples and full.samples:
        scores = (base.summary.rows[0].value("codebleu"), ours.codebleu.get(full.point.name))
        scored = ours.scored and base.manifest.model.weights != "random"
        cached = measured_numbers(cell, full, base.manifest.model.num_layers, scores, paired=False, scored=scored)
    published = published_points(stands_for, language, lambda run: run.strategy == "full" and run.weights == "base")
    return GridPoint("base", "full depth, untuned", None, published, None, cached)


def _matched(agent: Sequence[GridPoint], ours: _Ours) -> Iterator[MatchedPoint]:
    """For each published point the uncached operating point of ours that is nearest in depth; the agent wins a tie."""
    candidates = [
        (cell, numbers, numbers.layers_skipped.value)
        for cell in ours.cells
        if _may_match(cell) and (numbers := ours.numbers_of(cell)) is not None and numbers.layers_skipped is not None
    ]
    for point in agent:
        for name, published in point.published.items():
            if published.layers_skipped is None or point.threshold is None or not candidates:
                continue
            cell, numbers, apart = _nearest(candidates, published.layers_skipped.value)
            cached = ours.find(cell.point.strategy, cell.point.options, "propagate")
            yield MatchedPoint(
                paper_model=name,
                threshold=point.threshold,
                published=published,
                operating_point=cell.point.name.partition("@")[0],
                near=apart <= NEAR,
                uncached=numbers,
                cached=ours.numbers_of(cached) if cached is not None else None,
            )


def _may_match(cell: Measured) -> bool:
    """Whether the operating point decides where to exit, and without a cache, as the paper's did."""
    point = cell.point
    decides = bool(point.exit_points) and point.options.get("threshold") != NEVER and not point.rehearsed
    return decides and cell.conditions.kv == "none"


def _nearest(candidates: Sequence[tuple[Measured, Numbers, float]], depth: float) -> tuple[Measured, Numbers, float]:
    """The candidate nearest to a share of skipped layers, and how far it is."""
    cell, numbers, skipped = min(candidates, key=lambda one: (abs(one[2] - depth), one[0].point.strategy != "rl"))
    return cell, numbers, abs(skipped - depth)
