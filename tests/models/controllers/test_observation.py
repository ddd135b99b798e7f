"""What a controller looks at, against its definition written out number by number."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from harness.errors import ArtefactError
from harness.models.controllers import OBSERVATIONS, Observation

ROWS, EXITS, WIDTH = 5, 4, 6

STATES: tuple[Literal["hidden", "exit"], ...] = ("hidden", "exit")
EVERY = [Observation(state, *flags) for state in STATES for flags in itertools.product((False, True), repeat=3)]


@pytest.fixture
def states() -> Tensor:
    """Residual streams that grow from exit to exit, ``[rows, exits, width]``."""
    chance = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, EXITS, WIDTH, generator=chance) * torch.tensor([0.3, 1.0, 20.0, 300.0]).view(1, -1, 1)


def rms(x: list[float]) -> float:
    return math.sqrt(sum(value * value for value in x) / len(x))


def naive(observation: Observation, x: list[float], before: list[float] | None, place: int) -> list[float]:
    """One row's input, as the attributes of an observation define it."""
    size = rms(x)
    built = [value / size for value in x] if observation.normalise else list(x)
    if observation.change:
        built.append(math.log(size))
        if before is None:
            built += [0.0, 0.0]
        else:
            dot = sum(one * other for one, other in zip(x, before, strict=True))
            built += [dot / (math.hypot(*x) * math.hypot(*before)), math.log(size) - math.log(rms(before))]
    if observation.place:
        built += [1.0 if exit_point == place else 0.0 for exit_point in range(EXITS)]
    return built


def naive_all(observation: Observation, states: Tensor) -> Tensor:
    rows = states.double().tolist()
    return torch.tensor(
        [[naive(observation, row[e], row[e - 1] if e else None, e) for e in range(EXITS)] for row in rows]
    )


@pytest.mark.parametrize("observation", EVERY, ids=str)
def test_every_exit_is_its_definition_at_once_and_one_by_one(observation: Observation, states: Tensor) -> None:
    expected = naive_all(observation, states)
    together = observation.build_all(states)
    assert together.shape == (ROWS, EXITS, observation.width(WIDTH, EXITS))
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    for e in range(EXITS):
        alone = observation.build(states[:, e], states[:, e - 1] if e else None, e, EXITS)
        assert torch.equal(alone, together[:, e])


@pytest.mark.parametrize("observation", EVERY, ids=str)
def test_rows_do_not_look_at_each_other(observation: Observation, states: Tensor) -> None:
    together = observation.build_all(states)
    for row in range(ROWS):
        torch.testing.assert_close(observation.build_all(states[row : row + 1]), together[row : row + 1])
    assert observation.build_all(states[:0]).shape == (0, EXITS, observation.width(WIDTH, EXITS))


@pytest.mark.parametrize("observation", EVERY, ids=str)
def test_the_states_themselves_are_left_alone(observation: Observation, states: Tensor) -> None:
    before = states.clone()
    built = observation.build(states[:, 1], states[:, 0], 1, EXITS)
    assert torch.equal(states, before)
    again = observation.build(states[:, 1], states[:, 0], 1, EXITS)
    assert torch.equal(built, again)


@pytest.mark.parametrize(
    ("name", "width"),
    [("paper", 2048), ("normal", 2048), ("rich", 2048 + 3), ("exit", 2048 + 3)],
)
def test_named_observations_and_their_widths(name: str, width: int) -> None:
    assert OBSERVATIONS[name].width(2048, 9) == width
    assert (OBSERVATIONS[name].state == "exit") is (name == "exit")


def test_a_place_is_one_number_per_exit_point() -> None:
    assert Observation(place=True).width(2048, 9) == 2048 + 9
    assert Observation(change=True, place=True).width(2048, 9) == 2048 + 3 + 9


def test_the_paper_s_observation_is_the_hidden_state_as_it_is(states: Tensor) -> None:
    assert torch.equal(OBSERVATIONS["paper"].build(states[:, 2], states[:, 1], 2, EXITS), states[:, 2])


def test_worked_out_by_hand() -> None:
    # root mean squares 5 and 10; the cosine with a doubled state is 1, with a perpendicular one 0
    state, double, across = (torch.tensor([row]) for row in ([1.0, 7.0], [2.0, 14.0], [-7.0, 1.0]))
    rich = OBSERVATIONS["rich"]
    first = rich.build(state, None, 0, 2)
    torch.testing.assert_close(first, torch.tensor([[0.2, 1.4, math.log(5), 0.0, 0.0]]))
    second = rich.build(double, state, 1, 2)
    torch.testing.assert_close(second, torch.tensor([[0.2, 1.4, math.log(10), 1.0, math.log(2)]]))
    turned = rich.build(across, double, 1, 2)
    torch.testing.assert_close(turned, torch.tensor([[-1.4, 0.2, math.log(5), 0.0, -math.log(2)]]))


def test_a_normal_state_does_not_tell_its_size(states: Tensor) -> None:
    normal = OBSERVATIONS["normal"]
    built = normal.build_all(states)
    torch.testing.assert_close(normal.build_all(1000 * states), built)
    torch.testing.assert_close(built.pow(2).mean(-1), torch.ones(ROWS, EXITS))


def test_a_change_tells_size_and_turn_apart(states: Tensor) -> None:
    """A longer state of the same direction moves the logarithms; the cosine stays."""
    change = Observation(normalise=True, change=True)
    one = change.build(states[:, 1], states[:, 0], 1, EXITS)
    longer = change.build(10 * states[:, 1], states[:, 0], 1, EXITS)
    torch.testing.assert_close(longer[:, : WIDTH + 2 : WIDTH + 1], one[:, : WIDTH + 2 : WIDTH + 1])
    for column in (WIDTH, WIDTH + 2):
        torch.testing.assert_close(longer[:, column], one[:, column] + math.log(10))
    torch.testing.assert_close(longer[:, WIDTH + 1], one[:, WIDTH + 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("observation", EVERY, ids=str)
def test_low_precision_states_are_widened_first(observation: Observation, states: Tensor, dtype: torch.dtype) -> None:
    low = (states * 20).to(dtype)  # squares beyond the largest float16
    built = observation.build_all(low)
    assert built.dtype == torch.float32
    assert torch.isfinite(built).all()
    assert torch.equal(built, observation.build_all(low.float()))
    torch.testing.assert_close(built, naive_all(observation, low), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("observation", EVERY, ids=str)
def test_a_state_of_zeros_stays_a_number(observation: Observation) -> None:
    assert torch.isfinite(observation.build_all(torch.zeros(2, EXITS, WIDTH))).all()


# ----------------------------------------------------------------------------------- as facts


@pytest.mark.parametrize("observation", [*EVERY, *OBSERVATIONS.values()], ids=str)
def test_a_definition_survives_json(observation: Observation) -> None:
    assert Observation.of(json.loads(json.dumps(observation.as_dict()))) == observation


def test_what_a_definition_leaves_out_is_the_paper_s() -> None:
    assert Observation.of({}) == OBSERVATIONS["paper"]


@pytest.mark.parametrize(
    "facts", [{"state": "logits"}, {"state": "hidden", "entropy": True}, {"layers": [4]}, [1], None]
)
def test_a_definition_of_another_version_is_refused(facts: Any) -> None:
    with pytest.raises(ArtefactError) as refused:
        Observation.of(facts)
    assert str(refused.value) == f"the observation {facts} is not known to this version. Train the controller again."
