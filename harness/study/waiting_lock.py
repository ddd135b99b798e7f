"""Locks of files that several processes come to, one after the other; they end with whoever holds them."""

from __future__ import annotations

import math
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from harness.errors import StoreError

if sys.platform != "win32":
    import fcntl

__all__ = ["lock_of", "wait_for_lock"]

LOOK_S = 0.2


def lock_of(folder: Path) -> Path:
    """Return the file whose lock says who may make a folder; it lies beside the folder, and stays there."""
    return folder.with_name(f".{folder.name}.lock")


def wait_for_lock(file: Path, seconds: float = math.inf) -> IO[bytes]:
    """Return a lock file, made where it is missing, once nobody else holds it; held until it is closed.

    A process that inherits its descriptor holds it as well. Where there are no such locks, nobody is waited for.

    Args:
        file: of the lock.
        seconds: to wait at most.

    Raises:
        StoreError: another process holds it for longer.
        OSError: it cannot be made, or its file system has no locks.
    """
    deadline = time.monotonic() + seconds
    with ExitStack() as on_error:
        lock = on_error.enter_context(file.open("ab"))
        while sys.platform != "win32":
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreError(f"{file} is held by another process. Stop it or wait for it.") from None
            time.sleep(LOOK_S)
        on_error.pop_all()
    return lock
