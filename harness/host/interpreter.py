"""Helper processes: a fresh interpreter that runs one of our modules, and speaks JSON lines with this process.

Not ``multiprocessing``: its spawn imports the caller's main module again, and a script that calls
:func:`harness.run` without a guard would then measure a second time, in the background.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables that set the number of threads of numerical libraries."""


def fresh_interpreter(
    module: str,
    *arguments: str,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes] | None = None,
    inherited: Sequence[int] = (),
    threads: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``python -P -m MODULE ARGUMENTS…`` with the import path of this process; ``threads`` are numerical ones.

    ``-P`` keeps the working directory off the path, where a ``tasks.py`` or ``json.py`` of the user's would be imported
    in place of ours or the standard library's. ``-I`` would also ignore the user's ``PYTHON…`` settings.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if threads is not None:
        environment |= dict.fromkeys(_THREADS, str(threads))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env=environment,
        pass_fds=tuple(inherited),
    )


def message_of(line: bytes) -> dict[str, Any] | None:
    """Return what a helper says; ``None`` for a line that something printed while it was still being imported."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class Parent:
    """The process that started this one, as one speaks to it; what else prints here goes to standard error."""

    def __init__(self) -> None:
        self._lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._lines.write("\n")  # ends what was cut off there: nobody would understand a message behind it

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send a message; the process ends where nobody is left to read it."""
        try:
            self._lines.write(f"{json.dumps(message)}\n")
            self._lines.flush()
        except BrokenPipeError:
            os._exit(1)
