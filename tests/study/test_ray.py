"""A real Ray cluster of several nodes on this machine: points side by side, a worker and a node that die."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, StoreError
from harness.host.processor import sibling_sets
from harness.running.reading import read_run
from harness.study.conduct import conduct
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory

from .test_local import Watching, at_once

ray = pytest.importorskip("ray", reason="the extra `cluster` is not installed")

pytestmark = pytest.mark.matrix

Declare = Callable[..., Path]
MEMORY = 80_000_000
ABSENT = """
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "harness":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Absent())
"""
"""A node's Python runs it at its start."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without processors and two nodes of one each."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")
        running = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": MEMORY})
        for _ in range(2):
            running.add_node(num_cpus=1, object_store_memory=MEMORY)
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
            cluster.add_node(num_cpus=1, object_store_memory=MEMORY)

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


def test_measured_points_have_physical_cores_of_their_own(cluster: Any, declare: Declare, tmp_path: Path) -> None:
    from harness.study.executors.ray import Ray

    if len(sibling_sets()) < 2:
        pytest.skip("needs two cores that processes can be pinned to")
    grid = read_study(str(declare(seed=[0, 1])))
    points = expand(grid)
    with (
        StudyDirectory(tmp_path / "s", grid, points) as study,
        Ray.open({"address": cluster.address, "cpus": "1"}) as executor,
    ):
        assert conduct(study, executor, Watching(lambda event: None)).finished == 2
        runs = [study.directory(point) for point in points]
    assert at_once(tmp_path / "s")[1] == {point.name for point in points}  # both processes live until the end
    cores = [json.loads((run / "manifest.json").read_text())["placement"]["cores"] for run in runs]
    held = [tuple(map(int, each.split(","))) for each in cores]
    assert held[0] != held[1]
    assert set(held) <= set(sibling_sets())


def test_points_go_where_the_package_and_the_weights_are(
    cluster: Any, declare: Declare, tmp_path: Path, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from harness.study.executors.ray import Ray

    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(ABSENT)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "tiny").symlink_to(tiny_llama)
    of_nodes = [{"PYTHONPATH": str(tmp_path / "bare")}, {"HOME": str(tmp_path / "home")}]
    added = [cluster.add_node(num_cpus=1, object_store_memory=MEMORY, env_vars=each) for each in of_nodes]
    grid = read_study(str(declare(seed=[0, 1, 2], run={"model": "~/tiny"})))
    try:
        with (
            StudyDirectory(tmp_path / "s", grid, expand(grid)) as study,
            Ray.open({"address": cluster.address, "cpus": "1"}) as executor,
        ):
            outcome = conduct(study, executor, Watching(lambda event: None))
    finally:
        for node in added:
            cluster.remove_node(node)
    assert (outcome.finished, outcome.failed) == (3, {})
    absent = "it cannot import the harness (ModuleNotFoundError: No module named 'harness')."
    assert sum(absent in line for line in caplog.messages) == 1
    assert 1 <= sum("measures no more points of this model: " in line for line in caplog.messages) <= 2


def test_a_collector_that_dies_stops_the_study_and_nothing_is_lost(
    cluster: Any, declare: Declare, tmp_path: Path
) -> None:
    from harness.study.executors.ray import Ray

    grid = read_study(str(declare(seed=[0, 1], run={"limit": 6})))
    points, options = expand(grid), {"address": cluster.address, "cpus": "1"}
    with StudyDirectory(tmp_path / "s", grid, points) as study:
        with (
            Ray.open(options) as executor,
            pytest.raises(StoreError, match=r"the Ray cluster does not answer any more: .* give the same"),
        ):
            conduct(study, executor, Watching(lambda event: ray.kill(executor._collector)))
        before = {file: file.read_bytes() for file in (tmp_path / "s").glob("runs/*/windows.jsonl")}
        assert before
        with Ray.open(options) as executor:
            outcome = conduct(study, executor, Watching(lambda event: None))
    assert (outcome.finished, outcome.failed) == (2, {})
    for file, windows in before.items():
        assert file.read_bytes().startswith(windows[: windows.rindex(b"\n") + 1])


def test_an_unknown_option_is_refused() -> None:
    from harness.study.executors.ray import Ray

    with pytest.raises(ConfigError, match=r"no option 'cores'\. Known: address, cpus, gpus, share\."):
        Ray.open({"cores": "1"})
