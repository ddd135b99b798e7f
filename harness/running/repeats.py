"""One repeat of a run in a process of its own, so that repeats do not share what a process settles into.

Memory layout, thread placement and the code paths that libraries choose once are drawn anew by each process and kept
until its end; repeats inside one process would all inherit the same draw and agree too well. The parent run starts this
module, reads one JSON line per event from its standard output, answers each when it has been drawn, and owns the
progress bar.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import shell_word
from harness.errors import HarnessError
from harness.host.interpreter import fresh_interpreter
from harness.records import WindowRecord
from harness.running.session import Observer

__all__ = ["run_repeat"]


def run_repeat(directory: Path, repeat: int, observer: Observer) -> None:
    """Measure one repeat of the run in ``directory`` in a fresh process, which resumes it.

    Args:
        directory: a run directory that no process has open for writing.
        repeat: 0-based.
        observer: is told of every window.

    Raises:
        HarnessError: the process was refused or died; what it finished is kept.
    """
    refusal = ""
    process = fresh_interpreter(
        "harness.running.repeat_process", str(directory), str(repeat), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            for line in process.stdout:
                message = _message(line)
                if message is None:
                    continue
                if "error" in message:
                    refusal = message["error"]
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
        raise HarnessError(
            refusal
            or f"the process of repeat {repeat} ended with exit code {process.returncode}; finished windows are kept. "
            f"Continue with `harness run --resume {shell_word(directory)}`."
        )


def _message(line: bytes) -> dict[str, Any] | None:
    """Return what the process says; ``None`` for a line that something printed while it was still being imported."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
