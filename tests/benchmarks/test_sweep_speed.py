"""What a sweep costs beside decoding: 200 operating points replayed, against one full-depth pass over the same tokens.

SmolLM2-135M, float32. A trace of some hundred tokens of the installed Python sources; the live pass is timed on 30
tokens behind a context of 60 and extrapolated to as many tokens as were replayed, prefill left out. Both are printed;
only that the sweep is the cheaper one is asserted, which it is a hundredfold. Run with ``make bench``.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts.recipes import Silent
from harness.replay.options import SweepOptions
from harness.replay.sweep import sweep
from strategies.full import Full
from tests.training.tracing import trace_of

POINTS, NEW, PROMPT = 200, 30, 60

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def traced(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("traces") / "smollm2"
    trace_of("smollm2-135m", "embedded", out, documents=8, length=96)
    return out


@pytest.mark.parametrize("strategy", ["confidence", "saturation"])
def test_200_operating_points_against_one_live_pass(benchmark: Any, smollm2: Any, traced: Path, strategy: str) -> None:
    values = ",".join(f"{0.5 + place / (2 * POINTS):.4f}" for place in range(POINTS))
    options = SweepOptions(replay=traced, strategies=(f"{strategy}:threshold={values}",), document_split="all")

    def replay() -> Any:
        return sweep(options, progress=Silent()).sweep

    found = benchmark.pedantic(replay, rounds=2, warmup_rounds=1)
    assert len(found.rows) == POINTS + 1
    prompt = list(range(100, 100 + PROMPT))
    per_token = []
    for _ in range(4):
        (made,) = smollm2.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[NEW])
        per_token.append((made.token_times_s[-1] - made.token_times_s[0]) / (NEW - 1))
    live_s = min(per_token) * found.tokens
    start = time.perf_counter()
    replay()
    whole_s = time.perf_counter() - start  # finding the model and opening the trace included
    benchmark.extra_info["live over replay"] = round(live_s / whole_s, 1)
    print(
        f"\n  {strategy}: {POINTS} operating points × {found.tokens} tokens in {whole_s:.2f} s ({found.replay_s:.2f} s"
        f" of it replaying); decoding the tokens once: {live_s:.2f} s  (target: less than that)"
    )
    assert whole_s < live_s
