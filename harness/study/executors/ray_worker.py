"""Measures points and makes steps on a node of a cluster, and sends their output to the study.

Records cross as bytes of an append-only file from an offset on, samples before the window that commits them, and each
window is acknowledged before the next one begins (:mod:`.ray_collector`). So the study's folder always holds a run that
can go on elsewhere, whatever dies, and nodes need no file system in common. Folders of steps cross whole
(:mod:`.ray_steps`). Imports no Ray: a node needs this package, and the weights.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import IO, Any, Literal

from harness.config import RunConfig
from harness.config.model import DEFAULT_MODEL
from harness.contracts.executors import Command, How
from harness.errors import ArtefactError, ConfigError, HarnessError, ModelError, StoreError, reason
from harness.host.processor import peak_memory_bytes
from harness.models.model import KeptModel, LoadedModel, resolve
from harness.records import WindowRecord
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS
from harness.store.run_directory import LOCK, SUMMARY
from harness.study.executors.ray_collector import (
    GROWING,
    ForeignFolderError,
    NotArrivedError,
    Windows,
    fetch,
    send_step,
)
from harness.study.executors.sharing import hold_cores
from harness.study.point_run import is_full, measure_point
from harness.study.step_run import make_step
from harness.study.steps import filled, filled_settings, option

Send = Callable[..., Any]
"""``send(method, attempt, *arguments)`` calls the collector and waits; raises what it raised."""
Lacks = Literal["", "model", "room", "folder"]

BUSY_S = 30.0
"""Seconds in which what an earlier driver left behind lets go of a run directory."""
LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended.

    Attributes:
        how: ``unfit`` where the node lacks something that another may have.
        text: why.
        memory_bytes: the most that the process held; ``None`` where it died.
        lacks: what, of an unfit node: the model, room on its disk, or a folder that nobody else may write.
    """

    how: How
    text: str
    memory_bytes: int | None
    lacks: Lacks = ""


class PointWorker:
    """Measures points and makes steps on a node, on processor cores of its own, and sends them where the study is.

    Args:
        cores: how many logical CPUs to hold; 0 for all that the process may use.
    """

    def __init__(self, cores: int) -> None:
        self._cores = cores
        self._held: list[IO[bytes]] | None = None
        self._model = _Model()

    def measure(
        self,
        attempt: int,
        name: str,
        directory: str,
        settings: Mapping[str, Any],
        send: Send,
        inputs: Mapping[str, str] = MappingProxyType({}),
    ) -> Ended:
        """Measure a point, or go on with it.

        Args:
            attempt: number of this try.
            name: of the point.
            directory: its run directory on the driver's machine.
            settings: of the run.
            send: calls the collector.
            inputs: name → folder of each step that it names, on the driver's machine.
        """
        stream = self._stream(attempt, send)

        def measured(folder: Path) -> tuple[How, str]:
            nonlocal settings
            beginning = stream.beginning(directory)
            settings = filled_settings(settings, stream.fetched(inputs))
            return self._measure(folder, beginning, settings, stream)

        how, text = self._tried(stream, name, directory, measured)
        return self._judged(how, text, directory, settings, stream.failed)

    def make(self, attempt: int, directory: str, command: Command, inputs: Mapping[str, str], send: Send) -> Ended:
        """Make the folder of a step, from its beginning.

        Args:
            attempt: number of this try.
            directory: of the step, on the driver's machine.
            command: what makes it.
            inputs: name → folder of each step that it names, on the driver's machine.
            send: calls the collector.
        """
        stream = self._stream(attempt, send)
        model = option(command.words, "--model") or DEFAULT_MODEL

        def made(folder: Path) -> tuple[How, str]:
            nonlocal model
            stream.begin_step(directory)
            folders = stream.fetched(inputs)
            model = filled(model, folders)
            how, text = make_step(folder, command, folders, stream.stage)
            if how == "done":
                send_step(folder, stream.call)
            return how, text

        how, text = self._tried(stream, Path(directory).name, directory, made)
        return self._judged(how, text, directory, {"model": model}, stream.failed)

    def _stream(self, attempt: int, send: Send) -> _Stream:
        return _Stream(attempt, f"{platform.node()}:{os.getpid()}", send)

    def _tried(
        self, stream: _Stream, name: str, directory: str, work: Callable[[Path], tuple[How, str]]
    ) -> tuple[How, str]:
        """Work in a folder of this name on this node, and return how that ended, as far as this node can see."""
        how: How
        try:
            if self._held is None:
                self._held = hold_cores(self._cores)
            with TemporaryDirectory(prefix="harness-point-", ignore_cleanup_errors=True) as scratch:
                folder = Path(scratch) / name
                how, text = work(folder)
                text = text if how == "stopped" else text.replace(str(folder), directory)
        except ForeignFolderError as error:
            how, text = "unfit", str(error)
        except (ConfigError, NotArrivedError) as error:  # another process has the cores, for now; or wrote meanwhile
            how, text = "lost", str(error)
        except HarnessError as error:
            how, text = "refused", str(error)
        except OSError as error:  # from the scratch folder, unless the stream knows better
            full = stream.failed is None or is_full(error)
            how, text = "stopped" if full else "refused", reason(error)
        return how, text

    def _measure(
        self, folder: Path, beginning: Mapping[str, bytes], settings: Mapping[str, Any], stream: _Stream
    ) -> tuple[How, str]:
        folder.mkdir()
        for file, data in beginning.items():
            (folder / file).write_bytes(data)
        stream.folder = folder
        placement = {"executor": "ray", "process": stream.place, "cores": _cores()}
        how, text = measure_point(folder, settings, stream, self._model, placement)
        if how == "done":
            stream.send_rest()
        return how, text

    def _judged(
        self, how: How, text: str, directory: str, settings: Mapping[str, Any], failed: Exception | None
    ) -> Ended:
        """Return how an attempt ended, with who is to blame: this node, the study's end, or the point itself.

        Args:
            how: it ended, as far as this node can see.
            text: why.
            directory: of the run or the step, on the driver's machine.
            settings: of the run; of a step the model alone.
            failed: what went wrong at the study's end.
        """
        lacks: Lacks = ""
        if failed is not None and not isinstance(failed, (HarnessError, OSError)):
            raise failed  # the collector is out of reach; whatever became of the run meanwhile follows from that
        if how == "unfit":
            lacks = "folder"
        elif how == "stopped" and isinstance(failed, OSError):
            text = f"cannot write to {directory}: {failed.strerror}. Every finished window is kept; make room."
        elif how == "stopped":
            how, lacks = "unfit", "room"
            text = f"it cannot write what it measures: {text.partition('. ')[0].rstrip('.')}"
        elif how == "refused" and failed is None and self._lacks_model(settings):
            how, lacks = "unfit", "model"
        return Ended(how, text, peak_memory_bytes(), lacks)

    def _lacks_model(self, settings: Mapping[str, Any]) -> bool:
        """Whether the model cannot be had on this machine; another one may have it."""
        if self._model.is_unread:
            return True
        try:
            config = RunConfig.build(settings)
            resolve(config.request(config.seed))
        except (ModelError, ArtefactError):
            return True
        except HarnessError:
            return False
        return False


