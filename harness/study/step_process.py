"""One command of the harness in a process that ends with the one that started it.

``python -m harness.study.step_process WORDS…`` is ``harness WORDS…``, as long as its standard input stays open: what
starts it holds the other end, and the kernel closes that however it dies. So no command writes into a folder that
another process goes on with.
"""

from __future__ import annotations

import os
import runpy
import threading


def main() -> None:
    """Entry point of the process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runpy.run_module("harness.cli", run_name="__main__", alter_sys=True)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written there
    os._exit(1)


if __name__ == "__main__":
    main()
