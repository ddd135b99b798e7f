"""``harness`` in a process of its own, with what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

__all__ = ["harness"]

LOOK_S = 0.05


def harness(*arguments: object, cache: Path) -> tuple[float, float]:
    """Run a command that succeeds; return its seconds, and the most memory in MB that it held with its processes.

    Memory is each process' proportional share, so that what two share counts once, looked at twenty times a second.

    Args:
        arguments: of ``harness``.
        cache: in place of the user's.
    """
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("memory of a process is read from /proc")
    begun, most = time.perf_counter(), 0
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "harness.cli", *map(str, arguments)],
            env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        while process.poll() is None:
            most = max(most, sum(_held_kb(pid) for pid in _with_children(process.pid)))
            time.sleep(LOOK_S)
        seconds = time.perf_counter() - begun
        said.seek(0)
        assert process.returncode == 0, said.read().decode()
    return seconds, most * 1024 / 1e6


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="ascii").split():
                yield from _with_children(int(child))


def _held_kb(pid: int) -> int:
    """Return a process' share of memory, kB; 0 for one that has gone."""
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").split("\nPss:")[1].split()[0])
    return 0
