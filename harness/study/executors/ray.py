"""A Ray cluster: each point or step is one task of it, which returns how it ended and the archive of its folder.

Where the node sees the study's folder nothing is fetched: the task works there. Where it does not, a point that dies
begins anew, for nothing of it has arrived. Which node runs what, Ray decides.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import sys
import tarfile
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Self

from harness.contracts.executors import Executor, Happened, How, Job
from harness.errors import ConfigError, StoreError, reason
from harness.host.libraries import library_border, require
from harness.host.processor import peak_memory_bytes
from harness.store.packed_run import pack_folder, unpack_folder
from harness.store.run_directory import is_held
from harness.study.executors.local import SHARE, part_of, share_of
from harness.study.ledger import in_place_of, is_measured
from harness.study.point_run import run_job
from harness.study.step_run import STEP, read_step

if sys.platform != "win32":
    import fcntl

ANSWER_S = 5.0
BUSY_S = 30.0
"""Seconds in which what an earlier driver left behind lets go of a run directory."""
LOOK_S = 0.2
SILENT: Any = SimpleNamespace(stage=lambda *_: None, begin=lambda *_: None, window=lambda *_: None)
"""A :class:`harness.running.session.Observer` that tells nobody: the task's result says it all."""


class Ray(Executor):
    """Measure points and make steps on a Ray cluster; a point that is measured has its machine to itself.

    Options: ``address`` of the cluster (``auto``, ``HOST:6379``; without it RAY_ADDRESS, or a cluster on this machine);
    ``gpus`` of a measured point (default: 1 where nodes have some). Steps, and points that are not timed, run several
    at once where a measured one would be alone, ``share`` of them (default: as many as their ``threads`` leave cores of
    the smallest node for), and only while none is measured. Nodes need this package and the weights, and no file system
    in common with the driver.
    """

    options = ("address", "gpus", SHARE)

    def __init__(self, ray: Any, gpus: int, share: int | None, opened: ExitStack) -> None:
        self._ray, self._gpus, self._share, self._opened = ray, gpus, share, opened
        # tried once: whoever counts attempts decides what the next one has to itself; and in a process of its own
        self._run = ray.remote(max_retries=0, max_calls=1, scheduling_strategy="SPREAD")(run_task)
        self._running: dict[Any, tuple[Job, Path]] = {}
        self._archives: dict[Path, Any] = {}

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Connect to the cluster, or start one on this machine."""
        share, gpus = share_of(options, cls.options, "ray"), options.get("gpus")
        if gpus is not None and not gpus.isdigit():
            raise ConfigError(f"gpus={gpus} is no number of gpus.")
        with ExitStack() as opened:
            ray = connect(options.get("address"), opened)
            nodes = [row["Resources"] for row in ray.nodes() if row["Alive"]]
            executor = cls(ray, int(gpus or any("GPU" in node for node in nodes)), share, opened)
            if not executor._nodes():
                lacks = f"and {executor._gpus} GPUs " if executor._gpus else ""
                raise ConfigError(
                    f"the Ray cluster has no node with processors {lacks}for a point. Add one: "
                    "`ray start --address=HOST:6379`."
                )
            executor._opened = opened.pop_all()
        return executor

    def _nodes(self) -> list[int]:
        """Return the logical CPUs of each node that is there and can take a measured point."""
        there = (row["Resources"] for row in self._ray.nodes() if row["Alive"])
        return [int(node["CPU"]) for node in there if node.get("CPU") and node.get("GPU", 0) >= self._gpus]

    def has_room(self, job: Job) -> bool:
        """Whether fewer jobs run than the nodes have room for; other users of the cluster do not count."""
        nodes = self._nodes()
        cores = min(nodes, default=1)
        running = (part_of(other, cores, self._share) for other, _ in self._running.values())
        return not self._running or sum(running, part_of(job, cores, self._share)) <= len(nodes)

    def start(self, job: Job) -> None:
        """Give the cluster a task; a file beside the job's folder tells it whether that is on its file system."""
        marker = job.directory.absolute().with_name(f".{uuid.uuid4().hex}.part")
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for folder in set(job.inputs.values()) - self._archives.keys():
            self._archives[folder] = self._ray.put(_packed(folder))
        archives = {name: self._archives[folder] for name, folder in job.inputs.items()}
        inputs = {name: folder.absolute() for name, folder in job.inputs.items()}
        here = replace(job, directory=job.directory.absolute(), inputs=inputs)
        cores = min(self._nodes(), default=1)
        part = part_of(job, cores, self._share)
        asked = {  # above 1 Ray takes whole numbers alone
            name: int(much * part) if much * part >= 1 else int(much * part * 1000) / 1000
            for name, much in (("num_cpus", cores), ("num_gpus", self._gpus))
        }
        self._running[self._run.options(**asked, name=job.name).remote(here, marker, archives)] = job, marker

    def wait(self) -> Happened:
        """Wait until a task ends."""
        errors = self._ray.exceptions
        try:
            (result, *_), _ = self._ray.wait(list(self._running))
        except errors.RayError as error:
            raise StoreError(
                f"the Ray cluster does not answer any more: {_line_of(error).rstrip('.')}. What has arrived is "
                "kept; give the same command again to go on."
            ) from None
        job, marker = self._running.pop(result)
        try:
            event, archive = self._ray.get(result)
        except errors.RayError as error:
            how: How = "out-of-memory" if isinstance(error, errors.OutOfMemoryError) else "died"
            event, archive = Happened(job, how, _line_of(error)), None
        marker.unlink(missing_ok=True)
        if event.how == "done":
            how, text = _arrived(job, archive)
            event = replace(event, how=how, text=text)
        happened: Happened = replace(event, job=job)
        return happened

    def close(self) -> None:
        """Stop what runs, and leave the cluster."""
        for result, (_, marker) in self._running.items():
            with suppress(Exception):  # it may be gone already
                self._ray.cancel(result, force=True)
            marker.unlink(missing_ok=True)
        self._running = {}
        self._opened.close()


