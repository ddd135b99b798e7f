"""The child's end of the pipe between a process that measures and the one that shows how it goes on.

The child tells one JSON line per event and waits for the parent's answer, an empty line, which comes when the event has
been drawn; when the parent is gone it ends. Whatever else prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any

from harness.records import WindowRecord

__all__ = ["Reporter", "message_of"]


class Reporter:
    """Implements :class:`harness.running.session.Observer`: passes everything on to the parent process."""

    def __init__(self) -> None:
        self._parent = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # a strategy that prints must not speak to the parent
        self._parent.write("\n")  # ends what was cut off there: the parent would not answer a message behind it
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Take in what the parent says, and end at once with it, even inside a window: on disk none is half there."""
        for line in sys.stdin:
            self._said.put(line)
        os._exit(1)

    def stage(self, text: str) -> None:
        """Something slow begins."""
        self.ask({"stage": text})

    def begin(self, total: int, done: int, directory: Path) -> None:
        """So many windows are to be measured."""
        self.ask({"begin": total, "done": done})

    def window(self, record: WindowRecord) -> None:
        """A window is on disk."""
        self._send(record.model_dump_json())
        self.heard()

    def ask(self, message: dict[str, Any]) -> str:
        """Send a message and return the answer."""
        self.tell(message)
        return self.heard()

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message that is not answered."""
        self._send(json.dumps(message))

    def heard(self) -> str:
        """Wait for the next line of the parent."""
        return self._said.get()

    def _send(self, line: str) -> None:
        try:
            self._parent.write(f"{line}\n")
            self._parent.flush()
        except BrokenPipeError:
            os._exit(1)


def message_of(line: bytes) -> dict[str, Any] | None:
    """Return what a child says; ``None`` for a line that something printed while it was still being imported."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
