"""From raw records to ``summary.json``: one row per task × operating point.

What counts is in ``admission``, how it pairs in ``measured``, what it becomes in :mod:`reports.metrics`, the front in
``pareto``. Accuracy comes from the first repeat, everything else from all of them. Probes that never exit (for the
attribution of costs) get no row.

A verdict says in words how an operating point compares with full depth. What is not told apart from chance is *not
distinguishable*, which does not mean equal; and where so few pairs were measured that even the clearest outcome could
not pass the test, the words are *too few pairs to tell*. A difference of scores without an interval says which of its
two minima is not reached. A lossless row has full depth's tokens, so that only its costs are compared. Which
comparisons are told, and how, is part of their metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.contracts import Metric
from harness.errors import StoreError
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.cost import Attribution
from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import SUMMARY_VERSION, Summary, SummaryRow
from reports.metrics.evaluation import Comparison, compare_all, evaluate
from reports.metrics.point import Point
from reports.metrics.speedups import SPEEDUP, speedup_pairs
from reports.metrics.vocabulary import all_metrics, metrics_of, recorded_scores
from reports.statistics.intervals import MINIMUM_PAIRS, paired_ratio
from reports.summary.acceptance import acceptances
from reports.summary.admission import drop_implausible, idle_windows
from reports.summary.attribution import attribute
from reports.summary.measured import (
    Corpus,
    CorpusScorer,
    Measured,
    PromptTimes,
    full_depths,
    is_measured,
    select,
    total,
)
from reports.summary.notes import degenerate, notes
from reports.summary.pareto import mark_front

NOT_DISTINGUISHABLE = "not distinguishable from full depth"
TOO_FEW = "too few pairs to tell"
EXACT = "full depth's tokens"


def summarise(
    manifest: Manifest,
    windows: Iterable[WindowRecord],
    samples: Iterable[SampleRecord],
    score_corpus: CorpusScorer,
    *,
    machine: str | None = None,
    missing_scores: Sequence[str] = (),
) -> Summary:
    """Summarise a run directory's records; a run that is not finished is summarised as far as it got."""
    windows, samples = tuple(windows), tuple(samples)
    measured = tuple(select(manifest, windows, samples).values())
    cells = _candidates(manifest, measured)
    idle, points = idle_windows(windows), []

    def scores(cell: Measured) -> Mapping[str, float | None]:
        return score_corpus(*cell.corpus)

    for task in manifest.tasks:
        table = [cell for cell in cells if cell.task.name == task.name]
        prompts = PromptTimes(table)
        points.append([Point(cell, table, manifest, idle, scores, prompts) for cell in table])
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
    summary = drop_implausible(summary)
    return mark_front(summary) if degenerate(manifest, measured) is None else summary


def corpora(manifest: Manifest, windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]) -> tuple[Corpus, ...]:
    """Return each different corpus that :func:`summarise` will ask about, so that they can be scored together."""
    cells = _candidates(manifest, tuple(select(manifest, windows, samples).values()))
    return tuple(dict.fromkeys(cell.corpus for cell in cells if cell.scored))


def _candidates(manifest: Manifest, measured: Sequence[Measured]) -> tuple[Measured, ...]:
    """Return the operating points that become rows, in the manifest's order: all but the probes that never exit."""
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


def verdict(point: Point, comparisons: Mapping[Metric, Comparison], *, energy_measured: bool) -> str | None:
    """Say in words how an operating point compares with full depth.

    ``None`` when one has no finished sample, or when nothing is left to tell of a run that was not timed. Energy is
    named when a sensor measured it, accuracy unless the weights are random.
    """
    if point.is_full or not point.samples or not point.full.samples:
        return "the baseline" if point.is_full and point.samples else None
    told = [
        one
        for metric, one in comparisons.items()
        if metric.verdict is not None
        and _belongs(metric, point)
        and one.estimate is not None
        and (metric.always_told or one.distinguishable)
        and (metric.kind != "energy" or energy_measured)
        and (metric.kind != "score" or point.model.weights != "random")
    ]
    if point.is_exact:
        costs = [one for one in told if one.metric.kind != "score"]
        return "; ".join([EXACT, *(_words(one) + _against(one.metric, point) for one in costs)])
    if not told and not point.manifest.timed:
        return None
    if all(one.too_few for one in told):
        reasons = {_too_few(one.estimate) for one in told if one.estimate is not None}
        return reasons.pop() if len(reasons) == 1 else TOO_FEW
    if not any(one.distinguishable or one.too_few for one in told):
        return NOT_DISTINGUISHABLE
    return "; ".join(_words(one) + _against(one.metric, point) for one in told)


def _belongs(metric: Metric, point: Point) -> bool:
    """Whether a metric is told: of a ratio stated twice the first, but where it is 1 by definition the second."""
    if point.cell is point.reference(metric.against):
        return False
    return not metric.restates or point.cell is point.own_full


def _against(metric: Metric, point: Point) -> str:
    """Name the full depth that a metric is held against where it is not the run's first."""
    full = point.reference(metric.against)
    return "" if full is None or full is point.full else f" (against {full.point.name})"


def _words(one: Comparison) -> str:
    wording, found = one.metric.verdict, one.estimate
    assert wording is not None
    assert found is not None
    if not one.distinguishable:
        return f"{wording.noun}{': ' + _too_few(found) if one.too_few else ' not distinguishable'}"
    good = (found.value > 0) is (one.metric.better != "lower")
    numbers, number, unit = [found.value, *(found.interval or ())], "{:.3f}", ""
    if one.metric.paired == "ratio":
        numbers = [100 * (1 - 1 / ratio if wording.saving else ratio - 1) for ratio in numbers]
        good, number, unit = numbers[0] > 0, "{:.1f}" if abs(numbers[0]) < 10 else "{:.0f}", " %"
    size, *ends = map(abs, numbers)
    low, high = sorted(ends)
    words = (wording.better if good else wording.worse).format(number.format(size) + unit)
    return f"{words} {Estimate(value=size, low=low, high=high).brackets(number)}"


def _too_few(found: Estimate) -> str:
    reason = found.no_interval
    if reason is NoInterval.FEW_DIFFERING:
        return f"{reason} to tell ({found.differing} of {found.samples})"
    if reason is NoInterval.UNDEFINED:
        return reason
    return TOO_FEW if reason is None else f"{reason} to tell"


def recorded_only(summary: Summary, recorded: Summary) -> Summary:
    """Return a summary with the metrics of an earlier one that nothing installed here explains, and a note of them."""
    known = {metric.name for metric in metrics_of(summary.rows)}
    earlier = {(row.task, row.operating_point): row for row in recorded.rows}
    kept: set[str] = set()

    def row_with(row: SummaryRow) -> SummaryRow:
        there = earlier.get((row.task, row.operating_point))
        if there is None or (there.n, there.errors, there.repeats) != (row.n, row.errors, row.repeats):
            return row
        lost = {name: estimate for name, estimate in there.metrics.items() if name not in known}
        kept.update(lost)
        return row.model_copy(update={"metrics": {**row.metrics, **lost}}) if lost else row

    rows = tuple(map(row_with, summary.rows))
    if not kept:
        return summary
    note = f"no package that is installed here has the metric {', '.join(sorted(kept))}: what was recorded is shown."
    return summary.model_copy(update={"rows": rows, "notes": (*summary.notes, note)})
