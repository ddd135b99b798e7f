"""A Ray cluster: several points at once, none of which shares an accelerator or a processor core with another."""

from __future__ import annotations

import json
import logging
import math
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any, Self

from harness.contracts.executors import Executor, Happened, How, Job
from harness.errors import ConfigError, reason
from harness.store.run_directory import MANIFEST, SAMPLES, WINDOWS
from harness.study.executors.ray_worker import Collector, PointWorker
from harness.study.executors.sharing import SHARE, fits, part_of, share_of

__all__ = ["Ray"]

logger = logging.getLogger(__name__)

LOOK_S = 0.5
ANSWER_S = 5.0
SKEW_S = 5.0
"""Difference of two clocks that is worth a line."""


@dataclass
class _Worker:
    """A process on a node, with the model that it holds and the job that it measures."""

    actor: Any
    model: tuple[str, ...]
    job: Job
    result: Any
    greeting: Any
    part: Fraction = Fraction(1)
    place: str = ""
    windows: tuple[int, int] | None = None


class Ray(Executor):
    """Measure points on a Ray cluster, each on processor cores or an accelerator of its own.

    Options: ``address`` of the cluster (``auto``, ``HOST:6379``, ``ray://HOST:10001``; without it RAY_ADDRESS, or a
    cluster on this machine); ``cpus`` per point (default: all of the smallest node, so that a point has a node to
    itself) and ``gpus`` per point (default: 1 where nodes have some). Points that are not timed run several at once on
    what one that is measured would own, ``share`` of them (default: as many as their ``threads`` leave cores for), and
    only while none is measured. Nodes need this package and the weights, and no file system in common with the driver.
    """

    options = ("address", "cpus", "gpus", SHARE)

    def __init__(self, ray: Any, cpus: int, gpus: int, capacity: int, share: int | None = None) -> None:
        self._ray, self._cpus, self._gpus, self._capacity, self._share = ray, cpus, gpus, capacity, share
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._collector = ray.remote(Collector).options(num_cpus=0, scheduling_strategy=here).remote()
        self._running: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._events: list[Happened] = []

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Connect to the cluster, or start one on this machine."""
        for name in options:
            if name not in cls.options:
                raise ConfigError(f"the ray executor has no option '{name}'. Known: {', '.join(cls.options)}.")
        try:
            ray: Any = import_module("ray")
            import_module("ray.util.scheduling_strategies")
        except ImportError:
            raise ConfigError("Ray is not installed:", ["pip install 'early-exit-harness[cluster]'"]) from None
        address, share = options.get("address"), share_of(options)
        try:
            _require_answer(address)
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"no Ray cluster answers at {address or 'RAY_ADDRESS'}: {reason(error)}. Start one (`ray start "
                "--head`), or leave --address out for one on this machine."
            ) from None
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            raise ConfigError("the Ray cluster has no node with processors. Add one: `ray start --address=HOST:6379`.")
        smallest = min(int(node["CPU"]) for node in nodes)
        cpus = _number(options, "cpus", smallest)
        gpus = _number(options, "gpus", 1 if any(node.get("GPU") for node in nodes) else 0)
        capacity = sum(
            min([int(node["CPU"]) // cpus, *([int(node.get("GPU", 0)) // gpus] if gpus else [])]) for node in nodes
        )
        if not capacity:
            raise ConfigError(f"no node has cpus={cpus} and gpus={gpus} for a point. Use fewer.")
        return cls(ray, cpus, gpus, capacity, share)

    def has_room(self, job: Job) -> bool:
        """Whether a slot of the cluster, or of one that it may share, is free, and nothing is left to be told."""
        running = [(worker.job, worker.part) for worker in self._running]
        return not self._events and fits(job, self._part(job), running, self._capacity)

    def _part(self, job: Job) -> Fraction:
        return part_of(job, self._cpus, self._share)

    def start(self, job: Job) -> None:
        """Hand a job to an idle process that holds its model, or to a new one."""
        part, owns = self._part(job), not job.shares
        for worker in [each for each in self._idle if each.job.shares != job.shares]:
            self._idle.remove(worker)
            self._kill(worker)
        kept = next((each for each in self._idle if (each.model, each.part) == (job.model, part)), None)
        while kept is None and self._idle and part + self._taken() > self._capacity:
            self._kill(self._idle.pop(0))
        if kept is not None:
            self._idle.remove(kept)
            actor = kept.actor
        else:
            actor = self._ray.remote(PointWorker).options(
                num_cpus=_resource(self._cpus, part), num_gpus=_resource(self._gpus, part), max_restarts=0,
                max_task_retries=0,
            ).remote(self._cpus if owns else 0)  # fmt: skip
        files = [job.directory / name for name in (MANIFEST, SAMPLES, WINDOWS)]
        beginning = {file.name: file.read_bytes() for file in files if file.exists()}
        send = _Sender(self._collector)
        settings = json.dumps(dict(job.settings))
        result = actor.measure.remote(job.name, str(job.directory.absolute()), beginning, settings, send)
        greeting = actor.place.remote() if kept is None else None
        place = kept.place if kept else ""
        self._running.append(_Worker(actor, job.model, job, result, greeting, part, place))

    def _taken(self) -> Fraction:
        return sum((worker.part for worker in (*self._running, *self._idle)), Fraction(0))

    def wait(self) -> Happened:
        """Wait until a job says something, ends or is lost."""
        while not self._events:
            ended, _ = self._ray.wait([worker.result for worker in self._running], timeout=LOOK_S)
            self._listen()
            for worker in [each for each in self._running if each.result in ended]:
                self._running.remove(worker)
                self._events.append(self._end(worker))
        return self._events.pop(0)

    def _listen(self) -> None:
        """Turn what the collector was told into events."""
        by_name = {worker.job.name: worker for worker in self._running}
        for name, text, windows in self._ray.get(self._collector.told.remote()):
            if (worker := by_name.get(name)) is not None:
                worker.windows = windows
                self._events.append(Happened(worker.job, "progress", text, worker.place, windows))

    def _end(self, worker: _Worker) -> Happened:
        errors = self._ray.exceptions
        memory = None
        how: How
        try:
            how, text, memory = self._ray.get(worker.result)
            self._greet(worker)
        except errors.OutOfMemoryError as error:
            how, text = "out-of-memory", reason(error)
        except errors.RayError as error:
            how, text = "lost", f"its process or node died: {_said(error)}"
        if how == "done":
            self._idle.append(worker)
        else:
            self._kill(worker)
        return Happened(worker.job, how, text, worker.place, worker.windows, memory)

    def _greet(self, worker: _Worker) -> None:
        """Learn where a new process is, and whether its clock is another one."""
        if worker.greeting is None:
            return
        worker.place, clock = self._ray.get(worker.greeting)
        worker.greeting = None
        ahead = clock - time.time()  # it answered when its job had ended, which was just now
        if abs(ahead) > SKEW_S:
            logger.warning("the clock of %s is %.0f s ahead; no duration depends on it", worker.place, ahead)

    def _kill(self, worker: _Worker) -> None:
        with suppress(Exception):  # it is gone already
            self._ray.kill(worker.actor, no_restart=True)

    def close(self) -> None:
        """Stop what runs, and leave the cluster."""
        for worker in (*self._running, *self._idle):
            self._kill(worker)
        self._running, self._idle = [], []
        self._ray.shutdown()


@dataclass(frozen=True)
class _Sender:
    """Calls the collector from a node, and waits until it has written."""

    collector: Any

    def __call__(self, method: str, *arguments: Any) -> Any:
        ray: Any = import_module("ray")
        return ray.get(getattr(self.collector, method).remote(*arguments))


def _require_answer(address: str | None) -> None:
    """Knock at a cluster's port: Ray itself waits for minutes before it says that nobody is there.

    Raises:
        OSError: nobody answers.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()


def _resource(of_measured: int, part: Fraction) -> float:
    """Return what to ask Ray for: above 1 it takes whole numbers alone."""
    asked = of_measured * part
    return int(asked) if asked >= 1 else math.floor(asked * 1000) / 1000


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name, str(default))
    if not text.isdigit() or (name == "cpus" and not int(text)):
        raise ConfigError(f"{name}={text} is no number of {name}.")
    return int(text)


def _said(error: BaseException) -> str:
    """Return the line of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "died" in line or "killed" in line]
    return (telling or lines or [type(error).__name__])[-1 if telling else 0][:300]
