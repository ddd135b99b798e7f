"""How far a study is, read from its folder; it may be running meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from harness.errors import StoreError
from harness.records.summary import SummaryRow
from harness.store.record_files import read_document
from harness.store.run_directory import WINDOWS, RunDirectory
from harness.study.ledger import RUNS, STUDY, Event, StudyRecord, read_events

__all__ = ["Best", "Running", "Status", "best_points", "read_status"]


@dataclass(frozen=True)
class Running:
    """A point that is being measured, or was when the driver died.

    Attributes:
        point: its name.
        windows: finished so far.
        since: UTC time, ISO 8601.
    """

    point: str
    windows: int
    since: str


@dataclass(frozen=True)
class Best:
    """One operating point of a finished run.

    Attributes:
        point: name of the run.
        task, operating_point: of the row.
        lossless: whether its tokens are full depth's.
        speedup: over full depth of the run, whole requests.
        edit_similarity: mean over samples; ``None`` where it was not scored.
    """

    point: str
    task: str
    operating_point: str
    lossless: bool
    speedup: float
    edit_similarity: float | None


@dataclass(frozen=True)
class Status:
    """How far a study is.

    Attributes:
        points: how many there are.
        finished, merged: names of those that are measured; merged ones elsewhere.
        failed: name → reason.
        running: begun and not ended.
        left_s: seconds that the others will take at the pace so far; ``None`` before the first is finished.
    """

    points: int
    finished: tuple[str, ...]
    merged: tuple[str, ...]
    failed: dict[str, str]
    running: tuple[Running, ...]
    left_s: float | None

    @property
    def waiting(self) -> int:
        """Points that nothing was done for yet."""
        return self.points - len(self.finished) - len(self.merged) - len(self.failed) - len(self.running)

    @property
    def exit_code(self) -> int:
        """0 where all are measured, 1 where some failed, 3 where some are left."""
        if self.failed:
            return 1
        return 0 if len(self.finished) + len(self.merged) == self.points else 3


def read_status(path: Path) -> Status:
    """Read how far a study is.

    Raises:
        StoreError: the folder is no study, or damaged.
    """
    if not (path / STUDY).exists():
        raise StoreError(f"{path} is no study: it has no {STUDY}. Give the folder that `harness study` named.")
    record, _ = read_document(StudyRecord, path / STUDY)
    names = {identity: name for name, identity in record.points.items()}
    last: dict[str, Event] = {}
    took: list[float] = []
    for event in read_events(path):
        if event.identity in names:
            last[event.identity] = event
            if event.what == "finished" and event.took_s is not None:
                took.append(event.took_s)
    of = {what: [event for event in last.values() if event.what == what] for what in ("finished", "merged", "failed")}
    begun = [event for event in last.values() if event.what in ("started", "retried")]
    running = tuple(Running(each.point, _windows(path / RUNS / each.point), each.at) for each in begun)
    left = len(names) - sum(map(len, of.values()))
    return Status(
        len(names),
        tuple(event.point for event in of["finished"]),
        tuple(event.point for event in of["merged"]),
        {event.point: event.reason for event in of["failed"]},
        running,
        fmean(took) * left if took else (0.0 if not left else None),
    )


def _windows(directory: Path) -> int:
    try:
        with (directory / WINDOWS).open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)
    except OSError:
        return 0


def best_points(path: Path, names: Sequence[str], count: int = 5) -> list[Best]:
    """Return the fastest operating points of finished runs: lossless ones first, then those that lose text.

    Runs whose summary cannot be read are left out; full depth itself, and bounds, are none.
    """
    found = []
    for name in names:
        try:
            with RunDirectory.read(path / RUNS / name) as store:
                summary = store.read_summary()
        except StoreError:
            continue
        for row in () if summary is None else summary.rows:
            speedup = _value(row, "speedup")
            if speedup is None or (row.strategy in ("full", "oracle") and not row.lossless):
                continue
            found.append(
                Best(name, row.task, row.operating_point, row.lossless, speedup, _value(row, "edit_similarity"))
            )
    found.sort(key=lambda best: (not best.lossless, -best.speedup))
    lossless = [best for best in found if best.lossless][:count]
    return lossless + [best for best in found if not best.lossless][:count]


def _value(row: SummaryRow, name: str) -> float | None:
    metric = row.metrics.get(name)
    return None if metric is None else metric.value


def seconds_since(at: str, now: datetime) -> float:
    """Return how long ago an event was."""
    return (now - datetime.fromisoformat(at)).total_seconds()
