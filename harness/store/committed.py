"""The records of a run as committed: sealed when written; damage, foreign records and lost commits refused when read.

A crash leaves at most the samples of one window that no window commits, and one torn line per file. Anything beyond
that means that files were changed, exchanged or cut afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from harness.appearance.visible_text import shell_word
from harness.errors import StoreError
from harness.host.files import DocumentError, parse_json
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.store.packed_run import ARCHIVE
from harness.store.record_files import (
    ACCESS,
    REMEDY,
    line_of,
    lines,
    parse,
    read_document,
    run_of,
    seal_of,
    sealed_document,
    sealed_window,
    split_seal,
    with_run,
)

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
WINDOWS = "windows.jsonl"

_TOGETHER = "Put the files of one run together again, or omit the folder."


@dataclass
class Committed:
    """The contents of a run's files up to its last commit.

    Attributes:
        windows: in the order written.
        windows_end, samples_end: offsets behind the last committed line of each file, bytes.
        seal: over everything committed; empty in a run of before there were seals.
        samples: in the order written, where they were asked for.
        counts: seal → samples up to the window that bears it.
    """

    windows: list[WindowRecord]
    windows_end: int
    samples_end: int
    seal: str
    samples: list[SampleRecord] | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SealedRecords:
    """The records of a run as bytes.

    Attributes:
        files: name → content of ``manifest.json``, ``windows.jsonl`` and ``samples.jsonl``.
        seal: over all of them; empty in a run of before there were seals.
    """

    files: dict[str, bytes]
    seal: str


def sealed_window_lines(
    window: WindowRecord, samples: Iterable[SampleRecord], run: str, before: str
) -> tuple[bytes, bytes, str]:
    """Return the lines of a window's samples, its own line and its seal.

    Args:
        window: what is committed.
        samples: its own.
        run: id of the run; empty for one of before there were seals.
        before: seal of the record before.

    Raises:
        StoreError: a record holds a value that JSON cannot represent.
    """
    sample_lines = b"".join(with_run(line_of(sample), run) for sample in samples)
    return sample_lines, *sealed_window(line_of(window), sample_lines, run, before)


def sealed_records(
    manifest: Manifest, windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]
) -> SealedRecords:
    """Return the files of a run whose records were changed on purpose, sealed anew; samples in their windows' order."""
    document = manifest.model_dump_json(indent=2).encode() + b"\n"
    document, seal = sealed_document(document) if manifest.run else (document, "")
    rest = iter(samples)
    of_windows, of_samples = [], []
    for window in windows:
        sample_lines, line, seal = sealed_window_lines(window, islice(rest, window.samples), manifest.run, seal)
        of_samples.append(sample_lines)
        of_windows.append(line)
    return SealedRecords({MANIFEST: document, WINDOWS: b"".join(of_windows), SAMPLES: b"".join(of_samples)}, seal)


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """Return a run directory's manifest and its seal, which is empty in older runs.

    Raises:
        StoreError: missing, damaged, changed since it was written, or of another schema version.
    """
    file = path / MANIFEST
    try:
        file.stat()
    except FileNotFoundError:
        if not path.is_dir():
            made = "harness submit RUN" if path.name.endswith(ARCHIVE) else "harness run"
            raise StoreError(f"{path} does not exist. Make it with `{made} --out {shell_word(path)}`.") from None
        below = next((file.parent for file in sorted(path.glob(f"*/{MANIFEST}"))), None)
        instead = "the folder that `harness run` made" if below is None else f"one such as {below}"
        raise StoreError(f"{path} holds no manifest.json: it is not a run directory. Give {instead}.") from None
    except NotADirectoryError:
        raise StoreError(f"{path} is a file, not a run directory. Give the folder that `harness run` made.") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}. {ACCESS}") from None
    return read_document(Manifest, file)


