"""A report and a leaderboard of 1,000 runs like the demo's: at most 1 GB of resident memory, and 60 s on two cores.

Three times each: with the summaries that lie in the runs (``--stored``), with an empty cache, which makes every
summary, and again, which finds them in the cache. Memory is asserted, times are printed beside their target. Run with
``make bench``; ``--benchmark-quick`` takes 60 runs and a share of the memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.made_up_runs import write_runs
from tests.measured_command import harness

RUNS, QUICK_RUNS = 1_000, 60
BASE_MB, MOST_MB, MOST_S = 250, 1_000, 60


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> int:
    return QUICK_RUNS if request.config.getoption("benchmark_quick") else RUNS


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, count: int) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_runs(folder, count)
    return folder


@pytest.mark.parametrize("command", ["report", "leaderboard"])
def test_many_runs(benchmark: Any, command: str, runs: Path, count: int, tmp_path: Path) -> None:
    def measured(name: str, *options: str) -> tuple[float, float]:
        return harness(command, runs, "--out", tmp_path / name, *options, cache=tmp_path / "cache")

    found = {"--stored": benchmark.pedantic(measured, ("stored", "--stored"), rounds=1)}
    found |= {"first": measured("first"), "again": measured("again")}
    for how, (seconds, memory) in found.items():
        target = MOST_S * count / RUNS
        print(f"\n  {command} of {count} runs, {how}: {seconds:.1f} s (target ≤ {target:.0f} s), {memory:.0f} MB")
        benchmark.extra_info[how] = [round(seconds, 1), round(memory)]
        assert memory < BASE_MB + (MOST_MB - BASE_MB) * count / RUNS
