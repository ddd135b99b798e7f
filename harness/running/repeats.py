"""One repeat of a run in a process of its own, so that repeats do not share what a process settles into.

Memory layout, thread placement and the code paths that libraries choose once are drawn anew by each process and kept
until its end; repeats inside one process would all inherit the same draw and agree too well. The parent run starts this
module, reads one JSON line per event from its standard output, answers each when it has been drawn, and owns the
progress bar.
"""

from __future__ import annotations

import subprocess

from harness.appearance.visible_text import shell_word
from harness.errors import HarnessError
from harness.host.interpreter import fresh_interpreter
from harness.records import WindowRecord
from harness.running.reporter import message_of
from harness.running.session import Observer
from harness.store.run_directory import RunDirectory

__all__ = ["run_repeat"]


def run_repeat(store: RunDirectory, repeat: int, observer: Observer) -> None:
    """Measure one repeat of a run in a fresh process, which resumes it under this process's lock.

    Args:
        store: the run; not written to here meanwhile.
        repeat: 0-based.
        observer: is told of every window.

    Raises:
        HarnessError: the process was refused or died; what it finished is kept.
    """
    refusal, directory, lock = "", store.path, store.lock
    arguments = [str(directory), str(repeat), *([] if lock is None else [str(lock)])]
    process = fresh_interpreter(
        "harness.running.repeat_process",
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
