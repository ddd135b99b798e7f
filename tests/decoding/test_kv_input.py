"""Filling skipped layers from the line between the exit hidden state and what its shortcut makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.decoding.backbone import KVFiller
from harness.decoding.blocks import Linear
from harness.decoding.cache import KVCache
from harness.decoding.engine import Engine

LAYER = 2


def test_every_skipped_layer_is_filled_from_where_it_stands_on_the_line(case: Any) -> None:
    backbone = case.engine.backbone
    width, layers = case.info.hidden_size, case.info.num_layers
    hidden, final = torch.randn(2, width), torch.randn(2, width)
    rotary = case.engine.rotary(8)
    cache = KVCache(layers, 2, 8, backbone.heads, backbone.lm_head.weight)
    KVFiller(backbone).fill(cache, rotary, LAYER, [0, 1], [5, 3], hidden, final)
    tables = None if rotary is None else rotary.tables(torch.tensor([5, 3]))
    for deeper in range(LAYER, layers):
        share = (deeper - LAYER) / (layers - LAYER)
        expected = backbone.blocks[deeper].fill((1 - share) * hidden + share * final, rotary, tables)
        for slot, position in enumerate((5, 3)):
            torch.testing.assert_close(cache.entries[deeper, slot, :, position], expected[slot], atol=1e-4, rtol=1e-4)


def shifting(case: Any, by: float) -> dict[int, Linear]:
    width = case.info.hidden_size
    chance = torch.Generator().manual_seed(0)
    weight = torch.eye(width) + by * torch.randn(width, width, generator=chance)
    return {point: Linear(weight, torch.zeros(width)) for point in case.info.exit_points}


@pytest.mark.parametrize("by", [0.0, 0.5])
def test_a_shortcut_that_changes_nothing_fills_what_the_hidden_state_does(
    llama: Any, prompts: list[list[int]], by: float, schedule: Any, exits: Any
) -> None:
    planned = exits(3, 12)  # deep tokens after shallow ones: they read what was filled
    backbone = replace(llama.engine.backbone, shortcuts=shifting(llama, by))
    tokens = [
        [
            one.token_ids
            for one in Engine(backbone, llama.info, kv_input).decode(
                prompts, schedule(planned), kv="propagate", max_new_tokens=[12] * 3
            )
        ]
        for kv_input in ("hidden", "shortcut")
    ]
    assert (tokens[0] == tokens[1]) is (by == 0.0)
