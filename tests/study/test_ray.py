"""A real Ray cluster of several nodes on this machine: tasks, one that dies, folders that are carried or shared."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts.executors import Job
from harness.errors import ConfigError, StoreError
from harness.running.reading import read_run
from harness.study.conduct import conduct
from harness.study.executors import ray as ray_executor
from harness.study.executors.ray import Ray, run_task
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory
from harness.study.step_run import read_step

from .made_up import Watching, read_events
from .test_local import at_once

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `cluster` is not installed")

Declare = Callable[..., Path]
MEMORY = 80_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and two nodes of one each."""
    with pytest.MonkeyPatch.context() as patch, ExitStack() as until:
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        ray_executor.hide_amdsmi(until)
        from ray.cluster_utils import Cluster

        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
        for _ in range(2):
            running.add_node(num_cpus=1, object_store_memory=MEMORY)
        yield running
        running.shutdown()


class _Killer(threading.Thread):
    """Kills the process of a run when its second window is there."""

    def __init__(self, run: Path) -> None:
        super().__init__(daemon=True)
        self._folder = run

    def run(self) -> None:
        windows = self._folder / "windows.jsonl"
        while not (windows.exists() and windows.read_bytes().count(b"\n") >= 2):
            time.sleep(0.01)
        process = json.loads((self._folder / "manifest.json").read_text())["placement"]["process"]
        os.kill(int(process.rpartition(":")[2]), signal.SIGKILL)


@pytest.mark.matrix
def test_a_step_and_points_need_no_file_system_in_common_and_a_point_that_dies_goes_on_where_there_is_one(
    cluster: Any, declare: Declare, tmp_path: Path, steps: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step, a measured point, which dies, two untimed ones that share a machine, and the lost one again."""
    untimed = "\n".join(
        f'[[include]]\nseed = {seed}\nuntimed = true\nartefacts = "{{heads}}"\nduplicates = "keep"' for seed in (4, 5)
    )
    grid = read_study(str(declare(seed=[0], run={"limit": 4}, more=f"{steps()}{untimed}")))
    points = expand(grid)
    tasks, touch = itertools.count(), Path.touch

    def marked(path: Path) -> None:
        if path.suffix != ".part" or next(tasks) in (2, 5):  # the other tasks see no marker, as on another file system
            touch(path)

    monkeypatch.setattr(Path, "touch", marked)
    watching = Watching(lambda event: None)
    with (
        StudyDirectory(tmp_path / "s", grid, points) as study,
        Ray.open({"address": cluster.address, "share": "2"}) as executor,
    ):
        killer = _Killer(study.directory(points[0]))
        killer.start()
        outcome = conduct(study, executor, watching)
        made = read_step(study.directory(study.steps[0]), verify=True)
    killer.join()
    assert (outcome.made, outcome.finished, outcome.failed) == (2, 3, {})
    assert watching.ends == ["done", "done", "died", "done", "done", "done"]
    assert made is not None
    assert at_once(tmp_path / "s") == [
        {"step traces"},
        {"step heads"},
        {points[0].name},
        {points[1].name},
        {each.name for each in points[1:]},
        {points[0].name},
    ]
    for point in points:
        manifest = read_run(study.directory(point)).manifest
        assert (manifest.placement["executor"], manifest.timed) == ("ray", point is points[0])
        windows = map(json.loads, (study.directory(point) / "windows.jsonl").read_text().splitlines())
        counted = [(each["block"], each["operating_point"]) for each in windows if not (each["warmup"] or each["idle"])]
        assert sorted(counted) == [(block, name) for block in range(4) for name in ("fixed:layer=4", "full")]
    assert [file.name for file in (tmp_path / "s" / "runs").iterdir() if file.name.startswith(".")] == []
    assert not (tmp_path / "s" / "aside").exists()  # no node wrote where it saw nothing


@pytest.mark.parametrize(
    ("shares", "held", "waits"),
    [
        (False, fcntl.LOCK_SH, True),  # measured, and something shares the machine
        (True, fcntl.LOCK_EX, True),  # shares, and something is measured
        (True, fcntl.LOCK_SH, False),
    ],
)
def test_nothing_runs_on_a_machine_beside_a_point_that_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool, held: int, waits: bool
) -> None:
    """Whichever study of the same user the other is of; a job that is refused takes no time."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    job = Job("a", tmp_path / "a", {"limit": -1}, ("m",), shares=shares)
    ends = [run_task(job, tmp_path / "absent", {})]
    (lock,) = tmp_path.glob("harness-measures-*")
    second = threading.Thread(target=lambda: ends.append(run_task(job, tmp_path / "absent", {})))
    with lock.open("ab") as other:
        fcntl.flock(other, held)
        second.start()
        second.join(0.3 if waits else 60)
        assert second.is_alive() is waits
    second.join(60)
    assert [end[0].how for end in ends] == ["refused", "refused"]


def test_a_cluster_that_does_not_answer_any_more_stops_the_study_and_fails_no_point(
    declare: Declare, tmp_path: Path
) -> None:
    class GoneError(Exception):
        pass

    def wait(results: object) -> None:
        raise GoneError("The driver was unexpectedly disconnected.")

    task = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: object()))
    gone: Any = SimpleNamespace(
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": 1}}], remote=lambda **_: lambda body: task, wait=wait,
        exceptions=SimpleNamespace(RayError=GoneError),
    )  # fmt: skip
    grid = read_study(str(declare(seed=[0, 1])))
    with (
        StudyDirectory(tmp_path / "s", grid, expand(grid)) as study,
        Ray(gone, 0, None, ExitStack()) as executor,
        pytest.raises(StoreError, match=r"^the Ray cluster does not answer any more: .* disconnected\. .*same command"),
    ):
        conduct(study, executor, Watching(lambda event: None))
    assert [event.what for event in read_events(tmp_path / "s")] == ["started"]
    assert list((tmp_path / "s").rglob("*.part")) == []


def test_refusals() -> None:
    for options, said in (
        ({"cores": "1"}, r"no option 'cores'\. Known: address, gpus, share\."),
        ({"gpus": "few"}, r"gpus=few is no number of gpus\."),
        ({"address": "127.0.0.1:1"}, r"no Ray cluster answers at 127\.0\.0\.1:1: .*Start one \(`ray start --head`\)"),
    ):
        with pytest.raises(ConfigError, match=said):
            Ray.open(options)
