"""A process that does one part of a study after the other, ``python -m harness.study.worker``.

:mod:`harness.study.executors.local` starts it and sends a JSON line per point or step; a model that follows itself is
loaded once. How the two speak is said in :mod:`harness.running.repeats`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from harness.contracts.executors import Command, How
from harness.host.processor import peak_memory_bytes
from harness.running.repeats import Reporter
from harness.study.step_run import make_step
from harness.study.steps import filled_settings

Measure: TypeAlias = Callable[[Path, Mapping[str, Any]], tuple[How, str]]


def main() -> None:
    """Entry point of the process."""
    reporter = Reporter()
    measure: Measure | None = None
    try:
        while True:
            job = json.loads(reporter.heard())
            directory = Path(job["directory"])
            if job["command"] is not None:
                command = Command(**{**job["command"], "words": tuple(job["command"]["words"])})
                inputs = {name: Path(folder) for name, folder in job["inputs"].items()}
                how, text = make_step(directory, command, inputs, reporter.stage)
            else:
                measure = measure or _measure(reporter)
                how, text = measure(directory, filled_settings(job["settings"], job["inputs"]))
            reporter.tell({"ended": how, "text": text, "memory_bytes": peak_memory_bytes()})
    except KeyboardInterrupt:
        sys.exit(130)


def _measure(reporter: Reporter) -> Measure:
    """Return what measures points here; loads torch, which steps do in processes of their own."""
    from harness.models.model import KeptModel
    from harness.study.point_run import measure_point

    place = {"executor": "local", "process": f"{platform.node()}:{os.getpid()}"}
    return partial(measure_point, observer=reporter, model=KeptModel(), placement=place)


if __name__ == "__main__":
    main()
