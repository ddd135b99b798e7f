"""A rule that knows where a token leaves before its first layer is followed and not asked, and nothing else changes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ExitView, Lossless, ModelInfo, PlannedRule, Strategy
from harness.contracts import strategies as contract
from harness.decoding import exits as engine_exits
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.schedule import Schedule
from tests.crossing import in_turn
from tests.decoding.conftest import decode_open
from tests.decoding.test_state_tests import facts

NEW, LAYERS = 10, 6


@dataclass(frozen=True)
class OfToken(PlannedRule, Strategy):
    """Leaves by the last token, between exit points and behind all of them, too."""

    factor: int = 3

    def planned_layer(self, token_ids: Sequence[int]) -> int | None:
        return (None, 1, 2, 3, 5, 6, 9)[token_ids[-1] * self.factor % 7] if token_ids else None


@dataclass(frozen=True)
class AtSome(OfToken):
    """The same, asked at fewer points."""

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return (2, 4)


PLANNED: tuple[Strategy, ...] = (OfToken(), AtSome(), Schedule(first=5, last=2, horizon=6))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The layers at which somebody asked a planned rule."""
    found: list[int] = []
    there = PlannedRule.should_exit

    def noting(rule: PlannedRule, view: ExitView) -> Tensor:
        found.append(view.exit_layer)
        return there(rule, view)

    monkeypatch.setattr(PlannedRule, "should_exit", noting)
    return found


def by_asking(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(engine_exits, "plan_of", lambda _: None)


@in_turn(rounds=3, way=[*KV_POLICIES.names(), "lossless"], strategy=PLANNED)
def test_tokens_and_counts_are_those_of_asking(
    llama: Any, prompts: list[list[int]], strategy: Strategy, way: str, asked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of one row, and of rows that leave at different layers and end at different places."""
    kv, lossless = ("recompute", Lossless(4)) if way == "lossless" else (way, None)
    layers, drafts = set(), 0
    for rows, limits in ((prompts[:1], [NEW]), (prompts, [NEW, 4, 7])):
        settings: dict[str, Any] = {"kv": kv, "max_new_tokens": limits, "lossless": lossless}
        made = llama.engine.decode(rows, strategy, **settings)
        assert not asked
        with monkeypatch.context() as patch:
            by_asking(patch)
            expected = llama.engine.decode(rows, strategy, **settings)
        assert asked
        asked.clear()
        assert [facts(one) for one in made] == [facts(one) for one in expected]
        layers.update(layer for one in made for layer in one.exit_layers)
        drafts += sum(one.drafts for one in made)
    assert drafts if lossless else len(layers) > 2


def test_rows_of_an_open_batch_follow_their_plans_beside_rows_that_are_asked(
    llama: Any, prompts: list[list[int]], asked: list[int]
) -> None:
    strategies: tuple[Strategy, ...] = (OfToken(), Confidence(threshold=0.6), AtSome(factor=2))
    made, _ = decode_open(llama.engine, [(prompts[row], one, NEW) for row, one in enumerate(strategies)])
    assert not asked
    for prompt, strategy, one in zip(prompts, strategies, made, strict=True):
        (alone,) = llama.engine.decode([prompt], strategy, kv="recompute", max_new_tokens=[NEW])
        assert (one.token_ids, one.exit_layers, one.counts) == (alone.token_ids, alone.exit_layers, alone.counts)


@dataclass(frozen=True)
class AnswersAnew(OfToken):
    """Has a plan that it does not keep to."""

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.zeros(len(view.rows), dtype=torch.bool)


def test_a_class_that_answers_anew_is_asked(llama: Any, prompts: list[list[int]]) -> None:
    (made,) = llama.engine.decode([prompts[0]], AnswersAnew(), kv="propagate", max_new_tokens=[NEW])
    assert set(made.exit_layers) == {LAYERS}
    assert contract.plan_of(AnswersAnew()) is None
    assert contract.plan_of(Confidence()) is None
    assert contract.plan_of(OfToken()) == OfToken()


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
def test_a_schedule_plans_what_its_formula_says(power: float) -> None:
    """In whole layers, whatever the rounding of the formula's numbers."""
    for first, last, horizon in itertools.product((30, 26, 9), (4, 8, 9), (7, 30)):
        planned = [Schedule(first, last, horizon, power).planned_layer(range(made)) for made in range(40)]
        exact = [first - (first - last) * min(made / horizon, 1) ** power for made in range(40)]
        assert all(layer >= least > layer - 1 for layer, least in zip(planned, exact, strict=True))
