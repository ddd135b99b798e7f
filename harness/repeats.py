"""One repeat of a run in a process of its own, so that repeats do not share what a process settles into.

Memory layout, thread placement and the code paths that libraries choose once are drawn anew by each process and kept
until its end; repeats inside one process would all inherit the same draw and agree too well. The parent run starts this
module, reads one JSON line per finished window from its standard output, and owns the progress bar.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from harness.errors import HarnessError
from harness.records import WindowRecord
from harness.session import Observer

__all__ = ["run_repeat"]


def run_repeat(directory: Path, repeat: int, watch: Observer) -> None:
    """Measure one repeat of the run in ``directory`` in a fresh process, which resumes it.

    Args:
        directory: a run directory that nobody has open for writing.
        repeat: 0-based.
        watch: is told of every window.

    Raises:
        HarnessError: the process was refused or died; what it finished is kept.
    """
    command = [sys.executable, "-m", "harness.repeat_process", str(directory), str(repeat)]
    refusal = ""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                message = json.loads(line)
                if "error" in message:
                    refusal = message["error"]
                else:
                    watch.window(WindowRecord.model_validate(message))
        except BaseException:
            process.kill()  # every window that it reported is on disk, and the next is whole or not there
            raise
    if process.returncode:
        raise HarnessError(
            refusal
            or f"the process of repeat {repeat} ended with exit code {process.returncode}; finished windows are kept. "
            f"Continue with `harness run --resume {directory}`."
        )
