"""Reads run directories for reports: one, or whatever of many can be read. Loads no torch.

A summary is a function of a run's sealed records, of the code that makes it and of the scores that are available; it is
kept in the user's cache under a hash of all three, unless metrics or scores of other projects are installed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from harness.appearance.visible_text import one_line, shell_word
from harness.errors import HarnessError, OutdatedError, StoreError
from harness.host import environment
from harness.host.cache import keep_document, kept_document
from harness.host.files import real_path
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.record import Record
from harness.records.summary import Summary
from harness.registry import METRICS, SCORES, plugin_at_fault
from harness.running.scoring import CorpusScores, missing_scores
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS
from harness.store.record_files import REMEDY
from harness.store.run_directory import SUMMARY, RunDirectory, is_held
from harness.store.same_run import absent_plugins
from reports.recorded import RecordedRun, Records
from reports.summary.admission import drop_implausible
from reports.summary.summarise import corpora, recorded_only, summarise

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Record)

FOLDER = "summaries"

DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors raised by values that no schema can forbid, such as a time of 1e308 seconds."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A directory that could not be reported, and one line that says what is wrong and the remedy."""

    directory: Path
    reason: str


def read_run(path: Path, *, stored: bool = False, duplicates: bool = True, keep: bool = False) -> RecordedRun:
    """Read a run directory as far as it got, and summarise it; a run may be writing it meanwhile.

    Args:
        path: of the run.
        stored: take the ``summary.json`` that lies there rather than score everything again, where there is one.
        duplicates: count windows with samples that tuning has read, which a run with ``--duplicates keep`` has.
        keep: look for the summary in the user's cache, and keep it there (see the module).
    """
    in_use = bool(is_held(path))
    with RunDirectory.read(path, keep=True) as store:
        if not store.finished():
            raise StoreError(
                f"{path} holds no finished window yet. Continue it with `harness run --resume {shell_word(path)}`."
            )
        manifest, windows, samples = store.manifest, tuple(store.windows()), tuple(store.samples())
        recorded, seal, again = None, store.seal, store.rescored
        try:
            recorded = store.read_summary() if duplicates else None
        except OutdatedError:  # it has to be made again
            pass
        except StoreError:
            logger.warning("%s cannot be used, or was changed: it is computed again from the records", path / SUMMARY)
    if not duplicates:
        manifest, windows, samples = _without_duplicates(path, manifest, windows, samples)
    try:
        if stored and recorded:
            summary = recorded
        elif keep and duplicates:
            summary = kept(seal, Summary, lambda: _summarise(manifest, windows, samples))
        else:
            summary = _summarise(manifest, windows, samples)
        summary = drop_implausible(recorded_only(summary, recorded) if recorded else summary)
        absent = absent_plugins(manifest, {name for sample in samples for name in sample.scores})
        notes = [*summary.notes, *absent]
        if again is not None:
            by = ", ".join(map(" ".join, again.versions.items()))
            notes.append(
                f"{len(again.names)} scores were computed again at {again.computed}, by {by} (`harness rescore`)."
            )
        summary = summary.model_copy(update={"notes": tuple(dict.fromkeys(notes)), "records": seal})
        run = RecordedRun(path, manifest, windows, samples, summary, in_use)
        _ = run.state  # a manifest that does not say how much there is to come is refused here, not amid a report
    except HarnessError as error:
        raise StoreError(f"{path}: {error}") from None
    except DAMAGE as error:
        if package := plugin_at_fault(error):
            raise StoreError(
                f"{path} cannot be summarised: {package} fails ({type(error).__name__}: {error}). The run is intact. "
                "Mend or uninstall that package."
            ) from error
        raise StoreError(
            f"{path} cannot be understood ({type(error).__name__}: {error}): its records are damaged. {REMEDY}"
        ) from error
    return run


def _without_duplicates(
    path: Path, manifest: Manifest, windows: tuple[WindowRecord, ...], samples: tuple[SampleRecord, ...]
) -> tuple[Manifest, tuple[WindowRecord, ...], tuple[SampleRecord, ...]]:
    """Leave out whole windows, so that time and energy are of the same samples as everything else."""
    marked = {sample.window for sample in samples if sample.duplicate}
    kept = tuple(window for window in windows if window.window not in marked)
    samples = tuple(sample for sample in samples if sample.window not in marked)
    if not marked:
        raise StoreError(f"{path} marks no sample as a duplicate. Run again with --duplicates keep.")
    if not any(sample.error is None for sample in samples):
        raise StoreError(f"every window of {path} holds a duplicate. Run again without --duplicates keep.")
    left = {(sample.task, sample.sample_id) for sample in samples}
    tasks = tuple(
        task.model_copy(update={"samples": sum(name == task.name for name, _ in left), "duplicates": 0})
        for task in manifest.tasks
    )
    return manifest.model_copy(update={"tasks": tasks}), kept, samples


