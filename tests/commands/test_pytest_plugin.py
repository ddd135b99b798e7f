"""``pytest --harness-run DIR``: a run's recorded latencies in pytest-benchmark's own history.

Each pytest is a process of its own, with the plugins named, so that it does not matter what is installed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.commands.pytest_plugin import pytest_configure
from harness.running.reading import read_run

ROOT = Path(__file__).resolve().parents[2]
Pytest = Callable[..., "subprocess.CompletedProcess[str]"]
Command = Callable[..., Any]
PLUGINS = ("-p", "pytest_benchmark.plugin", "-p", "harness.commands.pytest_plugin")


@pytest.fixture
def users_pytest(tmp_path: Path) -> Pytest:
    """Run pytest in a user's project, which has one test of its own."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "test_own.py").write_text("def test_own():\n    pass\n")

    def run(*arguments: object, plugins: tuple[str, ...] = PLUGINS) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pytest", *plugins, "-p", "no:cacheprovider", *map(str, arguments)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        settings = {**outer, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": paths, "PYTEST_ADDOPTS": ""}
        return subprocess.run(
            command, cwd=project, env=settings, capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture
def finished(tiny_run: Command, tmp_path: Path) -> Path:
    assert tiny_run("--strategy", "fixed:layer=6", "--out", tmp_path / "runs" / "one").code == 0
    return tmp_path / "runs" / "one"


def test_the_history_holds_the_recorded_latencies(users_pytest: Pytest, finished: Path, tmp_path: Path) -> None:
    ran = users_pytest("--harness-run", finished, "--benchmark-json", tmp_path / "out.json")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "2 passed" in ran.stdout  # and not the project's own test
    saved = json.loads((tmp_path / "out.json").read_text())
    run = read_run(finished)
    rows = {row.operating_point: row for row in run.summary.rows}
    assert len(saved["benchmarks"]) == 2
    for bench in saved["benchmarks"]:
        point = bench["name"].partition("[")[2].removesuffix("]")
        recorded = [sample.latency_s for sample in run.samples if sample.operating_point == point]
        assert bench["stats"]["data"] == recorded
        assert bench["stats"]["median"] == statistics.median(recorded)
        assert bench["group"] == "py150"
        assert bench["options"]["timer"] == "recorded latency"
        facts = bench["extra_info"]
        assert facts["layers_skipped"] == rows[point].value("layers_skipped")
        assert facts["agreement"] == rows[point].value("agreement")
        assert facts["energy_j_per_token"] is None
        assert facts["energy_source"] == "none"
        assert facts["weights_sha256"] == run.manifest.model.weights_sha256
        assert str(tmp_path) not in json.dumps(bench)
    assert saved["machine_info"]["harness_runs"] == [saved["benchmarks"][0]["extra_info"]["machine_class"]]


def test_unused_it_costs_nothing(users_pytest: Pytest) -> None:
    ran = users_pytest(plugins=("-p", "harness.commands.pytest_plugin"))
    assert "1 passed" in ran.stdout, ran.stdout + ran.stderr
    probe = (
        "import sys, pytest; old = set(sys.modules); import harness.commands.pytest_plugin; "
        "print(*(set(sys.modules) - old))"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(done.stdout.split())
    assert "harness.commands.pytest_plugin" in loaded
    assert all(name.startswith("harness") or name == "__future__" for name in loaded), loaded
    assert loaded - {"harness", "harness.commands", "harness.commands.pytest_plugin"} == set()


def refused(*directories: Path) -> str:
    """What pytest says of these instead of running anything, which must be one line."""
    given: dict[str, Any] = {"harness_run": list(map(str, directories)), "benchmark_skip": False}
    config: Any = SimpleNamespace(getoption=lambda name, default=None: given[name], stash={})
    with pytest.raises(pytest.UsageError) as error:
        pytest_configure(config)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_what_cannot_be_used_is_refused_in_one_line(users_pytest: Pytest, finished: Path, tmp_path: Path) -> None:
    bare = users_pytest("--harness-run", finished, plugins=("-p", "harness.commands.pytest_plugin"))
    assert (bare.returncode, bare.stderr.strip()) == (
        4, "ERROR: --harness-run needs pytest-benchmark. Install it with `pip install pytest-benchmark`.",
    )  # fmt: skip
    assert "does not exist" in refused(tmp_path / "nothing")
    copy = shutil.copytree(finished, tmp_path / "copy")
    assert "both hold" in refused(finished, copy)
    windows = copy / "windows.jsonl"
    windows.write_text("".join(windows.read_text().splitlines(keepends=True)[:-1]))
    assert "not finished: 5 of 6 windows. Continue it with" in refused(copy)
