"""A Ray cluster: several points at once, none of which shares an accelerator or a processor core with another."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any, Self

from harness.contracts.executors import Executor, Happened, How, Job
from harness.errors import ConfigError, StoreError, reason
from harness.study.executors.ray_collector import Collector, Windows
from harness.study.executors.ray_nodes import INSTALL, Node, Nodes, connect, with_processors
from harness.study.executors.ray_worker import Ended, PointWorker
from harness.study.executors.sharing import SHARE, alike, fits, part_of, share_of
from harness.study.kept_run import is_measured
from harness.study.step_folder import read_step

LOOK_S = 0.5
ANSWER_S = 5.0
COMING_S = 60.0
"""Seconds to wait for a node where the last one was lost."""


@dataclass
class _Worker:
    """A process on a node, with the model that it holds and the job that it measures."""

    actor: Any
    node: Node
    job: Job
    attempt: int
    result: Any
    part: Fraction
    place: str
    windows: Windows | None = None


class Ray(Executor):
    """Measure points and make steps on a Ray cluster, on processor cores or an accelerator of their own.

    Options: ``address`` of the cluster (``auto``, ``HOST:6379``; without it RAY_ADDRESS, or a cluster on this machine);
    ``cpus`` per point (default: all of the smallest node, so that a point has a node to itself) and ``gpus`` per point
    (default: 1 where nodes have some). Steps, and points that are not timed, run several at once on what one that is
    measured would own, ``share`` of them (default: as many as their ``threads`` leave cores for), and only while none
    is measured.
    Nodes need this package and the weights, and no file system in common with the driver.
    """

    options = ("address", "cpus", "gpus", SHARE)

    def __init__(self, ray: Any, nodes: Nodes, cpus: int, gpus: int, share: int | None = None) -> None:
        self._ray, self._nodes, self._cpus, self._gpus, self._share = ray, nodes, cpus, gpus, share
        here = nodes.on(ray.get_runtime_context().get_node_id())
        self._collector = ray.remote(Collector).options(num_cpus=0, scheduling_strategy=here).remote()
        self._attempts = itertools.count(1)
        self._running: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._events: list[Happened] = []

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Connect to the cluster, or start one on this machine."""
        for name in options:
            if name not in cls.options:
                raise ConfigError(f"the ray executor has no option '{name}'. Known: {', '.join(cls.options)}.")
        share = share_of(options)
        ray = connect(options.get("address"))
        with ExitStack() as on_error:
            on_error.callback(ray.shutdown)
            opened = cls._on(ray, options, share)
            on_error.pop_all()
        return opened

    @classmethod
    def _on(cls, ray: Any, options: Mapping[str, str], share: int | None) -> Self:
        """Look at the nodes of a cluster that answers.

        Raises:
            ConfigError: none can take a point, or this machine cannot collect what they send.
        """
        rows = [row["Resources"] for row in with_processors(ray)]
        if not rows:
            raise ConfigError("the Ray cluster has no node with processors. Add one: `ray start --address=HOST:6379`.")
        cpus = _number(options, "cpus", max(1, min(int(row["CPU"]) for row in rows)))
        gpus = _number(options, "gpus", 1 if any(row.get("GPU") for row in rows) else 0)
        nodes = Nodes(ray, cpus, gpus)
        if not any(node.slots for node in nodes.there()):
            raise ConfigError(f"no node has cpus={cpus} and gpus={gpus} for a point. Use fewer.")
        if not nodes.usable():
            raise ConfigError(nodes.nowhere(())[1])
        opened = cls(ray, nodes, cpus, gpus, share)
        try:
            ray.get(opened._collector.told.remote())
        except ray.exceptions.RayError as error:
            raise ConfigError(
                f"Ray's node on this machine cannot collect what others measure: {_error_text(error)}. Start Ray "
                "there with the Python of this command."
            ) from None
        return opened

    def has_room(self, job: Job) -> bool:
        """Whether a node has room, or none ever will, and nothing is left to be told."""
        if self._events:
            return False
        with self._answering():
            return not self._running or self._nodes.lacks(*_models(job)) or bool(self._with_room(job))

    def _part(self, job: Job) -> Fraction:
        return part_of(job, self._cpus, self._share)

    def _with_room(self, job: Job) -> list[Node]:
        """Return the nodes that a job could begin on now."""
        if not alike(job, (worker.job for worker in self._running)):
            return []
        part = self._part(job)
        return [
            node
            for node in self._nodes.usable(*_models(job))
            if fits(job, part, [(each.job, each.part) for each in _at(node, self._running)], node.slots)
        ]

    def _node_for(self, job: Job) -> Node | None:
        """Return the node with most processors free among those with room; waits for one to come where all are lost."""
        deadline = time.monotonic() + COMING_S
        while not self._nodes.there() and time.monotonic() < deadline:
            time.sleep(LOOK_S)
        found = self._with_room(job)
        if len(found) < 2:
            return next(iter(found), None)
        free = self._nodes.free_cpus()  # of other users of the cluster, too, and late
        return max(
            found,
            key=lambda node: min(
                node.cpus - self._cpus * _taken(_at(node, self._running)),
                free.get(node.id, 0.0) + self._cpus * _taken(_at(node, self._idle)),
            ),
        )

    def start(self, job: Job) -> None:
        """Hand a job to an idle process that holds its model, or to a new one."""
        with self._answering():
            self._start(job, self._part(job))

    def _start(self, job: Job, part: Fraction) -> None:
        usable = self._nodes.usable()
        for worker in [each for each in self._idle if each.job.shares != job.shares or each.node not in usable]:
            self._idle.remove(worker)
            self._kill(worker)
        fitting = self._nodes.usable(*_models(job))
        same = (each for each in self._idle if (each.job.model, each.part) == (job.model, part))
        kept = next((each for each in same if each.node in fitting), None)
        node = self._node_for(job) if kept is None else kept.node
        if node is None:
            self._events.append(Happened(job, *self._nodes.nowhere(*_models(job))))
            return
        if kept is not None:
            self._idle.remove(kept)
        actor = self._new(node, part, owns=not job.shares) if kept is None else kept.actor
        attempt = next(self._attempts)
        folder, send = str(job.directory.absolute()), _Sender(self._collector)
        inputs = {name: str(path.absolute()) for name, path in job.inputs.items()}
        if job.command is None:
            result = actor.measure.remote(attempt, job.name, folder, dict(job.settings), send, inputs)
        else:
            result = actor.make.remote(attempt, folder, job.command, inputs, send)
        place = node.host if kept is None else kept.place
        self._running.append(_Worker(actor, node, job, attempt, result, part, place))

    def _new(self, node: Node, part: Fraction, *, owns: bool) -> Any:
        """Return a new process on a node, where idle ones make room for it."""
        for worker in _at(node, self._idle):
            if part + _taken(_at(node, (*self._running, *self._idle))) > node.slots:
                self._idle.remove(worker)
                self._kill(worker)
        options = {"num_cpus": _resource(self._cpus, part), "num_gpus": _resource(self._gpus, part)}
        started = self._ray.remote(PointWorker).options(
            **options, max_restarts=0, max_task_retries=0, scheduling_strategy=self._nodes.on(node.id)
        )
        return started.remote(self._cpus if owns else 0)

    def wait(self) -> Happened:
        """Wait until a job says something, ends or is lost."""
        while not self._events:
            with self._answering():
                ended, _ = self._ray.wait([worker.result for worker in self._running], timeout=LOOK_S)
                self._listen()
                for worker in [each for each in self._running if each.result in ended]:
                    self._running.remove(worker)
                    self._events.append(self._end(worker))
        return self._events.pop(0)

    def _listen(self) -> None:
        """Turn what the collector was told into events."""
        running = {worker.attempt: worker for worker in self._running}
        for attempt, place, text, windows in self._ray.get(self._collector.told.remote()):
            if (worker := running.get(attempt)) is not None:
                worker.place, worker.windows = place, windows
                self._events.append(Happened(worker.job, "progress", text, place, windows))

    def _end(self, worker: _Worker) -> Happened:
        """Return how a job ended; from now on nothing of it is taken, whatever its process still sends."""
        ended = self._ended(worker)
        self._ray.get(self._collector.end.remote(worker.attempt))
        how, text = ended.how, ended.text
        if how == "done" and not _has_arrived(worker.job):
            how, text = "lost", f"what it measured did not arrive in {worker.job.directory}. Look at that disk."
        if how == "unfit":
            how, text = self._leave_out(worker, ended)
        if how == "done":
            self._idle.append(worker)
        else:
            self._kill(worker)
        return Happened(worker.job, how, text, worker.place, worker.windows, ended.memory_bytes)

    def _ended(self, worker: _Worker) -> Ended:
        errors = self._ray.exceptions
        try:
            ended: Ended = self._ray.get(worker.result)
        except errors.OutOfMemoryError as error:
            return Ended("out-of-memory", reason(error), None)
        except errors.RayTaskError as error:
            return Ended("lost", f"its process failed: {_error_text(error)}", None)
        except errors.RayError as error:
            if getattr(error, "actor_init_failed", False):  # it had nothing to do yet but to import this package
                return Ended("unfit", _error_text(error), None)
            return Ended("lost", f"its process or node died: {_error_text(error)}", None)
        return ended

    def _leave_out(self, worker: _Worker, ended: Ended) -> tuple[How, str]:
        """Give a node no more points, or none of a kind, and return what becomes of the one that it had."""
        job, does = worker.job, ""
        why, model = f"it cannot import the harness ({ended.text}). {INSTALL}", None
        if ended.lacks == "room":
            why = f"{ended.text}. Make room there; the next command uses it again."
            if job.command is not None:  # others may need less
                model, does = _alone(job), f"does not make {job.name}"
        elif ended.lacks == "model":
            why, model = ended.text, job.model
        elif ended.lacks == "folder":
            why = ended.text
        said = self._nodes.leave_out(worker.node, why, model, does)
        return ("unfit", said) if self._nodes.usable(*_models(job)) else self._nodes.nowhere(*_models(job))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Say in one line that the cluster, or what collects the records, is gone.

        Raises:
            StoreError: so that no point is said to have failed for it.
        """
        try:
            yield
        except self._ray.exceptions.RayError as error:
            raise StoreError(
                f"the Ray cluster does not answer any more: {_error_text(error)}. Every window that arrived is kept; "
                "give the same command again to go on."
            ) from None

    def _kill(self, worker: _Worker) -> None:
        with suppress(Exception):  # it is gone already
            self._ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """Stop what runs, and leave the cluster."""
        for worker in (*self._running, *self._idle):
            self._kill(worker)
        for worker in self._running:  # now: a process that is being ended may hold the folder's lock for a while
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._collector.end.remote(worker.attempt), timeout=ANSWER_S)
        self._running, self._idle = [], []
        self._ray.shutdown()


@dataclass(frozen=True)
class _Sender:
    """Calls the collector from a node, and waits until it has written."""

    collector: Any

    def __call__(self, method: str, *arguments: Any) -> Any:
        ray: Any = import_module("ray")
        try:
            return ray.get(getattr(self.collector, method).remote(*arguments))
        except ray.exceptions.RayTaskError as error:  # what the collector raised, of which this has the words alone
            raise error.cause from None


def _has_arrived(job: Job) -> bool:
    """Whether the directory here is that of a finished run, or of a step that is whole."""
    try:
        if job.command is not None:
            return read_step(job.directory, job.command.identity) is not None
        return is_measured(job.directory)
    except StoreError:
        return False


def _models(job: Job) -> tuple[tuple[str, ...], ...]:
    """Return for what a node may lack something that a job needs."""
    return (job.model,) if job.command is None else (job.model, _alone(job))


def _alone(job: Job) -> tuple[str, ...]:
    return ("job", job.name)


def _at(node: Node, workers: Iterable[_Worker]) -> list[_Worker]:
    return [worker for worker in workers if worker.node == node]


def _taken(workers: Iterable[_Worker]) -> Fraction:
    return sum((worker.part for worker in workers), Fraction(0))


def _resource(of_measured: int, part: Fraction) -> float:
    """Return what to ask Ray for: above 1 it takes whole numbers alone."""
    asked = of_measured * part
    return int(asked) if asked >= 1 else math.floor(asked * 1000) / 1000


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name, str(default))
    if not text.isdigit() or (name == "cpus" and not int(text)):
        raise ConfigError(f"{name}={text} is no number of {name}.")
    return int(text)


def _error_text(error: BaseException) -> str:
    """Return the line of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "died" in line or "killed" in line]
    return (telling or lines or [type(error).__name__])[-1 if telling else 0][:300]
