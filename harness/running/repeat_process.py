"""One repeat's process, ``python -m harness.running.repeat_process DIRECTORY REPEAT [LOCK]``.

:mod:`harness.running.repeats` starts it, and :mod:`harness.running.reporter` says how they speak.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.running.reporter import Reporter
from harness.running.runner import measure_repeat

__all__ = ["main"]


def main() -> None:
    """Entry point of the process."""
    reporter = Reporter()
    directory, repeat, *lock = sys.argv[1:]
    try:
        measure_repeat(Path(directory), int(repeat), reporter, int(lock[0]) if lock else None)
    except HarnessError as error:
        reporter.tell({"error": str(error)})
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
