"""How a fresh Python process with this harness is started: by module, with the paths of this one.

Not by ``multiprocessing``: its spawn imports the caller's main module again, and a script that calls
:func:`harness.run` without a guard would then measure a second time, in the background.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import IO

__all__ = ["fresh_interpreter"]


def fresh_interpreter(
    module: str,
    *arguments: str,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes],
    stderr: int | IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``python -m MODULE ARGUMENTS…``; imports what this process imports, also from a checkout.

    Args:
        module: to run as main.
        arguments: for it.
        stdin: as of ``subprocess.Popen``.
        stdout: likewise.
        stderr: likewise.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=stdin, stdout=stdout, stderr=stderr, env=environment
    )
