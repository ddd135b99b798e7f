"""Steps on a cluster: folders cross in pieces, and are whole where they are used, whatever dies."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.contracts.executors import Command, Happened
from harness.errors import StoreError
from harness.running.reading import read_run
from harness.store.run_directory import lock_folder
from harness.study import step_folder as waiting_lock
from harness.study import step_run
from harness.study.conduct import conduct
from harness.study.executors import ray_collector, ray_worker
from harness.study.executors import ray_collector as ray_steps
from harness.study.executors.ray_collector import UNUSED_S, Collector, fetch
from harness.study.executors.ray_worker import Ended, PointWorker
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory, read_events
from harness.study.step_folder import STEP, lock_of, read_step, wait_for_lock
from tests.run_files import cut

from .step_commands import Commands
from .test_local import Watching

Declare = Callable[..., Path]
TRACE = Command(("trace", "--model", "smollm2-135m"), "id of traces")
HEADS = Command(("train", "classifier", "--traces", "{traces}"), "id of heads")
MEMORY = 80_000_000
STEP_T = '[[step]]\nname = "t"\ncommand = "trace"'


class GoneError(Exception):
    """What Ray raises where the collector died."""


class Made:
    """What commands leave on a node, and a collector beside the driver, without Ray between them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.study, self.commands, self.collector = folder / "s", Commands(), Collector()
        self.calls: list[str] = []
        self.fails: dict[str, list[Exception | None]] = {}
        self._attempt = 0
        monkeypatch.setattr(step_run, "_run", self.commands)
        monkeypatch.setattr(ray_collector, "PIECE", 7)
        monkeypatch.setattr(ray_steps, "PIECE", 7)

    def send(self, method: str, attempt: int, *arguments: Any) -> Any:
        self.calls.append(method)
        error = (self.fails.get(method) or [None]).pop(0)
        if error is not None:
            raise error
        return getattr(self.collector, method)(attempt, *arguments)

    def make(self, name: str, command: Command, **inputs: Path) -> Ended:
        """One attempt by one process."""
        self._attempt += 1
        named = {key: str(path) for key, path in inputs.items()}
        try:
            return PointWorker(0).make(self._attempt, str(self.folder(name)), command, named, self.send)
        finally:
            self.collector.end(self._attempt)

    def folder(self, name: str) -> Path:
        return self.study / "steps" / f"{name}-0"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    return Made(tmp_path, monkeypatch)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """``node(name)`` lets what follows be on a machine with a temporary folder of its own."""

    def on(name: str) -> Path:
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
        return tmp_path / name

    return on


