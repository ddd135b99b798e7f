"""A real Ray cluster of several nodes on this machine: tasks, one that dies, folders that are carried or shared."""

from __future__ import annotations

import fcntl
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


@pytest.mark.matrix
def test_two_points_are_measured_and_one_that_dies_goes_on(cluster: Any, declare: Declare, tmp_path: Path) -> None:
    grid = read_study(str(declare(seed=[0, 1], run={"limit": 6})))
    points = expand(grid)
    watching = Watching(lambda event: None)
    with StudyDirectory(tmp_path / "s", grid, points) as study, Ray.open({"address": cluster.address}) as executor:
        victim = study.directory(points[0])
        killer = _Killer(victim)
        killer.start()
        outcome = conduct(study, executor, watching)
        killer.join()
    assert (outcome.finished, outcome.failed) == (2, {})
    assert sorted(watching.ends) == ["died", "done", "done"]
    assert [event.what for event in read_events(tmp_path / "s")].count("retried") == 1
    for point in points:
        manifest, windows = _run(study.directory(point))
        assert manifest["placement"]["executor"] == "ray"
        assert sorted(windows) == [(block, name) for block in range(6) for name in ("fixed:layer=4", "full")]
    assert [file.name for file in (tmp_path / "s" / "runs").iterdir() if file.name.startswith(".")] == []


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


def _run(folder: Path) -> tuple[dict[str, Any], list[tuple[int, str]]]:
    lines = [json.loads(line) for line in (folder / "windows.jsonl").read_text().splitlines()]
    counted = [(each["block"], each["operating_point"]) for each in lines if not (each["warmup"] or each["idle"])]
    return json.loads((folder / "manifest.json").read_text()), counted


@pytest.mark.matrix
@pytest.mark.slow
def test_steps_and_points_that_are_not_timed_share_and_nothing_needs_a_file_system(
    cluster: Any, declare: Declare, tmp_path: Path, steps: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    untimed = "\n".join(
        f'[[include]]\nseed = {seed}\nuntimed = true\nartefacts = "{{heads}}"\nduplicates = "keep"' for seed in (4, 5)
    )
    grid = read_study(str(declare(seed=[0], run={"limit": 4}, more=f"{steps()}{untimed}")))
    points = expand(grid)
    monkeypatch.setattr(Path, "touch", lambda *_, **__: None)  # no node sees the marker, as on another file system
    with (
        StudyDirectory(tmp_path / "s", grid, points) as study,
        Ray.open({"address": cluster.address, "share": "2"}) as executor,
    ):
        outcome = conduct(study, executor, Watching(lambda event: None))
        made = [read_step(study.directory(step), verify=True) for step in study.steps]
    assert (outcome.made, outcome.finished, outcome.failed) == (2, 3, {})
    assert None not in made
    assert [read_run(study.directory(point)).manifest.timed for point in points] == [True, False, False]
    found = at_once(tmp_path / "s")
    assert found == [
        *({"step traces"}, {"step heads"}, {points[0].name}),
        *({points[1].name}, {each.name for each in points[1:]}),
    ]


@pytest.mark.slow
def test_a_task_leaves_nothing_where_the_driver_is_out_of_sight(declare: Declare, tmp_path: Path) -> None:
    """Its folder comes back in an archive."""
    point = expand(read_study(str(declare(seed=[0]))))[0]
    job = Job(point.name, tmp_path / "far" / point.name, point.settings, point.model)
    event, archive = run_task(job, tmp_path / "absent", {})
    assert (event.how, event.text) == ("done", "")
    assert archive is not None
    assert not (tmp_path / "far").exists()


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
        second.join(1 if waits else 60)
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
