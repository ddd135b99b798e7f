"""One repeat's process, ``python -m harness.running.repeat_process DIRECTORY REPEAT``.

:mod:`harness.running.repeats` starts it.
It tells its parent by one JSON line per event and waits for the parent's answer, which comes when the event has been
drawn; when the parent is gone it ends. Whatever else prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import IO

from harness.errors import HarnessError
from harness.records import WindowRecord
from harness.running.runner import measure_repeat

__all__ = ["main"]


class _Reporter:
    """Implements :class:`harness.running.session.Observer`: passes everything on."""

    def __init__(self, parent: IO[str]) -> None:
        self._parent = parent
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Pass answers on, and end at once with the parent, even inside a window: on disk none is half there."""
        for line in sys.stdin:
            self._answers.put(line)
        os._exit(1)

    def stage(self, text: str) -> None:
        self.tell(json.dumps({"stage": text}))

    def begin(self, total: int, done: int, directory: Path) -> None:
        self.tell(json.dumps({"begin": total, "done": done}))

    def window(self, record: WindowRecord) -> None:
        self.tell(record.model_dump_json())

    def tell(self, line: str) -> None:
        """Send a line and wait for the answer."""
        try:
            self._parent.write(f"{line}\n")
            self._parent.flush()
        except BrokenPipeError:
            os._exit(1)
        self._answers.get()


def main() -> None:
    """Entry point of the process."""
    messages = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a strategy that prints must not speak to the parent
    messages.write("\n")  # ends what was cut off there: the parent would not answer a message behind it
    directory, repeat = Path(sys.argv[1]), int(sys.argv[2])
    try:
        measure_repeat(directory, repeat, _Reporter(messages))
    except HarnessError as error:
        print(json.dumps({"error": str(error)}), file=messages, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
