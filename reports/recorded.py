"""A run directory as read: the raw records and their summary, all that a report may use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path

from harness.appearance.visible_text import shell_word
from harness.errors import StoreError
from harness.host.foreign_files import real_path
from harness.records import Manifest, SampleRecord, WindowRecord
from harness.records.summary import Summary
from reports.metrics.point import Point
from reports.summary.admission import idle_windows
from reports.summary.measured import Measured, select

__all__ = ["RecordedRun"]


@dataclass(frozen=True)
class RecordedRun:
    """One run as far as it got.

    Attributes:
        directory: where it was read.
        manifest: what was run, on what.
        windows, samples: committed records in the order written, those that do not count included.
        summary: made of them.
        in_use: another process was writing it while it was read.
    """

    directory: Path
    manifest: Manifest
    windows: tuple[WindowRecord, ...]
    samples: tuple[SampleRecord, ...]
    summary: Summary
    in_use: bool = False

    @property
    def name(self) -> str:
        """Name of its folder."""
        return real_path(self.directory).name

    @cached_property
    def cells(self) -> dict[tuple[str, str], Measured]:
        """What counts, by (task, operating point), in the manifest's order; probes that never exit included."""
        return select(self.manifest, self.windows, self.samples)

    def point(self, task: str, operating_point: str) -> Point:
        """Return an operating point as metrics see it, without scores of completions together."""
        cells = [cell for (name, _), cell in self.cells.items() if name == task and not cell.point.never_exits]
        return Point(self.cells[task, operating_point], cells, self.manifest, idle_windows(self.windows))

    @property
    def windows_expected(self) -> int:
        """Measured windows that the finished run has.

        Raises:
            StoreError: the manifest does not say.
        """
        blocks = sum(ceil(task.samples / self.manifest.block_size) for task in self.manifest.tasks)
        repeats = self.manifest.config.get("repeats") or 1
        if not isinstance(repeats, int):
            raise StoreError(f"the manifest's config has no usable 'repeats' ({repeats!r}): it is damaged or foreign.")
        return blocks * len(self.manifest.operating_points) * repeats

    @property
    def windows_finished(self) -> int:
        """Measured windows that count."""
        return sum(not (window.warmup or window.idle or window.superseded) for window in self.windows)

    @property
    def remedy(self) -> str:
        """Say what to do about a run whose state is not empty."""
        if self.windows_finished < self.windows_expected:
            return f"Continue it with `harness run --resume {shell_word(self.directory)}`."
        return "Nothing is left to resume: start another run when the cause is gone."

    @property
    def state(self) -> str:
        """Say in words what is missing; empty for a run that is finished and has at least one good sample."""
        if self.windows_finished < self.windows_expected:
            how = "still being written" if self.in_use else "not finished"
            return f"{how}: {self.windows_finished} of {self.windows_expected} windows"
        counted = [sample for cell in self.cells.values() for sample in cell.samples]
        if not counted:
            reasons = [sample.error for cell in self.cells.values() for sample in cell.failed.values()]
            return f"every sample failed, the first with: {reasons[0]}" if reasons else "no sample was finished"
        return ""
