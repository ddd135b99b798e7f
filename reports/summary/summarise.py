"""From raw records to ``summary.json``: one row per task × operating point.

What counts is in ``admission``, how it pairs in ``measured``, what it becomes in :mod:`reports.metrics`, the front in
``pareto``. Accuracy comes from the first repeat, everything else from all of them. Probes that never exit (for the
attribution of costs) get no row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from harness.contracts import Metric
from harness.errors import StoreError
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.cost import Attribution
from harness.records.summary import SUMMARY_VERSION, Summary, SummaryRow
from reports.metrics.evaluation import compare_all, evaluate
from reports.metrics.point import Point
from reports.metrics.scores import recorded_scores
from reports.metrics.speedups import SPEEDUP, speedup_pairs
from reports.metrics.vocabulary import all_metrics
from reports.statistics.intervals import MINIMUM_PAIRS, paired_ratio
from reports.summary.absurd import without_absurd
from reports.summary.acceptance import acceptances
from reports.summary.admission import idle_windows
from reports.summary.attribution import attribute
from reports.summary.degenerate import degenerate
from reports.summary.energy import is_measured, total
from reports.summary.measured import Measured, full_depths, select
from reports.summary.notes import notes
from reports.summary.pareto import mark_front
from reports.summary.prompt_times import PromptTimes
from reports.summary.quality import CorpusScorer, scored_by
from reports.summary.verdict import verdict

__all__ = ["candidates", "summarise"]


def summarise(
    manifest: Manifest,
    windows: Iterable[WindowRecord],
    samples: Iterable[SampleRecord],
    score_corpus: CorpusScorer,
    *,
    machine: str | None = None,
    missing_scores: Sequence[str] = (),
) -> Summary:
    """Summarise a run directory's records; a run that is not finished is summarised as far as it got.

    Args:
        manifest: full depth is its first operating point, which tokens and scores are compared with; ratios of costs
            are over full depth in the row's own weights format.
        windows: measured windows; warm-up is left out.
        samples: sample records; those of uncommitted windows are left out.
        score_corpus: ``(language, texts, references) -> scores``, called once per row that has samples.
        machine: one line that describes where it was measured (``harness.host.environment.machine_line``);
            by default what the manifest's environment calls the processor.
        missing_scores: sentences about scores that the scorer cannot make where it runs; they become notes.

    Returns:
        Rows in the manifest's order (tasks, then operating points), also for operating points that have no
        measurement yet: those have ``n`` 0 and no metric.

    Raises:
        StoreError: the manifest's configuration cannot be understood, or it names no operating point.
    """
    windows, samples = tuple(windows), tuple(samples)
    measured = tuple(select(manifest, windows, samples).values())
    cells = _candidates(manifest, measured)
    idle, scorer = idle_windows(windows), scored_by(score_corpus)
    points = []
    for task in manifest.tasks:
        table = [cell for cell in cells if cell.task.name == task.name]
        prompts = PromptTimes(table)
        points.append([Point(cell, table, manifest, idle, scorer, prompts) for cell in table])
    together = {name for table in points for point in table for name in point.corpus_scores}
    metrics = all_metrics(recorded_scores(cells) | together)
    left_out: Counter[str] = Counter()
    rows = tuple(row for table in points for row in _table(table, metrics, left_out))
    summary = Summary(
        schema_version=SUMMARY_VERSION,
        machine=machine or str(manifest.environment.get("cpu") or "machine not recorded"),
        notes=(
            *notes(manifest, measured, rows, windows, samples, missing_scores),
            *(f"{name}: {n} number(s) left out as not finite or beyond all reason." for name, n in (+left_out).items()),
        ),
        rows=rows,
        attributions=tuple(
            attribution
            for task in manifest.tasks
            for name in manifest.model.formats
            for attribution in _attributed(measured, manifest, task.name, name)
        ),
    )
    summary = without_absurd(summary)
    return mark_front(summary) if degenerate(manifest, measured) is None else summary


def candidates(
    manifest: Manifest, windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]
) -> tuple[Measured, ...]:
    """Return what becomes a row, in the manifest's order: every operating point but the probes that never exit.

    Raises:
        StoreError: the manifest's configuration cannot be understood, or it names no operating point.
    """
    return _candidates(manifest, tuple(select(manifest, windows, samples).values()))


def _candidates(manifest: Manifest, measured: Sequence[Measured]) -> tuple[Measured, ...]:
    first = manifest.operating_points[0] if manifest.operating_points else None
    if first is None or first.never_exits or first.strategy != "full":
        raise StoreError(
            "the manifest does not begin with full depth, which everything is compared with. "
            "It is damaged or foreign; start a new run with `harness run`."
        )
    for task in manifest.tasks:
        missing = set(manifest.model.formats) - set(
            full_depths(cell for cell in measured if cell.task.name == task.name)
        )
        if missing:
            raise StoreError(
                f"the manifest has no full depth in {', '.join(sorted(missing))}, which that format is compared with. "
                "It is damaged or foreign; start a new run with `harness run`."
            )
    return tuple(cell for cell in measured if not cell.point.never_exits)


def _attributed(
    measured: Sequence[Measured], manifest: Manifest, task: str, weights_format: str
) -> Iterable[Attribution]:
    """Attribute the costs of one weights format: a layer costs something else in each."""
    cells = [one for one in measured if (one.task.name, one.conditions.weights_format) == (task, weights_format)]
    shown = weights_format if len(manifest.model.formats) > 1 else ""
    for found in attribute(cells, manifest.meter):
        yield found.model_copy(update={"weights_format": shown})


def _table(points: Sequence[Point], metrics: Sequence[Metric], left_out: Counter[str]) -> list[SummaryRow]:
    """The rows of one task, full depth first."""
    paired = [metric for metric in metrics if metric.paired]
    rows, without_flagged = [], _without_flagged(points)
    for point, comparisons in zip(points, compare_all(paired, points, left_out), strict=True):
        found = {
            metric.name: comparisons[metric].estimate if metric.paired else evaluate(metric, point, left_out)
            for metric in metrics
        }
        source, _ = total(point.windows)
        measured = is_measured(source, point.manifest.meter)
        row = SummaryRow(
            operating_point=point.cell.point.name,
            strategy=point.cell.point.strategy,
            options=point.cell.point.options,
            task=point.cell.task.name,
            language=point.cell.task.language,
            protocol=point.cell.task.protocol,
            source=point.cell.task.source,
            model=point.model.name,
            weights=point.model.weights,
            exit_head=point.model.exit_head.partition(":")[0],
            kv=point.cell.conditions.kv,
            black_box=point.cell.point.black_box is not None,
            batch_size=point.cell.conditions.batch_size,
            dtype=point.model.dtype,
            weights_format=point.model.stored_in,
            decode=point.cell.point.decode,
            draft_max=point.cell.point.draft_max,
            stop=point.cell.point.stop,
            baseline_format=point.full.conditions.weights_format,
            n=len(point.cell.scored),
            errors=point.cell.errors,
            repeats=point.cell.repeats,
            windows=len(point.windows),
            flagged=len(point.cell.flagged),
            speedup_unflagged=without_flagged.get(point.cell.point.name),
            energy_source=source,
            energy_measured=measured,
            verdict=verdict(point, comparisons, energy_measured=measured),
            rehearsed=point.cell.point.rehearsed,
            acceptances=tuple(acceptances(point.cell)),
            metrics={name: estimate for name, estimate in found.items() if estimate is not None},
        )
        rows.append(row)
    return rows


def _without_flagged(points: Sequence[Point]) -> dict[str, float]:
    """Return the speed-ups without flagged windows, by operating point, of rows that these windows moved.

    A row of which fewer than ``MINIMUM_PAIRS`` blocks are left has none.
    """
    cells = [point.cell.unflagged() for point in points]
    prompts = PromptTimes(cells)
    found = {}
    for point, cell in zip(points, cells, strict=True):
        if point.cell is point.own_full or not (point.cell.flagged or point.own_full.flagged):
            continue
        left = replace(point, cell=cell, cells=cells, prompts=prompts)
        pairs = speedup_pairs(left) if point.can_have(SPEEDUP) else []
        if len(pairs) >= MINIMUM_PAIRS and (value := paired_ratio(pairs)) is not None:
            found[cell.point.name] = value
    return found
