"""Two runs, operating point by operating point: pairs, changes, Holm's correction per task, and what else differs.

A is the run before, B the run after. Cost is shown twice: as measured, where drift of the machine between the two runs
is part of the change, and as the speed-up over each run's own full depth, which was measured interleaved with it.
Versions of packages and of this harness may differ, which is what one wants to compare: they are named, not refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from harness.contracts import Metric
from harness.errors import ConfigError, StoreError, did_you_mean
from harness.host.files import real_path
from harness.records import Manifest, TaskRecord
from harness.records.conditions import layers_of
from harness.records.estimate import NoInterval
from reports.comparing.change import AGREEMENT, UNMEASURED, Change, change, compared_metrics, corrected, level_of_both
from reports.comparing.pairing import JOINED, Matched, agreement_units, pair_units
from reports.comparing.results import Difference, PointChange, RunChange, notes, overall, verdict
from reports.metrics.point import Point, by_block, units_of
from reports.metrics.vocabulary import recorded_scores
from reports.recorded import RecordedRun
from reports.summary.measured import Measured, is_measured, total

_ENVIRONMENT = (
    *("cpu", "architecture", "logical_cores", "usable_cores", "gpus", "torch_threads", "memory_bytes", "os", "python"),
    *("governor", "gpu_driver", "cuda"),
)

_WRITTEN_ELSEWHERE = frozenset(
    {
        *("out", "strategies", "model", "tasks", "source", "artefacts", "weights", "dtype", "weights_format", "kv"),
        *("protocol", "exit_head"),
    }
)
"""Configuration that another line of the list says better, or that is a folder's name."""


def compare_runs(
    a: RecordedRun, b: RecordedRun, points: Sequence[str] = (), pair: tuple[str, str] | None = None
) -> RunChange:
    """Compare all operating points that two runs share, those that are named, or one of A with another one of B.

    Raises:
        ConfigError: an operating point that is not there, or the same thing twice.
        StoreError: nothing that both finished.
    """
    same = real_path(a.directory) == real_path(b.directory)
    pairs = _pairs(a, b, points, pair, same=same)
    metrics = compared_metrics(recorded_scores(cell for run in (a, b) for cell in run.cells.values()))
    found: list[PointChange] = []
    skipped: list[tuple[str, str, str]] = []
    for task in dict.fromkeys(task for task, _, _ in pairs):
        compared: list[PointChange] = []
        for _, one, other in (each for each in pairs if each[0] == task):
            cells = a.cells[task, one], b.cells[task, other]
            reason = next(filter(None, (_unusable(cell, name) for cell, name in zip(cells, "AB", strict=True))), "")
            if reason:
                skipped.append((task, one, reason))
            else:
                compared.append(_compare(a, b, *cells, metrics))
        columns = [corrected(list(column)) for column in zip(*(point.changes for point in compared), strict=True)]
        rows = zip(*columns, strict=True)  # Holm's correction over the operating points of a task, metric by metric
        found += [replace(point, changes=tuple(row)) for point, row in zip(compared, rows, strict=True)]
    if not found:
        task, name, reason = skipped[0]
        remedy = next((run.remedy for run in (a, b) if run.state), "Give two runs that share an operating point.")
        raise StoreError(f"{a.directory} and {b.directory} have nothing to compare: {task}, {name}: {reason}. {remedy}")
    found = [replace(point, verdict=verdict(point)) for point in found]
    said = tuple(notes(a, b, found, interleaved=same))
    return RunChange(a, b, differences(a.manifest, b.manifest), tuple(found), tuple(skipped), overall(found), said)


def _pairs(
    a: RecordedRun, b: RecordedRun, points: Sequence[str], pair: tuple[str, str] | None, *, same: bool
) -> list[tuple[str, str, str]]:
    """(task, operating point of A, operating point of B) to compare."""
    shared = len(a.measurements & b.measurements)
    tasks = [task.name for task in a.manifest.tasks if task.name in {other.name for other in b.manifest.tasks}]
    if not tasks:
        listed = [", ".join(task.name for task in run.manifest.tasks) for run in (a, b)]
        raise StoreError(f"no task in common: A ({a.directory}) has {listed[0]}; B ({b.directory}) has {listed[1]}.")
    if pair is not None:
        for name, run, letter in zip(pair, (a, b), "ab", strict=True):
            _known(name, run, f"--point-{letter}")
        if (same or shared) and pair[0] == pair[1]:
            raise ConfigError(f"--point-a and --point-b are both '{pair[0]}' of one run. Name two of them.")
        return [(task, *pair) for task in tasks]
    if same or shared:
        how = f"A and B are the same directory, {a.directory}."
        if not same:
            of = f"{shared} of the {len(b.measurements)} windows of B ({b.directory}) are A's own ({a.directory})"
            how = f"{of}: one is a copy of the other, perhaps resumed, so they are not two runs."
        raise ConfigError(f"{how} Compare two runs, or two operating points with --point-a and --point-b.")
    for name in points:
        for run in (a, b):
            _known(name, run, "--point")
    theirs = _names(b)
    common = [name for name in _names(a) if name in theirs and (not points or name in points)]
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
    agreement = agreement_units(one, other, matched := Matched.of(one, other))
    return PointChange(
        task,
        one.point.name,
        other.point.name,
        matched,
        tuple(_change(metric, a, b, points, matched) for metric in metrics),
        baseline=all(point.is_full for point in points),
        identical=(sum(row[0] == row[1] for row in agreement.values()), len(agreement)),
        conditions=(one.conditions, other.conditions),
    )


