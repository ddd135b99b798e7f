"""Runs as frames: make one from a configuration, or read a run directory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness.api.columns import SAMPLES, TOKENS, RecordedToken, frame
from harness.appearance.pages import escape_html
from harness.appearance.visible_text import one_line
from harness.config import RunConfig
from harness.errors import ConfigError
from harness.records import Manifest, SampleRecord
from harness.records.summary import Summary
from harness.running.reading import read_run
from harness.running.runner import execute
from reports.recorded import RecordedRun
from reports.tables.frame import to_frame
from reports.tables.report import brief

if TYPE_CHECKING:
    import pandas as pd


def run(config: RunConfig, *, resume: str | Path | None = None) -> pd.DataFrame:
    """Run a configuration and return one row per task × operating point.

    ``attrs["run_dir"]`` of the frame says where its files are, ``attrs["notes"]`` what stands under its tables.

    Args:
        config: what to run; strategies may be objects.
        resume: a run directory to continue instead of making a new one.

    Raises:
        HarnessError: the run cannot be made, or could not go on.
    """
    if not isinstance(config, RunConfig):
        raise ConfigError(f"{type(config).__name__} is no RunConfig: give one, as harness.RunConfig(limit=4).")
    result = execute(config, resume=None if resume is None else Path(resume))
    return _rows(result.summary, result.directory)


def read(run_dir: str | Path) -> Run:
    """Return the frames of a run directory, as far as the run got.

    Raises:
        StoreError: missing, damaged or foreign directory, or one without a finished window.
    """
    return Run(read_run(Path(run_dir)))


class Run:
    """A run that was read, without warm-up and superseded windows; :func:`harness.columns` explains the columns."""

    def __init__(self, recorded: RecordedRun) -> None:
        self._recorded = recorded

    def __repr__(self) -> str:
        manifest, state = self.manifest, self._recorded.state
        tasks = ", ".join(task.name for task in manifest.tasks)
        said = f"{manifest.model.name} on {tasks}, {len(manifest.operating_points)} operating points"
        return one_line(f"{self.run_dir}: {said}{f' ({state})' if state else ''}")

    def _repr_html_(self) -> str:
        """Show what ``harness run`` ends with: what to use, and the columns that matter most."""
        return f"{brief(self._recorded.summary)._repr_html_()}<p><small>{escape_html(repr(self))}</small></p>"

    @property
    def run_dir(self) -> Path:
        """Where it lies."""
        return self._recorded.directory

    @property
    def manifest(self) -> Manifest:
        """The record of what was run, and on what."""
        return self._recorded.manifest

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row per task × operating point, as :func:`run` returns them."""
        return _rows(self._recorded.summary, self.run_dir)

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row per operating point, task, repeat and sample; failed ones included, with their error."""
        import pandas

        samples = list(self._samples(failed=True))
        scores = pandas.DataFrame([sample.scores for sample in samples], dtype="float64")
        return pandas.concat([frame(SAMPLES, samples), scores], axis=1)

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per generated token."""
        places = (RecordedToken(sample, place) for sample in self._samples() for place in range(len(sample.token_ids)))
        return frame(TOKENS, places)

    def _samples(self, *, failed: bool = False) -> Iterator[SampleRecord]:
        for cell in self._recorded.cells.values():
            yield from cell.samples.values()
            if failed:
                yield from cell.failed.values()


def _rows(summary: Summary, directory: Path) -> pd.DataFrame:
    rows = to_frame(summary)
    rows.attrs["run_dir"], rows.attrs["notes"] = str(directory), list(summary.notes)
    return rows
