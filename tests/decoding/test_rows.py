"""A row yields what it yields alone: in a batch, in one that others join and leave, and when its exits are replayed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, Lossless, ModelInfo, PlannedRule, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine, decode_in_turn
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.decoding.loop import OpenBatch
from harness.registry import KV_POLICIES
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.margin import Margin
from strategies.patience import Patience
from strategies.random import Random
from strategies.saturation import Saturation
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS, LEARNED, STRATEGIES, decode_open

NEW, SEEDS = 12, [11, 5, 42]
SOME = Random(probability=0.3)


def facts(one: Generation) -> tuple[Any, ...]:
    """Everything but the clock and what only lossless decoding has."""
    return one.token_ids, one.exit_layers, one.finish_reason, one.counts


def one_by_one(engine: Any, prompts: Sequence[list[int]], strategy: Strategy, limits: list[int], **more: Any) -> Any:
    rows = zip(prompts, limits, SEEDS, strict=True)
    return [
        facts(engine.decode([prompt], strategy, max_new_tokens=[limit], seeds=[seed], **more)[0])
        for prompt, limit, seed in rows
    ]


# -------------------------------------------------------------------------------- closed batches


@in_turn(name=[*STRATEGIES, *LEARNED], kv=KV_POLICIES.names())
def test_a_batch_is_its_rows(llama: Any, name: str, kv: str, prompts: list[list[int]], learned: Any) -> None:
    strategy = STRATEGIES[name] if name in STRATEGIES else learned(name, llama.info)
    limits = [NEW, 5, 9]
    together = llama.engine.decode(prompts, strategy, kv=kv, max_new_tokens=limits, seeds=SEEDS)
    if name not in ("full", "fixed", "free", "pruned"):  # where all rows leave together there is little to get wrong
        assert len({layer for one in together for layer in one.exit_layers[1:]}) > 2
    assert [len(one.token_ids) for one in together] == limits
    assert [facts(one) for one in together] == one_by_one(llama.engine, prompts, strategy, limits, kv=kv)


@in_turn(case=list(FORMS), kv=KV_POLICIES.names())
def test_a_batch_is_its_rows_in_every_family(case: Any, kv: str, prompts: list[list[int]]) -> None:
    together = case.engine.decode(prompts, SOME, kv=kv, max_new_tokens=[NEW] * 3, seeds=SEEDS)
    assert [facts(one) for one in together] == one_by_one(case.engine, prompts, SOME, [NEW] * 3, kv=kv)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_rows_that_end_early_leave_the_others_alone(llama: Any, kv: str, prompts: list[list[int]]) -> None:
    """The middle row meets an end-of-sequence token, the first a stop rule, the last its limit."""
    free = llama.engine.decode(prompts, SOME, kv=kv, max_new_tokens=[NEW] * 3, seeds=SEEDS)
    middle, first = free[1].token_ids, free[0].token_ids
    eos = frozenset({next(token for token in middle[2:] if token not in first + free[2].token_ids)})
    cut = first[:6]
    ends: dict[str, Any] = {"kv": kv, "eos_token_ids": eos, "stop": lambda tokens: list(tokens) == cut}

    together = llama.engine.decode(prompts, SOME, max_new_tokens=[NEW] * 3, seeds=SEEDS, **ends)

    assert [one.finish_reason for one in together] == ["stop", "eos", "length"]
    assert together[0].token_ids == cut
    assert together[1].token_ids == middle[: middle.index(*eos) + 1]
    assert together[2].token_ids == free[2].token_ids
    assert [facts(one) for one in together] == one_by_one(llama.engine, prompts, SOME, [NEW] * 3, **ends)


@in_turn(rounds=2, name=["random", "confidence", "oracle", "full"], kv=KV_POLICIES.names())
def test_recorded_exits_replay_the_run(llama: Any, name: str, kv: str, prompts: list[list[int]]) -> None:
    limits = [NEW, 5, 9]
    run = llama.engine.decode(prompts, STRATEGIES[name], kv=kv, max_new_tokens=limits, seeds=SEEDS)
    again = llama.engine.replay(prompts, [one.exit_layers for one in run], kv=kv, max_new_tokens=limits)
    assert [one.token_ids for one in again] == [one.token_ids for one in run]
    assert [one.exit_layers for one in again] == [one.exit_layers for one in run]
    assert [one.exit_checks for one in again] == [0, 0, 0]
    # One evaluation per token is left: the output's own; with a cache, prefill's is not counted.
    outputs = [limit if kv == "none" else limit - 1 for limit in limits]
    assert [one.lm_head_evaluations for one in again] == outputs


def test_times_rise_from_the_start_of_the_batch(llama: Any, prompts: list[list[int]]) -> None:
    for one in llama.engine.decode(prompts, Fixed(layer=2), kv="propagate", max_new_tokens=[8] * 3):
        assert len(one.token_times_s) == len(one.token_ids) == 8
        assert one.token_times_s[0] > 0
        assert all(a < b for a, b in itertools.pairwise(one.token_times_s))


# ---------------------------------------------------------------------------------- open batches

ROWS, POSITIONS = 3, 40
MIXED: tuple[Strategy, ...] = (
    Confidence(threshold=0.6), Full(), SOME, Fixed(layer=3), Entropy(threshold=0.3),
    Saturation(threshold=0.8), Patience(patience=2), Margin(threshold=0.5, decay=2.0), Confidence(threshold=0.6), SOME,
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
            drawn.randrange(1, 11),
            drawn.randrange(1000),
        )
        for number in range(count)
    ]


def serve(engine: Any, todo: list[Wish], kv: str) -> list[Generation]:
    """Decode all wishes in one open batch, admitted at random moments."""
    drawn, tally = random.Random(1), [Generation() for _ in range(ROWS)]
    exits = RowExits(engine.info, "cpu", tally)
    batch = engine.open(ROWS, POSITIONS, kv, exits, tally)
    batch.with_log_probabilities = True
    queue, done, most = list(range(len(todo))), dict[int, Generation](), 0
    while queue or batch.running:
        free = [row for row in range(ROWS) if row not in batch.running]
        while queue and free and (not batch.running or drawn.random() < 0.6):
            number, row = queue.pop(0), free.pop(0)
            exits.join(row, todo[number].strategy, todo[number].seed)
            batch.join(row, todo[number].prompt, todo[number].limit)
            batch.prefill([row])
            done[number] = tally[row]
        most = max(most, len(batch.running))
        if batch.running:
            batch.step()
    assert most == ROWS  # otherwise nothing was decoded together
    return [done[number] for number in range(len(todo))]


def same_alone(engine: Any, todo: list[Wish], kv: str = "propagate") -> list[Generation]:
    """Everything but the clock is what each wish gets alone."""
    together = serve(engine, todo, kv)
    for wish, made in zip(todo, together, strict=True):
        alone = engine.decode([wish.prompt], wish.strategy, kv=kv, max_new_tokens=[wish.limit], seeds=[wish.seed])[0]
        assert facts(made) == facts(alone), wish
    return together


@pytest.mark.slow
@in_turn(case=list(FORMS), kv=KV_POLICIES.names())
def test_what_a_row_yields_does_not_depend_on_the_others(case: Any, kv: str) -> None:
    together = same_alone(case.engine, wishes(20, case.engine.info.vocab_size, MIXED), kv)
    assert len({layer for made in together for layer in made.exit_layers}) > 3


@dataclass(frozen=True)
class EvenPositions(Strategy):
    """Looks at everything a view has one of per row."""

    def should_exit(self, view: ExitView) -> Tensor:
        before = view.position if view.previous is None else view.previous.position
        assert before.tolist() == view.position.tolist()
        assert len(view.token_ids) == len(view.rows) == len(view.hidden_state)
        return view.position % 2 == 0


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


@pytest.mark.parametrize(
    "strategies",
    [(EvenPositions(), Full(), SOME), (Shared(2), Shared(4)), (Shared(2), Shared(4), SOME)],
    ids=["one position per row", "one rule of two settings", "and another rule"],
)
def test_rules_are_asked_about_their_own_rows_where_each_wants(llama: Any, strategies: Any) -> None:
    same_alone(llama.engine, wishes(12, llama.engine.info.vocab_size, strategies))


@pytest.mark.parametrize("kv_input", ["hidden", "shortcut"])
def test_what_a_rule_asked_for_is_computed_and_charged_once(llama: Any, kv_input: Any) -> None:
    width = llama.info.hidden_size
    weight = torch.eye(width) + 0.3 * torch.randn(width, width, generator=torch.Generator().manual_seed(0))
    maps = {point: LinearExit({"": Linear(weight, torch.zeros(width))}) for point in llama.info.exit_points}
    engine = Engine(replace(llama.engine.backbone, shortcuts=maps), llama.info, kv_input)
    same_alone(engine, wishes(24, engine.info.vocab_size, (Confidence(threshold=0.3), Full(), SOME, Fixed(layer=3))))


def test_log_probabilities_are_those_of_the_head_that_chose(llama: Any, prompts: list[list[int]]) -> None:
    ((made,), _) = decode_open(llama.engine, [(prompts[0], Fixed(layer=3), 4)], "none")
    for place, value in enumerate(made.log_probabilities):
        state = llama.engine.read([*prompts[0], *made.token_ids[:place]], [3])[0][-1:]
        expected = llama.engine.backbone.logits(state).log_softmax(-1)[0, made.token_ids[place]]
        assert value == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("kv", KV_POLICIES.names())
def test_a_dropped_row_leaves_nothing_behind(llama: Any, prompts: list[list[int]], kv: str) -> None:
    tally = [Generation()]
    exits = RowExits(llama.engine.info, "cpu", tally)
    batch = llama.engine.open(1, POSITIONS, kv, exits, tally)
    strategy = Random(probability=0.5)
    for prompt, seed, steps in ((prompts[1], 3, 3), (prompts[2], 4, NEW)):
        exits.join(0, strategy, seed)
        batch.join(0, prompt, NEW)
        batch.prefill([0])
        for _ in range(steps):
            if batch.running:
                batch.step()
        batch.drop(0)
        assert not batch.running
    alone = llama.engine.decode([prompts[2]], strategy, kv=kv, max_new_tokens=[NEW], seeds=[4])[0]
    assert facts(tally[0]) == facts(alone)


# ------------------------------------------------------------------------------------- failures


@dataclass(frozen=True)
class Broken(Strategy):
    """Raises about rows of some length."""

    length: int = 2

    def should_exit(self, view: ExitView) -> Tensor:
        if any(len(tokens) == self.length for tokens in view.token_ids):
            raise RuntimeError("no more")
        return torch.zeros(len(view.rows), dtype=torch.bool)


@dataclass(frozen=True)
class WrongShape(Strategy):
    def should_exit(self, view: ExitView) -> Tensor:
        return torch.zeros(7, dtype=torch.bool)


@dataclass(frozen=True)
class Forgetful(PlannedRule, Strategy):
    """Raises when a row has two tokens."""

    def planned_layer(self, token_ids: Sequence[int]) -> None:
        if len(token_ids) >= 2:
            raise RuntimeError("no more")


@pytest.mark.parametrize("broken", [Broken(), WrongShape(), Forgetful()])
def test_a_strategy_that_fails_stops_its_own_row_only(llama: Any, prompts: list[list[int]], broken: Strategy) -> None:
    other = Confidence(threshold=0.6)
    made, failures = decode_open(llama.engine, [(prompts[0], broken, NEW), (prompts[1], other, NEW)], "propagate")
    assert set(failures) == {0}
    (alone,) = llama.engine.decode([prompts[1]], other, kv="propagate", max_new_tokens=[NEW])
    assert facts(made[1]) == facts(alone)
    if not isinstance(broken, WrongShape):
        with pytest.raises(RuntimeError, match="no more"):
            llama.engine.decode([prompts[0]], broken, kv="propagate", max_new_tokens=[NEW])


def test_of_rows_that_are_asked_together_only_those_fail_that_the_strategy_fails_on(
    llama: Any, prompts: list[list[int]]
) -> None:
    strategy = Broken(3)
    made, failures = decode_open(llama.engine, [(prompts[0], strategy, NEW), (prompts[1], strategy, 3)], "propagate")
    assert set(failures) == {0}
    assert made[1].finish_reason == "length"


# ---------------------------------------------------------------- many requests through few rows

REQUESTS = 11
LIMITS = [1 + (7 * number) % 10 for number in range(REQUESTS)]


@pytest.fixture
def requests(llama: Any) -> list[list[int]]:
    drawn = random.Random(0)
    return [[drawn.randrange(1, llama.info.vocab_size) for _ in range(3 + number)] for number in range(REQUESTS)]


def through(engine: Any, requests: list[list[int]], strategy: Strategy, rows: int, **more: Any) -> list[Generation]:
    seeds = [100 + number for number in range(REQUESTS)]
    settings = {"kv": "recompute", "max_new_tokens": LIMITS, "seeds": seeds, **more}
    found = dict(decode_in_turn(engine, requests, strategy, rows=rows, **settings))
    assert sorted(found) == list(range(REQUESTS))
    return [found[place] for place in range(REQUESTS)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"kv": "propagate"}, {"kv": "none"}, {"lossless": Lossless()}],
    ids=["recompute", "propagate", "no cache", "lossless"],
)
def test_each_request_yields_what_it_yields_alone(
    llama: Any, requests: list[list[int]], settings: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"stop": lambda made: made[-1] % 7 == 0, "eos_token_ids": frozenset({1}), **settings}
    found = through(llama.engine, requests, SOME, 3, **more)
    for place, (prompt, limit, made) in enumerate(zip(requests, LIMITS, found, strict=True)):
        alone = llama.engine.decode(
            [prompt], SOME, max_new_tokens=[limit], seeds=[100 + place], **{"kv": "recompute", **more}
        )[0]
        assert (made.token_ids, made.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert made.lossless or facts(made) == facts(alone)  # what drafts cost beside others is another matter
    assert len({one.finish_reason for one in found}) > 1  # some were ended, others reached their limit


def test_a_row_that_ends_leaves_its_place_to_the_next_request(
    llama: Any, requests: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    running: list[int] = []
    step: Callable[[OpenBatch], None] = OpenBatch.step
    monkeypatch.setattr(OpenBatch, "step", lambda batch: (running.append(len(batch.running)), step(batch)))
    through(llama.engine, requests, Full(), 3)
    assert sum(running) == sum(limit - 1 for limit in LIMITS)  # the prompt makes a request's first token
    assert running == sorted(running, reverse=True)  # three until none waits


def test_what_a_strategy_raises_reaches_the_caller(llama: Any, requests: list[list[int]]) -> None:
    with pytest.raises(RuntimeError, match="no more"):
        through(llama.engine, requests, Broken(), 3)
