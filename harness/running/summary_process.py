"""A process that summarises runs ahead of their reader, ``python -m harness.running.summary_process``.

:mod:`harness.running.read_ahead` starts it, with a JSON list of run directories as its input, and is told of each that
it has done with, or could not read.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from harness.running.read_ahead import DONE
from harness.running.reading import keep_summary

__all__ = ["main"]


def main() -> None:
    """Entry point of the process."""
    with os.fdopen(os.dup(1), "wb", buffering=0) as reader:
        os.dup2(2, 1)  # a score that prints must not speak to the reader
        try:
            for path in json.loads(sys.stdin.buffer.read()):
                with suppress(Exception):  # the reader reads it again, and says what is wrong
                    keep_summary(Path(path))
                reader.write(b"\n" + DONE)  # behind what start-up printed
        except (BrokenPipeError, KeyboardInterrupt):  # the reader is gone
            sys.exit(130)


if __name__ == "__main__":
    main()
