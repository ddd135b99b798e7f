"""How fast the engine is, as paired ratios inside one process.

SmolLM2-135M, float32 and fp16 weights, two threads, 400 prompt tokens, 30 new tokens. Every round runs transformers'
``generate`` in float32, full depth, fixed exits and a never-exiting strategy once, with the bandwidth of matrix ×
vector before and after; figures are medians over the rounds. They are printed beside their targets and fail beyond
twice as bad, which a shared machine does not make of a paired ratio. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch

import harness
from harness.contracts import ModelInfo, Strategy
from harness.decoding.blocks import choose, multiply
from harness.decoding.engine import Engine
from harness.metering import measure_bandwidth
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.saturation import Saturation
from tests.benchmarks.conftest import report

PROMPT, NEW, ROUNDS = 400, 30, 8
FIXED = (22, 14, 4)

pytestmark = pytest.mark.model


@dataclass
class Rounds:
    """Seconds and bytes per second of every round, by name."""

    whole_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    per_token_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    bandwidth: list[float] = field(default_factory=list)

    def ratio(self, above: list[float], below: list[float]) -> float:
        return statistics.median(a / b for a, b in zip(above, below, strict=True))


def decode_bytes(info: ModelInfo, layers: int) -> int:
    """Bytes moved per token after the first: layers, LM head, K,V reads, K,V fill of skipped layers."""
    cached = PROMPT + NEW // 2
    return (
        layers * (info.layer_bytes + cached * info.kv_entry_bytes)
        + info.lm_head_bytes
        + (info.num_layers - layers) * info.kv_projection_bytes
    )


def stream_bandwidth(matrices: list[torch.Tensor]) -> float:
    row = torch.ones(1, matrices[0].shape[1])
    start = time.perf_counter()
    with torch.inference_mode():
        for matrix in matrices:
            multiply(row, matrix, None)
    return sum(matrix.nbytes for matrix in matrices) / (time.perf_counter() - start)


@pytest.fixture(scope="module", params=["float32", "fp16"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """The default model in one weights format, with the shared exit head."""
    torch.set_num_threads(2)
    loaded = harness.load("smollm2-135m", weights_format=request.param, exit_head="shared").loaded
    return Engine(loaded.backbone, loaded.info)


@pytest.fixture(scope="module")
def rounds(engine: Engine, smollm2: Any, rounds_of: Callable[[int], int]) -> Rounds:
    prompt = torch.randint(100, 40_000, (PROMPT,), generator=torch.Generator().manual_seed(0)).tolist()
    ids = torch.tensor([prompt])
    matrices = [torch.randn(8192, engine.info.hidden_size) for _ in range(60)]
    choose(matrices)
    strategies: dict[str, Strategy] = {
        "full": Full(),
        **{f"fixed {layer}": Fixed(layer=layer) for layer in FIXED},
        "saturation, never exiting": Saturation(threshold=2.0),
    }

    def generate() -> list[int]:
        with torch.inference_mode():
            out = smollm2.module.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
            )
        tokens: list[int] = out[0, PROMPT:].tolist()
        return tokens

    measured = Rounds()
    for number in range(rounds_of(ROUNDS) + 1):
        before = stream_bandwidth(matrices)
        start = time.perf_counter()
        generate()
        seconds = {"generate": time.perf_counter() - start}
        per_token = {}
        for name, strategy in strategies.items():
            (made,) = engine.decode([prompt], strategy, kv="propagate", max_new_tokens=[NEW])
            seconds[name] = made.token_times_s[-1]
            per_token[name] = (made.token_times_s[-1] - made.token_times_s[0]) / (NEW - 1)
        after = stream_bandwidth(matrices)
        if number == 0:
            continue  # warm-up
        measured.bandwidth.append((before + after) / 2)
        for name, value in seconds.items():
            measured.whole_s[name].append(value)
        for name, value in per_token.items():
            measured.per_token_s[name].append(value)
    return measured


def track(benchmark: Any, engine: Engine, strategy: Strategy) -> None:
    """Let pytest-benchmark time whole requests too, so that its comparison notices a regression."""
    prompt = list(range(100, 100 + PROMPT))

    def request() -> None:
        engine.decode([prompt], strategy, kv="propagate", max_new_tokens=[NEW])

    benchmark.pedantic(request, rounds=4, warmup_rounds=1)


def test_full_depth_against_generate(benchmark: Any, rounds: Rounds, engine: Engine) -> None:
    track(benchmark, engine, Full())
    speed_up = rounds.ratio(rounds.whole_s["generate"], rounds.whole_s["full"])
    report(benchmark, "full depth over transformers' generate, whole request", speed_up, at_least=1.05)


def test_full_depth_against_bandwidth(benchmark: Any, rounds: Rounds, engine: Engine) -> None:
    track(benchmark, engine, Full())
    moved = decode_bytes(engine.info, engine.info.num_layers)
    share = rounds.ratio([moved / s for s in rounds.per_token_s["full"]], rounds.bandwidth)
    report(benchmark, "full depth, share of the bandwidth of matrices as wide as the model's", share, at_least=0.8)
    wide = measure_bandwidth(engine.info.dtype, "cpu").bytes_per_s
    fastest = moved / statistics.median(rounds.per_token_s["full"]) / wide
    print(f"  (of what wide matrices reach, {wide / 1e9:.1f} GB/s, as `harness report` counts: {fastest:.3f})")


@pytest.mark.parametrize("layer", FIXED)
def test_fixed_exit_against_the_byte_model(benchmark: Any, rounds: Rounds, engine: Engine, layer: int) -> None:
    track(benchmark, engine, Fixed(layer=layer))
    info = engine.info
    predicted = decode_bytes(info, info.num_layers) / decode_bytes(info, layer)
    speed_up = rounds.ratio(rounds.per_token_s["full"], rounds.per_token_s[f"fixed {layer}"])
    print(f"\n  fixed at {layer}: {speed_up:.2f}× per token, byte model {predicted:.2f}×", end="")
    report(benchmark, f"fixed at {layer}, share of the byte model's speed-up", speed_up / predicted, at_least=0.92)


def test_time_per_byte_by_depth(benchmark: Any, rounds: Rounds, engine: Engine) -> None:
    """Why measured speed-ups can pass the byte model: what streams slower than the mean, shallow layers or the rest?

    If fewer layers fitted the caches better, a byte of the first layers would cost less than one of the last. The rest
    is a step to the shallowest exit without its layers: LM head, K,V fills and everything that does not grow.
    """
    track(benchmark, engine, Fixed(layer=FIXED[-1]))
    info, last = engine.info, engine.info.num_layers
    times = {layer: rounds.per_token_s[f"fixed {layer}"] for layer in FIXED} | {last: rounds.per_token_s["full"]}
    stops = sorted(times)
    per_byte = {
        f"layers {low + 1} to {high}": [
            (deep - shallow) / (decode_bytes(info, high) - decode_bytes(info, low))
            for shallow, deep in zip(times[low], times[high], strict=True)
        ]
        for low, high in pairwise(stops)
    }
    first, grown = stops[0], decode_bytes(info, last) - decode_bytes(info, stops[0])
    slope = [(deep - shallow) / grown for shallow, deep in zip(times[first], times[last], strict=True)]
    layers = first * grown / (last - first)
    rest = decode_bytes(info, first) - layers
    per_byte["the rest (LM head …)"] = [
        (shallow - layers * each) / rest for shallow, each in zip(times[first], slope, strict=True)
    ]
    print()
    for name, values in per_byte.items():
        share = rounds.ratio(values, slope)
        benchmark.extra_info[f"time per byte, {name}"] = round(share, 3)
        print(f"  time per byte, {name}, over that of layers {stops[0] + 1} to {last}: {share:.3f}")


def test_cost_of_asking(benchmark: Any, rounds: Rounds, engine: Engine) -> None:
    track(benchmark, engine, Saturation(threshold=2.0))
    cost = rounds.ratio(rounds.per_token_s["saturation, never exiting"], rounds.per_token_s["full"])
    report(benchmark, "never-exiting saturation over full depth, per token", cost, at_most=1.03)
