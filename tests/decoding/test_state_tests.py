"""Checks inside compiled layers score as controllers do, and a token leaves where somebody who asks would let it go."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from harness.contracts import ExitView, Lossless, ModelInfo, StateScore, StateTest, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.exits import AskedExits
from harness.decoding.generation import Generation
from harness.decoding.kernels.layers import Asking
from harness.decoding.packing import pack
from harness.decoding.step import TokenPass
from harness.decoding.unit_costs import Timing
from harness.models.controllers import Activation, Observation, score_at, write_controller
from harness.running.operating_points import NeverExits
from harness.training.identity import identity
from strategies.classifier import Classifier
from strategies.full import Full
from strategies.lte import LearnToExit
from strategies.patience import Patience
from strategies.saturation import Saturation
from strategies.sec import StopExit
from tests.crossing import in_turn
from tests.decoding.conftest import decode_open, random_network

WIDTH, LENGTH, NEW = 128, 40, 12
EVERY = [Observation("hidden", *flags) for flags in itertools.product((False, True), repeat=3)]
POINTS = (1, 3, 4)


@pytest.fixture(scope="module")
def engine(make_case: Callable[..., Any]) -> Engine:
    case = make_case("llama", hidden_size=WIDTH, num_attention_heads=4, head_dim=32)
    found = Engine(pack(case.engine.backbone, "fp16", "cpu"), case.info)
    assert found.backbone.compiled is not None
    return found


def state_at_start(slots: int = 1) -> Tensor:
    return torch.randn(slots, WIDTH, generator=torch.Generator().manual_seed(1))


def slots_of(engine: Engine, positions: Sequence[int] = (LENGTH,), asked: Asking | None = None) -> Any:
    """Tokens of one row behind others that were read before."""
    cache = engine.cache(1, LENGTH + 8)
    cache.entries.copy_(torch.randn(cache.entries.shape, generator=torch.Generator().manual_seed(3)))
    assert engine.backbone.compiled is not None
    return engine.backbone.compiled.slots(
        cache, engine.rotary(LENGTH + 8), [0] * len(positions), positions, {} if asked is None else {0: asked}
    )


def asking(engine: Engine, scores: Sequence[StateScore], threshold: float = math.inf) -> Asking:
    assert engine.backbone.compiled is not None
    found = engine.backbone.compiled.asking(StateTest(tuple(scores), threshold), POINTS)
    assert found is not None
    return found


@torch.inference_mode()
@in_turn(rounds=2, observation=EVERY, activation=["tanh", "relu"], hidden=[(), (5,), (70, 5)])
def test_scores_are_those_of_the_network(
    engine: Engine, observation: Observation, activation: Activation, hidden: tuple[int, ...]
) -> None:
    net = random_network(observation.width(WIDTH, len(POINTS)), *hidden, 1, activation=activation)
    asked = asking(engine, [score_at(observation, net, place, len(POINTS)) for place in range(len(POINTS))])
    state = slots_of(engine, asked=asked).run(state_at_start(), 0, engine.info.num_layers)
    assert (asked.made, asked.left) == (len(POINTS), None)
    plain, expected, previous = slots_of(engine), [], None
    there, first = state_at_start(), 0
    for place, point in enumerate(POINTS):
        there, first = plain.run(there, first, point), point
        expected.append(net(observation.build(there, previous, place, len(POINTS))).squeeze(-1))
        previous = there
    torch.testing.assert_close(torch.tensor(asked.scores), torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert torch.equal(state, plain.run(there, first, engine.info.num_layers))


@torch.inference_mode()
def test_of_several_outputs_the_likeliest_scores(engine: Engine) -> None:
    net = random_network(WIDTH, 7, 4, scale=4.0)
    offsets = torch.tensor([0.3, -math.inf, 0.0, 1.5])
    outputs, score = [], replace(score_at(Observation(), net, 0, len(POINTS)), offsets=offsets)
    asked = asking(engine, [score] * len(POINTS))
    slots_of(engine, asked=asked).run(state_at_start(), 0, engine.info.num_layers)
    plain, there, first = slots_of(engine), state_at_start(), 0
    for point in POINTS:
        there, first = plain.run(there, first, point), point
        outputs.append(net(there).log_softmax(-1) + offsets)
    expected = torch.cat(outputs).amax(-1)
    torch.testing.assert_close(torch.tensor(asked.scores), expected, rtol=1e-4, atol=1e-4)
    assert len(set(torch.cat(outputs).argmax(-1).tolist())) > 1
    net.layers[-1][0][1].fill_(math.nan)  # of the output that does not count
    unknown = asking(engine, [score] * len(POINTS))
    slots_of(engine, asked=unknown).run(state_at_start(), 0, engine.info.num_layers)
    assert all(map(math.isnan, unknown.scores))


@torch.inference_mode()
@pytest.mark.parametrize(
    "positions", [(LENGTH,), (LENGTH - 2, LENGTH - 1, LENGTH)], ids=["alone", "with two that wait"]
)
def test_a_token_leaves_where_its_score_reaches_the_threshold(engine: Engine, positions: tuple[int, ...]) -> None:
    """The newest one's, bit for bit as if it had been run there."""
    net = random_network(WIDTH, 9, 1, activation="tanh")
    scores = [score_at(Observation(), net, place, len(POINTS)) for place in range(len(POINTS))]
    given = state_at_start(len(positions))
    every = asking(engine, scores)
    slots_of(engine, positions, every).run(given, 0, engine.info.num_layers)
    ordered = sorted(every.scores)
    for threshold in (*ordered, ordered[-1] + 1e-3):
        wanted = next((place for place, one in enumerate(every.scores) if one >= threshold), None)
        asked = asking(engine, scores, threshold)
        state = slots_of(engine, positions, asked).run(given, 0, engine.info.num_layers)
        assert asked.left == (None if wanted is None else POINTS[wanted])
        assert asked.made == (len(POINTS) if wanted is None else wanted + 1)
        assert torch.equal(state, slots_of(engine, positions).run(given, 0, asked.left or engine.info.num_layers))


