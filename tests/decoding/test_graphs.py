"""Segments as recorded work: replayed over the same memory, they make the tokens that layers make one by one."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from harness.contracts import Lossless
from harness.decoding.engine import Engine
from harness.decoding.graphs import WIDTHS
from strategies.fixed import Fixed
from strategies.full import Full
from tests.crossing import in_turn
from tests.decoding.conftest import Again
from tests.decoding.pretended import Crossings, Tape, moved


def generate(engine: Any, prompts: list[list[int]], strategy: Any, kv: str, count: int, **more: Any) -> list[Any]:
    with Crossings():
        return engine.decode(prompts, strategy, kv=kv, max_new_tokens=[count] * len(prompts), **more)


def facts(made: list[Any]) -> list[Any]:
    return [(one.token_ids, one.exit_layers, one.layers_executed, one.failure) for one in made]


@in_turn(
    case=["llama", "mistral", "qwen3", "opt", "opt-post-norm", "gpt2", "neox-parallel"],
    kv=["propagate", "recompute", "skip"],
)
def test_recorded_segments_make_the_same_tokens(
    case: Any, kv: str, prompts: list[list[int]], exits: Any, schedule: Any
) -> None:
    """Three rows of different lengths leave at all depths, wait and catch up; the second batch only replays."""
    tape = Tape()
    engine = moved(case.engine, recorder=tape)
    layers = exits(3, 6)
    wanted = facts(case.engine.decode(prompts, schedule(layers), kv=kv, max_new_tokens=[6] * 3))

    assert facts(generate(engine, prompts, schedule(layers), kv, 6)) == wanted
    recorded = tape.recorded
    gc.collect()
    assert facts(generate(engine, prompts, schedule(layers), kv, 6)) == wanted
    assert tape.recorded == recorded
    assert (tape.replayed > recorded) == (kv != "skip")  # which hides positions, and is not recorded


def test_a_graph_is_recorded_once_per_batch_and_segment(llama: Any, prompts: list[list[int]]) -> None:
    tape = Tape()
    engine = moved(llama.engine, recorder=tape)
    generate(engine, prompts[:1], Fixed(layer=3), "propagate", 6)
    assert tape.recorded == 2  # what a token begins with, and layers 1 to 3
    assert tape.replayed == 2 * 4  # of the five tokens behind the prompt's

    generate(engine, prompts[1:2], Fixed(layer=3), "propagate", 6)
    assert tape.recorded == 2
    generate(engine, prompts[:1], Full(), "propagate", 2)
    assert tape.recorded == 3  # all layers
    generate(engine, prompts, Full(), "propagate", 2)
    assert tape.recorded == 5  # three rows, a cache of their own


def test_drafts_are_verified_in_recorded_segments(llama: Any, prompts: list[list[int]]) -> None:
    tape = Tape()
    engine = moved(llama.engine, recorder=tape)
    how = Lossless(draft_max=WIDTHS[-1] - 1)
    full = llama.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[12] * 3)
    made = generate(engine, prompts, Fixed(layer=3), "recompute", 12, lossless=how)

    assert [one.token_ids for one in made] == [one.token_ids for one in full]
    assert tape.replayed > tape.recorded


def test_batches_at_one_time_have_caches_of_their_own(llama: Any) -> None:
    engine = moved(llama.engine, recorder=Tape())
    with Crossings(), torch.inference_mode():
        first, second = engine.cache(2, 30), engine.cache(2, 40)
        assert first.entries is not second.entries
        first.entries.fill_(1)
        kept = first.entries
        del first
        gc.collect()
        again = engine.cache(2, 50)
        assert again.entries is kept
        assert not kept.cpu().any()
        assert again.segments is not second.segments


@pytest.mark.parametrize("first", [True, False])
def test_a_cache_serves_inside_and_outside_of_inference_mode(llama: Any, first: bool) -> None:
    engine = Engine(llama.engine.backbone, llama.info, recorder=Again())
    with torch.inference_mode(mode=first):
        taken = engine.cache(1, 30)
        taken.entries.fill_(1)
        kept = taken.entries
    del taken
    with torch.inference_mode(mode=not first):
        again = engine.cache(1, 40)
    assert again.entries is kept
    assert not kept.any()


def test_a_model_gives_its_graphs_back_at_once(llama: Any, prompts: list[list[int]]) -> None:
    """Graphs hold a GPU's memory, which the next model needs before Python would collect a cycle."""
    engine = moved(llama.engine, recorder=Tape())
    gc.disable()
    try:
        with Crossings():
            graphs = weakref.ref(engine.cache(3, 20).segments)
        generate(engine, prompts, Full(), "propagate", 3)  # on that cache
        assert graphs() is not None
        del engine
        assert graphs() is None
    finally:
        gc.enable()
