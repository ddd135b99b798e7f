"""A process that measures points one after the other, ``python -m harness.study.worker``.

:mod:`harness.study.executors.local` starts it and sends a JSON line per point; a model that follows itself is loaded
once. How the two speak is said in :mod:`harness.running.reporter`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

from harness.host.memory import peak_memory_bytes
from harness.running.kept_model import KeptModel
from harness.running.reporter import Reporter
from harness.study.point_run import measure_point

__all__ = ["main"]


def main() -> None:
    """Entry point of the process."""
    reporter, model = Reporter(), KeptModel()
    place = {"executor": "local", "process": f"{platform.node()}:{os.getpid()}"}
    try:
        while True:
            job = json.loads(reporter.heard())
            how, text = measure_point(Path(job["directory"]), job["settings"], reporter, model, place)
            reporter.tell({"ended": how, "text": text, "memory_bytes": peak_memory_bytes()})
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
