"""What only a GPU can tell: that graphs make the tokens of single kernels, and how often the host really waits."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.contracts import Lossless
from harness.decoding import graphs
from harness.decoding.engine import Engine
from harness.decoding.families import read
from strategies.confidence import Confidence
from strategies.fixed import Fixed
from strategies.full import Full

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture
def engine(cases: Callable[[str], Any]) -> Callable[..., Engine]:
    def make(form: str = "llama", **arguments: Any) -> Engine:
        case = cases(form)
        return Engine(read(copy.deepcopy(case.reference).cuda()), case.info, **arguments)

    return make


@pytest.mark.parametrize("form", ["llama", "qwen3", "opt", "gpt2", "neox-parallel"])
@pytest.mark.parametrize("kv", ["propagate", "recompute"])
def test_graphs_make_the_same_tokens(
    engine: Callable[..., Engine], form: str, kv: str, prompts: list[list[int]], exits: Any, schedule: Any
) -> None:
    layers = exits(3, 12)
    made = []
    for one in (engine(form, recorder=None), engine(form)):
        for _ in range(2):  # recorded, and replayed
            done = one.decode(prompts, schedule(layers), kv=kv, max_new_tokens=[12] * 3)
            assert not any(row.failure for row in done)
            made.append([(row.token_ids, row.exit_layers) for row in done])
    assert made[1:] == made[:1] * 3


def test_drafts_yield_full_depths_tokens(engine: Callable[..., Engine], prompts: list[list[int]]) -> None:
    one = engine()
    full = one.decode(prompts, Full(), kv="recompute", max_new_tokens=[16] * 3)
    made = one.decode(prompts, Fixed(layer=3), kv="recompute", max_new_tokens=[16] * 3, lossless=Lossless(draft_max=4))
    assert [row.token_ids for row in made] == [row.token_ids for row in full]


def test_all_graphs_can_go_and_others_be_recorded() -> None:
    """torch takes no graph into a pool that has none left."""
    recorder, one = graphs.CudaGraphs(torch.device("cuda")), torch.zeros(3, device="cuda")
    for count in (2, 4):
        again = recorder.record(lambda: one.add_(1))
        again()
        torch.cuda.synchronize()
        assert one.tolist() == [count] * 3  # done once to set libraries up
        del again
        gc.collect()


def test_graphs_outlive_those_that_go(
    engine: Callable[..., Engine], prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs share a stream and a pool; what one that goes has held must not be freed under the others."""
    monkeypatch.setattr(graphs, "KEPT", 1)
    one = engine()
    made = []
    for count in (12, 200, 12, 200, 12):  # the longer ones need a cache of their own
        (row,) = one.decode(prompts[:1], Full(), kv="propagate", max_new_tokens=[count])
        made.append(row.token_ids[:12])
        del row
        gc.collect()
        torch.cuda.empty_cache()
    assert made[1:] == made[:1] * 4


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_each_gpu_records_on_a_stream_of_its_own(engine: Callable[..., Engine], prompts: list[list[int]]) -> None:
    made = []
    for device in range(2):
        with torch.cuda.device(device):
            one = engine()
        done = one.decode(prompts, Full(), kv="propagate", max_new_tokens=[12] * 3)
        made.append([row.token_ids for row in done])
    assert made[0] == made[1]


def test_how_often_the_host_waits(engine: Callable[..., Engine], prompts: list[list[int]]) -> None:
    """Torch's own count: once per token, and once per check of a strategy that looks at the state."""
    one = engine()

    def waits(strategy: Any, count: int) -> tuple[int, int]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                (row,) = one.decode(prompts[:1], strategy, kv="propagate", max_new_tokens=[count])
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(seen.message) for seen in caught), row.exit_checks

    for strategy, looks in ((Full(), False), (Fixed(layer=3), False), (Confidence(threshold=0.5), True)):
        waits(strategy, 12)  # records
        (few, few_checks), (many, checks) = waits(strategy, 4), waits(strategy, 12)
        assert many - few <= 8 + (checks - few_checks if looks else 0)
