"""What each KV policy leaves in the cache and decodes from it, against transformers steered to do the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, KVPolicy, ModelInfo, Strategy
from harness.decoding.backbone import KVFiller
from harness.decoding.blocks import Linear
from harness.decoding.cache import KVCache
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.kv.recompute import Recompute
from harness.registry import KV_POLICIES
from strategies.full import Full
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS, each_kind

NEW, LAYERS = 12, 6


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=2e-3)


@in_turn(rounds=2, case=list(FORMS), kv=KV_POLICIES.names(), looking=[True, False])
def test_exits_decode_as_the_reference_does_and_show_its_logits(
    case: Any, kv: str, looking: bool, prompts: list[list[int]], schedule: Any, exits: Any, reference: Any
) -> None:
    planned = exits(3, 8, first=4 if kv == "none" else LAYERS)
    plan = schedule(planned, looking=looking)
    done = case.engine.decode(prompts, plan, kv=kv, max_new_tokens=[8] * 3)
    for row, (prompt, layers, one) in enumerate(zip(prompts, planned, done, strict=True)):
        beside = reference(case.reference, kv, prompt)
        for layer in layers:
            position = len(beside.sequence) - 1
            seen = [sight for sight in plan.seen if (sight.row, sight.position) == (row, position)]
            if kv == "none" or position >= len(prompt):
                assert [sight.layer for sight in seen] == [point for point in range(1, LAYERS) if point <= layer]
            for sight in seen if looking else ():
                close(sight.logits, beside.look()[sight.layer - 1])
            beside.leave(layer)
        assert one.exit_layers == layers
        assert one.token_ids == beside.sequence[len(prompt) :]


def test_the_policies_differ(llama: Any, prompts: list[list[int]], schedule: Any, exits: Any) -> None:
    # Where they agreed anyway, the test above could not tell them apart.
    planned = exits(3, NEW)
    tokens = {
        kv: [one.token_ids for one in llama.engine.decode(prompts, schedule(planned), kv=kv, max_new_tokens=[NEW] * 3)]
        for kv in ("propagate", "recompute", "skip")
    }
    assert tokens["propagate"] != tokens["recompute"]
    assert tokens["propagate"] != tokens["skip"]
    assert tokens["recompute"] != tokens["skip"]


def test_the_first_hidden_states_are_those_of_transformers(case: Any, prompts: list[list[int]], schedule: Any) -> None:
    plan = schedule([[6, 6]])
    done = case.engine.decode(prompts[:1], plan, kv="propagate", max_new_tokens=[2])[0]
    with torch.no_grad():
        ids = torch.tensor([prompts[0] + done.token_ids[:1]])
        states = case.reference(ids, output_hidden_states=True).hidden_states
    assert [sight.layer for sight in plan.seen] == [1, 2, 3, 4, 5]
    for sight in plan.seen:
        close(sight.hidden_state, states[sight.layer][0, -1])


# ---------------------------------------------------------------------------------- recompute


def test_recompute_holds_the_keys_and_values_of_full_depth(
    case: Any, prompts: list[list[int]], schedule: Any, exits: Any, caches: list[KVCache]
) -> None:
    planned = exits(3, NEW, seed=1)
    done = case.engine.decode(prompts, schedule(planned), kv="recompute", max_new_tokens=[NEW] * 3)
    assert len({layer for layers in planned for layer in layers}) == LAYERS
    for row, (prompt, layers) in enumerate(zip(prompts, planned, strict=True)):
        with torch.no_grad():
            expected = case.reference(torch.tensor([prompt + done[row].token_ids[:-1]])).past_key_values
        for place in range(len(prompt) + NEW - 1):
            # Settled as deep as the deepest token from this one on; below that it still waits.
            settled = LAYERS if place < len(prompt) else max(layers[place - len(prompt) + 1 :])
            for layer in range(settled):
                close(caches[0].keys[layer, row, :, place], expected.layers[layer].keys[0, :, place])
                close(caches[0].values[layer, row, :, place], expected.layers[layer].values[0, :, place])


# ---------------------------------------------------------------------------------- propagate


def test_propagate_leaves_what_each_deeper_layer_makes_of_the_exit_hidden_state(
    case: Any, prompts: list[list[int]], schedule: Any, exits: Any, follow: Any, caches: list[KVCache]
) -> None:
    planned = exits(3, NEW, seed=2)
    case.engine.decode(prompts, schedule(planned), kv="propagate", max_new_tokens=[NEW] * 3)
    for row, (prompt, layers) in enumerate(zip(prompts, planned, strict=True)):
        expected = follow(case, "propagate", prompt, layers).cache
        for layer in range(LAYERS):
            length = len(prompt) + NEW - 2  # the last token's exit is never filled: nobody reads it
            close(caches[0].keys[layer, row, :, :length], expected.layers[layer].keys[0, :, :length])
            close(caches[0].values[layer, row, :, :length], expected.layers[layer].values[0, :, :length])


# --------------------------------------------------------------------------------------- skip


class Vandal(Strategy):
    """Overwrites the deeper entries of every token that has left, then leaves where the schedule says."""

    def __init__(self, planned: list[list[int]], prompts: list[list[int]], caches: list[KVCache]) -> None:
        self.planned, self.prompts, self.caches = planned, prompts, caches

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return model.exit_points

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        answer = []
        for row, tokens in zip(view.rows.tolist(), view.token_ids, strict=True):
            for step in range(1, len(tokens)):
                place = len(self.prompts[row]) + step - 1
                self.caches[-1].entries[self.planned[row][step] :, row, :, place] = 1000.0
            answer.append(self.planned[row][len(tokens)] == view.exit_layer)
        return torch.tensor(answer)


@in_turn(case=list(FORMS), kv=["skip", "propagate"])
def test_a_skipped_position_is_never_looked_at(
    case: Any, kv: str, prompts: list[list[int]], schedule: Any, exits: Any, caches: list[KVCache]
) -> None:
    planned = exits(3, NEW, seed=3)
    untouched = case.engine.decode(prompts, schedule(planned), kv=kv, max_new_tokens=[NEW] * 3)
    damaged = case.engine.decode(prompts, Vandal(planned, prompts, caches), kv=kv, max_new_tokens=[NEW] * 3)
    unchanged = [one.token_ids for one in untouched] == [one.token_ids for one in damaged]
    assert unchanged == (kv == "skip")  # where positions are looked at, the damage must show


# --------------------------------------------------------------------------------------- none


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_the_prompt_runs_at_full_depth_where_there_is_a_cache(
    llama: Any, kv: str, prompts: list[list[int]], schedule: Any
) -> None:
    plan = schedule([[1]] * 3)
    done = llama.engine.decode(prompts, plan, kv=kv, max_new_tokens=[1] * 3)
    full = llama.engine.decode(prompts, Full(), kv=kv, max_new_tokens=[1] * 3)
    asked = kv == "none"
    assert [one.exit_layers for one in done] == [[1 if asked else LAYERS]] * 3
    assert ([one.token_ids for one in done] == [one.token_ids for one in full]) != asked
    assert bool(plan.seen) == asked


# ---------------------------------------------------------------------- policies of other packages


def run_policy(policy: type[KVPolicy], monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> Any:
    """Decode under a policy that is not registered."""
    monkeypatch.setattr(KV_POLICIES, "load", {"mine": policy}.__getitem__)
    engine, *rest = arguments
    done = engine.decode(*rest, kv="mine", **options)
    monkeypatch.undo()
    return done


def test_what_joins_sees_what_the_policy_shows(
    llama: Any, prompts: list[list[int]], schedule: Any, exits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, limits = exits(3, NEW), [NEW] * 3

    class Shown(Recompute):
        """Says in so many words that all earlier positions are visible, but for some first ones."""

        hidden = 0

        def visible(self, rows: Tensor, positions: Tensor, layers: int) -> Tensor:
            places = torch.arange(int(positions.max()) + 1)
            return (places >= self.hidden) & (places <= positions.unsqueeze(1))

    class Hidden(Shown):
        hidden = 2

    expected = llama.engine.decode(prompts, schedule(planned), kv="recompute", max_new_tokens=limits)
    shown, hidden = (
        run_policy(policy, monkeypatch, llama.engine, prompts, schedule(planned), max_new_tokens=limits)
        for policy in (Shown, Hidden)
    )
    assert [one.token_ids for one in shown] == [one.token_ids for one in expected]
    assert [one.layers_executed for one in shown] == [one.layers_executed for one in expected]
    assert [one.token_ids for one in hidden] != [one.token_ids for one in expected]


LAYER = 2


@each_kind
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


def shifting(case: Any, by: float) -> dict[int, LinearExit]:
    width = case.info.hidden_size
    chance = torch.Generator().manual_seed(0)
    weight = torch.eye(width) + by * torch.randn(width, width, generator=chance)
    return {point: LinearExit({"": Linear(weight, torch.zeros(width))}) for point in case.info.exit_points}


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