def test_a_step_is_made_on_one_node_and_read_on_another(made: Made, node: Callable[[str], Path]) -> None:
    node("first")
    assert made.make("traces", TRACE).how == "done"
    traces = made.folder("traces")
    record = read_step(traces, TRACE.identity)
    assert record is not None
    assert made.calls.count("add") == sum(-(-file.bytes // 7) for file in record.files.values()) > 10
    assert [entry.name for entry in traces.parent.iterdir()] == [traces.name]  # nothing is left beside it
    assert not (traces / ".lock").exists()

    second = node("second")
    made.calls.clear()
    assert made.make("heads", HEADS, traces=traces).how == "done"
    said = made.commands.called[-1]
    (there,) = second.glob("harness-steps-*/traces-0-*")
    assert said[:5] == ["train", "classifier", "--traces", str(there), "--out"]
    assert (there / "made.json").read_bytes() == (traces / "made.json").read_bytes()
    assert made.calls.count("piece") > 10
    made.calls.clear()
    shutil.rmtree(made.folder("heads"))
    assert made.make("heads", HEADS, traces=traces).how == "done"  # another process of the same node
    assert "piece" not in made.calls


def test_a_node_that_is_lost_leaves_nothing_that_is_used(made: Made) -> None:
    for method, calls in (("tell", 2), ("add", 3), ("finish_step", 1)):
        made.fails[method] = [*[None] * (calls - 1), GoneError()]
        with pytest.raises(GoneError):
            made.make("traces", TRACE)
        assert read_step(made.folder("traces")) is None
        assert not made.folder("traces").exists()
    (arriving,) = made.folder("traces").parent.iterdir()
    assert arriving.name == ".traces-0.part"
    (arriving / "of another attempt").touch()
    assert made.make("traces", TRACE).how == "done"
    record = read_step(made.folder("traces"))
    assert record is not None
    assert {file.name for file in made.folder("traces").iterdir()} == {*record.files, STEP}
    with pytest.raises(StoreError, match="attempt 1 is over"):
        made.collector.add(1, "made.json", b"late")


def test_what_did_not_arrive_whole_is_no_folder(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    append = ray_collector.append
    monkeypatch.setattr(ray_collector, "append", lambda file, data: append(file, data[:-1]))
    ended = made.make("traces", TRACE)
    assert (ended.how, ended.text[:38]) == ("lost", "not all files of the step arrived in /")
    assert not made.folder("traces").exists()


def test_two_attempts_do_not_write_one_step(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_worker, "BUSY_S", 0.0)
    arriving = made.folder("traces").with_name(".traces-0.part")
    arriving.mkdir(parents=True)
    with lock_folder(arriving):
        ended = made.make("traces", TRACE)
    assert (ended.how, ended.text) == (
        "refused", f"the step {arriving} is in use by another process. Stop it or wait for it."
    )  # fmt: skip
    assert made.commands.called == []
    assert made.make("traces", TRACE).how == "done"


def test_whose_disk_is_full_decides_what_becomes_of_it(made: Made, tiny_llama: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    made.fails["add"] = [full]
    ended = made.make("traces", TRACE)
    assert (ended.how, ended.lacks) == ("stopped", "")
    assert ended.text.startswith(f"cannot write to {made.folder('traces')}: No space left on device.")
    made.commands.ends["traces"] = [(2, "error: cannot write /tmp/x: No space left on device.")]
    ended = made.make("traces", TRACE)
    assert (ended.how, ended.lacks) == ("unfit", "room")
    assert ended.text == "it cannot write what it measures: cannot write /tmp/x: No space left on device"
    made.commands.ends["traces"] = [(2, f"error: {made.folder('traces')} is refused.")]
    ended = made.make("traces", Command(("trace", "--model", "/nowhere"), "id"))
    assert (ended.how, ended.lacks) == ("unfit", "model")
    made.commands.ends["traces"] = [(2, "error: --documents 1 is too few.")]
    ended = made.make("traces", Command(("trace", "--model", str(tiny_llama)), "id"))
    assert (ended.how, ended.lacks, ended.text) == ("refused", "", "--documents 1 is too few.")


def test_what_is_brought_to_a_node_is_what_the_study_has(made: Made, node: Callable[[str], Path]) -> None:
    made.make("traces", TRACE)
    traces, here = made.folder("traces"), node("here")

    def call(method: str, *arguments: Any) -> Any:
        return made.send(method, 0, *arguments)

    there = fetch(str(traces), call)
    assert fetch(str(traces), call) == there
    (there / "made.json").write_text("")  # something cleaned up
    assert fetch(str(traces), call) == there
    assert read_step(there) is not None
    old = there.with_name("old-0-0123456789")
    old.mkdir()
    os.utime(old, (0, time.time() - UNUSED_S - 60))
    shutil.rmtree(there)
    assert fetch(str(traces), call) == there
    assert kept(here) == [there.name]
    shutil.rmtree(there)
    text = (traces / "made.json").read_text()
    (traces / "made.json").write_text(text.swapcase())  # as long as it was
    with pytest.raises(StoreError, match=r"made\.json was changed since the step was made\. Delete /") as refused:
        fetch(str(traces), call)
    assert f"Delete {traces}; the same command with --retry-failed makes it again." in str(refused.value)
    assert kept(here) == []


def kept(node: Path) -> list[str]:
    """What was brought to a node, locks apart."""
    return [entry.name for entry in node.glob("harness-steps-*/*") if entry.suffix != ".lock"]


def test_one_process_of_a_node_brings_a_step_and_another_waits_for_it(
    made: Made, node: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.make("traces", TRACE)
    traces, here = str(made.folder("traces")), node("here")
    monkeypatch.setattr(waiting_lock, "LOOK_S", 0.01)
    found: list[Path] = []
    pieces: list[str] = []
    second = threading.Thread(target=lambda: found.append(fetch(traces, call)))

    def call(method: str, *arguments: Any) -> Any:
        if method == "piece":
            pieces.append(threading.current_thread().name)
            if second.ident is None:  # in the middle of the first one's
                second.start()
                second.join(timeout=0.3)
                assert second.is_alive()
        return made.send(method, 0, *arguments)

    first = fetch(traces, call)
    second.join(timeout=30)
    assert found == [first]
    assert set(pieces) == {threading.current_thread().name}
    assert read_step(first, verify=True) is not None
    assert kept(here) == [first.name]


def test_what_somebody_is_about_to_use_is_not_removed(made: Made, node: Callable[[str], Path]) -> None:
    made.make("traces", TRACE)
    made.make("others", Command(("trace", "--length", "9"), "id of others"))
    node("here")

    def call(method: str, *arguments: Any) -> Any:
        return made.send(method, 0, *arguments)

    used = fetch(str(made.folder("traces")), call)
    os.utime(used, (0, time.time() - UNUSED_S - 60))
    with wait_for_lock(lock_of(used)):
        there = fetch(str(made.folder("others")), call)
    assert used.is_dir()
    shutil.rmtree(there)
    fetch(str(made.folder("others")), call)
    assert not used.exists()


@pytest.mark.parametrize("name", ["../../outside", "/outside", ""])
def test_a_node_names_no_file_outside_of_a_step(made: Made, tmp_path: Path, name: str) -> None:
    made.collector.begin_step(1, str(made.folder("traces")))
    with pytest.raises(StoreError, match="is no path below"):
        made.collector.add(1, name, b"data")
    with pytest.raises(StoreError, match="is no path below"):
        made.collector.piece(1, str(made.folder("traces")), name, 0)


def test_a_folder_of_somebody_else_is_not_read(
    made: Made, node: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a temporary folder that all users share, another one may be first."""
    made.make("traces", TRACE)
    user = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: user)
    (node("here") / f"harness-steps-{user}").mkdir()
    ended = made.make("heads", HEADS, traces=made.folder("traces"))
    assert (ended.how, ended.lacks) == ("unfit", "folder")  # of this node: another one can
    assert "belongs to another user" in ended.text


def test_a_point_goes_on_where_its_steps_lie_as_before_and_else_says_so(
    made: Made, node: Callable[[str], Path], declare: Declare, tmp_path: Path
) -> None:
    (point,) = expand(read_study(str(declare(run={"artefacts": "{t}", "limit": 3}, more=STEP_T))))
    made.make("t", TRACE)
    run = tmp_path / "run"

    def measured(attempt: int) -> Ended:
        inputs = {"t": str(made.folder("t"))}
        try:
            return PointWorker(0).measure(attempt, "point", str(run), point.settings, made.send, inputs)
        finally:
            made.collector.end(attempt)

    node("first")
    assert measured(10).how == "done"
    cut(run, -3)
    (run / "summary.json").unlink()
    kept = (run / "windows.jsonl").read_bytes()
    assert measured(11).how == "done"
    assert (run / "windows.jsonl").read_bytes().startswith(kept)
    cut(run, -3)
    (run / "summary.json").unlink()
    second = node("second")
    ended = measured(12)
    assert ended.how == "elsewhere"
    assert f"now {second}" in ended.text


# -------------------------------------------------------------------------------------------- a real cluster

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without processors and a node of one, whose temporary folder is its own."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
        add_node(running, tmp_path_factory.mktemp("first"))
        yield running
        ray.shutdown()
        running.shutdown()


def add_node(cluster: Any, temporary: Path) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=MEMORY, env_vars={"TMPDIR": str(temporary)})


@pytest.mark.matrix
@pytest.mark.slow
def test_steps_are_made_on_nodes_and_what_is_lost_is_made_elsewhere(
    cluster: Any,
    declare: Declare,
    tmp_path: Path,
    steps: Callable[..., str],
) -> None:
    from harness.study.executors.ray import Ray

    (tmp_path / "second").mkdir()
    more = f'{steps()}[[include]]\nartefacts = "{{heads}}"\nstrategies = ["classifier:threshold=0.5"]\n'
    more += 'duplicates = "keep"\n'
    grid = read_study(str(declare(more=more)))
    points = expand(grid)
    places: dict[str, list[str]] = {}
    killed: list[str] = []

    class Killing(Watching):
        def happened(self, event: Happened) -> None:
            super().happened(event)
            if event.ended:
                places.setdefault(event.job.name, []).append(event.how)
            elif not killed and event.job.name == "step heads":
                killed.append(event.text)
                time.sleep(1)  # its command has begun, and is no further than its imports
                cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
                add_node(cluster, tmp_path / "second")

    with (
        StudyDirectory(tmp_path / "s", grid, points) as study,
        Ray.open({"address": cluster.address, "cpus": "1"}) as executor,
    ):
        outcome = conduct(study, executor, Killing(lambda event: None))
        folders = [study.directory(step) for step in study.steps]
        (run,) = (read_run(study.directory(point)) for point in points)
    assert (outcome.made, outcome.finished, outcome.failed) == (2, 1, {})
    assert killed
    assert places["step heads"] == ["lost", "done"]
    assert all(read_step(folder) is not None for folder in folders)
    assert Path(run.manifest.config["artefacts"]).is_relative_to(tmp_path / "second")
    artefact = json.loads((folders[1] / "classifier.json").read_text())
    used = {digest for point in run.manifest.operating_points for digest in point.artefacts.values()}
    assert used == {artefact["sha256"]}
    assert [event.what for event in read_events(tmp_path / "s") if event.point == "step traces"] == [
        "started", "finished"
    ]  # fmt: skip
