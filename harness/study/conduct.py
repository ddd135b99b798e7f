"""Makes the steps and measures the points of a study that are left: hands them to an executor, retries what died.

A step runs before what names it. Where one cannot be made, what names it fails with it, and all else goes on. What is
measured never runs beside what shares, nor beside a step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.contracts.executors import Executor, Happened, Job
from harness.errors import StoreError
from harness.study.grid import Part
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
    """The outcome of a study."""

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
    outcome = Outcome()
    points: list[Part] = []
    for point in study.points:
        if study.settle(point):
            outcome.add(point)
        elif (why := _failed_before(study, point, retry_failed)) is not None:
            outcome.failed[point.title] = why
        else:
            points.append(point)
    unmade = _steps_left(study, points, outcome, retry_failed)
    watcher.begin(len(study.steps) + len(study.points), outcome.made + outcome.finished)
    failed = [_failed_before(study, step, retry_failed) for step in unmade]
    tried = [step for step, why in zip(unmade, failed, strict=True) if why is None]
    going = _Scheduler(study, executor, watcher, outcome, [*tried, *_in_order(points)])
    for step, why in zip(unmade, failed, strict=True):
        if why is not None:
            outcome.failed[step.title] = why
            going.fail_behind(step, why)
    while going.begin():
        event = executor.wait()
        watcher.happened(event)
        if event.ended:
            going.end(event)
    return outcome


class _Scheduler:
    """A study that goes on: what is left, what is begun, and what becomes of it."""

    def __init__(
        self, study: StudyDirectory, executor: Executor, watcher: Watcher, outcome: Outcome, left: list[Part]
    ) -> None:
        self._study, self._executor, self._watcher, self._outcome = study, executor, watcher, outcome
        self._left = left
        self._unmade = {part.identity for part in left if isinstance(part, Step)}
        self._attempts: Counter[str] = Counter()
        self._running: dict[str, tuple[Part, Job, float]] = {}

    def begin(self) -> bool:
        """Begin as much as there is room for, and return whether anything runs."""
        while (part := self._next()) is not None:
            job = _job(self._study, part, self._attempts[part.title])
            if not (self._runs_beside_others(job) and self._executor.has_room(job)):
                break
            self._left.remove(part)
            self._attempts[part.title] += 1
            self._study.log(part, "started")
            self._running[part.title] = part, job, time.monotonic()
            self._executor.start(job)
        return bool(self._running)

    def _next(self) -> Part | None:
        return next((part for part in self._left if self._unmade.isdisjoint(_needed(part))), None)

    def _runs_beside_others(self, job: Job) -> bool:
        """Whether a job may run beside those that do: a step times nothing even where it has the machine to itself."""
        return all(
            other.shares == job.shares and (job.shares or (other.command is None) == (job.command is None))
            for _, other, _ in self._running.values()
        )

    def end(self, event: Happened) -> None:
        """Note how an attempt ended, and let what follows from it follow."""
        part, _, began = self._running.pop(event.job.name)
        took_s = round(time.monotonic() - began, 3)
        if event.how == "done":
            self._study.log(part, "finished", place=event.place, took_s=took_s)
            self._outcome.add(part)
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
                self.fail_behind(part, event.text)

    def fail_behind(self, step: Step, why: str) -> None:
        """Let all fail that names a step that failed, or something that does."""
        lost = {step.identity}
        kept: list[Part] = []
        for part in self._left:
            if lost.isdisjoint(_needed(part)):
                kept.append(part)
            else:
                lost.add(part.identity)
                self._fail(part, f"{step.title} failed: {why}")
        self._left = kept

    def _fail(self, part: Part, why: str, place: str = "", took_s: float | None = None) -> None:
        self._study.log(part, "failed", place=place, reason=why, took_s=took_s)
        self._outcome.failed[part.title] = why
        self._watcher.ended(part.title, why)


def _failed_before(study: StudyDirectory, part: Part, retry_failed: bool) -> str | None:
    """Return why a part failed before that is not to be tried again; ``None`` of any other."""
    last = study.last(part)
    return last.reason if last is not None and last.what == "failed" and not retry_failed else None


def _steps_left(study: StudyDirectory, points: Iterable[Part], outcome: Outcome, retry_failed: bool) -> list[Step]:
    """Return the steps without a folder, in their order.

    One that was made, and whose folder is gone since, is made again only where something that is tried names it.
    """
    needed = {identity for point in points for identity in _needed(point)}
    left: list[Step] = []
    for step in reversed(study.steps):
        made = study.settle(step)
        last = study.last(step)
        if made or (last is not None and last.what in DONE and step.identity not in needed):
            outcome.add(step)
        else:
            left.append(step)
            if _failed_before(study, step, retry_failed) is None:
                needed.update(_needed(step))
    return left[::-1]


def _job(study: StudyDirectory, part: Part, attempts: int) -> Job:
    """Return the job of a part; what died, or ran out of memory beside others, has the machine to itself then."""
    directory, inputs = study.directory(part), study.inputs(part)
    if isinstance(part, Step):
        return Job(part.title, directory, {}, part.model, not attempts, part.command, inputs)
    return Job(part.title, directory, part.settings, part.model, part.is_untimed and not attempts, inputs=inputs)


def _in_order(points: Sequence[Part]) -> list[Part]:
    """Order points: measured ones first, then those of a model behind one another, models as they come."""
    order = {model: place for place, model in enumerate(dict.fromkeys(point.model for point in points))}
    return sorted(points, key=lambda point: (not isinstance(point, Step) and point.is_untimed, order[point.model]))


def _needed(part: Part) -> list[str]:
    return [step.identity for step in part.steps.values()]
