"""Computes scores of a run again, from the texts and references that it recorded.

:func:`rescore` does so for new scores and mended ones, and leaves them in ``scores.json``; :func:`rescored` to hold
records against their texts before :func:`pack` publishes them. The records themselves are never changed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import shell_word
from harness.contracts import Completion, Sample
from harness.contracts.recipes import Progress, Silent
from harness.contracts.scores import registered_scores
from harness.errors import StoreError
from harness.records import Manifest, SampleRecord, SampleScores, TaskRecord
from harness.registry import OWN_DISTRIBUTION, PROTOCOLS, SCORES, without_exit
from harness.running.completions import scores_and_failures
from harness.running.plan import drawn_again
from harness.running.reading import kept, read_run
from harness.running.scoring import Found, Scores, score_sample
from harness.store.committed import sealed_records
from harness.store.packed_run import write_archive
from harness.store.run_directory import RunDirectory, lock_folder
from reports.leaderboard.checks import Check, ScoresAgain, publication_checks
from reports.leaderboard.redaction import Redacted, private_paths, redact_run
from reports.recorded import RecordedRun
from reports.tables.report import to_json, write_report

_FLOAT_TOLERANCE = 1e-9  # sums of two machines may differ in the last digits


@dataclass(frozen=True, slots=True)
class Rescored:
    """Scores computed again: how many values, how many not what stood there, and how many are still missing.

    ``failures``: score → why it fails, of plug-ins.
    """

    names: tuple[str, ...]
    values: int
    changed: int
    missing: int
    failures: dict[str, str]


def rescore(path: Path, only: Collection[str] = (), progress: Progress | None = None) -> Rescored:
    """Compute scores of a run's samples again, all or those named, and leave them and its report in its directory.

    A score that fails here, or cannot be computed, leaves the value that was recorded. Samples of black boxes keep
    theirs: the tokens of their answers are not recorded.
    """
    progress = progress or Silent()
    for name in only:
        SCORES.load(name)()  # one that cannot even be made is refused
    RunDirectory.read(path).close()  # what is no run gets no lock either
    with without_exit(), lock_folder(path):
        with RunDirectory.read(path, keep=True) as store:
            samples = tuple(store.samples())
            names = tuple(only) or tuple(registered_scores())
            drawn = _drawn(store.manifest)
            tasks = {task.name: task for task in store.manifest.tasks}
            known: dict[Completion, Found] = {}
            made: list[SampleScores] = []
            values = changed = missing = 0
            failures: dict[str, str] = {}
            unavailable = set()
            for name in names:
                with SCORES.leaving_out(name):
                    unavailable |= {name} if registered_scores()[name].unavailable() else set()
            progress.begin("scoring", len(samples))
            for done, sample in enumerate(samples, 1):
                progress.step(done)
                found: Found = {}
                if sample.error is None and sample.answer is None:
                    row = drawn.get((sample.task, sample.sample_id))
                    completion = _completion(sample, tasks[sample.task], sample.token_ids, row)
                    if completion not in known:
                        known[completion] = score_sample(completion, names)
                    found = known[completion]
                made.append(_with_found(sample, found, unavailable))
                for name, value in found.items():
                    stands = made[-1].scores[name]
                    values += isinstance(value, float)
                    changed += name not in sample.scores or stands != sample.scores[name]
                    missing += stands is None and (isinstance(value, str) or name in unavailable)
                    failures |= {name: value} if isinstance(value, str) else {}
            packages = sorted({SCORES.plugin(name) or OWN_DISTRIBUTION for name in names})
            store.write_scores(names, {package: version(package) for package in packages}, made)
        summary = read_run(path).summary
        write_report(summary, path)
    return Rescored(names, values, changed, missing, failures | summary.score_failures)


def _with_found(sample: SampleRecord, found: Found, unavailable: Collection[str]) -> SampleScores:
    """Return a sample's scores with those that were found; one that cannot be computed leaves what was recorded."""
    fresh = scores_and_failures(found)
    lost = {name for name, value in found.items() if isinstance(value, str) or name in unavailable}
    kept = {name: value for name, value in sample.scores.items() if name in lost and value is not None}
    scores = {**sample.scores, **fresh["scores"], **kept}
    before = {name: why for name, why in sample.score_failures.items() if name not in found}
    now = {name: why for name, why in fresh["score_failures"].items() if scores[name] is None}
    return SampleScores(scores=scores, score_failures=before | now)


def _completion(
    sample: SampleRecord, task: TaskRecord, token_ids: tuple[int, ...], row: Sample | None = None
) -> Completion:
    around = (row.around, row.tests) if row else ()
    return Completion(
        sample.text, sample.reference, token_ids, sample.reference_ids, task.language, task.protocol, *around
    )


def _drawn(manifest: Manifest) -> Mapping[tuple[str, str], Sample]:
    """Return the samples of tasks whose protocols may put code around them, which records do not hold."""
    protocols = [task.protocol for task in manifest.tasks if not task.defined_by]
    if all(not PROTOCOLS.plugin(one) and PROTOCOLS.load(one).wants in ("documents", "lines") for one in protocols):
        return {}
    return {
        (task.record.name, sample.sample_id): sample for task in drawn_again(manifest) for sample in task.data.samples
    }


