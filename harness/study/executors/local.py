"""Processes of this machine: a point that is measured runs alone, so that it shares neither a device nor a core.

``python -m harness.study.executors.local`` is such a process: it gets a JSON line per job and does one after the other,
so that a model that follows itself is loaded once. It tells what a repeat of a run tells (``running.repeats``).
"""

from __future__ import annotations

import os
import platform
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any, Self

from pydantic import TypeAdapter

from harness.contracts.executors import Executor, Happened, Job
from harness.errors import ConfigError
from harness.host.interpreter import fresh_interpreter, message_of
from harness.host.processor import core_count, peak_memory_bytes
from harness.running.repeats import Reporter
from harness.study.point_run import run_job

ANSWER_S = 5.0
_JOB = TypeAdapter(Job)
SHARE = "share"
"""Option of an executor: how many steps, or points that are not timed, run where a measured one would be alone."""


def share_of(options: Mapping[str, str], known: Sequence[str], name: str) -> int | None:
    """Return how many jobs share; ``None`` where the threads of each decide. Options that are not known are refused."""
    for option in options:
        if option not in known:
            raise ConfigError(f"the {name} executor has no option '{option}'. Known: {', '.join(known)}.")
    text = options.get(SHARE)
    if text is None:
        return None
    if not text.isdigit() or not int(text):
        raise ConfigError(f"{SHARE}={text} is no number of points. Use {SHARE}=2, for example.")
    return int(text)


def part_of(job: Job, cores: int, share: int | None) -> Fraction:
    """Return which part of what a measured job owns a job takes: 1, if it does not share or names no threads."""
    if not job.shares:
        return Fraction(1)
    return Fraction(1, share or (max(1, cores // job.threads) if job.threads else 1))


class Local(Executor):
    """Measure one point after the other in a process of this machine, which loads each model once.

    Points of another model get a process of their own, and so does what follows one that died or ran out of memory.
    Points that are not timed, and steps, run several at once, each in a process of its own: as many as their
    ``threads`` leave cores for. Options: ``share`` (so many of them, whatever their threads).
    """

    options = (SHARE,)

    def __init__(self, share: int | None = None) -> None:
        self._share = share
        self._workers: list[_Worker] = []
        self._heard: queue.SimpleQueue[tuple[_Worker, bytes]] = queue.SimpleQueue()
        self._unanswered: _Worker | None = None

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Start it."""
        return cls(share_of(options, cls.options, "local"))

    def has_room(self, job: Job) -> bool:
        """Whether nothing is being measured, and no more jobs beside it than may share."""
        running = (self._part(each.job) for each in self._workers if each.job is not None)
        return sum(running, self._part(job)) <= 1

    def _part(self, job: Job) -> Fraction:
        return part_of(job, core_count() or 1, self._share)

    def start(self, job: Job) -> None:
        """Hand a job to an idle process of its model, or to a new one; no other idle process stays beside it."""
        idle = [worker for worker in self._workers if worker.job is None]
        kept = next((worker for worker in idle if worker.model == job.model), None)
        for worker in idle:
            if worker is not kept and (worker.model != job.model or not job.shares):
                self._end(worker)
        if kept is None:
            kept = _Worker(job.model, self._heard)
            self._workers.append(kept)
        kept.job, kept.windows = job, None
        inputs = {name: folder.absolute() for name, folder in job.inputs.items()}
        kept.say(_JOB.dump_json(replace(job, directory=job.directory.absolute(), inputs=inputs)))

    def wait(self) -> Happened:
        """Wait for the next message of a process, or its death.

        What told the message before waited until now, so that nothing is drawn here inside a window.
        """
        if self._unanswered is not None:
            self._unanswered.say(b"")
            self._unanswered = None
        while True:
            worker, line = self._heard.get()
            job = worker.job
            if worker not in self._workers:  # its end was told
                continue
            if job is None:
                if not line:  # an idle one died
                    self._end(worker)
                continue
            if not line:
                code = worker.process.wait()
                self._end(worker)
                said = f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"
                return Happened(job, "died", said, worker.place, worker.windows)
            message = message_of(line)
            if message is None:
                continue
            if "ended" in message:
                worker.job = None
                if message["ended"] != "done":
                    self._end(worker)  # what failed may have left memory, or a sensor, in a state the next would meet
                how, text, memory = message["ended"], message["text"], message["memory_bytes"]
                return Happened(job, how, text, worker.place, worker.windows, memory)
            text = worker.progress(message)
            self._unanswered = worker
            return Happened(job, "progress", text, worker.place, worker.windows)

    def close(self) -> None:
        """End the processes, in the middle of a window perhaps: on disk none is half there."""
        for worker in list(self._workers):
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.end()


class _Worker:
    """A process with the model that it holds and the job that it does; its messages go into a queue."""

    def __init__(self, model: tuple[str, ...], heard: queue.SimpleQueue[tuple[_Worker, bytes]]) -> None:
        self.model = model
        self.job: Job | None = None
        self.windows: tuple[int, int] | None = None
        self.process = fresh_interpreter("harness.study.executors.local", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.place = f"{platform.node()}:{self.process.pid}"
        self._listener = threading.Thread(target=self._listen, args=(heard,), daemon=True)
        self._listener.start()

    def _listen(self, heard: queue.SimpleQueue[tuple[_Worker, bytes]]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard.put((self, line))
        heard.put((self, b""))

    def progress(self, message: Mapping[str, Any]) -> str:
        """Take in what a process says of its job, and return what it is doing."""
        if "stage" in message:
            return str(message["stage"])
        if "begin" in message:
            self.windows = (message["done"], message["begin"])
            return "measuring"
        if self.windows is not None:
            self.windows = (self.windows[0] + 1, self.windows[1])
        return str(message.get("operating_point", ""))

    def say(self, line: bytes) -> None:
        """Write a line to the process."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died; waiting for it says so
            self.process.stdin.write(line + b"\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """Kill the process."""
        self.process.kill()
        self._listener.join(timeout=ANSWER_S)
        with suppress(OSError), self.process:
            pass


def main() -> None:
    """Do what the parent process sends, until it is gone."""
    reporter = Reporter()
    place = {"executor": "local", "process": f"{platform.node()}:{os.getpid()}"}
    try:
        while True:
            how, text = run_job(_JOB.validate_json(reporter.heard()), reporter, place)
            reporter.tell({"ended": how, "text": text, "memory_bytes": peak_memory_bytes()})
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
