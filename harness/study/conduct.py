"""Makes the steps and measures the points of a study that are left: hands them to an executor, retries what was lost.

A step runs before what names it. Where one cannot be made, what names it fails with it, and all else goes on.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
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

AGAIN = ("lost", "out-of-memory", "elsewhere", "unfit")
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
    """The outcome of a study.

    Attributes:
        finished: points that are measured.
        made: steps whose folders are there.
        failed: name → reason of those that could not be.
    """

    finished: int = 0
    made: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, part: Part) -> None:
        """Count what is finished."""
        if isinstance(part, Step):
            self.made += 1
        else:
            self.finished += 1


class _Queue:
    """Remaining work: what may begin, in its order, and what waits for steps.

    Args:
        unmade: steps without a folder, those that are not tried again included.
        parts: all that is to be done; steps behind those that they name.
    """

    def __init__(self, unmade: Iterable[Step], parts: Sequence[Part]) -> None:
        self._unmade = {step.identity for step in unmade}
        self._places = {part.identity: place for place, part in enumerate(parts)}
        self._behind = itertools.count(len(parts))
        self._ready: deque[Part] = deque()
        self._waiting: list[Part] = []
        self._sort_in(parts)

    def __bool__(self) -> bool:
        return bool(self._ready)

    @property
    def first(self) -> Part:
        """The next point or step to begin."""
        return self._ready[0]

    def take(self) -> Part:
        """Return what begins next, which is no longer left."""
        return self._ready.popleft()

    def again(self, part: Part) -> None:
        """Put back what is to be tried again: a step, for which others wait, at once; a point behind the others."""
        if isinstance(part, Step):
            self._ready.appendleft(part)
        else:
            self._places[part.identity] = next(self._behind)
            self._ready.append(part)

    def made(self, step: Step) -> None:
        """Let those begin that waited for a step alone."""
        self._unmade.discard(step.identity)
        self._sort_in(self._waiting)

    def without(self, step: Step) -> list[Part]:
        """Take away, and return, what cannot be had without a step."""
        lost = {step.identity}
        gone: list[Part] = []
        kept: list[Part] = []
        for part in self._waiting:
            if lost.isdisjoint(_needed(part)):
                kept.append(part)
            else:
                gone.append(part)
                lost.add(part.identity)
        self._waiting = kept
        return gone

    def _sort_in(self, parts: Iterable[Part]) -> None:
        """Divide parts into those that may begin, steps first and what shares last, and those that wait."""
        ready: list[Part] = list(self._ready)
        waiting: list[Part] = []
        for part in parts:
            (ready if self._unmade.isdisjoint(_needed(part)) else waiting).append(part)
        self._ready, self._waiting = deque(sorted(ready, key=self._rank)), waiting

    def _rank(self, part: Part) -> tuple[int, int]:
        return (0 if isinstance(part, Step) else 1 + part.is_untimed, self._places[part.identity])


def _needed(part: Part) -> list[str]:
    return [step.identity for step in part.steps.values()]


def conduct(study: StudyDirectory, executor: Executor, watcher: Watcher, *, retry_failed: bool = False) -> Outcome:
    """Make every step that is not made, and measure every point that is not measured.

    Args:
        study: with its steps and points.
        executor: where they are made and measured.
        watcher: is told.
        retry_failed: try those again that failed before.

    Raises:
        StoreError: nothing can be written any more; what was finished is kept.
    """
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
    tried: list[Part] = []
    gone: list[Step] = []
    for step in unmade:
        if (why := _failed_before(study, step, retry_failed)) is not None:
            outcome.failed[step.title] = why
            gone.append(step)
        else:
            tried.append(step)
    watcher.begin(len(study.steps) + len(study.points), outcome.made + outcome.finished)
    queue = _Queue(unmade, [*tried, *_by_model(points)])
    going = _Scheduler(study, executor, watcher, outcome, queue)
    for step in gone:
        going.fail_without(step)
    while going.begin():
        event = executor.wait()
        watcher.happened(event)
        if event.ended:
            going.end(event)
    return outcome


class _Scheduler:
    """A study that goes on: what is begun, and what becomes of it."""

    def __init__(
        self, study: StudyDirectory, executor: Executor, watcher: Watcher, outcome: Outcome, queue: _Queue
    ) -> None:
        self._study, self._executor, self._watcher = study, executor, watcher
        self._outcome, self._queue = outcome, queue
        self._attempts: Counter[str] = Counter()
        self._began: dict[str, tuple[Part, float]] = {}

    def begin(self) -> bool:
        """Begin as much as there is room for, and return whether anything runs."""
        while self._queue:
            job = _job(self._study, self._queue.first, self._attempts[self._queue.first.title])
            if not self._executor.has_room(job):
                break
            part = self._queue.take()
            self._attempts[part.title] += 1
            self._study.log(part, "started")
            self._began[part.title] = part, time.monotonic()
            self._executor.start(job)
        return bool(self._queue or self._began)

    def end(self, event: Happened) -> None:
        """Note how an attempt ended, and let what follows from it follow.

        Raises:
            StoreError: nothing can be written any more.
        """
        part, began = self._began.pop(event.job.name)
        took_s = round(time.monotonic() - began, 3)
        if event.how == "unfit":  # no attempt: that machine takes no more of them
            self._attempts[part.title] -= 1
        if event.how == "done":
            self._study.log(part, "finished", place=event.place, took_s=took_s)
            self._outcome.add(part)
            self._watcher.ended(part.title, "")
            if isinstance(part, Step):
                self._queue.made(part)
        elif event.how == "stopped":
            raise StoreError(f"{event.text} The study stops; give the same command again to go on.")
        elif event.how in AGAIN and self._attempts[part.title] < ATTEMPTS:
            text = _made_ready(self._study, part, event)
            self._study.log(part, "retried", place=event.place, reason=text, took_s=took_s)
            self._queue.again(part)
        else:
            self._fail(part, event.text, event.place, took_s)
            if isinstance(part, Step):
                self.fail_without(part)

    def fail_without(self, step: Step) -> None:
        """Let all fail that cannot be had without a step that failed."""
        for part in self._queue.without(step):
            self._fail(part, f"{step.title} failed: {self._outcome.failed[step.title]}")

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


def _made_ready(study: StudyDirectory, part: Part, event: Happened) -> str:
    """Make room for another attempt where the last one cannot be gone on with; return why it is tried again."""
    if event.how != "elsewhere":
        return event.text
    return f"It is measured anew, and what it held lies in {study.set_aside(part)} now: {event.text}"


def _job(study: StudyDirectory, part: Part, attempts: int) -> Job:
    """Return the job of a part; what was lost, or ran out of memory beside others, has the machine to itself then."""
    directory, inputs = study.directory(part), study.inputs(part)
    if isinstance(part, Step):
        return Job(part.title, directory, {}, part.model, not attempts, part.command, inputs)
    return Job(part.title, directory, part.settings, part.model, part.is_untimed and not attempts, inputs=inputs)


def _by_model(points: Sequence[Part]) -> list[Part]:
    """Order points so that those of a model follow one another, models as they come."""
    order = {model: place for place, model in enumerate(dict.fromkeys(point.model for point in points))}
    return sorted(points, key=lambda point: order[point.model])
