"""Computes scores of a run again, from the texts and references that it recorded.

:func:`rescore` does so for new scores and mended ones. Nothing that was measured is touched: what is computed goes to
``scores.json``, in one step, and every reader takes it in place of what the samples say. A score that fails here, or
cannot be computed, leaves the value that was recorded. Samples of black boxes keep theirs: the tokens of their answers
are not recorded.

:func:`rescored` does so to hold records against their texts before they are published. It leaves out scores of other
packages, and those that need what no record holds: the tests of a program, or the tokens of a black box's text.

:func:`examine_submission` checks a run directory for publication, and :func:`pack` packs it without private paths
(:mod:`reports.leaderboard.redaction`); the run directory is never changed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping
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
from harness.running.scoring import Scores, score_sample
from harness.store.committed import sealed_records
from harness.store.packed_run import write_archive
from harness.store.run_directory import RunDirectory, lock_folder
from reports.leaderboard.checks import Check, ScoresAgain, publication_checks
from reports.leaderboard.redaction import Redacted, private_paths, redact_run
from reports.recorded import RecordedRun
from reports.tables.report import to_json, write_report

Places = Mapping[tuple[str, str], Sample]
"""Task and sample id → the sample, of tasks whose scores may look beyond the text."""


@dataclass(frozen=True, slots=True)
class Rescored:
    """The outcome of scoring a run again.

    Attributes:
        names: which were computed.
        values: how many values were computed. changed: that are not what stood there, or stood nowhere.
        missing: values that a completion should have and still has not.
        failures: score → why it fails, of plug-ins.
    """

    names: tuple[str, ...]
    values: int
    changed: int
    missing: int
    failures: dict[str, str]


def rescore(path: Path, only: Collection[str] = (), progress: Progress | None = None) -> Rescored:
    """Compute scores of a run's samples again, and leave them and its report in the run directory.

    Args:
        path: of the run, which no process may be writing.
        only: names of scores; all that are registered when empty.
        progress: is notified of every sample.

    Raises:
        UnknownNameError: no such score.
        RegistryError: a score that was asked for by name cannot be imported.
        StoreError: the run cannot be read or is in use.
        DataError: a task's rows, which a score may read, are others by now.
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
            known: dict[Completion, dict[str, float | str | None]] = {}
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
                found: dict[str, float | str | None] = {}
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


def _with_found(
    sample: SampleRecord, found: Mapping[str, float | str | None], unavailable: Collection[str]
) -> SampleScores:
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


def _drawn(manifest: Manifest) -> Places:
    """Return the samples of tasks whose protocols may put code around them, which records do not hold."""
    protocols = [task.protocol for task in manifest.tasks if not task.defined_by]
    if all(not PROTOCOLS.plugin(one) and PROTOCOLS.load(one).wants in ("documents", "lines") for one in protocols):
        return {}
    return {
        (task.record.name, sample.sample_id): sample for task in drawn_again(manifest) for sample in task.data.samples
    }


def rescored(run: RecordedRun) -> ScoresAgain:
    """Return what became of a run's scores; kept in the user's cache as its summary is."""
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
    first: tuple[int, str, float | None, float | None] | None = None
    for place, sample in finished:
        key = sample.task, sample.text, sample.reference, sample.token_ids, sample.reference_ids, sample.answer is None
        if key not in known:
            known[key] = _scores_of_record(sample, tasks[sample.task])
        for name in recorded[sample.task] & known[key].keys():
            again.add(name)
            there, here = sample.scores.get(name), known[key][name]
            if first is None and ScoresAgain.differ(there, here):
                first = place, name, there, here
    names = set().union(*recorded.values())
    found = ScoresAgain(again=tuple(sorted(again)), believed=tuple(sorted(names - again)))
    if first is None:
        return found
    place, name, there, here = first
    return found.model_copy(update={"place": place, "score": name, "recorded": there, "computed": here})


def _scores_of_record(sample: SampleRecord, task: TaskRecord) -> Scores:
    """Return the scores of this project that a finished sample's record decides, by name."""
    own = [name for name in registered_scores() if not SCORES.plugin(name)]
    of_text = score_sample(_completion(sample, task, sample.token_ids), own)
    other = of_text
    if sample.answer is not None:
        other = score_sample(_completion(sample, task, sample.reference_ids), own)
    return {name: value for name, value in of_text.items() if other[name] == value and not isinstance(value, str)}


_FLOAT_TOLERANCE = 1e-9  # sums of two machines may differ in the last digits


@dataclass(frozen=True, slots=True)
class Submission:
    """A run as it would be published.

    Attributes:
        redacted: the run without private paths. checks: every condition, in order.
    """

    redacted: Redacted
    checks: tuple[Check, ...]

    @property
    def publishable(self) -> bool:
        """Whether every condition holds."""
        return all(check.passed for check in self.checks)


def examine_submission(directory: Path) -> Submission:
    """Check a run directory: what of it can be computed again is.

    Raises:
        StoreError: it cannot be read at all.
    """
    run = read_run(directory)
    redacted = redact_run(run)
    return Submission(redacted, (*publication_checks(run, rescored), _summary(run, directory), _private(redacted)))


def pack(submission: Submission, file: Path) -> Path:
    """Write the archive, replaced whole; return its path.

    Raises:
        StoreError: a condition does not hold, or the file cannot be written.
    """
    if not submission.publishable:
        raise StoreError("the run is not publishable; see the checklist.")
    run = submission.redacted.run
    records = sealed_records(run.manifest, run.windows, run.samples)
    summary = run.summary.model_copy(update={"records": records.seal})
    files = {**records.files, "summary.json": to_json(summary).encode()}
    write_archive(file, run.name, files, {"redacted": submission.redacted.places})
    return file


# ---------------------------------------------------------------------------------------- checks


def _summary(run: RecordedRun, directory: Path) -> Check:
    remedy = f"Write it again with `harness report {shell_word(directory)}`."
    try:
        with RunDirectory.read(directory) as store:
            stored = store.read_summary()
    except StoreError as error:
        return Check("summary", str(error).partition(". ")[0], remedy)  # not the reader's remedy: this one is nearer
    if stored is None:
        return Check("summary", "there is no summary.json", remedy)
    difference = _difference(stored.model_dump(mode="json"), run.summary.model_dump(mode="json"), "")
    if difference:
        return Check("summary", f"summary.json is not what the records give: {difference}", remedy)
    return Check("summary", "summary.json is what the records give")


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


def _difference(stored: Any, computed: Any, place: str) -> str:
    """Say where two JSON values differ first, with both; empty when they do not."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        pairs = [(f"{place}.{key}".lstrip("."), stored.get(key), computed.get(key)) for key in {**computed, **stored}]
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        pairs = [(f"{place}[{index}]", *both) for index, both in enumerate(zip(stored, computed, strict=True))]
    elif isinstance(stored, list) and isinstance(computed, list):
        return f"{place} has {len(stored)} entries there and {len(computed)} here"
    elif isinstance(stored, float) and isinstance(computed, float):
        close = math.isclose(stored, computed, rel_tol=_FLOAT_TOLERANCE, abs_tol=_FLOAT_TOLERANCE)
        return "" if close else f"{place} is {stored!r} there and {computed!r} here"
    else:
        return "" if stored == computed else f"{place} is {str(stored)[:60]!r} there and {str(computed)[:60]!r} here"
    return next((found for where, old, new in pairs if (found := _difference(old, new, where))), "")