@pytest.mark.parametrize(
    "score",
    [
        StateScore(torch.zeros(1), torch.zeros(1, WIDTH, dtype=torch.float64)),
        StateScore(torch.zeros(1), torch.zeros(1, WIDTH - 1)),
        StateScore(torch.zeros(2), torch.zeros(2, WIDTH)),
        StateScore(torch.zeros(10_000), later=((torch.zeros(1, 10_000), torch.zeros(1)),)),
        StateScore(torch.zeros(2), later=((torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(1, 3), torch.zeros(1)))),
        StateScore(torch.zeros(2), later=((torch.zeros(1, 3), torch.zeros(1)),)),
        StateScore(torch.zeros(1), change=torch.zeros(2, 1)),
        StateScore(torch.zeros(3), offsets=torch.zeros(2)),
    ],
    ids=[
        "float64",
        "another width",
        "two scores",
        "too wide",
        "wider behind",
        "does not follow",
        "two numbers",
        "two of three",
    ],
)
def test_what_is_not_compiled_is_asked_for(engine: Engine, score: StateScore) -> None:
    assert engine.backbone.compiled is not None
    assert engine.backbone.compiled.asking(StateTest((score,) * len(POINTS), 0.0), POINTS) is None


# ------------------------------------------------------------------------------------------- in the engine


Make = Callable[..., Strategy]


@pytest.fixture
def learned(tmp_path: Path) -> Make:
    """``learned(model, kind, threshold, …)`` writes a controller of random networks, and returns its strategy."""

    def make(
        model: ModelInfo, kind: str, threshold: float, *, state: Literal["hidden", "exit"] = "hidden",
        bad: bool = False, stop: float = 1.0,
    ) -> Strategy:  # fmt: skip
        shared, points = kind == "lte", model.exit_points
        observation = Observation(state, normalise=True, change=True, place=shared)
        width = observation.width(model.hidden_size, len(points))
        networks = {
            name: random_network(width, 6, 3 if kind == "sec" else 1, seed=13 + place, activation="tanh")
            for place, name in enumerate(["shared"] if shared else map(str, points))
        }
        if bad:
            networks[str(points[1])].layers[0][0].fill_(3e38)  # times a state of both signs: infinity less infinity
        path = tmp_path / f"{kind}.json"
        write_controller(path, kind, observation, networks, identity(model, "t") | {"threshold": 0.5, "stop": 0.8})
        if kind == "sec":
            return StopExit(threshold=threshold, stop=stop, heads=str(path))
        if shared:
            return LearnToExit(threshold=threshold, heads=str(path))
        return Classifier(threshold=threshold, heads=str(path))

    return make


def facts(one: Generation) -> dict[str, Any]:
    """Everything but times."""
    return {field.name: getattr(one, field.name) for field in fields(one) if field.name != "token_times_s"}


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each token's checks were made inside the layers, so far."""
    found: list[bool] = []
    there = TokenPass.ask

    def noting(current: TokenPass, *given: Any) -> Any:
        asked = there(current, *given)
        found.append(asked is not None)
        return asked

    monkeypatch.setattr(TokenPass, "ask", noting)
    return found


def asked_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenPass, "ask", lambda *_: None)


