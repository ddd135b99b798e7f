"""Requests at a fixed rate: drawn alike for everybody, waited for, queued, and counted from their arrival."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig, run
from harness.errors import ConfigError
from harness.running.session import poisson, wait_until


def test_gaps_are_exponential_with_the_mean_of_the_rate() -> None:
    arrivals = poisson(4.0, 20_000, ("a",))
    gaps = [after - before for before, after in zip((0.0, *arrivals), arrivals, strict=False)]
    assert min(gaps) > 0
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.05)  # as large as the mean: memoryless


def test_the_same_block_has_the_same_arrivals_and_another_block_others() -> None:
    assert poisson(1.0, 5, (0, "py150", 3, 0)) == poisson(1.0, 5, (0, "py150", 3, 0))
    assert poisson(1.0, 5, (0, "py150", 3, 0)) != poisson(1.0, 5, (0, "py150", 4, 0))


def test_a_request_is_waited_for_and_a_late_server_finds_it_waiting() -> None:
    started = time.perf_counter()
    first = wait_until(started + 0.03)
    assert time.perf_counter() - started >= 0.03
    assert 0 <= first < 0.02
    time.sleep(0.05)
    assert wait_until(started + 0.031) >= 0.04


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"limit": 8, "strategies": ("fixed:layer=4",)}


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_at_a_fixed_rate_counts_latency_from_the_arrival(config: dict[str, Any], tmp_path: Path) -> None:
    run(RunConfig(**config, arrival_rate=100.0))
    samples = records(tmp_path / "out", "samples")
    arrivals = {}
    for sample in samples:
        assert sample["latency_s"] == pytest.approx(sample["queue_s"] + sample["token_times_s"][-1], abs=1e-6)
        assert sample["ttft_s"] == pytest.approx(sample["queue_s"] + sample["token_times_s"][0], abs=1e-6)
        assert sample["queue_s"] >= 0
        arrivals.setdefault(sample["sample_id"], set()).add(sample["arrival_s"])
    assert all(len(times) == 1 for times in arrivals.values())  # every operating point served the same requests
    windows = [window for window in records(tmp_path / "out", "windows") if not window["warmup"] and not window["idle"]]
    assert len(windows) == 2  # a block holds enough requests for a queue
    for window in windows:
        last = max(sample["arrival_s"] for sample in samples if sample["window"] == window["window"])
        assert window["duration_s"] > last  # idle time is inside


def test_a_batch_cannot_arrive_one_by_one() -> None:
    with pytest.raises(ConfigError, match="--arrival-rate serves one request at a time and --batch-size is 2"):
        RunConfig(arrival_rate=1.0, batch_size=2)
