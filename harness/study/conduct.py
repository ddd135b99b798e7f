"""Measures the points of a study that are left: hands them to an executor, retries what was lost, and goes on."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.contracts.executors import Executor, Happened, Job
from harness.errors import StoreError
from harness.study.grid import Point
from harness.study.ledger import StudyDirectory

__all__ = ["ATTEMPTS", "Outcome", "Watcher", "conduct"]

ATTEMPTS = 3
"""Times that a point is tried whose process died or ran out of memory."""

AGAIN = ("lost", "out-of-memory", "elsewhere", "unfit")
"""Ends of an attempt after which another one may do."""


class Watcher(Protocol):
    """Is told how a study goes on."""

    def begin(self, total: int, done: int) -> None:
        """So many points there are, so many of them are measured."""

    def happened(self, event: Happened) -> None:
        """Something happened to a point."""

    def ended(self, name: str, reason: str) -> None:
        """A point is finished, or failed for the reason that is given."""


@dataclass
class Outcome:
    """What became of a study.

    Attributes:
        finished: points that are measured.
        failed: name → reason of those that could not be.
    """

    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def conduct(study: StudyDirectory, executor: Executor, watcher: Watcher, *, retry_failed: bool = False) -> Outcome:
    """Measure every point that is not measured.

    Args:
        study: with its points.
        executor: where they are measured.
        watcher: is told.
        retry_failed: try those again that failed before.

    Raises:
        StoreError: nothing can be written any more; what was finished is kept.
    """
    outcome = Outcome()
    left: list[Point] = []
    for point in study.points:
        if study.settle(point):
            outcome.finished += 1
            continue
        last = study.last(point)
        if last is not None and last.what == "failed" and not retry_failed:
            outcome.failed[point.name] = last.reason
        else:
            left.append(point)
    watcher.begin(len(study.points), outcome.finished)
    queue = deque(_by_model(left))
    points = {point.name: point for point in left}
    attempts: Counter[str] = Counter()
    began: dict[str, float] = {}
    while queue or began:
        while queue and executor.has_room(job := _job(study, queue[0], attempts[queue[0].name])):
            point = queue.popleft()
            attempts[point.name] += 1
            study.log(point, "started")
            began[point.name] = time.monotonic()
            executor.start(job)
        event = executor.wait()
        watcher.happened(event)
        if not event.ended:
            continue
        point = points[event.job.name]
        took_s = round(time.monotonic() - began.pop(point.name), 3)
        if event.how == "unfit":  # no attempt: that machine takes no more of them
            attempts[point.name] -= 1
        if event.how == "done":
            study.log(point, "finished", place=event.place, took_s=took_s)
            outcome.finished += 1
            watcher.ended(point.name, "")
        elif event.how == "stopped":
            raise StoreError(f"{event.text} The study stops; give the same command again to go on.")
        elif event.how in AGAIN and attempts[point.name] < ATTEMPTS:
            text = _made_ready(study, point, event)
            study.log(point, "retried", place=event.place, reason=text, took_s=took_s)
            queue.append(point)
        else:
            study.log(point, "failed", place=event.place, reason=event.text, took_s=took_s)
            outcome.failed[point.name] = event.text
            watcher.ended(point.name, event.text)
    return outcome


def _made_ready(study: StudyDirectory, point: Point, event: Happened) -> str:
    """Make room for another attempt where the last one cannot be gone on with; return why it is tried again."""
    if event.how != "elsewhere":
        return event.text
    return f"It is measured anew, and what it held lies in {study.set_aside(point)} now: {event.text}"


def _job(study: StudyDirectory, point: Point, attempts: int) -> Job:
    """Return the job of a point; what was lost, or ran out of memory beside others, has the machine to itself then."""
    shares = point.is_untimed and not attempts
    return Job(point.name, study.directory(point), point.settings, point.model, shares)


def _by_model(points: Sequence[Point]) -> list[Point]:
    """Order points so that those of a model follow one another, models as they come, and what shares comes last."""
    order = {model: place for place, model in enumerate(dict.fromkeys(point.model for point in points))}
    return sorted(points, key=lambda point: (point.is_untimed, order[point.model]))