@dataclass(frozen=True)
class Rising(Saturation):
    """Exits where the state has settled and its first number has grown; is shown every exit point before."""

    def should_exit(self, view: ExitView) -> Tensor:
        layers, before = [view.exit_layer], view.previous
        while before is not None:
            layers, before = [before.exit_layer, *layers], before.previous
        assert layers == [*range(1, view.exit_layer + 1)]
        settled, before = super().should_exit(view), view.previous
        return settled if before is None else settled & (view.hidden_state[:, 0] > before.hidden_state[:, 0])

    def state_test(self, points: Sequence[int]) -> StateTest:
        return replace(super().state_test(points), asks=True)


@dataclass(frozen=True)
class Ahead(Rising):
    """Exits where the last layer would say the same."""

    def should_exit(self, view: ExitView) -> Tensor:
        settled = super().should_exit(view)
        return settled & (view.top_token == view.full_depth_token) if settled.any() else settled

    def state_test(self, points: Sequence[int]) -> StateTest:
        return super().state_test(points)


@dataclass(frozen=True)
class Slow(Rising):
    """Takes its time."""

    def should_exit(self, view: ExitView) -> Tensor:
        time.sleep(0.02)
        return torch.zeros(len(view.hidden_state), dtype=torch.bool)

    def state_test(self, points: Sequence[int]) -> StateTest:
        return super().state_test(points)


FAMILIES: dict[str, Callable[[ModelInfo, Make], list[Strategy]]] = {
    "saturation": lambda _, __: [Saturation(threshold=each) for each in (0.85, 0.9, 0.93)],
    "rising": lambda _, __: [Rising(threshold=each) for each in (0.8, 0.85, 0.9)],
    "classifier": lambda model, make: [make(model, "classifier", each) for each in (0.4, 0.55, 0.7)],
    "of the exit": lambda model, make: [make(model, "classifier", each, state="exit") for each in (0.4, 0.55, 0.7)],
    "lte": lambda model, make: [make(model, "lte", each) for each in (0.1, 0.5, 0.9)],
    "sec": lambda model, make: [make(model, "sec", each, stop=0.8) for each in (0.0, 0.3, 0.5, 0.7, 1.0)],
}


