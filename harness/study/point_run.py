"""Measures one point, here: what every executor's processes call."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.contracts.executors import How
from harness.errors import HarnessError, OtherMachineError, OutOfMemoryError, reason
from harness.models.model import KeptModel
from harness.running.runner import execute
from harness.running.session import Observer
from harness.store.committed import MANIFEST
from harness.store.run_directory import RunDirectory
from harness.study.kept_run import FULL, is_measured
from harness.study.steps import FOLDERS

logger = logging.getLogger(__name__)


def measure_point(
    directory: Path,
    settings: Mapping[str, Any],
    observer: Observer,
    model: KeptModel,
    placement: Mapping[str, str],
) -> tuple[How, str]:
    """Measure a point, or what is left of it; a point that is measured is left alone.

    Args:
        directory: of the run.
        settings: of the run; the folders of steps stand in them.
        observer: is told how it goes on.
        model: holds the model of the point before.
        placement: where this is, for the manifest.

    Returns:
        How it ended, and why so where it did not end well.
    """
    try:
        if not is_measured(directory):
            resume = directory if (directory / MANIFEST).exists() else None
            config = RunConfig.build({**settings, "out": directory}) if resume is None else _begun(directory, settings)
            execute(config, resume=resume, observer=observer, model=model, placement=placement)
    except OutOfMemoryError as error:
        return "out-of-memory", str(error)
    except OtherMachineError as error:
        return "elsewhere", str(error)
    except HarnessError as error:
        return ("stopped" if is_full(error) else "refused"), str(error)
    except OSError as error:
        return ("stopped" if error.errno in FULL else "refused"), reason(error)
    except Exception as error:  # a defect of a plug-in, or ours: the study goes on, the traceback stands in the log
        logger.exception("a defect in %s", directory)
        return "refused", f"a defect: {reason(error)}"
    return "done", ""


def _begun(directory: Path, settings: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that a run began with: what was calibrated or observed for it is decided.

    Raises:
        OtherMachineError: the folders of steps that it was begun with lay elsewhere.
    """
    with RunDirectory.read(directory) as store:
        before = {key: value for key, value in store.manifest.config.items() if key != "out"}
    for name in FOLDERS:
        if name in settings and before.get(name) != settings[name]:
            raise OtherMachineError(f"{directory} was begun with {name} {before.get(name)}, now {settings[name]}.")
    return RunConfig.build(before)


def is_full(error: BaseException) -> bool:
    """Whether nothing can be written any more, so that the next point would fail as well."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
