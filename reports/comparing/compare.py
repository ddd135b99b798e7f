"""Two runs, operating point by operating point: pairs, changes, Holm's correction per task, and words.

A is the run before, B the run after. Cost is shown twice: as measured, where drift of the machine between the two runs
is part of the change, and as the speed-up over each run's own full depth, which was measured interleaved with it, so
that a machine that is slower today mostly cancels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.contracts import Metric
from harness.errors import ConfigError, StoreError, did_you_mean
from harness.host.files import real_path
from reports.comparing.change import AGREEMENT, Change, change, compared_metrics, corrected, level_of_both
from reports.comparing.differences import differences
from reports.comparing.pairing import JOINED, Matched, agreement_units, match, pair_units
from reports.comparing.results import PointChange, RunChange
from reports.comparing.words import notes, overall, verdict
from reports.metrics.point import Point
from reports.metrics.scores import recorded_scores
from reports.metrics.units import by_block, units_of, usable
from reports.recorded import RecordedRun
from reports.summary.energy import is_measured, total
from reports.summary.measured import Measured


@dataclass(frozen=True, slots=True)
class Wanted:
    """The request of a comparison.

    Attributes:
        points: names; empty means all that both have.
        pair: one name in A, another in B, instead.
    """

    points: tuple[str, ...] = ()
    pair: tuple[str, str] | None = None


def compare_runs(a: RecordedRun, b: RecordedRun, wanted: Wanted) -> RunChange:
    """Compare two runs.

    Raises:
        ConfigError: an operating point that is not there, or the same thing twice.
        StoreError: nothing that both finished.
    """
    pairs = _pairs(a, b, wanted)
    metrics = compared_metrics(recorded_scores(cell for run in (a, b) for cell in run.cells.values()))
    tasks = dict.fromkeys(task for task, _, _ in pairs)
    points: list[PointChange] = []
    skipped: list[tuple[str, str, str]] = []
    for task in tasks:
        compared: list[PointChange] = []
        for _, one, other in (pair for pair in pairs if pair[0] == task):
            cells = a.cells[task, one], b.cells[task, other]
            reason = next(filter(None, (_unusable(cell, name) for cell, name in zip(cells, "AB", strict=True))), "")
            if reason:
                skipped.append((task, one, reason))
            else:
                compared.append(_compare(a, b, *cells, metrics))
        points.extend(_corrected(compared))
    if not points:
        task, name, reason = skipped[0]
        remedy = next((run.remedy for run in (a, b) if run.state), "Give two runs that share an operating point.")
        raise StoreError(f"{a.directory} and {b.directory} have nothing to compare: {task}, {name}: {reason}. {remedy}")
    interleaved = real_path(a.directory) == real_path(b.directory)
    points = [replace(point, verdict=verdict(point)) for point in points]
    return RunChange(
        a, b, differences(a.manifest, b.manifest), tuple(points), tuple(skipped), overall(points),
        tuple(notes(a, b, points, interleaved=interleaved)),
    )  # fmt: skip


def _pairs(a: RecordedRun, b: RecordedRun, wanted: Wanted) -> list[tuple[str, str, str]]:
    """(task, operating point of A, operating point of B) to compare."""
    same = real_path(a.directory) == real_path(b.directory)
    shared = len(a.measurements & b.measurements)
    tasks = [task.name for task in a.manifest.tasks if task.name in {other.name for other in b.manifest.tasks}]
    if not tasks:
        listed = [", ".join(task.name for task in run.manifest.tasks) for run in (a, b)]
        raise StoreError(f"no task in common: A ({a.directory}) has {listed[0]}; B ({b.directory}) has {listed[1]}.")
    if wanted.pair is not None:
        for name, run, letter in zip(wanted.pair, (a, b), "ab", strict=True):
            _known(name, run, f"--point-{letter}")
        if (same or shared) and wanted.pair[0] == wanted.pair[1]:
            raise ConfigError(f"--point-a and --point-b are both '{wanted.pair[0]}' of one run. Name two of them.")
        return [(task, *wanted.pair) for task in tasks]
    if same or shared:
        how = f"A and B are the same directory, {a.directory}."
        if not same:
            of = f"{shared} of the {len(b.measurements)} windows of B ({b.directory}) are A's own ({a.directory})"
            how = f"{of}: one is a copy of the other, perhaps resumed, so they are not two runs."
        raise ConfigError(f"{how} Compare two runs, or two operating points with --point-a and --point-b.")
    for name in wanted.points:
        for run in (a, b):
            _known(name, run, "--point")
    theirs = _names(b)
    common = [name for name in _names(a) if name in theirs and (not wanted.points or name in wanted.points)]
    if not common:
        raise StoreError(
            f"no operating point in common: A ({a.directory}) has {', '.join(_names(a))}; B ({b.directory}) has "
            f"{', '.join(theirs)}. Compare two of them with --point-a and --point-b."
        )
    return [(task, name, name) for task in tasks for name in common]


def _names(run: RecordedRun) -> list[str]:
    return [point.name for point in run.manifest.operating_points if not point.never_exits]


def _known(name: str, run: RecordedRun, flag: str) -> None:
    names = _names(run)
    if name not in names:
        hint = did_you_mean(name, names) or f" It has {', '.join(names)}."
        raise ConfigError(f"{flag} '{name}' is no operating point of {run.directory}.{hint}")


def _unusable(cell: Measured, letter: str) -> str:
    if cell.samples:
        return ""
    if cell.failed:
        return f"every sample failed in {letter}, the first with: {next(iter(cell.failed.values())).error}"
    return f"{letter} has not finished any sample of it"


def _compare(a: RecordedRun, b: RecordedRun, one: Measured, other: Measured, metrics: Sequence[Metric]) -> PointChange:
    task = one.task.name
    points = a.point(task, one.point.name), b.point(task, other.point.name)
    matched = match(one, other)
    agreement = agreement_units(one, other, matched)
    baseline = all(point.is_full for point in points)
    changes = tuple(_change(metric, a, b, points, matched, baseline=baseline) for metric in metrics)
    identical = sum(row[0] == row[1] for row in agreement.values())
    return PointChange(
        task,
        one.point.name,
        other.point.name,
        matched,
        changes,
        baseline=baseline,
        identical=(identical, len(agreement)),
        conditions=(one.conditions, other.conditions),
    )


def _change(
    metric: Metric,
    a: RecordedRun,
    b: RecordedRun,
    points: tuple[Point, Point],
    matched: Matched,
    *,
    baseline: bool,
) -> Change:
    cells = points[0].cell, points[1].cell
    references = [letter for point, letter in zip(points, "AB", strict=True) if _is_reference(metric, point)]
    if metric.paired and (baseline or len(references) == len(points)):
        return Change(metric, reason="full depth is what it is compared with", applies=False)
    if references:
        return Change(metric, reason=f"{references[0]} is full depth, whose own is 1 by definition")
    reason, source = _obstacle(metric, *cells, matched)
    measured = all(is_measured(source, run.manifest.meter) for run in (a, b)) if metric.kind == "energy" else True
    if reason:
        return Change(metric, reason=reason, source=source, measured=measured)
    if metric is AGREEMENT:
        return level_of_both(metric, agreement_units(*cells, matched))
    recorded = [units_of(metric, point) or {} for point in points]
    single = [usable(units) for units in recorded]
    lost = [len(units) - len(kept) for units, kept in zip(recorded, single, strict=True)]
    unusable = f"left out, as not a finite number: {lost[0]} of A, {lost[1]} of B" if any(lost) else ""
    one, other = (by_block(metric, units, cell) for units, cell in zip(single, cells, strict=True))
    common = matched.same_reference if metric.kind == "score" else matched.same
    pairs, prompts = pair_units(metric, one, other, common), pair_units(metric, single[0], single[1], common)
    if pairs is None and not metric.is_cost:
        pairs = prompts  # tokens and scores know nothing of the window: better pairs of prompts than none
    if pairs is None:
        apart = "the runs form their blocks of different prompts: unpaired" if matched.paired and one and other else ""
        found = change(metric, one, other, paired=False)
        reason = "; ".join(filter(None, [found.reason or apart, unusable]))
        return replace(found, source=source, measured=measured, reason=reason)
    differing = sum(row != prompts.b[key] for key, row in prompts.a.items()) if prompts is not None else None
    found = change(metric, pairs.a, pairs.b, paired=True, differing=differing)
    fewer = metric.is_cost and found.prompts < len(matched.same)
    rests = f"rests on {found.prompts} of {len(matched.same)} prompts" if fewer else ""
    reasons = filter(None, (found.reason, JOINED if pairs.joined else "", rests, unusable))
    return replace(found, source=source, measured=measured, reason="; ".join(reasons))


def _is_reference(metric: Metric, point: Point) -> bool:
    """Whether an operating point is the full depth that a metric holds it against."""
    return bool(metric.paired) and point.cell is point.reference(metric.against)


def _obstacle(metric: Metric, a: Measured, b: Measured, matched: Matched) -> tuple[str, str]:
    """Why a metric is not compared, and the source of an energy."""
    if (metric.kind == "score" or metric is AGREEMENT) and not matched.paired:
        return "the prompts differ", ""
    if metric.kind == "score":
        if not matched.same_reference:
            return "the references differ", ""
        return a.conditions.why_not_comparable(b.conditions, "scores"), ""
    reason = a.conditions.why_not_comparable(b.conditions, "costs") if metric.is_cost else ""
    if reason or metric.kind != "energy":
        return reason, ""
    (source, here), (other, there) = (total(cell.windows.values()) for cell in (a, b))
    asked = replace(a.conditions, energy_source=source)
    reason = asked.why_not_comparable(replace(b.conditions, energy_source=other), "energy")
    if not reason and (here is None or there is None):
        reason = "some windows have no energy reading"
    return reason, source if source == other else ""


def _corrected(points: list[PointChange]) -> list[PointChange]:
    """Holm's correction over the operating points of a task, metric by metric."""
    columns = [corrected(list(column)) for column in zip(*(point.changes for point in points), strict=True)]
    rows = zip(*columns, strict=True)
    return [replace(point, changes=tuple(row)) for point, row in zip(points, rows, strict=True)]
