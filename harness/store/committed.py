"""The records of a run as committed: sealed when written; damage, foreign records and lost commits refused when read.

A crash leaves at most the samples of one window that no window commits, and one torn line per file. Anything beyond
that means that files were changed, exchanged or cut afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
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
    """The contents of a run's files up to its last commit."""

    windows: list[WindowRecord]
    windows_end: int
    samples_end: int
    seal: str
    samples: list[SampleRecord] | None = None
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SealedRecords:
    """The records of a run as bytes."""

    files: dict[str, bytes]
    seal: str


def sealed_window_lines(
    window: WindowRecord, samples: Iterable[SampleRecord], run: str, before: str
) -> tuple[bytes, bytes, str]:
    """Return the lines of a window's samples, its own line and its seal."""
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
    """Return a run directory's manifest and its seal, which is empty in older runs."""
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


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A window with its samples, as its run committed them."""

    window: WindowRecord
    samples: list[SampleRecord]
    count: int
    windows_end: int
    samples_end: int
    seal: str


def confirmed(path: Path, manifest: Manifest, seal: str) -> Iterator[Confirmed]:
    """Iterate the windows of a run in the order written, as far as both files hold what was committed."""
    tasks = {task.name for task in manifest.tasks}
    points = {point.name for point in manifest.operating_points}
    layers, vocabulary = manifest.model.num_layers, manifest.model.vocab_size
    windows, samples, rest = path / WINDOWS, path / SAMPLES, lines(path / SAMPLES)
    count = windows_end = samples_end = 0
    for number, line in enumerate(lines(windows), 1):
        window = parse(WindowRecord, line, windows, number)
        if window.window != number - 1:
            raise StoreError(
                f"{windows}, line {number} is window {window.window} where {number - 1} should follow. {REMEDY}"
            )
        _refuse_other_run(windows, number, line, manifest.run)
        if not window.idle and (window.task not in tasks or window.operating_point not in points):
            raise StoreError(
                f"{windows}, line {number} is of {window.operating_point} on {window.task}, which the run in "
                f"{MANIFEST} does not have: two runs are mixed. {_TOGETHER}"
            )
        own = list(islice(rest, window.samples))
        records = [parse(SampleRecord, each, samples, count + place) for place, each in enumerate(own, 1)]
        for place, (each, record) in enumerate(zip(own, records, strict=True), count + 1):
            if record.window != window.window:
                raise StoreError(
                    f"{samples}, line {place} belongs to window {record.window} where {window.window} was committed. "
                    f"{REMEDY}"
                )
            _refuse_other_run(samples, place, each, manifest.run)
            if max(record.exit_layers, default=0) > layers or max(record.token_ids, default=0) >= vocabulary:
                raise StoreError(
                    f"{samples}, line {place} is not of the model in {MANIFEST}, which has {layers} layers and "
                    f"{vocabulary} tokens. {_TOGETHER}"
                )
        if len(own) < window.samples:
            raise StoreError(
                f"{samples} is damaged: {count + len(own)} whole lines where line {number} of {WINDOWS} commits "
                f"{count + window.samples}. {REMEDY}"
            )
        body, said = split_seal(line)
        seal = seal_of(seal, [*own, body]) if manifest.run else ""
        if seal != said:
            raise StoreError(
                f"{windows}, line {number} is not what run {manifest.run} committed: this line, one before it or its "
                f"samples in {SAMPLES} were changed. {REMEDY}"
            )
        count, windows_end, samples_end = count + len(own), windows_end + len(line), samples_end + sum(map(len, own))
        yield Confirmed(window, records, count, windows_end, samples_end, seal)


def read_committed(path: Path, manifest: Manifest, seal: str, *, keep: bool = False) -> Committed:
    """Read windows and samples up to the last commit."""
    file, written = path / SAMPLES, 0
    with suppress(OSError):  # reading it says why
        written = file.stat().st_size  # before the windows: what is committed meanwhile is no excess
    found = Committed([], 0, 0, seal, [] if keep else None)
    for each in confirmed(path, manifest, seal):
        found.windows.append(each.window)
        found.windows_end, found.samples_end, found.seal = each.windows_end, each.samples_end, each.seal
        found.counts[each.seal] = each.count
        if found.samples is not None:
            found.samples += each.samples
    end, next_window = found.samples_end, len(found.windows)
    for line in lines(file, start=end) if written > end else ():
        end += len(line)
        window = _window_of(line) if end <= written else next_window  # later lines may be of a run that goes on
        if window not in (None, next_window):
            raise StoreError(
                f"{file} holds samples of window {window}, and {WINDOWS} commits only those before {next_window}; a "
                f"crash leaves one window at most, so {WINDOWS} was cut or lost. Restore it from a copy, or start "
                "again with another --out."
            )
    return found


def _refuse_other_run(file: Path, number: int, line: bytes, run: str) -> None:
    theirs = run_of(line)
    if theirs != run:
        here, there = (f"run {one}" if one else "a run without an id (of an older version)" for one in (theirs, run))
        raise StoreError(
            f"{file}, line {number} is of {here} and {MANIFEST} beside it of {there}: two runs are mixed. {_TOGETHER}"
        )


def _window_of(line: bytes) -> int | None:
    """Return the window that a line names; ``None`` where it is no record, as after a power cut."""
    with suppress(DocumentError):
        record = parse_json(line)
        window = record.get("window") if isinstance(record, dict) else None
        return window if isinstance(window, int) else None
    return None
