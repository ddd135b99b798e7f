"""What the runner adds to decoding: the edges of a window, and a window around SmolLM2-135M.

A window of the default run is one sample, 15 tokens. What is added is everything from before the first edge to after
the last one, less the time the engine says that its tokens took. Figures are printed beside their targets, not
asserted: a shared machine would make such a test lie. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.metering import Surroundings, observed
from harness.metering.estimate import Estimate, NoMeter
from harness.metering.replay_meter import Recording, Replay
from strategies.full import Full

PROMPT, NEW, ROUNDS = 100, 15, 20

METERS: dict[str, Callable[[], Any]] = {
    "none": lambda: NoMeter(device="cpu"),
    "estimate": lambda: Estimate(device="cpu"),
    "replay": lambda: Replay(
        device="cpu",
        recording=Recording(readings=tuple({"package-0": 0.1 * edge, "package-1": 0.1} for edge in range(10_000))),
    ),
}


def report(benchmark: Any, what: str, value: float, target: str) -> None:
    benchmark.extra_info[what] = round(value, 4)
    print(f"\n  {what}: {value:.4g}  (target {target})")
    assert value >= 0


@pytest.mark.parametrize("name", METERS)
def test_edges(benchmark: Any, name: str) -> None:
    """Both edges of an empty window: meter, clocks, and the kernel's counters."""
    meter, surroundings = METERS[name](), Surroundings.of("cpu")

    def windows() -> None:
        for _ in range(100):
            with observed(meter, surroundings):
                pass

    benchmark.pedantic(windows, rounds=20, warmup_rounds=2)
    per_window_s = statistics.median(benchmark.stats.stats.data) / 100
    report(benchmark, f"edges of a window, meter {name}, µs", 1e6 * per_window_s, "well below 1,000")


@pytest.mark.model
def test_a_window_around_decoding(benchmark: Any, smollm2: Any) -> None:
    torch.set_num_threads(2)
    prompt = torch.randint(100, 40_000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    meter, surroundings, shares = Estimate(device="cpu"), Surroundings.of("cpu"), list[float]()

    def window() -> None:
        start = time.perf_counter()
        with observed(meter, surroundings):
            (made,) = smollm2.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[NEW])
        shares.append((time.perf_counter() - start) / made.token_times_s[-1] - 1)

    benchmark.pedantic(window, rounds=ROUNDS, warmup_rounds=2)
    report(benchmark, "added to decode time, %", 100 * statistics.median(shares), "≤ 1")
