"""What decoding is made of, part by part: prefill, a step per exit layer, checks, KV policies, the LM head.

SmolLM2-135M, float32, two threads. Exits follow a schedule, so that no strategy is in a step; a check runs on views
of the engine with hidden states of the model, the LM heads that it asks for included and the exits' shortcut maps not.
Times are not asserted; each benchmark's ratio to the reference is what is followed (``conftest.py``). ``make bench``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.config import StrategySpec
from harness.config.options import build_strategy
from harness.contracts import Batch, ModelRequest
from harness.decoding.generation import Generation
from harness.decoding.readings import Heads
from harness.decoding.view import LayerView
from harness.models.model import resolve
from harness.registry import KV_POLICIES, STRATEGIES
from strategies.fixed import Fixed
from strategies.full import Full

SHORT, LONG, NEW = 16, 400, 9
LAYERS = (4, 6, 8, 10, 12, 14, 18, 22, 26, 30)

pytestmark = pytest.mark.model


@pytest.fixture(scope="module", autouse=True)
def two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    ids: list[int] = torch.randint(100, 40_000, (LONG,), generator=torch.Generator().manual_seed(0)).tolist()
    return ids


def test_prefill(benchmark: Any, smollm2: Any, prompt: list[int]) -> None:
    def prefill() -> None:
        smollm2.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[1])

    benchmark.pedantic(prefill, rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("layer", LAYERS)
def test_decode_steps_to_a_layer(benchmark: Any, smollm2: Any, prompt: list[int], layer: int) -> None:
    """Eight steps behind a prompt of one token, whose prefill, a step to the last layer, is in the time, too."""
    schedule, per_token = [smollm2.info.num_layers, *[layer] * (NEW - 1)], list[float]()

    def steps() -> None:
        (made,) = smollm2.engine.replay([prompt[:1]], [schedule], kv="propagate", max_new_tokens=[NEW])
        per_token.append((made.token_times_s[-1] - made.token_times_s[0]) / (NEW - 1))

    benchmark.pedantic(steps, rounds=5, warmup_rounds=1)
    benchmark.extra_info["ms per step"] = round(1e3 * statistics.median(per_token[1:]), 3)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_kv_policy(benchmark: Any, smollm2: Any, prompt: list[int], kv: str) -> None:
    """Fixed exit halfway; without a cache every token runs the whole prefix."""

    def decode() -> None:
        smollm2.engine.decode([prompt[:SHORT]], Fixed(layer=14), kv=kv, max_new_tokens=[NEW])

    benchmark.pedantic(decode, rounds=5, warmup_rounds=1)


def test_lm_head(benchmark: Any, smollm2: Any) -> None:
    state = torch.randn(1, smollm2.info.hidden_size)

    def heads() -> None:
        with torch.inference_mode():
            for _ in range(5):
                smollm2.engine.backbone.logits(state)

    benchmark.pedantic(heads, rounds=8, warmup_rounds=1)


@pytest.fixture(scope="module")
def views(smollm2: Any, prompt: list[int]) -> Callable[[], list[LayerView]]:
    """Make fresh views of one token at every exit point: nothing lazy is computed yet."""
    points = smollm2.info.exit_points
    states = smollm2.engine.read(prompt[:SHORT], [*points, smollm2.info.num_layers])

    def make() -> list[LayerView]:
        made: list[LayerView] = []
        for point, state in zip(points, states, strict=False):
            passing: Any = SimpleNamespace(
                rows=[0], layer=point, positions=[SHORT - 1], hidden=lambda state=state: state[-1:],
                rehearse=lambda: states[-1][-1:],
            )  # fmt: skip
            tally = [Generation(token_ids=[1, 2, 3])]
            made.append(
                LayerView(
                    smollm2.engine.backbone,
                    passing,
                    tally,
                    Heads(smollm2.engine.backbone),
                    made[-1] if made else None,
                )
            )
        return made

    return make


@pytest.mark.parametrize("name", sorted({*STRATEGIES.names()} - {"endpoint"}))  # which the engine does not ask
def test_check(benchmark: Any, views: Callable[[], list[LayerView]], name: str) -> None:
    """A strategy with its default options, asked once at every exit point, whatever it answers."""
    info = resolve(ModelRequest("smollm2-135m")).info
    strategy = build_strategy(StrategySpec(name))
    asked = set(strategy.exit_points(info))
    rule = strategy.start(info, Batch((0,), "cpu"))

    def checks() -> None:
        with torch.inference_mode():
            for view in views():
                if view.exit_layer in asked:
                    rule.should_exit(view)

    benchmark.pedantic(checks, rounds=8, warmup_rounds=2)
    benchmark.extra_info["exit points asked"] = len(asked)
