"""Runs a Python program that a model wrote, in a process with limits, and says whether it came to its end.

The program runs in an interpreter of its own, in an empty folder, without this process's environment, input, output or
installed packages; with limits of time, memory, file size and open files; and, by what :mod:`tasks.sandbox.inside`
refuses, without processes, network, ``ctypes`` and changes to files. On Linux, where the system allows it, it
has no network and no other process besides (``unshare``).

That stops accidents, such as a completion that removes files or forks without end. It is **no security boundary**: code
that means harm can read files and may find a way out. Run untrusted models in a container or a virtual machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

__all__ = ["MEMORY_BYTES", "SECONDS", "isolation", "passes"]

SECONDS = 3.0
"""A program may take, wall clock, its interpreter's start not counted; as in the official evaluator."""

MEMORY_BYTES = 1 << 30
"""Address space of a program, at most."""

_START_S = 10.0
"""Seconds that an interpreter may take to start and end, beside the program's, on a busy machine."""

_INSIDE = Path(__file__).with_name("inside.py")
_NAMESPACES = (
    ("--user", "--net", "--pid", "--ipc", "--fork", "--kill-child"),
    ("--user", "--net"),
)
"""What ``unshare`` is asked for: the first of these that works."""


def passes(program: str, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Return whether a program runs to its end within its limits without raising.

    Args:
        program: Python source.
        seconds: limit of time.
        memory_bytes: limit of address space.
    """
    proof = secrets.token_hex(16).encode()  # a program that only ends its process does not know it
    command = [
        *_unshare(),
        *(sys.executable, "-s", "-P", "-S", "-B", str(_INSIDE)),
        *(str(seconds), str(memory_bytes)),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="harness-tests-") as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as answer,
    ):
        source.write(proof + b"\n" + program.encode("utf-8", "backslashreplace"))
        source.seek(0)
        process = subprocess.Popen(
            command,
            stdin=source,
            stdout=answer,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0"},  # sets have one order, so that a result can be had again
            start_new_session=True,
        )
        try:
            process.wait(seconds + _START_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        answer.seek(0)
        return answer.read(len(proof) + 1) == proof


def isolation() -> str:
    """Return in words what keeps a program from network and other processes here."""
    wanted = _unshare()
    if not wanted:
        return "network and processes refused by the interpreter alone"
    return "no network" + (", no other processes" if "--pid" in wanted else "") + " (namespaces)"


@lru_cache(maxsize=1)
def _unshare() -> tuple[str, ...]:
    """Return the command that isolates another one; empty where the system has or allows none."""
    tool = shutil.which("unshare")
    if tool is None or not sys.platform.startswith("linux"):
        return ()
    for flags in _NAMESPACES:
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([tool, *flags, "true"], capture_output=True, timeout=_START_S, check=False)
            if done.returncode == 0:
                return (tool, *flags)
    return ()
