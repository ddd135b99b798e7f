"""``harness`` in a process of its own, with what it took."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

__all__ = ["harness"]


def harness(*arguments: object, cache: Path) -> tuple[float, float]:
    """Run a command that succeeds; return its seconds, and its largest resident memory in MB.

    Args:
        arguments: of ``harness``.
        cache: in place of the user's.
    """
    command = [sys.executable, "-P", "-m", "harness.cli", *map(str, arguments)]
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, "XDG_CACHE_HOME": str(cache)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, command
    scale = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - begun, used.ru_maxrss * scale / 1e6
