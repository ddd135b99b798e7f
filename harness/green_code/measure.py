"""Executes the runs of a grid, one after the other, in folders of their own: finished runs survive a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from harness.appearance.visible_text import shell_word
from harness.errors import ConfigError, StoreError
from harness.green_code.grid import GridRun, GridSettings
from harness.host.foreign_files import read_json
from harness.running.reading import read_run
from harness.running.runner import execute
from harness.running.session import Observer
from harness.store.run_directory import MANIFEST, SUMMARY
from reports.files import write_files
from reports.recorded import RecordedRun

__all__ = ["PLAN", "GridProgress", "measure", "open_grid", "read_settings"]

PLAN = "plan.json"
"""The grid's settings, in its folder."""


@dataclass(frozen=True, slots=True)
class GridProgress:
    """Receives the progress of the grid.

    Attributes:
        announce: called with a line before each run, with the time left for the whole grid.
        observe: makes the observer of one run, open while it lasts.
    """

    announce: Callable[[str], None]
    observe: Callable[[], AbstractContextManager[Observer]]


def read_settings(folder: Path) -> GridSettings:
    """Return the settings of a grid on disk.

    Raises:
        StoreError: the folder is not a grid.
    """
    try:
        return GridSettings.model_validate(read_json(folder / PLAN))
    except OSError as error:
        raise StoreError(
            f"{folder} is not a grid: {PLAN} cannot be read ({error.strerror}). Give --resume the folder that "
            "`harness reproduce green-code` named."
        ) from None
    except (ConfigError, ValueError):
        raise StoreError(f"{folder / PLAN} is damaged. Start again with another --out.") from None


def open_grid(folder: Path, settings: GridSettings) -> None:
    """Make a new grid's folder and write its settings.

    Raises:
        StoreError: it is not empty, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied, is_grid = any(folder.iterdir()), (folder / PLAN).exists()
    except OSError as error:
        raise StoreError(f"cannot make the folder {folder}: {error.strerror}. Use another --out.") from None
    if occupied:
        goes_on = (
            f"Continue it with `harness reproduce green-code --resume {shell_word(folder)}`, or use"
            if is_grid
            else "Use"
        )
        raise StoreError(f"{folder} is not empty. {goes_on} another --out.")
    write_files(folder, {PLAN: json.dumps(settings.model_dump(mode="json"), indent=2) + "\n"})


def measure(folder: Path, runs: Sequence[GridRun], progress: GridProgress) -> list[tuple[GridRun, RecordedRun]]:
    """Execute the runs that are not finished, and read all of them.

    Args:
        folder: of the grid, with one run directory per run below it.
        runs: the plan.
        progress: receives the progress.

    Raises:
        HarnessError: a run cannot be executed or continued; the others are kept.
    """
    done: list[tuple[GridRun, RecordedRun]] = []
    spent_s = 0.0
    requests = 0
    for place, run in enumerate(runs, 1):
        path = folder / run.folder
        finished = _finished(path)
        if finished is None:
            progress.announce(f"run {place} of {len(runs)}: {run.title}{_left(spent_s, requests, runs[place - 1 :])}")
            began = time.monotonic()
            resume = path if (path / MANIFEST).exists() else None
            with progress.observe() as observer:
                execute(run.config.model_copy(update={"out": path}), resume=resume, observer=observer)
            spent_s, requests = spent_s + time.monotonic() - began, requests + run.requests
            finished = read_run(path, stored=True)
        else:
            progress.announce(f"run {place} of {len(runs)}: {run.title}: finished before")
        done.append((run, finished))
    return done


def _finished(path: Path) -> RecordedRun | None:
    """Read a complete run; ``None`` for any other."""
    if not (path / MANIFEST).exists() or not (path / SUMMARY).exists():
        return None
    run = read_run(path, stored=True)
    return run if run.windows_finished >= run.windows_expected else None


def _left(spent_s: float, requests: int, ahead: Sequence[GridRun]) -> str:
    """Return the time left at the pace so far; empty before the first run is done."""
    if not requests:
        return ""
    left_s = spent_s / requests * sum(run.requests for run in ahead)
    return f", about {left_s / 60:.0f} min left in all"