def read_committed(path: Path, manifest: Manifest, seal: str, *, keep: bool = False) -> Committed:
    """Read windows and samples up to the last commit.

    Args:
        path: of the run directory.
        manifest: of the run.
        seal: of its manifest.
        keep: the samples, too, and not only where they end.

    Raises:
        StoreError: damaged; not what the run wrote; more that is not committed than a crash leaves.
    """
    run = manifest.run
    written = _size(path / SAMPLES)  # before the windows: what is committed meanwhile is no excess
    windows = _read_windows(path / WINDOWS, manifest)
    committed = Committed([window for window, _ in windows], sum(len(line) for _, line in windows), 0, seal)
    committed.samples = [] if keep else None
    samples = enumerate(lines(path / SAMPLES), 1)
    found = 0
    for number, (window, line) in enumerate(windows, 1):
        own: list[bytes] = []
        while len(own) < window.samples:
            found, sample = next(samples, (0, b""))
            if not found:
                _refuse_lost(path, committed, len(own) + _count(committed.windows[: number - 1]))
            record = _checked_sample(path / SAMPLES, found, sample, window, manifest)
            own.append(sample)
            if committed.samples is not None:
                committed.samples.append(record)
        body, sealed = split_seal(line)
        committed.seal = seal_of(committed.seal, [*own, body]) if run else ""
        if committed.seal != sealed:
            raise StoreError(
                f"{path / WINDOWS}, line {number} is not what run {run} committed: this line, one before it or its "
                f"samples in {SAMPLES} were changed. {REMEDY}"
            )
        committed.samples_end += sum(map(len, own))
        committed.counts[sealed] = found
    _refuse_excess(path, committed, written)
    return committed


def _read_windows(file: Path, manifest: Manifest) -> list[tuple[WindowRecord, bytes]]:
    """Return the windows with their lines."""
    tasks = {task.name for task in manifest.tasks}
    points = {point.name for point in manifest.operating_points}
    windows: list[tuple[WindowRecord, bytes]] = []
    for number, line in enumerate(lines(file), 1):
        window = parse(WindowRecord, line, file, number)
        if window.window != len(windows):
            raise StoreError(
                f"{file}, line {number} is window {window.window} where {len(windows)} should follow. {REMEDY}"
            )
        _refuse_other_run(file, number, line, manifest.run)
        if not window.idle and (window.task not in tasks or window.operating_point not in points):
            raise StoreError(
                f"{file}, line {number} is of {window.operating_point} on {window.task}, which the run in {MANIFEST} "
                f"does not have: two runs are mixed. {_TOGETHER}"
            )
        windows.append((window, line))
    return windows


def _checked_sample(file: Path, number: int, line: bytes, window: WindowRecord, manifest: Manifest) -> SampleRecord:
    sample = parse(SampleRecord, line, file, number)
    if sample.window != window.window:
        raise StoreError(
            f"{file}, line {number} belongs to window {sample.window} where {window.window} was committed. {REMEDY}"
        )
    _refuse_other_run(file, number, line, manifest.run)
    layers, vocabulary = manifest.model.num_layers, manifest.model.vocab_size
    if max(sample.exit_layers, default=0) > layers or max(sample.token_ids, default=0) >= vocabulary:
        raise StoreError(
            f"{file}, line {number} is not of the model in {MANIFEST}, which has {layers} layers and {vocabulary} "
            f"tokens. {_TOGETHER}"
        )
    return sample


def _refuse_other_run(file: Path, number: int, line: bytes, run: str) -> None:
    theirs = run_of(line)
    if theirs != run:
        raise StoreError(
            f"{file}, line {number} is of {_named(theirs)} and {MANIFEST} beside it of {_named(run)}: two runs are "
            f"mixed. {_TOGETHER}"
        )


def _named(run: str) -> str:
    return f"run {run}" if run else "a run of before runs had ids"


def _refuse_lost(path: Path, committed: Committed, found: int) -> None:
    expected = _count(committed.windows)
    raise StoreError(f"{path / SAMPLES} is damaged: {found} whole lines where {WINDOWS} commits {expected}. {REMEDY}")


def _count(windows: Sequence[WindowRecord]) -> int:
    return sum(window.samples for window in windows)


def _refuse_excess(path: Path, committed: Committed, written: int) -> None:
    """Raise when samples of more than the window that was being written stand behind the committed ones.

    Args:
        path: of the run directory.
        committed: what is.
        written: size of the file of samples when reading began, bytes; later ones may be of a run that goes on.
    """
    file, next_window, end = path / SAMPLES, len(committed.windows), committed.samples_end
    if written <= end:
        return
    for line in lines(file, start=end):
        end += len(line)
        window = _window_of(line) if end <= written else next_window
        if window not in (None, next_window):
            raise StoreError(
                f"{file} holds samples of window {window}, and {WINDOWS} commits only those before {next_window}; a "
                f"crash leaves one window at most, so {WINDOWS} was cut or lost. Restore it from a copy, or start "
                "again with another --out."
            )


def _window_of(line: bytes) -> int | None:
    """Return the window that a line names; ``None`` where it is no record, as after a power cut."""
    try:
        record = parse_json(line)
    except DocumentError:
        return None
    window = record.get("window") if isinstance(record, dict) else None
    return window if isinstance(window, int) else None


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # reading it says why
        return 0
