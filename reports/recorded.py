"""A run directory as read: the raw records and their summary, all that a report may use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil
from pathlib import Path

from harness.appearance.visible_text import shell_word
from harness.errors import StoreError
from harness.host.files import real_path
from harness.records import Manifest, SampleRecord, TaskRecord, WindowRecord
from harness.records.summary import Summary
from reports.metrics.point import Point
from reports.summary.admission import idle_windows
from reports.summary.measured import Measured, select


@dataclass(frozen=True)
class Records:
    """The content of a run directory, and the part of it that counts."""

    manifest: Manifest
    windows: tuple[WindowRecord, ...]
    samples: tuple[SampleRecord, ...]

    @cached_property
    def cells(self) -> dict[tuple[str, str], Measured]:
        """Samples that count, by (task, operating point), in the manifest's order; probes that never exit included."""
        return select(self.manifest, self.windows, self.samples)


@dataclass(frozen=True)
class RecordedRun:
    """One run as far as it got."""

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
        """Samples that count, by (task, operating point), in the manifest's order; probes that never exit included."""
        return Records(self.manifest, self.windows, self.samples).cells

    def point(self, task: str, operating_point: str) -> Point:
        """Return an operating point as metrics see it, without scores of completions together."""
        cells = [cell for (name, _), cell in self.cells.items() if name == task and not cell.point.never_exits]
        return Point(self.cells[task, operating_point], cells, self.manifest, idle_windows(self.windows))

    @cached_property
    def finished_points(self) -> frozenset[tuple[str, str]]:
        """Which (task, operating point) have a finished sample, in any repeat."""
        return frozenset(key for key, cell in self.cells.items() if cell.samples)

    @cached_property
    def identity(self) -> str:
        """Permanent identity, 16 hexadecimal digits: of what was measured, wherever it lies; equal for copies of it.

        Names of files are part of it, so that what is published is identified without its private paths.
        """
        digest = hashlib.sha256()
        tasks = (task.fingerprint for task in self.manifest.tasks)
        facts: list[object] = [self.manifest.created, self.manifest.model.weights_sha256, *tasks]
        digest.update(repr(facts).encode())
        for window in self.windows:
            facts = [window.window, window.task, window.operating_point, window.block, window.repeat, window.duration_s]
            digest.update(repr(facts).encode())
        for sample in self.samples:
            tokens = [
                *(sample.window, sample.sample_id, sample.token_ids),
                *(sample.exit_layers, sample.latency_s, sample.text),
            ]
            digest.update(repr(tokens).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()[:16]

    @cached_property
    def measurements(self) -> frozenset[bytes]:
        """Identity of its measured windows; a copy of the run has the same, however it went on."""
        found = set()
        for one in self.windows:
            if not (one.warmup or one.idle or one.superseded):
                place = (one.task, one.operating_point, one.block, one.repeat)
                facts = (
                    self.manifest.run or self.manifest.created,
                    *place,
                    one.started,
                    one.duration_s,
                    one.cpu_time_s,
                )
                found.add(hashlib.sha256(repr(facts).encode()).digest()[:8])
        return frozenset(found)

    def released(self, again: Callable[[], Records]) -> ReleasedRun:
        """Return the same run without its records, so that many can be held."""
        _ = self.state, self.windows_finished, self.finished_points, self.identity, self.measurements
        return ReleasedRun(self, again)

    @property
    def windows_expected(self) -> int:
        """Measured windows that the finished run has."""
        blocks = sum(map(self._blocks, self.manifest.tasks))
        repeats = self.manifest.config.get("repeats") or 1
        if not isinstance(repeats, int):
            raise StoreError(f"the manifest's config has no usable 'repeats' ({repeats!r}): it is damaged or foreign.")
        return blocks * len(self.manifest.operating_points) * repeats

    def _blocks(self, task: TaskRecord) -> int:
        """Blocks that a task is divided into; sessions are not divided, so that only an operating point's end tells."""
        first = self.manifest.operating_points[0]
        if not first.keep:
            return ceil(task.samples / self.manifest.block_size)
        made = {
            window.block: window.samples
            for window in self.windows
            if (window.task, window.operating_point) == (task.name, first.name)
            if not (window.warmup or window.superseded)
        }
        left = max(0, task.samples - sum(made.values()))
        return len(made) + ceil(left / max(self.manifest.block_size, *made.values(), 1))

    @cached_property
    def windows_finished(self) -> int:
        """Measured windows that count."""
        return sum(not (window.warmup or window.idle or window.superseded) for window in self.windows)

    @property
    def remedy(self) -> str:
        """Say what to do about a run whose state is not empty."""
        if self.windows_finished < self.windows_expected:
            return f"Continue it with `harness run --resume {shell_word(self.directory)}`."
        return "Nothing is left to resume: start another run when the cause is gone."

    @cached_property
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


class ReleasedRun(RecordedRun):
    """A run whose records are read again whenever they are asked for; those of one run are held at a time.

    What :meth:`RecordedRun.released` asks for is kept.
    """

    def __init__(self, run: RecordedRun, again: Callable[[], Records]) -> None:
        kept = {name: value for name, value in vars(run).items() if name not in {"windows", "samples", "cells"}}
        vars(self).update(kept, _again=again)

    @property
    def windows(self) -> tuple[WindowRecord, ...]:
        """Read again."""
        return _read(vars(self)["_again"]).windows

    @property
    def samples(self) -> tuple[SampleRecord, ...]:
        """Read again."""
        return _read(vars(self)["_again"]).samples

    @property
    def cells(self) -> dict[tuple[str, str], Measured]:
        """Made again."""
        return _read(vars(self)["_again"]).cells


@lru_cache(maxsize=1)
def _read(again: Callable[[], Records]) -> Records:
    return again()
