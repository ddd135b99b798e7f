"""Computes scores of a run again, from the texts and references that it recorded: new scores, and mended ones.

Nothing that was measured is touched: what is computed goes to ``scores.json``, in one step, and every reader takes it
in place of what the samples say. A score that fails here, or cannot be computed, leaves the value that was recorded.
Samples of black boxes keep theirs: the tokens of their answers are not recorded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from harness.contracts import Completion, Sample
from harness.contracts.recipes import Progress, Silent
from harness.contracts.scores import registered_scores
from harness.records import Manifest, SampleRecord, SampleScores
from harness.registry import OWN_DISTRIBUTION, PROTOCOLS, SCORES, without_exit
from harness.running.completions import scores_and_failures
from harness.running.plan import drawn_again
from harness.running.reading import read_run
from harness.running.scoring import score_sample
from harness.store.run_directory import RunDirectory, lock_folder
from reports.tables.export import write_report

__all__ = ["Rescored", "rescore"]

Places = Mapping[tuple[str, str], Sample]
"""Task and sample id → the sample, of tasks whose scores may look beyond the text."""


@dataclass(frozen=True, slots=True)
class Rescored:
    """What became of a run's scores.

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
        progress: is told of every sample.

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
            kinds = {task.name: (task.language, task.protocol) for task in store.manifest.tasks}
            known: dict[Completion, dict[str, float | str | None]] = {}
            made: list[SampleScores] = []
            values = changed = missing = 0
            failures: dict[str, str] = {}
            unavailable = _unavailable(names)
            progress.begin("scoring", len(samples))
            for done, sample in enumerate(samples, 1):
                progress.step(done)
                found: dict[str, float | str | None] = {}
                if sample.error is None and sample.answer is None:
                    completion = _completion(sample, *kinds[sample.task], drawn)
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
            store.write_scores(names, _versions(names), made)
        summary = read_run(path).summary
        write_report(summary, path)
    return Rescored(names, values, changed, missing, failures | summary.score_failures)


def _unavailable(names: Collection[str]) -> set[str]:
    """Return which scores cannot be computed in this installation."""
    found = set()
    for name in names:
        with SCORES.leaving_out(name):
            found |= {name} if registered_scores()[name].unavailable() else set()
    return found


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


def _completion(sample: SampleRecord, language: str, protocol: str, drawn: Places) -> Completion:
    row = drawn.get((sample.task, sample.sample_id))
    return Completion(
        sample.text,
        sample.reference,
        sample.token_ids,
        sample.reference_ids,
        language,
        protocol,
        *((row.around, row.tests) if row else ()),
    )


def _drawn(manifest: Manifest) -> Places:
    """Return the samples of tasks whose protocols may put code around them, which records do not hold."""
    if all(task.defined_by or _is_text_alone(task.protocol) for task in manifest.tasks):
        return {}
    return {
        (task.record.name, sample.sample_id): sample for task in drawn_again(manifest) for sample in task.data.samples
    }


def _is_text_alone(protocol: str) -> bool:
    return not PROTOCOLS.plugin(protocol) and PROTOCOLS.load(protocol).wants in ("documents", "lines")


def _versions(names: Collection[str]) -> dict[str, str]:
    packages = {SCORES.plugin(name) or OWN_DISTRIBUTION for name in names}
    return {package: version(package) for package in sorted(packages)}
