"""Starts helper processes: a fresh interpreter that runs one of our modules and imports what this process imports.

Not ``multiprocessing``: its spawn imports the caller's main module again, and a script that calls
:func:`harness.run` without a guard would then measure a second time, in the background.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

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
    """Start ``python -P -m MODULE ARGUMENTS…`` with the import path of this process.

    ``-P`` keeps the working directory off the path, where a ``tasks.py`` or ``json.py`` of the user's would be imported
    in place of ours or the standard library's; so does dropping the empty entry that ``python -c`` and an interactive
    session have. ``-I`` would also ignore the user's ``PYTHON…`` settings, the hash seed among them.

    Args:
        module: to run as main.
        arguments: its command line.
        stdin: as of ``subprocess.Popen``.
        stdout: likewise.
        stderr: likewise.
        inherited: descriptors that stay open in it, under the same numbers.
        threads: of numerical libraries in it; ``None``: as many as they choose.
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
