"""Rows that join and leave between tokens yield what they yield alone, whatever the others do."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.errors import ModelError
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.margin import Margin
from strategies.patience import Patience
from strategies.random import Random
from strategies.saturation import Saturation

ROWS, POSITIONS, NEW = 3, 40, 10

MIXED: tuple[Strategy, ...] = (
    Confidence(threshold=0.6), Full(), Random(probability=0.3), Fixed(layer=3), Entropy(threshold=0.3),
    Saturation(threshold=0.8), Patience(patience=2), Margin(threshold=0.5, decay=2.0), Confidence(threshold=0.6),
    Random(probability=0.3),
)  # fmt: skip


@dataclass(frozen=True)
class Wish:
    prompt: list[int]
    strategy: Strategy
    limit: int
    seed: int


def wishes(count: int, vocabulary: int, strategies: Sequence[Strategy], seed: int = 0) -> list[Wish]:
    drawn = random.Random(seed)
    shared = {strategy: strategy for strategy in strategies}  # equal ones are one object, as a server's are
    return [
        Wish(
            [drawn.randrange(1, vocabulary) for _ in range(drawn.randrange(3, 20))],
            shared[strategies[number % len(strategies)]],
            drawn.randrange(1, NEW + 1),
            drawn.randrange(1000),
        )
        for number in range(count)
    ]


def facts(one: Generation) -> tuple[Any, ...]:
    """Everything but the clock and what looking costs."""
    return one.token_ids, one.exit_layers, one.finish_reason, one.exit_checks, one.layers_executed, one.kv_fill_layers


def serve(engine: Any, todo: list[Wish], kv: str, *, chance: float = 0.6, seed: int = 1) -> list[Generation]:
    """Decode all wishes in one open batch, admitted at random moments."""
    drawn, tally = random.Random(seed), [Generation() for _ in range(ROWS)]
    exits = RowExits(engine.info, "cpu", tally)
    batch = engine.open(ROWS, POSITIONS, kv, exits, tally)
    batch.with_log_probabilities = True
    queue, where, done = list(range(len(todo))), {}, {}
    most = 0
    while queue or batch.running:
        free = [row for row in range(ROWS) if row not in batch.running]
        while queue and free and (not batch.running or drawn.random() < chance):
            number, row = queue.pop(0), free.pop(0)
            exits.join(row, todo[number].strategy, todo[number].seed)
            batch.join(row, todo[number].prompt, todo[number].limit)
            batch.prefill([row])
            where[row] = number
            done[number] = tally[row]
        most = max(most, len(batch.running))
        if batch.running:
            batch.step()
    assert most == ROWS  # otherwise nothing was decoded together
    return [done[number] for number in range(len(todo))]


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_what_a_row_yields_does_not_depend_on_the_others(case: Any, kv: str) -> None:
    todo = wishes(20, case.engine.info.vocab_size, MIXED)
    together = serve(case.engine, todo, kv)
    for wish, made in zip(todo, together, strict=True):
        alone = case.engine.decode([wish.prompt], wish.strategy, kv=kv, max_new_tokens=[wish.limit], seeds=[wish.seed])[
            0
        ]
        assert facts(made) == facts(alone), wish
    assert len({layer for made in together for layer in made.exit_layers}) > 3


def test_a_random_row_draws_from_its_own_seed_in_whatever_slot_it_sits(llama: Any) -> None:
    todo = wishes(12, llama.engine.info.vocab_size, [Random(probability=0.3)])
    first, second = (serve(llama.engine, todo, "propagate", chance=chance) for chance in (1.0, 0.5))
    assert [facts(one) for one in first] == [facts(one) for one in second]


def test_logits_that_a_strategy_asked_for_make_the_token_and_are_charged_once(llama: Any) -> None:
    for strategy in (Confidence(threshold=0.6), Fixed(layer=3), Full()):
        todo = wishes(9, llama.engine.info.vocab_size, [strategy, strategy])
        for wish, made in zip(todo, serve(llama.engine, todo, "propagate"), strict=True):
            alone = llama.engine.decode([wish.prompt], strategy, kv="propagate", max_new_tokens=[wish.limit])[0]
            assert made.lm_head_evaluations == alone.lm_head_evaluations


def test_log_probabilities_are_those_of_the_head_that_chose(llama: Any, prompts: list[list[int]]) -> None:
    tally = [Generation()]
    exits = RowExits(llama.engine.info, "cpu", tally)
    batch = llama.engine.open(1, POSITIONS, "none", exits, tally)
    batch.with_log_probabilities = True
    exits.join(0, Fixed(layer=3), 0)
    batch.join(0, prompts[0], 4)
    batch.prefill([0])
    while batch.running:
        batch.step()
    (made,) = tally
    for place, value in enumerate(made.log_probabilities):
        state = llama.engine.read([*prompts[0], *made.token_ids[:place]], [3])[0][-1:]
        expected = llama.engine.backbone.logits(state).log_softmax(-1)[0, made.token_ids[place]]
        assert value == pytest.approx(float(expected), abs=1e-5)


@dataclass(frozen=True)
class Broken(Strategy):
    """Raises when a row has two tokens."""

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        if any(len(tokens) >= 2 for tokens in view.token_ids):
            raise RuntimeError("no more")
        return torch.zeros(len(view.rows), dtype=torch.bool)


@dataclass(frozen=True)
class WrongShape(Strategy):
    def should_exit(self, view: ExitView) -> Tensor:
        return torch.zeros(7, dtype=torch.bool)


@pytest.mark.parametrize("broken", [Broken(), WrongShape()])
def test_a_strategy_that_fails_stops_its_own_row_only(llama: Any, prompts: list[list[int]], broken: Strategy) -> None:
    tally = [Generation(), Generation()]
    exits = RowExits(llama.engine.info, "cpu", tally)
    batch = llama.engine.open(2, POSITIONS, "propagate", exits, tally)
    for row, strategy in enumerate((broken, Confidence(threshold=0.6))):
        exits.join(row, strategy, 0)
        batch.join(row, prompts[row], NEW)
        batch.prefill([row])
    while batch.running:
        batch.step()
        for row in exits.failures:
            batch.drop(row)
    assert set(exits.failures) == {0}
    alone = llama.engine.decode([prompts[1]], Confidence(threshold=0.6), kv="propagate", max_new_tokens=[NEW])[0]
    assert facts(tally[1]) == facts(alone)
    exits.join(0, Full(), 0)
    assert not exits.failures


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_dropped_row_leaves_nothing_behind(llama: Any, prompts: list[list[int]], kv: str) -> None:
    tally = [Generation()]
    exits = RowExits(llama.engine.info, "cpu", tally)
    batch = llama.engine.open(1, POSITIONS, kv, exits, tally)
    strategy = Random(probability=0.5)
    exits.join(0, strategy, 3)
    batch.join(0, prompts[1], NEW)
    batch.prefill([0])
    for _ in range(3):
        batch.step()
    batch.drop(0)
    assert not batch.running
    exits.join(0, strategy, 4)
    batch.join(0, prompts[2], NEW)
    batch.prefill([0])
    while batch.running:
        batch.step()
    alone = llama.engine.decode([prompts[2]], strategy, kv=kv, max_new_tokens=[NEW], seeds=[4])[0]
    assert facts(tally[0]) == facts(alone)


def test_more_positions_than_the_model_has_are_refused(llama: Any) -> None:
    tally = [Generation()]
    with pytest.raises(ModelError, match="positions"):
        llama.engine.open(1, 10**6, "propagate", RowExits(llama.engine.info, "cpu", tally), tally)


@dataclass(frozen=True)
class EvenPositions(Strategy):
    """Looks at everything a view has one of per row."""

    def should_exit(self, view: ExitView) -> Tensor:
        before = view.position if view.previous is None else view.previous.position
        assert before.tolist() == view.position.tolist()
        assert len(view.token_ids) == len(view.rows) == len(view.hidden_state)
        return view.position % 2 == 0


def same_alone(engine: Any, todo: list[Wish], together: list[Generation], kv: str = "propagate") -> None:
    """Everything but the clock is what each wish gets alone."""
    for wish, made in zip(todo, together, strict=True):
        alone = engine.decode([wish.prompt], wish.strategy, kv=kv, max_new_tokens=[wish.limit], seeds=[wish.seed])[0]
        assert facts(made) == facts(alone)
        assert made.shortcut_evaluations == alone.shortcut_evaluations
        assert made.lm_head_evaluations == alone.lm_head_evaluations


def test_a_view_has_one_position_per_row_beside_others(llama: Any) -> None:
    todo = wishes(12, llama.engine.info.vocab_size, (EvenPositions(), Full(), Random(probability=0.3)))
    same_alone(llama.engine, todo, serve(llama.engine, todo, "propagate"))


@pytest.mark.parametrize("kv_input", ["hidden", "shortcut"])
def test_what_a_rule_asked_for_is_computed_and_charged_once(llama: Any, kv_input: Any) -> None:
    width = llama.info.hidden_size
    chance = torch.Generator().manual_seed(0)
    weight = torch.eye(width) + 0.3 * torch.randn(width, width, generator=chance)
    maps = {point: Linear(weight, torch.zeros(width)) for point in llama.info.exit_points}
    engine = Engine(replace(llama.engine.backbone, shortcuts=maps), llama.info, kv_input)
    todo = wishes(
        24, engine.info.vocab_size, (Confidence(threshold=0.3), Full(), Random(probability=0.3), Fixed(layer=3))
    )
    same_alone(engine, todo, serve(engine, todo, "propagate"))


class Always:
    """One rule object for every setting of :class:`Shared`."""

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.ones(len(view.rows), dtype=torch.bool)


ALWAYS = Always()


@dataclass(frozen=True)
class Shared(Strategy):
    """Exits at its layer, which its rule knows nothing of."""

    layer: int

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return (self.layer,)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return ALWAYS


@pytest.mark.parametrize("strategies", [(Shared(2), Shared(4)), (Shared(2), Shared(4), Random(probability=0.3))])
def test_a_rule_that_two_settings_share_is_asked_where_each_wants(llama: Any, strategies: Any) -> None:
    todo = wishes(12, llama.engine.info.vocab_size, strategies)
    same_alone(llama.engine, todo, serve(llama.engine, todo, "propagate"))


@dataclass(frozen=True)
class Picky(Strategy):
    """Raises for rows of three tokens."""

    def should_exit(self, view: ExitView) -> Tensor:
        if any(len(tokens) == 3 for tokens in view.token_ids):
            raise RuntimeError("three")
        return torch.zeros(len(view.rows), dtype=torch.bool)


def test_of_rows_that_are_asked_together_only_those_fail_that_the_strategy_fails_on(
    llama: Any, prompts: list[list[int]]
) -> None:
    tally = [Generation(), Generation()]
    exits = RowExits(llama.engine.info, "cpu", tally)
    batch = llama.engine.open(2, POSITIONS, "propagate", exits, tally)
    strategy = Picky()
    for row in (0, 1):
        exits.join(row, strategy, 0)
        batch.join(row, prompts[row], 3 if row else NEW)
        batch.prefill([row])
        if row == 0:
            batch.step()
    batch.step()  # row 0 has three tokens by now, row 1 two
    batch.step()
    assert set(exits.failures) == {0}
    assert tally[1].finish_reason == "length"


@pytest.mark.parametrize("kv", ["propagate", "recompute", "skip"])
def test_what_a_row_held_cannot_poison_the_next_one(llama: Any, prompts: list[list[int]], kv: str) -> None:
    long = prompts[1] * 2
    tally = [Generation(), Generation()]
    exits = RowExits(llama.engine.info, "cpu", tally)
    batch = llama.engine.open(2, POSITIONS, kv, exits, tally)

    def run(row: int, prompt: list[int], limit: int, strategy: Strategy) -> None:
        exits.join(row, strategy, 5)
        batch.join(row, prompt, limit)
        batch.prefill([row])

    def beside() -> list[int]:
        run(1, long, NEW, Full())  # a longer neighbour: attention over both is masked
        run(0, prompts[2], NEW, Random(probability=0.3))
        while batch.running:
            batch.step()
        return tally[0].token_ids

    expected = beside()
    run(0, long, 2, Full())
    batch.step()
    batch._cache.entries[:, 0, :, : len(long) + 1] = float("nan")  # what an overflow leaves
    assert beside() == expected
