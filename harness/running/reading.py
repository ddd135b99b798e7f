"""Reads run directories for reports: one, or whatever of many can be read. Loads no torch.

A run is read where the packages it was made with are not installed, too: nothing here asks for a task, a strategy, a
protocol or a meter, and a score that is absent is shown as far as it was recorded.

Summaries are kept in the user's cache, so that a second report does not score and resample its runs again. A summary,
or what became of scores that were computed again, is a function of a run's sealed records, of the code that makes it
and of the scores that are available; it is kept under a hash of all three, so that nothing stale is read. Runs without
seals, and installations with metrics or scores of other projects, whose code may change unseen, are summarised every
time.

Many summaries are made ahead of their reader, by processes that run this module on the cores that it may use. They read
the same runs in the same order; the reader waits for each run until its turn has passed there. What is shown, refused
or written is the reader's own doing: a run that its process could not read, or did not come to, is summarised as if
there were no process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from harness.appearance.visible_text import one_line, shell_word
from harness.errors import HarnessError, StoreError
from harness.host import environment
from harness.host.cache import is_kept, keep_document, kept_document
from harness.host.files import real_path
from harness.host.interpreter import Helper, answer_requests
from harness.host.processor import core_count, quota_cores
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.record import Record
from harness.records.summary import Summary
from harness.registry import METRICS, SCORES, plugin_at_fault
from harness.running.scoring import CorpusScores, missing_scores
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS
from harness.store.record_files import REMEDY
from harness.store.run_directory import RunDirectory, is_held, last_seal
from harness.store.same_run import absent_plugins
from reports.recorded import RecordedRun, Records
from reports.summary.admission import drop_implausible
from reports.summary.summarise import corpora, recorded_only, summarise

R = TypeVar("R", bound=Record)
logger = logging.getLogger(__name__)

FOLDER = "summaries"
FEWEST_RUNS = 24
"""Fewer runs without a summary than this are left to the reader: a process takes two seconds to start, and a run of
the demo's size a sixth of one."""
MOST_PROCESSES = 4
"""More would wait for the reader, which reads every run itself, and each holds a run and its libraries in memory."""
LARGEST_BYTES = 20_000_000
"""A run with more samples than that is left to the reader, which alone holds it then."""

DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""Errors raised by values that no schema can forbid, such as a time of 1e308 seconds."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A directory that could not be reported.

    Attributes:
        directory: which.
        reason: one line that says what is wrong and the remedy.
    """

    directory: Path
    reason: str


def read_run(path: Path, *, stored: bool = False, duplicates: bool = True, keep: bool = False) -> RecordedRun:
    """Read a run directory as far as it got, and summarise it.

    Args:
        path: of the run; a run may be writing it meanwhile.
        stored: take the ``summary.json`` that lies there rather than score everything again, where there is one.
        duplicates: count windows with samples that tuning has read, which a run with ``--duplicates keep`` has.
        keep: look for the summary in the user's cache, and keep it there (see the module).

    Raises:
        StoreError: missing, damaged or foreign directory, or one without a finished window.
    """
    in_use = bool(is_held(path))
    with RunDirectory.read(path, keep=True) as store:
        if not store.finished():
            raise StoreError(
                f"{path} holds no finished window yet. Continue it with `harness run --resume {shell_word(path)}`."
            )
        manifest, windows, samples = store.manifest, tuple(store.windows()), tuple(store.samples())
        recorded, seal, again = None, store.seal, store.rescored
        with suppress(StoreError):  # it has to be made again
            recorded = store.read_summary() if duplicates else None
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


def _summarise(
    manifest: Manifest,
    windows: tuple[WindowRecord, ...],
    samples: tuple[SampleRecord, ...],
) -> Summary:
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
        keep: likewise; many runs whose summaries are to be made are read ahead.
        held: with more runs than this, records are not held but read again where they are asked for.
        progress: is called at first, and after each run, with how many of how many were read.
    """
    directories = find_runs(paths)
    runs: list[RecordedRun] = []
    refused: list[Refusal] = []
    if progress is not None and directories:
        progress(0, len(directories))
    with read_ahead(directories if keep and not stored else ()) as wait:
        for done, directory in enumerate(directories, 1):
            wait(directory)
            try:
                run = read_run(directory, stored=stored, keep=keep)
                if held is not None and len(directories) > held:
                    again = partial(_again, run.directory, run.manifest, len(run.windows), len(run.samples))
                    run = run.released(again)
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
    """Return what is made of a run's records: kept, or made and kept where the cache can be written.

    Args:
        seal: over the records; empty in older runs.
        kind: of what is made.
        make: makes it.
    """
    key = _key(seal, kind)
    if not key:
        return make()
    if (text := kept_document(FOLDER, key)) is not None:
        with suppress(ValidationError):
            return kind.model_validate_json(text)
    made = make()
    keep_document(FOLDER, key, made.model_dump_json())
    return made


