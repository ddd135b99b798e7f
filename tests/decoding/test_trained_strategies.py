"""Strategies that run on something trained, in every family: lossless is full depth, and a batch is its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Lossless, ModelInfo, Strategy
from harness.decoding.generation import Generation
from harness.models.artefacts import write_artefact
from harness.models.controllers import OBSERVATIONS, write_controller
from harness.registry import KV_POLICIES
from harness.training.identity import identity
from strategies.consistent import Consistent
from strategies.full import Full
from strategies.hash import Hash
from strategies.predictor import Predictor
from strategies.shortlist import Shortlist
from tests.decoding.conftest import learned_network

NEW, SEEDS = 16, [1, 2, 3]


def of_hash(info: ModelInfo, folder: Path, chance: torch.Generator) -> Strategy:
    shares = torch.rand(info.vocab_size, len(info.exit_points), generator=chance).half()
    tensors = {"token_ids": torch.arange(info.vocab_size).int(), "shares": shares}
    write_artefact(folder / "hash.json", "hash", tensors, identity(info, "t") | {"threshold": 0.8})
    return Hash(table=str(folder / "hash.json"))


def of_predictor(info: ModelInfo, folder: Path, chance: torch.Generator) -> Strategy:
    tensors = {}
    for point in info.exit_points:
        tensors |= learned_network(12, chance).tensors(str(point))
    facts = identity(info, "t") | {"threshold": 0.6, "candidates": 4, "head": "full", "activation": "relu"}
    write_artefact(folder / "predictor.json", "predictor", tensors, facts)
    return Predictor(head="full", predictor=str(folder / "predictor.json"))


def of_policies(info: ModelInfo, folder: Path, chance: torch.Generator) -> Strategy:
    networks = {str(point): learned_network(info.hidden_size + 3, chance) for point in info.exit_points}
    facts = identity(info, "t") | {"threshold": 0.7}
    write_controller(folder / "consistent.json", "consistent", OBSERVATIONS["rich"], networks, facts)
    return Consistent(policies=str(folder / "consistent.json"))


MAKERS: dict[str, Callable[[ModelInfo, Path, torch.Generator], Strategy]] = {
    "hash": of_hash,
    "predictor": of_predictor,
    "consistent": of_policies,
}


def made(name: str, info: ModelInfo, folder: Path) -> Strategy:
    return MAKERS[name](info, folder, torch.Generator().manual_seed(5))


def facts(one: Generation) -> tuple[Any, ...]:
    return (
        one.token_ids, one.exit_layers, one.exit_checks, one.lm_head_evaluations, one.cheap_head_evaluations,
        one.cheap_head_bytes, one.cheap_head_tokens, one.layers_executed,
    )  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_lossless_is_full_depth(case: Any, prompts: list[list[int]], tmp_path: Path, name: str) -> None:
    engine = case.engine
    strategy, settings = made(name, engine.info, tmp_path), {"max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    expected = [one.token_ids for one in engine.decode(prompts, Full(), kv="recompute", **settings)]
    found = engine.decode(prompts, strategy, kv="recompute", lossless=Lossless(4), **settings)
    assert [one.token_ids for one in found] == expected
    assert sum(one.drafts for one in found) > 0


@pytest.mark.parametrize("kv", KV_POLICIES.names())
@pytest.mark.parametrize("name", MAKERS)
def test_a_batch_is_its_rows(llama: Any, prompts: list[list[int]], tmp_path: Path, name: str, kv: str) -> None:
    strategy = made(name, llama.engine.info, tmp_path)
    limits = [NEW, 5, 9]
    together = llama.engine.decode(prompts, strategy, kv=kv, max_new_tokens=limits, seeds=SEEDS)
    assert len({layer for one in together for layer in one.exit_layers[1:]}) > 2
    for row, (prompt, limit, seed) in enumerate(zip(prompts, limits, SEEDS, strict=True)):
        (alone,) = llama.engine.decode([prompt], strategy, kv=kv, max_new_tokens=[limit], seeds=[seed])
        assert facts(alone) == facts(together[row])


@pytest.mark.parametrize("token", ["kept", "full"])
def test_a_shortlist_runs_the_whole_head_once_a_token(llama: Any, prompts: list[list[int]], token: str) -> None:
    strategy, layers = Shortlist(threshold=0.8, size=8, token=token), llama.engine.info.num_layers
    for one in llama.engine.decode(prompts, strategy, kv="recompute", max_new_tokens=[NEW] * 3, seeds=SEEDS):
        exits = one.exit_layers[1:]
        again = [layer for layer in exits if layer == layers or (token == "full" and layer > 1)]
        assert one.lm_head_evaluations == len(exits) + len(again)
        later = sum(min(layer, layers - 1) - 1 for layer in exits)  # exits are asked after layers 1 to 5
        assert one.cheap_head_evaluations == later
        assert one.cheap_head_bytes == later * 8 * llama.engine.info.hidden_size * 4
        assert one.cheap_head_tokens == sum(1 < layer < layers for layer in exits) * (token == "kept")


def test_a_shortlist_of_everything_is_the_rule_itself(llama: Any, prompts: list[list[int]]) -> None:
    whole = llama.engine.info.vocab_size
    from strategies.confidence import Confidence

    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    expected = llama.engine.decode(prompts, Confidence(threshold=0.3), **settings)
    found = llama.engine.decode(prompts, Shortlist(threshold=0.3, size=whole), **settings)
    assert [(one.token_ids, one.exit_layers) for one in found] == [(one.token_ids, one.exit_layers) for one in expected]


def test_an_lm_head_is_run_for_the_hits_alone(llama: Any, prompts: list[list[int]], tmp_path: Path) -> None:
    """Once for the candidates, once where the last layer ends a token; the rest are hits, at exits behind the first."""
    strategy = made("predictor", llama.engine.info, tmp_path)
    never = Predictor(1.0, "full", strategy.predictor)  # type: ignore[attr-defined]
    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW] * 3, "seeds": SEEDS}
    for one in llama.engine.decode(prompts, never, **settings):
        assert one.lm_head_evaluations == 2 * (NEW - 1)
        assert one.cheap_head_evaluations == 5 * (NEW - 1)
    for one in llama.engine.decode(prompts, strategy, **settings):
        exits = one.exit_layers[1:]
        assert one.lm_head_evaluations >= len(exits) + sum(layer > 1 for layer in exits)
        assert one.cheap_head_evaluations == sum(min(layer, 5) for layer in exits)
