"""Processes of this machine, one at a time, so that no two points share a device or a core."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Self, get_args

from harness.contracts.executors import Executor, Happened, How, Job
from harness.errors import ConfigError
from harness.host.interpreter import fresh_interpreter
from harness.running.reporter import message_of

__all__ = ["Local"]


class Local(Executor):
    """Measure one point after the other in a process of this machine, which loads each model once.

    Points of another model get a process of their own, and so does what follows one that died or ran out of memory.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._job: Job | None = None
        self._model: tuple[str, ...] = ()
        self._windows: tuple[int, int] | None = None

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Start it; it has no options."""
        if options:
            raise ConfigError(
                f"the local executor has no option '{next(iter(options))}'. Use --executor ray, or omit it."
            )
        return cls()

    def has_room(self) -> bool:
        """Whether nothing is being measured."""
        return self._job is None

    def start(self, job: Job) -> None:
        """Hand a job to the process of its model."""
        if self._process is None or job.model != self._model:
            self._end()
            self._process = fresh_interpreter("harness.study.worker", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._model = job.model
        self._job, self._windows = job, None
        self._say(json.dumps({"directory": str(job.directory.absolute()), "settings": dict(job.settings)}))

    def wait(self) -> Happened:
        """Wait for the next message of the process, or its death."""
        job, process = self._job, self._process
        assert job is not None
        assert process is not None
        assert process.stdout is not None
        place = f"{platform.node()}:{process.pid}"
        for line in process.stdout:
            message = message_of(line)
            if message is None:
                continue
            if "ended" in message:
                self._job = None
                if message["ended"] != "done":
                    self._end()  # what failed may have left memory, or a sensor, in a state that the next would meet
                return Happened(
                    job, _how(message["ended"]), message["text"], place, self._windows, message["memory_bytes"]
                )
            text = self._progress(message)
            self._say("")  # the process waits, so that nothing here is drawn inside a window
            return Happened(job, "progress", text, place, self._windows)
        self._job = None
        code = process.wait()
        self._end()
        said = f"signal {-code}" if code < 0 else f"exit code {code}"
        return Happened(job, "lost", f"its process ended with {said}", place, self._windows)

    def _progress(self, message: Mapping[str, Any]) -> str:
        if "stage" in message:
            return str(message["stage"])
        if "begin" in message:
            self._windows = (message["done"], message["begin"])
            return "measuring"
        if self._windows is not None:
            self._windows = (self._windows[0] + 1, self._windows[1])
        return str(message.get("operating_point", ""))

    def close(self) -> None:
        """End the process, in the middle of a window perhaps: on disk none is half there."""
        self._end()

    def _say(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died; waiting for it says so
            self._process.stdin.write(f"{line}\n".encode())
            self._process.stdin.flush()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with suppress(OSError), process:
            pass


def _how(text: str) -> How:
    found: How = text if text in get_args(How) else "refused"  # type: ignore[assignment]
    return found
