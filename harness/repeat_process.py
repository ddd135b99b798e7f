"""One repeat's process, ``python -m harness.repeat_process DIRECTORY REPEAT``, that :mod:`harness.repeats` starts."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

from harness.errors import HarnessError
from harness.records import WindowRecord
from harness.runner import measure_repeat

__all__ = ["main"]


class _Reporter:
    """Passes windows on to the parent; it says the stages itself."""

    def stage(self, text: str) -> None: ...

    def begin(self, total: int, done: int, directory: Path) -> None: ...

    def window(self, record: WindowRecord) -> None:
        print(record.model_dump_json(), flush=True)


def _end_with_the_parent() -> None:
    """Wait for the end of standard input, which comes when the parent dies, and end: no window is half there."""
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Entry point of the process: ``DIRECTORY REPEAT``."""
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    directory, repeat = Path(sys.argv[1]), int(sys.argv[2])
    try:
        measure_repeat(directory, repeat, _Reporter())
    except HarnessError as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
