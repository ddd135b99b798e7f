"""Makes the steps and measures the points of a study that are left: hands them to an executor, retries what died.

A step runs before what names it; where one cannot be made, what names it fails with it, and all else goes on. What is
measured never runs beside what shares, nor beside a step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from harness.contracts.executors import Executor, Happened, Job
from harness.errors import StoreError
from harness.study.grid import Part, Point
from harness.study.ledger import DONE, StudyDirectory
from harness.study.steps import Step

ATTEMPTS = 3
"""Times that a point or a step is tried whose process died or ran out of memory."""

AGAIN = ("died", "out-of-memory", "wrong-machine")
"""Ends of an attempt after which another one may do."""


class Watcher(Protocol):
    """Is told how a study goes on."""

    def begin(self, total: int, done: int) -> None:
        """So many steps and points there are, so many of them are made and measured."""

    def happened(self, event: Happened) -> None:
        """Something happened to a point or a step."""

    def ended(self, name: str, reason: str) -> None:
        """A point or a step is finished, or failed for the reason that is given."""


@dataclass
class Outcome:
    """The outcome of a study: points measured, steps made, and name → reason of those that could not be."""

    finished: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Count what is finished."""
        if isinstance(part, Step):
            self.made += 1
        else:
            self.finished += 1


def conduct(study: StudyDirectory, executor: Executor, watcher: Watcher, *, retry_failed: bool = False) -> Outcome:
    """Make every step that is not made, and measure every point that is not measured."""
    going = _Scheduler(study, executor, watcher, retry_failed=retry_failed)
    while going.begin():
        event = executor.wait()
        watcher.happened(event)
        if event.ended:
            going.end(event)
    return going.outcome


class _Scheduler:
    """A study that goes on: what is left, steps before what names them, what runs, and what becomes of it."""

    def __init__(self, study: StudyDirectory, executor: Executor, watcher: Watcher, *, retry_failed: bool) -> None:
        self._study, self._executor, self._watcher, self._retry_failed = study, executor, watcher, retry_failed
        self.outcome = Outcome()
        self._attempts: Counter[str] = Counter()
        self._running: dict[str, tuple[Part, Job, float]] = {}
        points: list[Point] = []
        for point in study.points:
            if study.settle(point):
                self.outcome.add(point)
            elif (why := self._failed_before(point)) is not None:
                self.outcome.failed[point.title] = why
            else:
                points.append(point)
        steps = self._steps_left(points)
        watcher.begin(len(study.steps) + len(study.points), self.outcome.made + self.outcome.finished)
        # measured ones first, then those of a model behind one another, models as they come
        order = {model: place for place, model in enumerate(dict.fromkeys(point.model for point in points))}
        points.sort(key=lambda point: (point.is_untimed, order[point.model]))
        failed = {step.title: why for step in steps if (why := self._failed_before(step)) is not None}
        self._left: list[Part] = [*(step for step in steps if step.title not in failed), *points]
        self._unmade = {part.identity for part in self._left if isinstance(part, Step)}
        for step in steps:
            if step.title in failed:
                self.outcome.failed[step.title] = failed[step.title]
                self._fail_behind(step, failed[step.title])

    def _failed_before(self, part: Part) -> str | None:
        """Return why a part failed before that is not to be tried again; ``None`` of any other."""
        last = self._study.last(part)
        return last.reason if last is not None and last.what == "failed" and not self._retry_failed else None

    def _steps_left(self, points: Iterable[Point]) -> list[Step]:
        """Return the steps without a folder, in their order.

        One that was made, and whose folder is gone since, is made again only where something that is tried names it.
        """
        needed = {step.identity for point in points for step in point.steps.values()}
        left: list[Step] = []
        for step in reversed(self._study.steps):
            made, last = self._study.settle(step), self._study.last(step)
            if made or (last is not None and last.what in DONE and step.identity not in needed):
                self.outcome.add(step)
            else:
                left.append(step)
                if self._failed_before(step) is None:
                    needed.update(named.identity for named in step.steps.values())
        return left[::-1]

    def begin(self) -> bool:
        """Begin as much as there is room for, and return whether anything runs."""
        while (part := next((one for one in self._left if not self._waits(one)), None)) is not None:
            job = self._job(part)
            running = [other for _, other, _ in self._running.values()]
            # a step times nothing even where it has the machine to itself
            alike = all(
                other.shares == job.shares and (job.shares or (other.command is None) == (job.command is None))
                for other in running
            )
            if not (alike and self._executor.has_room(job)):
                break
            self._left.remove(part)
            self._attempts[part.title] += 1
            self._study.log(part, "started")
            self._running[part.title] = part, job, time.monotonic()
            self._executor.start(job)
        return bool(self._running)

    def _waits(self, part: Part) -> bool:
        return not self._unmade.isdisjoint(step.identity for step in part.steps.values())

    def _job(self, part: Part) -> Job:
        """Return the job of a part; what died, or ran out of memory beside others, has the machine to itself then."""
        directory, inputs, first = self._study.directory(part), self._study.inputs(part), not self._attempts[part.title]
        if isinstance(part, Step):
            return Job(part.title, directory, {}, part.model, first, part.command, inputs)
        return Job(part.title, directory, part.settings, part.model, part.is_untimed and first, inputs=inputs)

    def end(self, event: Happened) -> None:
        """Note how an attempt ended, and let what follows from it follow."""
        part, _, began = self._running.pop(event.job.name)
        took_s = round(time.monotonic() - began, 3)
        if event.how == "done":
            self._study.log(part, "finished", place=event.place, took_s=took_s)
            self.outcome.add(part)
            self._watcher.ended(part.title, "")
            self._unmade.discard(part.identity)
        elif event.how == "stopped":
            raise StoreError(f"{event.text} The study stops; give the same command again to go on.")
        elif event.how in AGAIN and self._attempts[part.title] < ATTEMPTS:
            text = event.text
            if event.how == "wrong-machine":
                text = f"It is measured anew, and what it held lies in {self._study.set_aside(part)} now: {text}"
            self._study.log(part, "retried", place=event.place, reason=text, took_s=took_s)
            self._left.insert(0 if isinstance(part, Step) else len(self._left), part)  # others wait for a step
        else:
            self._fail(part, event.text, event.place, took_s)
            if isinstance(part, Step):
                self._fail_behind(part, event.text)

    def _fail_behind(self, step: Step, why: str) -> None:
        """Let all fail that names a step that failed, or something that does."""
        lost = {step.identity}
        kept: list[Part] = []
        for part in self._left:
            if lost.isdisjoint(named.identity for named in part.steps.values()):
                kept.append(part)
            else:
                lost.add(part.identity)
                self._fail(part, f"{step.title} failed: {why}")
        self._left = kept

    def _fail(self, part: Part, why: str, place: str = "", took_s: float | None = None) -> None:
        self._study.log(part, "failed", place=place, reason=why, took_s=took_s)
        self.outcome.failed[part.title] = why
        self._watcher.ended(part.title, why)
