"""``harness`` in a process of its own, with what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

__all__ = ["harness"]

MEASURED = """
import atexit, runpy, sys
said = sys.argv.pop(1)
def say():
    status = open("/proc/self/status", encoding="ascii").read()
    open(said, "w", encoding="ascii").write(status.split("VmHWM:")[1].split()[0])
atexit.register(say)
runpy.run_module("harness.cli", run_name="__main__", alter_sys=True)
"""
"""Says its own largest resident memory, kB. What ``wait4`` says is never below that of the process that started it."""


def harness(*arguments: object, cache: Path) -> tuple[float, float]:
    """Run a command that succeeds; return its seconds, and its largest resident memory in MB.

    Args:
        arguments: of ``harness``.
        cache: in place of the user's.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("memory of a process is read from /proc")
    with tempfile.NamedTemporaryFile() as said:
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-P", "-c", MEASURED, said.name, *map(str, arguments)],
            env={**os.environ, "XDG_CACHE_HOME": str(cache)}, capture_output=True, check=False,
        )  # fmt: skip
        seconds = time.perf_counter() - begun
        assert done.returncode == 0, done.stderr.decode()
        return seconds, int(Path(said.name).read_text(encoding="ascii")) * 1024 / 1e6
