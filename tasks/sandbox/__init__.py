"""Runs a Python program that a model wrote, in a process with limits, and says whether it came to its end.

The program runs in an interpreter of its own, in an empty folder, without this process's environment (save
``LD_LIBRARY_PATH``), input, output or installed packages; with limits of time, memory, file size and open files; and,
by what :mod:`tasks.sandbox.inside` refuses, without processes, network, ``ctypes`` and changes to files. On Linux,
where the system allows it, it has no network and sees no other process besides (``unshare``).

That stops accidents and plain mischief, such as a completion that removes files or forks without end. It is **no
security boundary**: code that means harm can read files, and a hook within CPython can be got around. Run untrusted
models in a container or a virtual machine.
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

from harness.errors import ConfigError, reason

__all__ = ["MEMORY_BYTES", "SECONDS", "isolation", "passes"]

SECONDS = 3.0
"""A program may take, wall clock, its interpreter's start not counted; as in the official evaluator."""

MEMORY_BYTES = 1 << 30
"""Address space of a program, at most."""

_START_S = 10.0
"""Seconds that an interpreter may take to start and end, beside the program's, on a busy machine."""

_INSIDE = Path(__file__).with_name("inside.py")
_SOUND = "import collections, hashlib, math, random, re, typing\nassert math.gcd(4, 6) == 2"
"""A program that passes wherever programs run."""

_LONGEST_SAID = 300

_NAMESPACES = (
    ("--user", "--net", "--pid", "--ipc", "--mount-proc", "--fork", "--kill-child"),
    ("--user", "--net", "--pid", "--ipc", "--fork", "--kill-child"),
    ("--user", "--net"),
)
"""Options of ``unshare``: the first of these that works. Many containers let no ``/proc`` be mounted."""


def passes(program: str, *, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> bool:
    """Return whether a program runs to its end within its limits without raising."""
    return _run(program, seconds, memory_bytes)[0]


def isolation() -> str:
    """Try a program that must pass, and return in words what keeps programs from network and other processes here."""
    if os.name == "posix":
        try:
            passed, why = _run(_SOUND, _START_S, MEMORY_BYTES)
        except OSError as error:
            passed, why = False, reason(error)
        if not passed:
            raise ConfigError(
                f"--allow-code-execution: a program that must pass did not ({why}), so every pass@1 would be 0. Use a "
                "Python that starts in an empty environment, or omit the option: then there is no pass@1."
            )
    wanted = _unshare()
    if not wanted:
        return "network and processes refused by the interpreter alone"
    if "--pid" not in wanted:
        return "no network (namespaces)"
    return f"no network, {'no' if '--mount-proc' in wanted else 'no signals to'} other processes (namespaces)"


def _run(program: str, seconds: float, memory_bytes: int) -> tuple[bool, str]:
    """Return whether a program passes, and what an interpreter that did not start says."""
    proof = secrets.token_hex(16).encode()  # a program that only ends its process does not know it
    command = [*_unshare(), sys.executable, "-s", "-P", "-S", "-B", str(_INSIDE), str(seconds), str(memory_bytes)]
    needed = {"PYTHONHASHSEED": "0"}  # sets have one order, so that a result can be had again
    if libraries := os.environ.get("LD_LIBRARY_PATH"):  # the interpreter's own may lie there
        needed["LD_LIBRARY_PATH"] = libraries
    with (
        tempfile.TemporaryDirectory(prefix="harness-tests-") as folder,
        tempfile.TemporaryFile() as source,
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as errors,
    ):
        source.write(proof + b"\n" + program.encode("utf-8", "backslashreplace"))
        source.seek(0)
        process = subprocess.Popen(
            command, stdin=source, stdout=answer, stderr=errors, cwd=folder, env=needed, start_new_session=True
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
        errors.seek(0)
        return answer.read(len(proof) + 1) == proof, _telling(errors.read(), process.returncode)


def _telling(written: bytes, status: int) -> str:
    """Return the line that names the error among what a process wrote, or how it ended where it wrote nothing."""
    lines = [" ".join(line.split()) for line in written.decode(errors="backslashreplace").splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()] or lines or [f"exit status {status}"]
    return telling[-1][:_LONGEST_SAID]


@lru_cache(maxsize=1)
def _unshare() -> tuple[str, ...]:
    tool = shutil.which("unshare")
    if tool is None or not sys.platform.startswith("linux"):
        return ()
    for flags in _NAMESPACES:
        with suppress(OSError, subprocess.TimeoutExpired):
            done = subprocess.run([tool, *flags, "true"], capture_output=True, timeout=_START_S, check=False)
            if done.returncode == 0:
                return (tool, *flags)
    return ()
