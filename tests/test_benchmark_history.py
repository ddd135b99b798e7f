"""The history of ``make bench``: a reference beside every round, a folder per class of machine, and fair words."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONFTEST = Path(__file__).resolve().parent / "benchmarks" / "conftest.py"
BENCH = """
def test_sum(benchmark):
    benchmark.pedantic(lambda: sum(range(1000)), rounds=6, warmup_rounds=2)
    assert benchmark.stats.stats.rounds == 6

def test_once(benchmark):
    benchmark.pedantic(lambda: None, rounds=1)
"""


@pytest.fixture(scope="module")
def history() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_history", CONFTEST)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def document(name: str, ratios: list[float]) -> dict[str, Any]:
    return {"benchmarks": [{"fullname": name, "extra_info": {"ratios to the reference": ratios}}]}


def test_a_change_beyond_both_runs_noise_is_said(history: ModuleType) -> None:
    then = [("0001", document("tests/benchmarks/test_x.py::test_y[a/b]", [10.0, 10.1, 9.9, 10.0]))]
    name = history.short("benchmarks/test_x.py::test_y[a/b]")
    for now, said in (
        (12.0, "slower, beyond the noise"),
        (8.0, "faster, beyond the noise"),
        (10.3, "within the noise"),
    ):
        line = history.compared(name, [now] * 4, then)
        assert line["verdict"] == said
        assert line["change"] == pytest.approx(now / 10 - 1)
    wide = history.compared(name, [6.0, 9.0, 15.0, 20.0], then)
    assert wide["verdict"] == "within the noise"
    assert history.compared("test_x.py::test_new", [1.0] * 4, then)["verdict"] == "nothing to compare with yet"
    assert history.compared(name, [30.0], then)["verdict"] == "too few rounds to tell"


@pytest.mark.slow
def test_two_runs_make_a_history(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    shutil.copy(CONFTEST, tmp_path / "benchmarks")
    (tmp_path / "benchmarks" / "test_sum.py").write_text(BENCH)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")

    def bench(*more: str) -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "-m", "pytest", "benchmarks", "-q", "-p", "no:cacheprovider", "--benchmark-only"),
            *("--benchmark-autosave", "--benchmark-storage=saved", *more),
        ]
        paths = os.pathsep.join(filter(None, [str(CONFTEST.parents[2]), os.environ.get("PYTHONPATH", "")]))
        outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        settings = {**outer, "PYTHONPATH": paths}
        return subprocess.run(
            command, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=120, check=False
        )

    first = bench("--benchmark-ratio-fail=0")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "there is nothing to compare with yet" in first.stdout
    (file,) = (tmp_path / "saved").glob("*/*/0001_*.json")
    saved = json.loads(file.read_text())
    by_name = {bench["name"]: bench["extra_info"] for bench in saved["benchmarks"]}
    assert len(by_name["test_sum"]["ratios to the reference"]) == 6
    assert by_name["test_sum"]["ratio to the reference"] > 0
    assert {"cpu", "usable_cores", "torch_threads", "torch"} <= saved["machine_info"]["harness"].keys()
    for bench_ in saved["benchmarks"]:  # as if it had been a thousand times as fast then
        facts = bench_["extra_info"]
        facts["ratios to the reference"] = [facts["ratio to the reference"] / 1000] * 6
    file.write_text(json.dumps(saved))
    second = bench("--benchmark-ratio-fail=20")
    assert second.returncode == 1
    (line,) = [line for line in second.stdout.splitlines() if line.startswith("test_sum.py::test_sum")]
    assert line.endswith("slower, beyond the noise  FAILED")
    (once,) = [line for line in second.stdout.splitlines() if line.startswith("test_sum.py::test_once")]
    assert once.endswith("too few rounds to tell")
    assert len(list((tmp_path / "saved").glob("*/*/*.json"))) == 2