def _summarise(manifest: Manifest, windows: tuple[WindowRecord, ...], samples: tuple[SampleRecord, ...]) -> Summary:
    scores = CorpusScores(corpora(manifest, windows, samples))
    machine = environment.machine_line(manifest.environment)
    failures = scores.failures | {name: why for each in samples for name, why in each.score_failures.items()}
    missing = [*scores.missing(), *(f"not shown: {why}." for why in failures.values())]
    summary = summarise(manifest, windows, samples, scores, machine=machine, missing_scores=missing)
    left_out = (f"not shown: {why}." for name, why in METRICS.left_out.items() if name in METRICS)
    return summary.model_copy(update={"score_failures": failures, "notes": (*summary.notes, *left_out)})


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run directories that paths name: themselves, or all below a folder that is none, sorted.

    A path without any is returned as it is, for the reader to refuse. Each run comes once.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        for run in _below(path) or [path]:
            found.setdefault(real_path(run), run)
    return list(found.values())


def _below(path: Path) -> list[Path]:
    """Folders with the files of a run, and folders that cannot be looked into: those a reader must speak of."""
    if os.path.exists(path / MANIFEST) or not os.path.isdir(path):
        return []
    found: list[Path] = []
    for folder, _, files in os.walk(path, onerror=lambda error: found.append(Path(error.filename))):
        if {MANIFEST, WINDOWS, SAMPLES} & set(files):
            found.append(Path(folder))
    return sorted(found)


def read_runs(
    paths: Iterable[Path],
    *,
    stored: bool = False,
    keep: bool = False,
    held: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[RecordedRun], list[Refusal]]:
    """Read every run that :func:`find_runs` finds; what cannot be read is returned with the reason.

    Args:
        paths: run directories, or folders of them.
        stored: as in :func:`read_run`.
        keep: likewise.
        held: with more runs than this, records are not held but read again where they are asked for.
        progress: is called at first, and after each run, with how many of how many were read.
    """
    directories = find_runs(paths)
    runs: list[RecordedRun] = []
    refused: list[Refusal] = []
    if progress is not None and directories:
        progress(0, len(directories))
    for done, directory in enumerate(directories, 1):
        try:
            run = read_run(directory, stored=stored, keep=keep)
            if held is not None and len(directories) > held:
                run = run.released(partial(_again, run.directory, run.manifest, len(run.windows), len(run.samples)))
            runs.append(run)
        except HarnessError as error:
            refused.append(Refusal(directory, one_line(str(error))))
        if progress is not None:
            progress(done, len(directories))
    return runs, refused


def _again(path: Path, manifest: Manifest, windows: int, samples: int) -> Records:
    """Read what a run had when it was read first; one that is being written may have more by now."""
    with RunDirectory.read(path, keep=True) as store:
        found = Records(manifest, tuple(store.windows())[:windows], tuple(store.samples())[:samples])
        if store.manifest != manifest or (len(found.windows), len(found.samples)) != (windows, samples):
            raise StoreError(f"{path} was changed while it was reported. Report again.")
    return found


def kept(seal: str, kind: type[R], make: Callable[[], R]) -> R:
    """Return what is made of a run's records under their seal: kept, or made and kept where the cache allows."""
    if not seal or METRICS.has_plugins or SCORES.has_plugins:  # of older runs; code of other projects may change unseen
        return make()
    key = _hash(seal, kind.__name__, _code(), *METRICS.names(), *SCORES.names(), *missing_scores())
    if (text := kept_document(FOLDER, key)) is not None:
        with suppress(ValidationError):
            return kind.model_validate_json(text)
    made = make()
    keep_document(FOLDER, key, made.model_dump_json())
    return made


@cache
def _code() -> str:
    """Return a hash of everything installed that a summary is made with."""
    installed = {path.name for folder in sys.path if folder for path in Path(folder).glob("*.dist-info")}
    made_by = environment.hash_of_code("harness", "reports", "tasks")
    return _hash(platform.python_version(), platform.machine(), *sorted(installed), made_by)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
