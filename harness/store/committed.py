"""The records of a run as committed: sealed when written; damage, foreign records and lost commits refused when read.

A crash leaves at most the samples of one window that no window commits, and one torn line per file.
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
    seal_of,
    sealed_document,
    sealed_window,
    split_seal,
    with_run,
)

MANIFEST = "manifest.json"
SAMPLES = "samples.jsonl"
WINDOWS = "windows.jsonl"


@dataclass
class Committed:
    """The contents of a run's files up to its last commit, which ends at byte offsets and bears a seal over them.

    Attributes:
        samples: where they were asked for.
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
    """The records of a run as bytes: content of each file by name, and the seal over all of them."""

    files: dict[str, bytes]
    seal: str


def sealed_window_lines(
    window: WindowRecord, samples: Iterable[SampleRecord], run: str, before: str
) -> tuple[bytes, bytes, str]:
    """Return the lines of a window's samples, its own line and its seal, which covers the one before."""
    sample_lines = b"".join(with_run(line_of(sample), run) for sample in samples)
    return sample_lines, *sealed_window(line_of(window), sample_lines, run, before)


def sealed_records(
    manifest: Manifest, windows: Iterable[WindowRecord], samples: Iterable[SampleRecord]
) -> SealedRecords:
    """Return the files of a run whose records were changed on purpose, sealed anew; samples in their windows' order."""
    document, seal = manifest.model_dump_json(indent=2).encode() + b"\n", ""
    if manifest.run:
        document, seal = sealed_document(document)
    rest = iter(samples)
    of_windows, of_samples = [], []
    for window in windows:
        sample_lines, line, seal = sealed_window_lines(window, islice(rest, window.samples), manifest.run, seal)
        of_samples.append(sample_lines)
        of_windows.append(line)
    return SealedRecords({MANIFEST: document, WINDOWS: b"".join(of_windows), SAMPLES: b"".join(of_samples)}, seal)


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """Return a run directory's manifest and its seal."""
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
    """A window with its samples; ``count`` samples, byte offsets and the seal are of everything up to here."""

    window: WindowRecord
    samples: list[SampleRecord]
    count: int
    windows_end: int
    samples_end: int
    seal: str


def confirmed(path: Path, manifest: Manifest, seal: str) -> Iterator[Confirmed]:
    """Iterate the windows of a run in the order written, as far as both files hold what was committed.

    Args:
        path: of the run directory.
        manifest: of the run.
        seal: of its manifest.
    """
    windows, samples, rest = path / WINDOWS, path / SAMPLES, lines(path / SAMPLES)
    count = windows_end = samples_end = 0
    for number, line in enumerate(lines(windows), 1):
        window = parse(WindowRecord, line, windows, number)
        own = list(islice(rest, window.samples))
        records = [parse(SampleRecord, each, samples, count + place) for place, each in enumerate(own, 1)]
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
                f"samples in {SAMPLES} were changed, or are of another run. {REMEDY}"
            )
        if window.window != number - 1 or not _are_of(manifest, window, records):
            raise StoreError(
                f"{windows}, line {number} and its samples do not fit {MANIFEST}, the line before or each other. "
                f"{REMEDY}"
            )
        count, windows_end, samples_end = count + len(own), windows_end + len(line), samples_end + sum(map(len, own))
        yield Confirmed(window, records, count, windows_end, samples_end, seal)


def _are_of(manifest: Manifest, window: WindowRecord, samples: Iterable[SampleRecord]) -> bool:
    """Whether records are of the tasks, points and model that a manifest names, however they are sealed."""
    tasks = {task.name for task in manifest.tasks}
    points = {point.name for point in manifest.operating_points}
    known = window.idle or (window.task in tasks and window.operating_point in points)
    layers, vocabulary = manifest.model.num_layers, manifest.model.vocab_size
    return known and all(
        each.window == window.window
        and max(each.exit_layers, default=0) <= layers
        and max(each.token_ids, default=0) < vocabulary
        for each in samples
    )


def read_committed(path: Path, manifest: Manifest, seal: str, *, keep: bool = False) -> Committed:
    """Read windows up to the last commit, and keep their samples or only where they end.

    Raises:
        StoreError: damaged; not what the run wrote; more that is not committed than a crash leaves.
    """
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


def _window_of(line: bytes) -> int | None:
    """Return the window that a line names; ``None`` where it is no record, as after a power cut."""
    with suppress(DocumentError):
        record = parse_json(line)
        window = record.get("window") if isinstance(record, dict) else None
        return window if isinstance(window, int) else None
    return None