def _key(seal: str, kind: type[Record]) -> str:
    """Return the hash of all that decides what is kept; empty where it may change unseen."""
    if not seal or METRICS.has_plugins or SCORES.has_plugins:  # code of other projects
        return ""
    return _hash(seal, kind.__name__, _code(), *METRICS.names(), *SCORES.names(), *missing_scores())


@cache
def _code() -> str:
    """Return a hash of everything installed that a summary is made with."""
    installed = {path.name for folder in sys.path if folder for path in Path(folder).glob("*.dist-info")}
    made_by = environment.hash_of_code("harness", "reports", "tasks")
    return _hash(platform.python_version(), platform.machine(), *sorted(installed), made_by)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@contextmanager
def read_ahead(directories: Sequence[Path]) -> Iterator[Callable[[Path], None]]:
    """Have runs summarised ahead of their reader, and yield what waits for one of them; at the end no process is left.

    Args:
        directories: in the order in which the reader will wait for them. What is no run, and runs whose summaries are
            kept by now, are not waited for.
    """
    ahead: dict[Path, tuple[Helper, Iterator[object]]] = {}
    with ExitStack() as processes:
        for share in _shares(directories):
            with suppress(OSError):  # no room for one more process: its share is left to the reader
                helper = processes.enter_context(Helper(__spec__.name, map(str, share), threads=1))
                ahead.update(dict.fromkeys(share, (helper, helper.answers())))

        def wait(directory: Path) -> None:
            helper, answers = ahead.pop(directory, (None, iter(())))
            if helper is None or next(answers, None) is not None:
                return
            for lost in [path for path, (other, _) in ahead.items() if other is helper]:
                del ahead[lost]
            code = helper.process.wait()
            logger.warning("a process that reads ahead ended with exit code %d; its runs are read here", code)

        yield wait


def _shares(directories: Sequence[Path]) -> list[list[Path]]:
    """Return what each process reads: none where that is not worth its start."""
    count = int(min(core_count(), quota_cores() or MOST_PROCESSES, MOST_PROCESSES))
    if count < 2 or len(directories) < FEWEST_RUNS:
        return []
    try:
        new = list(dict.fromkeys(directory for directory in directories if _is_new(directory)))
    except HarnessError:  # a score or metric that cannot be loaded, which the reader will say
        return []
    return [new[first::count] for first in range(count)] if len(new) >= FEWEST_RUNS else []


def _is_new(directory: Path) -> bool:
    """Whether a run has a seal under which no summary is kept; whether the seal holds is for the reader to find."""
    with suppress(OSError, StoreError):
        if os.path.getsize(directory / SAMPLES) <= LARGEST_BYTES:
            key = _key(last_seal(directory), Summary)
            return bool(key) and not is_kept(FOLDER, key)
    return False


def _read_ahead(path: str) -> dict[str, str]:
    with suppress(Exception):  # the reader reads it again, and says what is wrong
        with RunDirectory.read(Path(path), keep=True) as store:
            records, seal = (store.manifest, tuple(store.windows()), tuple(store.samples())), store.seal
        kept(seal, Summary, lambda: _summarise(*records))
    return {"done": path}


if __name__ == "__main__":
    answer_requests(_read_ahead)
