"""One repeat of a run in a process of its own, so that repeats do not share what a process settles into.

The child tells every event and waits for the parent's answer, an empty line, so that nothing is drawn inside a window.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import shell_word
from harness.errors import FULL, HarnessError, OtherMachineError, OutOfMemoryError, chain
from harness.host.interpreter import Parent, fresh_interpreter, message_of
from harness.records import WindowRecord
from harness.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from harness.running.session import Observer

KINDS = {kind.__name__: kind for kind in (OtherMachineError, OutOfMemoryError)}
"""Refusals that are more than their text to what conducts a study."""


def run_repeat(store: RunDirectory, repeat: int, observer: Observer) -> None:
    """Measure one repeat, from 0, in a fresh process, which resumes the run under this process's lock.

    Raises:
        HarnessError: the process was refused or died; what it finished is kept.
    """
    refusal: HarnessError | None = None
    directory, lock = store.path, store.lock
    arguments = [str(directory), str(repeat), *([] if lock is None else [str(lock)])]
    process = fresh_interpreter(
        "harness.running.runner",
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        inherited=[] if lock is None else [lock],
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            for line in process.stdout:
                message = message_of(line)
                if message is None:
                    continue
                if "error" in message:
                    refusal = KINDS.get(message["kind"], HarnessError)(message["error"])
                    refusal.__cause__ = OSError(message["errno"], "in its process") if message["errno"] else None
                    continue
                if "stage" in message:
                    observer.stage(f"repeat {repeat + 1}, in a fresh process: {message['stage']}")
                elif "begin" in message:
                    observer.begin(message["begin"], message["done"], directory)
                else:
                    observer.window(WindowRecord.model_validate(message))
                process.stdin.write(b"\n")  # the process waits, so that nothing here is drawn inside a window
                process.stdin.flush()
        except BrokenPipeError:
            pass  # it died; its exit code says so
        except BaseException:
            process.kill()  # every window that it reported is on disk, and the next is whole or not there
            raise
    if process.returncode:
        raise refusal or HarnessError(
            f"the process of repeat {repeat} ended with exit code {process.returncode}; finished windows are kept. "
            f"Continue with `harness run --resume {shell_word(directory)}`."
        )


def refusal_message(error: HarnessError) -> dict[str, Any]:
    """Return what a process tells of the refusal that ends it: what is decided by its class or cause stays typed."""
    full = next((one.errno for one in chain(error) if isinstance(one, OSError) and one.errno in FULL), None)
    return {"error": str(error), "kind": type(error).__name__, "errno": full}


class Reporter(Parent):
    """Implements :class:`harness.running.session.Observer`: passes everything on to the parent process."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Take in what the parent says, and end at once with it, even inside a window: on disk none is half there."""
        for line in sys.stdin:
            self._answers.put(line)
        os._exit(1)

    def stage(self, text: str) -> None:
        """Something slow begins."""
        self.ask({"stage": text})

    def begin(self, total: int, done: int, directory: Path) -> None:
        """So many windows are to be measured."""
        self.ask({"begin": total, "done": done})

    def window(self, record: WindowRecord) -> None:
        """A window is on disk."""
        self.ask(record.model_dump(mode="json"))

    def ask(self, message: dict[str, Any]) -> str:
        """Send a message and return the answer."""
        self.tell(message)
        return self.heard()

    def heard(self) -> str:
        """Wait for the next line of the parent."""
        return self._answers.get()
