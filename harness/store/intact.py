"""What is whole of a run whose files do not fit each other: one that was copied while it was written, or is damaged.

A copy takes each file at another moment: windows without their samples, or samples of windows that are not there. The
chain of seals (:mod:`harness.store.seals`) tells how far both files hold, byte for byte, what was committed: that much
is kept, and the run goes on from there. What is cut off stays in a copy beside the run.
"""

from __future__ import annotations

import os
import shutil
from itertools import islice
from pathlib import Path

from harness.errors import StoreError
from harness.host.atomic_files import unfinished
from harness.records import WindowRecord
from harness.store.committed import SAMPLES, WINDOWS, read_manifest
from harness.store.record_files import lines, parse
from harness.store.run_directory import LOCK, lock_folder
from harness.store.seals import seal_of, split_seal

__all__ = ["keep_intact"]


def keep_intact(directory: Path, aside: Path) -> int:
    """Cut a run to the longest beginning that its seals confirm, and return how many windows that are.

    Without any, the whole run is moved aside. A kill at any moment leaves the run as it was, or cut: never less.

    Args:
        directory: of a run that cannot be read.
        aside: where all that it held lies afterwards; nothing may be there.

    Raises:
        StoreError: another process writes it.
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
    return count


def _intact(directory: Path) -> tuple[int, dict[str, int]]:
    """Return how many windows are whole, and where they end in each file, windows first: bytes."""
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
    except StoreError:
        pass
    return count, ends
