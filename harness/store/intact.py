"""The intact part of a run whose files do not fit each other: one that was copied while it was written, or is damaged.

A copy takes each file at another moment: windows without their samples, or samples of windows that are not there. The
chain of seals (:mod:`harness.store.seals`) tells how far both files hold, byte for byte, what was committed: so
much is kept, and the run goes on from there. What is cut off stays in a copy beside the run.
"""

from __future__ import annotations

import os
import shutil
from itertools import islice
from pathlib import Path

from harness.errors import StoreError
from harness.host.atomic_files import unfinished
from harness.host.foreign_files import DocumentError, read_json
from harness.records import SCHEMA_VERSION, WindowRecord
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS, read_manifest
from harness.store.record_files import lines, parse
from harness.store.run_directory import LOCK, SCORES, lock_folder
from harness.store.seals import seal_of, split_seal

__all__ = ["is_damaged", "keep_intact"]


def keep_intact(directory: Path, aside: Path) -> int:
    """Cut a run to the longest beginning that its seals confirm, and return how many windows that are.

    Without any, the whole run is moved aside. A kill at any moment leaves the run as it was, or cut: never less.

    Args:
        directory: of a run that cannot be read.
        aside: where all that it held lies afterwards; nothing may be there.

    Raises:
        StoreError: another process writes it, or its files cannot be read now, or by this version; it stays as it is.
        OSError: it cannot be copied or cut.
    """
    with lock_folder(directory):
        count, ends = _intact(directory)
        if not count:
            os.replace(directory, aside)
            return 0
        part = unfinished(aside)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(directory, part, ignore=shutil.ignore_patterns(LOCK))
        os.replace(part, aside)
        for name, end in ends.items():
            with (directory / name).open("r+b") as stream:
                stream.truncate(end)
                os.fsync(stream.fileno())
        (directory / SCORES).unlink(missing_ok=True)  # of records that may be cut off; they can be computed again
    return count


def is_damaged(directory: Path, error: StoreError) -> bool:
    """Return whether a run was refused for what its files hold, so that cutting it helps.

    It does not where files cannot be opened or read now (a missing right, a disk that fails, no descriptor that is
    left), nor where another version of the harness wrote them: such a run may be whole.

    Args:
        directory: of the run.
        error: that reading it raised.
    """
    cause = error.__context__
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        return False
    try:
        manifest = read_json(directory / MANIFEST)
    except (FileNotFoundError, DocumentError):
        return True
    except OSError:
        return False
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    return not isinstance(version, int) or version == SCHEMA_VERSION


def _intact(directory: Path) -> tuple[int, dict[str, int]]:
    """Return how many windows are whole, and where they end in each file, windows first: bytes.

    Raises:
        StoreError: they cannot be read now, or by this version.
    """
    count, ends = 0, {WINDOWS: 0, SAMPLES: 0}
    try:
        manifest, seal = read_manifest(directory)
        samples = lines(directory / SAMPLES)
        for line in lines(directory / WINDOWS) if manifest.run else ():  # older runs have no seals
            own = list(islice(samples, parse(WindowRecord, line, directory / WINDOWS, count + 1).samples))
            body, said = split_seal(line)
            seal = seal_of(seal, [*own, body])
            if seal != said:
                break
            count += 1
            ends = {WINDOWS: ends[WINDOWS] + len(line), SAMPLES: ends[SAMPLES] + sum(map(len, own))}
    except StoreError as error:
        if not is_damaged(directory, error):
            raise
    return count, ends
