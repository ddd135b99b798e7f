"""The command in this process, from the folder that is current."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"COLUMNS": "100", "HF_HUB_OFFLINE": "1", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


def harness(*arguments: object, quiet: bool = True) -> Ran:
    """Run ``harness`` with these arguments; a failure raises unless ``quiet`` is false."""
    from harness.cli import main

    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    with (
        mock.patch.object(sys, "argv", ["harness", *map(str, arguments)]),
        mock.patch.dict(os.environ, SETTINGS),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as left:
            code = left.code
    ran = Ran(int(code) if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())
    if quiet and ran.code:
        raise RuntimeError(f"harness {' '.join(map(str, arguments))} ended with {ran.code}: {ran.err[-2000:]}")
    return ran