class _Model(KeptModel):
    """A model that is kept, and remembers when it could not be read."""

    is_unread = False

    def load(self, *arguments: Any, **given: Any) -> tuple[LoadedModel, ...]:
        self.is_unread = True
        loaded = super().load(*arguments, **given)
        self.is_unread = False
        return loaded


class _Stream:
    """Implements :class:`harness.running.session.Observer`: sends what was committed, between windows.

    Attributes:
        place: host and process.
        folder: of the run on this node.
        failed: why the last call of the collector did not succeed.
    """

    def __init__(self, attempt: int, place: str, send: Send) -> None:
        self.place = place
        self.folder = Path()
        self.failed: Exception | None = None
        self._attempt, self._send = attempt, send
        self._sent: dict[str, int] | None = None
        self._windows: Windows | None = None

    def beginning(self, directory: str) -> dict[str, bytes]:
        """Return what the run directory holds; waits for a process that holds it and may be about to end.

        Raises:
            StoreError: it does not end.
        """
        found: dict[str, bytes] = self._begun("begin", directory)
        return found

    def begin_step(self, directory: str) -> None:
        """Let the folder of a step arrive; waits, and raises, as :meth:`beginning` does."""
        self._begun("begin_step", directory)

    def fetched(self, inputs: Mapping[str, str]) -> dict[str, Path]:
        """Return name → folder of steps on this node, brought here where they are not."""
        return {name: fetch(directory, self.call) for name, directory in inputs.items()}

    def _begun(self, method: str, directory: str) -> Any:
        self.stage("beginning")
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                return self.call(method, directory)
            except StoreError:
                if time.monotonic() > deadline:
                    raise
            self.failed = None
            time.sleep(LOOK_S)

    def stage(self, text: str) -> None:
        self.call("tell", self.place, text, self._windows)

    def begin(self, total: int, done: int, directory: Path) -> None:
        self._windows = (done, total)
        self._grow()

    def window(self, record: WindowRecord) -> None:
        self._grow()
        assert self._windows is not None
        self._windows = (self._windows[0] + 1, self._windows[1])
        self.stage(record.operating_point)

    def send_rest(self) -> None:
        """Send the windows that nobody was told of, and the reports; the summary, which says it is done, last."""
        self._grow()
        others = [file for file in self.folder.iterdir() if file.is_file() and file.name not in (*GROWING, LOCK)]
        others.sort(key=lambda file: (file.name == SUMMARY, file.name))
        for file in others:
            self.call("put", file.name, file.read_bytes())

    def _grow(self) -> None:
        """Send what was committed since the last call: at no moment samples of more than the window that comes next."""
        if self._sent is None:
            self.call("put", MANIFEST, (self.folder / MANIFEST).read_bytes())
            self._sent = dict.fromkeys(GROWING, 0)
            for name in GROWING:  # as it was there, less what no window commits
                self._add(name, self._new(name))
        samples, lines = BytesIO(self._new(SAMPLES)), b""
        for line in self._new(WINDOWS).splitlines(keepends=True):
            if count := json.loads(line)["samples"]:
                self._add(WINDOWS, lines)
                self._add(SAMPLES, b"".join(samples.readline() for _ in range(count)))
                lines = b""
            lines += line
        self._add(WINDOWS, lines)

    def _new(self, name: str) -> bytes:
        """Return what was not sent yet of a file."""
        assert self._sent is not None
        file = self.folder / name
        if not file.exists():
            return b""
        with file.open("rb") as stream:
            stream.seek(self._sent[name])
            return stream.read()

    def _add(self, name: str, data: bytes) -> None:
        assert self._sent is not None
        if data or not self._sent[name]:
            self.call("grow", name, self._sent[name], data)
            self._sent[name] += len(data)

    def call(self, method: str, *arguments: Any) -> Any:
        """Call the collector and wait; raises what it raised."""
        try:
            return self._send(method, self._attempt, *arguments)
        except Exception as error:
            self.failed = error
            raise


def _cores() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0)))) if hasattr(os, "sched_getaffinity") else ""