@in_turn(rounds=2, family=list(FAMILIES), threads=[1, 2], way=["recompute", "lossless", "propagate"])
def test_tokens_and_counts_are_those_of_asking(
    engine: Engine, prompts: list[list[int]], learned: Make, family: str, way: str, threads: int, inside: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    kv, lossless = ("recompute", Lossless(4)) if way == "lossless" else (way, None)
    torch.set_num_threads(threads)
    layers, drafts = set(), 0
    for strategy in FAMILIES[family](engine.info, learned):
        for batch in (*([prompt] for prompt in prompts), prompts):
            settings: dict[str, Any] = {"kv": kv, "max_new_tokens": [NEW, 4, 9][: len(batch)], "lossless": lossless}
            found = engine.decode(batch, strategy, **settings)
            with monkeypatch.context() as patch:
                asked_by_hand(patch)
                expected = engine.decode(batch, strategy, **settings)
            assert list(map(facts, found)) == list(map(facts, expected))
            drafts += sum(made.drafts for made in found)
            layers.update(layer for made in found for layer in made.exit_layers[1:])
    assert all(inside)
    assert drafts if lossless else len(layers) > 2


@dataclass(frozen=True)
class Always(Saturation):
    """Exits at its first point, however much is asked for."""

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.ones(len(view.hidden_state), dtype=torch.bool)

    def state_test(self, points: Sequence[int]) -> StateTest:
        return StateTest((StateScore(bias=torch.tensor([math.inf])),) * len(points), math.inf)


@pytest.mark.parametrize("strategy", [Always(), Saturation()])
def test_a_probe_is_asked_inside_and_never_leaves(
    engine: Engine, prompts: list[list[int]], strategy: Strategy, inside: list[bool]
) -> None:
    (made,) = engine.decode([prompts[0]], NeverExits(strategy), kv="recompute", max_new_tokens=[NEW])
    assert set(made.exit_layers) == {engine.info.num_layers}
    assert made.exit_checks == len(engine.info.exit_points) * (NEW - 1)
    assert all(inside)
    (gone,) = engine.decode([prompts[0]], Always(), kv="recompute", max_new_tokens=[NEW])
    assert set(gone.exit_layers[1:]) == {1}


@dataclass(frozen=True)
class Never(Saturation):
    """Inherits a test and answers otherwise."""

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.zeros(len(view.hidden_state), dtype=torch.bool)


def test_a_class_that_answers_anew_is_asked(engine: Engine, prompts: list[list[int]], inside: list[bool]) -> None:
    (made,) = engine.decode([prompts[0]], Never(threshold=-1), kv="recompute", max_new_tokens=[NEW])
    assert set(made.exit_layers) == {engine.info.num_layers}
    assert not any(inside)


def test_a_rule_is_asked_where_its_test_says(
    engine: Engine, prompts: list[list[int]], learned: Make, inside: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy, asked = learned(engine.info, "sec", 0.5, stop=0.8), list[int]()
    there = AskedExits.answer
    monkeypatch.setattr(
        AskedExits, "answer", lambda exits, view: (asked.append(view.exit_layer), there(exits, view))[1]
    )
    made = [engine.decode([prompt], strategy, kv="recompute", max_new_tokens=[NEW])[0] for prompt in prompts]
    assert all(inside)
    left = sum(layer < engine.info.num_layers for one in made for layer in one.exit_layers)
    ended = sum(one.finish_reason == "strategy" for one in made)
    assert min(left, ended) > 0
    assert len(asked) == left + ended < sum(one.exit_checks for one in made)


def test_a_rule_that_is_asked_may_look_ahead(
    engine: Engine, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [NEW]}
    made = [engine.decode([prompt], Ahead(0.8), **settings)[0] for prompt in prompts]
    asked_by_hand(monkeypatch)
    expected = [engine.decode([prompt], Ahead(0.8), **settings)[0] for prompt in prompts]
    assert list(map(facts, made)) == list(map(facts, expected))
    assert any(layer < engine.info.num_layers for one in made for layer in one.exit_layers)


def test_drafting_costs_a_question_where_a_test_asks(engine: Engine) -> None:
    timed = Engine(engine.backbone, engine.info, timing=Timing())
    costs = timed.facts(Slow(), Lossless()).costs
    assert costs.check < 0.02 <= costs.draft_head
    assert timed.facts(Saturation(), Lossless()).costs.draft_head < 0.02


def test_a_score_that_is_no_number_fails_the_row(
    engine: Engine, prompts: list[list[int]], learned: Make, inside: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = learned(engine.info, "classifier", 1.0, bad=True)
    (made,) = engine.decode([prompts[0]], strategy, kv="recompute", max_new_tokens=[NEW])
    assert any(inside)
    asked_by_hand(monkeypatch)
    (expected,) = engine.decode([prompts[0]], strategy, kv="recompute", max_new_tokens=[NEW])
    assert str(made.failure) == str(expected.failure)
    assert "scores of layer 2 are not finite" in str(made.failure)


@pytest.mark.parametrize("kv", ["recompute", "propagate"])
def test_rows_that_decide_in_different_ways_get_what_they_get_alone(
    engine: Engine, prompts: list[list[int]], learned: Make, inside: list[bool], kv: str
) -> None:
    some = [
        learned(engine.info, "classifier", 0.55),
        Saturation(0.85),
        Full(),
        learned(engine.info, "sec", 0.5, stop=0.8),
        learned(engine.info, "lte", 0.5),
        Rising(0.8),
    ]
    wishes = [(prompts[place % 3], strategy, NEW - place) for place, strategy in enumerate(some)]
    together, _ = decode_open(engine, wishes, kv)
    assert all(inside)
    for (prompt, strategy, limit), one in zip(wishes, together, strict=True):
        (alone,) = engine.decode([prompt], strategy, kv=kv, max_new_tokens=[limit])
        assert facts(one) == facts(alone) | {"log_probabilities": one.log_probabilities}
    inside.clear()
    decode_open(engine, [(prompts[0], some[0], 6), (prompts[1], Patience(), 3)], kv)
    assert len(inside) == 3, "asked beside a row that has no test, made inside the layers without it"


def test_the_state_behind_a_shortcut_is_asked_for(
    make_case: Callable[..., Any], learned: Make, inside: list[bool]
) -> None:
    case = make_case("llama", hidden_size=WIDTH, num_attention_heads=4, head_dim=32)
    shortcut = {point: LinearExit({"": Linear(torch.eye(WIDTH))}) for point in case.info.exit_points}
    packed = pack(replace(case.engine.backbone, shortcuts=shortcut), "fp16", "cpu")
    engine = Engine(packed, case.info)
    through = learned(case.info, "classifier", 0.5, state="exit")
    engine.decode([[1, 2, 3]], through, kv="recompute", max_new_tokens=[4])
    assert not any(inside)
    engine.decode([[1, 2, 3]], learned(case.info, "classifier", 0.5), kv="recompute", max_new_tokens=[4])
    assert any(inside)


def test_a_policy_that_hides_positions_is_asked(engine: Engine, prompts: list[list[int]], inside: list[bool]) -> None:
    engine.decode([prompts[0]], Saturation(), kv="skip", max_new_tokens=[4])
    assert not any(inside)
