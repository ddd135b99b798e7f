"""The process of one repeat, ``python -m harness.repeat_process DIRECTORY REPEAT``; :mod:`harness.repeats` starts it."""

from __future__ import annotations

import json
import sys
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


def main() -> None:
    """Entry point of the process: ``DIRECTORY REPEAT``."""
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