def _change(metric: Metric, a: RecordedRun, b: RecordedRun, points: tuple[Point, Point], matched: Matched) -> Change:
    cells = points[0].cell, points[1].cell
    references = [  # where it is the full depth that the metric holds it against
        letter
        for point, letter in zip(points, "AB", strict=True)
        if metric.paired and point.cell is point.reference(metric.against)
    ]
    if metric.paired and (all(point.is_full for point in points) or len(references) == len(points)):
        return Change(metric, reason="full depth is what it is compared with", applies=False)
    if references:
        return Change(metric, reason=f"{references[0]} is full depth, whose own is 1 by definition")
    reason, source = _obstacle(metric, *cells, matched)
    measured = all(is_measured(source, run.manifest.meter) for run in (a, b)) if metric.kind == "energy" else True
    if reason:
        return Change(metric, reason=reason, source=source, measured=measured)
    if metric is AGREEMENT:
        return level_of_both(metric, by_block(metric, agreement_units(*cells, matched), cells[0]))
    first, second = (units_of(metric, point) or {} for point in points)
    common = matched.same_reference if metric.kind == "score" else matched.same
    prompts = pair_units(metric, first, second, common)
    pairs = pair_units(metric, by_block(metric, first, cells[0]), by_block(metric, second, cells[1]), common)
    if pairs is None and not metric.is_cost:
        pairs = prompts  # tokens and scores know nothing of the window: better pairs of prompts than none
    if pairs is None:
        reason = "the runs form their blocks of different prompts" if first and second else UNMEASURED
        return Change(metric, paired=False, reason=reason, source=source, measured=measured)
    before, after, joined = pairs
    differing = sum(row != prompts[1][key] for key, row in prompts[0].items()) if prompts is not None else None
    found = change(metric, before, after, differing=differing)
    disturbed = metric.is_cost and any(cell.disturbed for cell in cells)
    if disturbed or not measured:
        why = NoInterval.FLAGGED if disturbed else NoInterval.ESTIMATED
        found = replace(
            found, absolute_interval=None, relative_interval=None, p=None, p_holm=None, no_interval=why,
            reason=why if disturbed else found.reason,
        )  # fmt: skip
    fewer = metric.is_cost and found.prompts < len(matched.same)
    rests = f"rests on {found.prompts} of {len(matched.same)} prompts" if fewer else ""
    reason = "; ".join(filter(None, (found.reason, JOINED if joined else "", rests)))
    return replace(found, source=source, measured=measured, reason=reason)


def _obstacle(metric: Metric, a: Measured, b: Measured, matched: Matched) -> tuple[str, str]:
    """Why a metric is not compared, and the source of an energy."""
    if not matched.same:
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


def differences(a: Manifest, b: Manifest) -> tuple[Difference, ...]:
    """Return everything that differs between two manifests and can matter; time of day and folders left out."""
    found = _unlike(_facts(a), _facts(b))
    packages = [dict(manifest.environment.get("packages") or {}) for manifest in (a, b)]
    found += _among("option", a.config, b.config, (a.config.keys() & b.config.keys()) - _WRITTEN_ELSEWHERE)
    found += _among("package", packages[0], packages[1], packages[0].keys() | packages[1].keys())
    found += _among("code of", a.code, b.code, a.code.keys() & b.code.keys())
    for task in a.tasks:
        twin = next((one for one in b.tasks if one.name == task.name), None)
        found += _unlike(_of_task(task), _of_task(twin)) if twin is not None else ()
    for point in a.operating_points:
        same = next((one for one in b.operating_points if one.name == point.name), None)
        if same is None or point.never_exits:
            continue
        for what in ("artefacts", "options"):
            of_a, of_b = getattr(point, what), getattr(same, what)
            found += _among(f"{point.name}: {what[:-1]}", of_a, of_b, of_a.keys() | of_b.keys())
    return tuple(found)


def _among(what: str, a: Mapping[str, object], b: Mapping[str, object], keys: Iterable[str]) -> list[Difference]:
    """Return which of some options differ; an older run had its default, which is not known here."""
    named = {f"{what} {key}": key for key in sorted(keys)}
    return _unlike(*({name: side.get(key) for name, key in named.items()} for side in (a, b)))


def _unlike(a: Mapping[str, object], b: Mapping[str, object]) -> list[Difference]:
    return [Difference(what, _short(before), _short(b[what])) for what, before in a.items() if before != b[what]]


def _facts(manifest: Manifest) -> dict[str, object]:
    model, environment = manifest.model, manifest.environment
    commit = environment.get("git") or {}
    return {
        "model": model.name,
        "weights": model.weights,
        "weights hash": model.weights_sha256,
        "model fingerprint": model.fingerprint,
        "exit head": model.exit_head,
        "tokenizer": model.tokenizer_source,
        "exit points": ",".join(map(str, model.exit_points)),
        "number format": model.numbers,
        "kv": manifest.config.get("kv"),
        "block size": manifest.block_size,
        "placement": layers_of(manifest),
        "energy from": manifest.meter.source,
        **{key.replace("_", " "): environment.get(key) for key in _ENVIRONMENT},
        "harness commit": commit.get("commit")
        and f"{commit['commit'][:12]}{'+changes' if commit.get('dirty') else ''}",
    }


def _of_task(task: TaskRecord) -> dict[str, object]:
    facts = {"protocol": task.protocol, "data": task.source, "samples": task.samples, "data hash": task.fingerprint}
    return {f"{task.name}: {what}": value for what, value in facts.items()}


def _short(value: object) -> str:
    """A value in a few characters: hashes by their beginning, nothing as a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    text = str(value)
    is_hash = len(text) >= 40 and all(character in "0123456789abcdef" for character in text)
    return text[:12] if is_hash else text if len(text) <= 60 else f"{text[:57]}…"
