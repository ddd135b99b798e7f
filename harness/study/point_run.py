"""Runs one job here: what every executor's processes call. A point is measured, the folder of a step is made."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import RunConfig
from harness.contracts.executors import How, Job
from harness.errors import HarnessError, OtherMachineError, OutOfMemoryError, is_full, reason
from harness.store.committed import MANIFEST
from harness.store.run_directory import RunDirectory
from harness.study.ledger import is_measured
from harness.study.step_run import make_step
from harness.study.steps import FOLDERS, filled_settings

if TYPE_CHECKING:
    from harness.models.model import KeptModel
    from harness.running.session import Observer

logger = logging.getLogger(__name__)


def run_job(job: Job, observer: Observer, placement: Mapping[str, str]) -> tuple[How, str]:
    """Measure a point, or make a step, or what is left of it; one that is finished is left alone.

    Loads torch for a point alone: the command of a step is a process of its own. The model stays for the point after.

    Args:
        job: which; its folders are here.
        observer: is told how it goes on.
        placement: where this is, for the manifest of a run.

    Returns:
        How it ended, and why so where it did not end well.
    """
    if job.command is not None:
        return make_step(job.directory, job.command, job.inputs, observer.stage)
    from harness.running.runner import execute

    directory, settings = job.directory, filled_settings(job.settings, job.inputs)
    try:
        if not is_measured(directory):
            resume = directory if (directory / MANIFEST).exists() else None
            config = RunConfig.build({**settings, "out": directory}) if resume is None else _begun(directory, settings)
            execute(config, resume=resume, observer=observer, model=_kept_model(), placement=placement)
    except OutOfMemoryError as error:
        return "out-of-memory", str(error)
    except OtherMachineError as error:
        return "wrong-machine", str(error)
    except (HarnessError, OSError) as error:
        text = str(error) if isinstance(error, HarnessError) else reason(error)
        return ("stopped" if is_full(error) else "refused"), text
    except Exception as error:  # a defect of a plug-in, or ours: the study goes on, the traceback stands in the log
        logger.exception("a defect in %s", directory)
        return "refused", f"a defect: {reason(error)}"
    return "done", ""


@cache
def _kept_model() -> KeptModel:
    from harness.models.model import KeptModel

    return KeptModel()


def _begun(directory: Path, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a run began with: what was calibrated or observed for it is decided."""
    with RunDirectory.read(directory) as store:
        before = {key: value for key, value in store.manifest.config.items() if key != "out"}
    for name in FOLDERS:
        if name in settings and before.get(name) != settings[name]:
            raise OtherMachineError(f"{directory} was begun with {name} {before.get(name)}, now {settings[name]}.")
    return RunConfig.build(before)