def run_task(job: Job, marker: Path, archives: Mapping[str, Any]) -> tuple[Happened, bytes | None]:
    """Run a job on a node: the body of a task.

    ``marker`` is a file that the driver has made beside the job's folder, ``archives`` name → reference to the archive
    of each step that the job reads. The archive of its folder is returned where the driver does not see it.
    """
    is_shared = marker.exists()
    place, archive = f"{platform.node()}:{os.getpid()}", None
    placement = {"executor": "ray", "process": place}
    with (
        _machine(alone=not job.shares),
        tempfile.TemporaryDirectory(prefix="harness-point-", ignore_cleanup_errors=True) as scratch,
    ):
        if is_shared:
            deadline = time.monotonic() + BUSY_S
            while is_held(job.directory) and time.monotonic() < deadline:
                time.sleep(LOOK_S)
            how, text = run_job(job, SILENT, placement)
        else:
            inputs = {name: Path(scratch, "steps", folder.name) for name, folder in job.inputs.items()}
            for name, folder in inputs.items():
                unpack_folder(import_module("ray").get(archives[name]), folder)
            here = replace(job, directory=Path(scratch, "runs", job.directory.name), inputs=inputs)
            here.directory.parent.mkdir()
            how, text = run_job(here, SILENT, placement)
            text = text.replace(str(here.directory), str(job.directory))
            if how == "done":
                archive = _packed(here.directory)
            elif how == "stopped":  # for want of room on this node alone
                how, text = "died", f"{platform.node()} cannot write what it measures: {text}"
    return Happened(job, how, text, place, memory_bytes=peak_memory_bytes()), archive


def _machine(*, alone: bool) -> IO[bytes]:
    """Return a lock of this machine, held until it is closed, once nobody has it alone; or nobody at all.

    So no two points are measured on one machine, whatever studies they are of, nor does anything share with one that
    is. Users of a machine do not see each other's.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    lock = Path(tempfile.gettempdir(), f"harness-measures-{user}").open("ab")  # noqa: SIM115  # the caller closes it
    if sys.platform != "win32":
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
    return lock


def _packed(folder: Path) -> bytes:
    """Return the archive of a finished run directory, or of the folder of a step."""
    record = read_step(folder)
    if record is not None:
        return pack_folder(folder, [*record.files, STEP])
    return pack_folder(folder, sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")))


def _arrived(job: Job, archive: bytes | None) -> tuple[How, str]:
    """Put what a task has finished in the study's folder; return whether it is whole there, and why not."""
    try:
        if archive is not None:
            with in_place_of(job.directory, f"cannot write {job.directory}") as folder:
                unpack_folder(archive, folder)
        if job.command is None:
            whole = is_measured(job.directory)
        else:
            whole = read_step(job.directory, job.command.identity, verify=archive is not None) is not None
    except StoreError as error:
        return "stopped", str(error)
    except tarfile.TarError as error:
        return "died", f"what it left did not arrive whole ({reason(error)})"
    return ("done", "") if whole else ("died", f"what it left did not arrive in {job.directory}. Look at that disk.")


def _line_of(error: BaseException) -> str:
    """Return the line of Ray's long messages that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return [lines[0], *(line for line in lines if "Error" in line or "died" in line or "killed" in line)][-1][:300]


def connect(address: str | None, opened: ExitStack) -> Any:
    """Connect to a cluster, or start one on this machine, and return the module ``ray``."""
    require("cluster", "ray")
    hide_amdsmi(opened)
    what, remedy = "Ray does not start on this machine", "Start it (`ray start --head`), which says why it cannot."
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        what = f"no Ray cluster answers at {address}"
        remedy = "Start one (`ray start --head`), or leave --address and RAY_ADDRESS out for one on this machine."
    with library_border(what, remedy, ConfigError):
        ray: Any = import_module("ray")
        host, _, port = (address or "").rpartition(":")
        if port.isdigit():  # Ray itself waits for minutes before it says that nobody is there
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, ignore_reinit_error=True)
    opened.callback(ray.shutdown)
    return ray


def hide_amdsmi(opened: ExitStack) -> None:
    """Let Ray, here and in the processes that it starts, find no ``amdsmi`` where that cannot be imported.

    Zeus brings the package to every machine; without AMD's library its import raises KeyError, and Ray from 2.56 on is
    prepared for ImportError alone.
    """
    try:
        with redirect_stdout(None):  # where it prints what it misses
            import_module("amdsmi")
    except Exception:
        sys.modules["amdsmi"] = None  # type: ignore[assignment]
        absent = opened.enter_context(tempfile.TemporaryDirectory(prefix="harness-", ignore_cleanup_errors=True))
        Path(absent, "amdsmi.py").write_text("raise ImportError\n", encoding="ascii")
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [absent, before]))
        opened.callback(os.environ.__setitem__, "PYTHONPATH", before)
