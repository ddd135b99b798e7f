"""The two ends of a point on a cluster: what measures it on its node, and what collects its records beside the driver.

Records cross as bytes of an append-only file from an offset on, samples before the window that commits them, and each
window is acknowledged before the next one begins. So the study's folder always holds a run that can go on elsewhere,
whatever dies, and nodes need no file system in common. Imports no Ray: a node needs this package, and the weights.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from harness.contracts.executors import How
from harness.errors import ConfigError
from harness.host.atomic_files import replace_files
from harness.host.memory import peak_memory_bytes
from harness.records import WindowRecord
from harness.running.kept_model import KeptModel
from harness.store.record_files import append
from harness.store.run_directory import LOCK, MANIFEST, SAMPLES, WINDOWS
from harness.study.point_run import measure_point

if sys.platform != "win32":
    import fcntl

__all__ = ["Collector", "PointWorker"]

GROWING = (SAMPLES, WINDOWS)
Send = Callable[..., Any]


class Collector:
    """Writes what nodes send into the study's folder; one for all points, on the driver's machine."""

    def __init__(self) -> None:
        self._told: list[tuple[str, str, tuple[int, int] | None]] = []

    def grow(self, directory: str, name: str, offset: int, data: bytes) -> None:
        """Append to a file of records from an offset on; what stands behind the offset was never committed."""
        file = Path(directory) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size if file.exists() else 0
        if size > offset:
            with file.open("r+b") as stream:
                stream.truncate(offset)
        elif size < offset:
            raise OSError(f"{file} has {size} bytes where {offset} were sent before")
        if data:
            append(file, data)

    def put(self, directory: str, files: Mapping[str, bytes]) -> None:
        """Write or replace whole files of a run."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        replace_files({folder / name: data for name, data in files.items()}, durable=True)

    def tell(self, job: str, text: str, windows: tuple[int, int] | None) -> None:
        """Note what a job is doing."""
        self._told.append((job, text, windows))

    def told(self) -> list[tuple[str, str, tuple[int, int] | None]]:
        """Return what was noted since the last call."""
        told, self._told = self._told, []
        return told


class PointWorker:
    """Measures points on a node, on processor cores of its own, and sends every window where the study is.

    Args:
        cores: how many to hold; 0 for all that the process may use.
    """

    def __init__(self, cores: int) -> None:
        self._model = KeptModel()
        self._held = _own_cores(cores)

    def place(self) -> tuple[str, float]:
        """Return host and process, and the clock of the node, seconds since 1970."""
        return f"{platform.node()}:{os.getpid()}", time.time()

    def measure(
        self, name: str, directory: str, beginning: Mapping[str, bytes], settings: str, send: Send
    ) -> tuple[How, str, int]:
        """Measure a point, or go on with it.

        Args:
            name: of the point.
            directory: its run directory on the driver's machine.
            beginning: what it holds.
            settings: of the run, JSON.
            send: ``send(method, *arguments)`` calls the collector and waits.

        Returns:
            How it ended, why, and the most memory that the process held.
        """
        scratch = Path(tempfile.mkdtemp(prefix="harness-point-"))
        folder = scratch / name
        folder.mkdir()
        try:
            for file, data in beginning.items():
                (folder / file).write_bytes(data)
            stream = _Stream(name, directory, folder, send)
            placement = {"executor": "ray", "process": self.place()[0], "cores": _cores()}
            how, text = measure_point(folder, json.loads(settings), stream, self._model, placement)
            if how == "done":
                stream.send_rest()
            return how, text, peak_memory_bytes()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


class _Stream:
    """Implements :class:`harness.running.session.Observer`: sends what was committed, between windows."""

    def __init__(self, job: str, directory: str, folder: Path, send: Send) -> None:
        self._job, self._directory, self._folder, self._send = job, directory, folder, send
        self._sent: dict[str, int] | None = None
        self._windows: tuple[int, int] | None = None

    def stage(self, text: str) -> None:
        self._send("tell", self._job, text, self._windows)

    def begin(self, total: int, done: int, directory: Path) -> None:
        self._windows = (done, total)
        self._grow()

    def window(self, record: WindowRecord) -> None:
        self._grow()
        assert self._windows is not None
        self._windows = (self._windows[0] + 1, self._windows[1])
        self._send("tell", self._job, record.operating_point, self._windows)

    def send_rest(self) -> None:
        """Send the windows that nobody was told of, and the reports; the summary, which says it is done, last."""
        self._grow()
        others = [file for file in self._folder.iterdir() if file.is_file() and file.name not in (*GROWING, LOCK)]
        others.sort(key=lambda file: (file.name == "summary.json", file.name))
        for file in others:
            self._send("put", self._directory, {file.name: file.read_bytes()})

    def _grow(self) -> None:
        if self._sent is None:  # what the node cut off after the last commit goes there, too
            self._send("put", self._directory, {MANIFEST: (self._folder / MANIFEST).read_bytes()})
            self._sent = dict.fromkeys(GROWING, 0)
        for name in GROWING:
            file = self._folder / name
            if not file.exists():
                continue
            with file.open("rb") as stream:
                stream.seek(self._sent[name])
                data = stream.read()
            self._send("grow", self._directory, name, self._sent[name], data)
            self._sent[name] += len(data)


def _own_cores(count: int) -> list[IO[bytes]]:
    """Pin this process to cores that no other point on this machine holds; locks die with the process.

    Raises:
        ConfigError: there are not so many free.
    """
    if not count or sys.platform == "win32" or not hasattr(os, "sched_setaffinity"):
        return []
    folder = Path(tempfile.gettempdir()) / f"harness-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    held: dict[int, IO[bytes]] = {}
    for core in sorted(os.sched_getaffinity(0)):
        lock = (folder / str(core)).open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        held[core] = lock
        if len(held) == count:
            break
    if len(held) < count:
        raise ConfigError(
            f"{platform.node()} has {len(held)} free cores where a point wants {count}. Use fewer: cpus=N."
        )
    os.sched_setaffinity(0, held)
    return list(held.values())


def _cores() -> str:
    return ",".join(map(str, sorted(os.sched_getaffinity(0)))) if hasattr(os, "sched_getaffinity") else ""