def rescored(run: RecordedRun) -> ScoresAgain:
    """Return what became of a run's scores; kept in the user's cache as its summary is.

    Left out are scores of other packages, and what no record holds: a program's tests, a black box's tokens.
    """
    return kept(run.summary.records, ScoresAgain, lambda: _rescored(run))


def _rescored(run: RecordedRun) -> ScoresAgain:
    tasks = {task.name: task for task in run.manifest.tasks}
    finished = [
        (place, sample) for place, sample in enumerate(run.samples) if sample.error is None and sample.task in tasks
    ]
    recorded: dict[str, set[str]] = defaultdict(set)
    for _, sample in finished:
        recorded[sample.task] |= sample.scores.keys()
    known: dict[tuple[object, ...], Scores] = {}  # repeats and lossless rows say the same again
    again: set[str] = set()
    differing: dict[str, Any] = {}
    for place, sample in finished:
        key = sample.task, sample.text, sample.reference, sample.token_ids, sample.reference_ids, sample.answer is None
        if key not in known:
            known[key] = _scores_of_record(sample, tasks[sample.task])
        for name in recorded[sample.task] & known[key].keys():
            again.add(name)
            there, here = sample.scores.get(name), known[key][name]
            if not differing and ScoresAgain.differ(there, here):
                differing = {"place": place, "score": name, "recorded": there, "computed": here}
    names = set().union(*recorded.values())
    return ScoresAgain(again=tuple(sorted(again)), believed=tuple(sorted(names - again)), **differing)


def _scores_of_record(sample: SampleRecord, task: TaskRecord) -> Scores:
    """Return the scores of this project that a finished sample's record decides, by name."""
    own = [name for name in registered_scores() if not SCORES.plugin(name)]
    of_text = other = score_sample(_completion(sample, task, sample.token_ids), own)
    if sample.answer is not None:
        other = score_sample(_completion(sample, task, sample.reference_ids), own)
    return {name: value for name, value in of_text.items() if other[name] == value and not isinstance(value, str)}


# ------------------------------------------------------------------------------------- publication


@dataclass(frozen=True, slots=True)
class Submission:
    """A run as it would be published, without private paths, and every condition, in order."""

    redacted: Redacted
    checks: tuple[Check, ...]

    @property
    def publishable(self) -> bool:
        """Whether every condition holds."""
        return all(check.passed for check in self.checks)


def examine_submission(directory: Path) -> Submission:
    """Check a run directory: what of it can be computed again is."""
    run = read_run(directory)
    redacted = redact_run(run)
    return Submission(redacted, (*publication_checks(run, rescored), _summary(run, directory), _private(redacted)))


def pack(submission: Submission, file: Path) -> Path:
    """Write the archive, replaced whole; return its path."""
    if not submission.publishable:
        raise StoreError("the run is not publishable; see the checklist.")
    run = submission.redacted.run
    records = sealed_records(run.manifest, run.windows, run.samples)
    summary = run.summary.model_copy(update={"records": records.seal})
    files = {**records.files, "summary.json": to_json(summary).encode()}
    write_archive(file, run.name, files, {"redacted": submission.redacted.places})
    return file


def _summary(run: RecordedRun, directory: Path) -> Check:
    remedy = f"Write it again with `harness report {shell_word(directory)}`."
    try:
        with RunDirectory.read(directory) as store:
            stored = store.read_summary()
    except StoreError as error:
        return Check("summary", str(error).partition(". ")[0], remedy)  # not the reader's remedy: this one is nearer
    if stored is None:
        return Check("summary", "there is no summary.json", remedy)
    there, here = (dict(_values(one.model_dump(mode="json"), "")) for one in (stored, run.summary))
    for place in {**here, **there}:
        old, new = there.get(place), here.get(place)
        if isinstance(old, float) and isinstance(new, float):
            same = math.isclose(old, new, rel_tol=_FLOAT_TOLERANCE, abs_tol=_FLOAT_TOLERANCE)
        else:
            same = old == new
        if not same:
            difference = f"{place} is {str(old)[:60]} there and {str(new)[:60]} here"
            return Check("summary", f"summary.json is not what the records give: {difference}", remedy)
    return Check("summary", "summary.json is what the records give")


def _values(found: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield every place of a JSON value with what stands there, ``rows[0].metrics.energy_j``."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from _values(value, f"{place}.{key}".lstrip("."))
    elif isinstance(found, list):
        for number, value in enumerate(found):
            yield from _values(value, f"{place}[{number}]")
    else:
        yield place, found


def _private(redacted: Redacted) -> Check:
    if redacted.merged:
        remedy = "Use file names relative to the working folder and run again."
        return Check("privacy", f"{redacted.merged[0]} is not unique without its private path", remedy)
    left = [place for place, _ in private_paths(redacted.run.manifest.model_dump(mode="json"))]
    if left:
        return Check("privacy", f"{left[0]} holds a private path", "Use a relative one and run again.")
    if not redacted.places:
        return Check("privacy", "no private paths")
    where = ", ".join(redacted.places[:3]) + (" …" if len(redacted.places) > 3 else "")
    return Check("privacy", f"private paths shortened in the packed copy: {where}")
