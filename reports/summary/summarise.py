"""From raw records to ``summary.json``: one row per task × operating point, and how it compares in words.

Accuracy comes from the first repeat, everything else from all of them. Probes that never exit (for the attribution of
costs) get no row. What is not told apart from chance is *not distinguishable*, which does not mean equal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from harness.contracts import Metric
from harness.errors import StoreError
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import SUMMARY_VERSION, Summary, SummaryRow
from reports.metrics.evaluation import Evaluated, evaluate
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
    full_depths,
    is_measured,
    select,
    total,
)
from reports.summary.notes import degenerate, notes
from reports.summary.pareto import mark_front

NOT_DISTINGUISHABLE = "not distinguishable from full depth"
TOO_FEW = "too few pairs to tell"
AFTER_CORRECTION = " after correction"  # for as many comparisons, of an interval that excludes no difference
EXACT = "full depth's tokens"
_NO_EVIDENCE = {NoInterval.UNDEFINED, NoInterval.FLAGGED, NoInterval.SAME_WORK, NoInterval.ESTIMATED}
_FOREIGN = "It is damaged or foreign; start a new run with `harness run`."


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
        points.append([Point(cell, table, manifest, idle, scores) for cell in table])
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
            found.model_copy(update={"weights_format": name if len(manifest.model.formats) > 1 else ""})
            for task in manifest.tasks
            for name in manifest.model.formats  # a layer costs something else in each
            for found in attribute(
                [one for one in measured if (one.task.name, one.conditions.weights_format) == (task.name, name)],
                manifest.meter,
            )
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
        raise StoreError(f"the manifest does not begin with full depth, which everything is compared with. {_FOREIGN}")
    for task in manifest.tasks:
        cells = [cell for cell in measured if cell.task.name == task.name]
        depths, kept = full_depths(cells), cells[0].conditions.keep
        wanted = {(name, kept) for name in manifest.model.formats} | {cell.regime for cell in cells}
        missing = ", ".join(
            f"{name}{f' with keep {keep}' if keep else ''}" for name, keep in sorted(wanted - set(depths))
        )
        if missing:
            raise StoreError(
                f"the manifest has no full depth in {missing}, which that format is compared with. {_FOREIGN}"
            )
    return tuple(cell for cell in measured if not cell.point.never_exits)


def _table(points: Sequence[Point], metrics: Sequence[Metric], left_out: Counter[str]) -> Iterator[SummaryRow]:
    """The rows of one task, full depth first."""
    without_flagged = _without_flagged(points)
    for point, found in zip(points, evaluate(metrics, points, left_out), strict=True):
        cell, model, ran = point.cell, point.model, point.cell.point
        source, _ = total(point.windows)
        measured = is_measured(source, point.manifest.meter)
        yield SummaryRow(
            operating_point=ran.name,
            strategy=ran.strategy,
            options=ran.options,
            task=cell.task.name,
            language=cell.task.language,
            protocol=cell.task.protocol,
            source=cell.task.source,
            model=model.name,
            weights=model.weights,
            exit_head=model.exit_head.partition(":")[0],
            kv=cell.conditions.kv,
            black_box=ran.black_box is not None,
            batch_size=cell.conditions.batch_size,
            dtype=model.dtype,
            weights_format=model.stored_in,
            decode=ran.decode,
            draft_max=ran.draft_max,
            stop=ran.stop,
            keep=cell.conditions.keep,
            prompt_exit=ran.prompt_exit,
            prefetch=ran.prefetch,
            baseline_format=point.full.conditions.weights_format,
            n=len(cell.scored),
            errors=cell.errors,
            repeats=cell.repeats,
            windows=len(point.windows),
            flagged=len(cell.flagged),
            speedup_unflagged=without_flagged.get(ran.name),
            energy_source=source,
            energy_measured=measured,
            verdict=verdict(point, found, energy_measured=measured),
            rehearsed=ran.rehearsed,
            acceptances=tuple(acceptances(cell)),
            metrics={metric.name: one.estimate for metric, one in found.items() if one.estimate is not None},
        )


def _without_flagged(points: Sequence[Point]) -> dict[str, float]:
    """Return the speed-ups without flagged windows, of rows that have some and enough blocks without them, by name."""
    cells = [point.cell.unflagged() for point in points]
    found = {}
    for point, cell in zip(points, cells, strict=True):
        if point.cell is point.own_full or not (point.cell.flagged or point.own_full.flagged):
            continue
        left = replace(point, cell=cell, cells=cells)
        pairs = speedup_pairs(left) if point.can_have(SPEEDUP) else []
        if len(pairs) >= MINIMUM_PAIRS and (value := paired_ratio(pairs)) is not None:
            found[cell.point.name] = value
    return found


def verdict(point: Point, found: Mapping[Metric, Evaluated], *, energy_measured: bool) -> str | None:
    """Say in words how an operating point compares with full depth.

    ``None`` when one has no finished sample, or when nothing is left to tell of a run that was not timed. Energy is
    named when a sensor measured it, accuracy unless the weights are random.
    """
    if point.is_full or not point.samples or not point.full.samples:
        return "the baseline" if point.is_full and point.samples else None
    told = [
        one
        for metric, one in found.items()
        if metric.verdict is not None
        and point.cell is not point.reference(metric.against)
        and (not metric.restates or point.cell is point.own_full)  # of a ratio stated twice the one that is not 1
        and one.estimate is not None
        and (metric.always_told or one.distinguishable)
        and (metric.kind != "energy" or energy_measured)
        and (metric.kind != "score" or point.model.weights != "random")
    ]
    if point.is_exact:
        costs = [one for one in told if one.metric.kind != "score"]
        return "; ".join([EXACT, *(_words(one, point) for one in costs)])
    if not told and not point.manifest.timed:
        return None
    reasons = {_too_few(one.estimate) for one in told if one.estimate is not None and one.too_few}
    if all(one.too_few for one in told) and not reasons & _NO_EVIDENCE:
        return reasons.pop() if len(reasons) == 1 else TOO_FEW
    if not reasons and not any(one.distinguishable for one in told):
        return f"{NOT_DISTINGUISHABLE}{AFTER_CORRECTION * any(one.apart for one in told)}"
    return "; ".join(_words(one, point) for one in told)


def _words(one: Evaluated, point: Point) -> str:
    wording, found, full = one.metric.verdict, one.estimate, point.reference(one.metric.against)
    assert wording is not None
    assert found is not None
    against = "" if full is None or full is point.full else f" (against {full.point.name})"
    if not one.distinguishable:
        why = f": {_too_few(found)}" if one.too_few else f" not distinguishable{AFTER_CORRECTION * one.apart}"
        return f"{wording.noun}{why}{against}"
    good = (found.value > 0) is (one.metric.better != "lower")
    numbers, number, unit = [found.value, *(found.interval or ())], "{:.3f}", ""
    if one.metric.paired == "ratio":
        numbers = [100 * (1 - 1 / ratio if wording.saving else ratio - 1) for ratio in numbers]
        good, number, unit = numbers[0] > 0, "{:.1f}" if abs(numbers[0]) < 10 else "{:.0f}", " %"
    size, *ends = map(abs, numbers)
    low, high = sorted(ends)
    words = (wording.better if good else wording.worse).format(number.format(size) + unit)
    return f"{words} {Estimate(value=size, low=low, high=high).brackets(number)}{against}"


def _too_few(found: Estimate) -> str:
    reason = found.no_interval
    if reason is NoInterval.FEW_DIFFERING:
        return f"{reason} to tell ({found.differing} of {found.samples})"
    if reason in _NO_EVIDENCE:
        return str(reason)
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
