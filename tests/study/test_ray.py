"""A real Ray cluster of several nodes on this machine: points side by side, a worker and a node that die."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.running.reading import read_run
from harness.study.conduct import conduct
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory

from .test_local import Watching, at_once

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")

pytestmark = pytest.mark.matrix

Declare = Callable[..., Path]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A head without processors and two nodes of one each; real cores stay unpinned, since there may be only one."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    for _ in range(2):
        running.add_node(num_cpus=1, object_store_memory=80_000_000)
    yield running
    ray.shutdown()
    running.shutdown()


def test_points_run_side_by_side_and_what_dies_goes_on_elsewhere(
    cluster: Any, declare: Declare, tmp_path: Path
) -> None:
    from harness.study.executors.ray import Ray

    grid = read_study(str(declare(seed=[0, 1, 2], run={"limit": 6})))
    deaths: list[str] = []

    def once_each(event: Any) -> None:
        if event.windows[0] < 2 or event.job.name in deaths:
            return
        if not deaths:  # a worker
            deaths.append(event.job.name)
            os.kill(int(_process(event.job.directory)), signal.SIGKILL)
        elif len(deaths) == 1:  # a whole node, and another one comes
            deaths.append(event.job.name)
            cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)

    watching = Watching(once_each)
    points = expand(grid)
    with (
        StudyDirectory(tmp_path / "s", grid, points) as study,
        Ray.open({"address": cluster.address, "cpus": "1"}) as executor,
    ):
        outcome = conduct(study, executor, watching)
    assert outcome.failed == {}
    assert outcome.finished == len(points)
    assert watching.ends.count("done") == len(points)
    assert 1 <= watching.ends.count("lost") <= 3
    for point in points:
        run = study.directory(point)
        windows = [json.loads(line) for line in (run / "windows.jsonl").read_text().splitlines()]
        counted = [(each["block"], each["operating_point"]) for each in windows if not (each["warmup"] or each["idle"])]
        assert sorted(counted) == [(block, name) for block in range(6) for name in ("fixed:layer=4", "full")]
        manifest = json.loads((run / "manifest.json").read_text())
        assert manifest["placement"]["executor"] == "ray"


def test_points_that_are_not_timed_share_nodes_and_never_with_one_that_is(
    cluster: Any, declare: Declare, tmp_path: Path
) -> None:
    from harness.study.executors.ray import Ray

    untimed = "\n".join(f"[[include]]\nseed = {seed}\nuntimed = true" for seed in range(4, 8))
    grid = read_study(str(declare(seed=[0], run={"limit": 4}, more=untimed)))
    points = expand(grid)
    with (
        StudyDirectory(tmp_path / "s", grid, points) as study,
        Ray.open({"address": cluster.address, "cpus": "1", "share": "2"}) as executor,
    ):
        outcome = conduct(study, executor, Watching(lambda event: None))
        timed = [read_run(study.directory(point)).manifest.timed for point in points]
    assert (outcome.finished, outcome.failed) == (5, {})
    assert timed == [True, *[False] * 4]
    found = at_once(tmp_path / "s")
    assert found[0] == {points[0].name}
    assert found[4] == {point.name for point in points[1:]}  # four on two nodes
    assert not any(points[0].name in names for names in found[1:])


def _process(directory: Path) -> str:
    """The process that began a run, as its manifest has it."""
    manifest = json.loads((directory / "manifest.json").read_text())
    return str(manifest["placement"]["process"]).rpartition(":")[2]


def test_refusals() -> None:
    from harness.study.executors.ray import Ray

    with pytest.raises(ConfigError, match=r"no option 'cores'\. Known: address, cpus, gpus, share\."):
        Ray.open({"cores": "1"})
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:1: "):
        Ray.open({"address": "127.0.0.1:1"})
