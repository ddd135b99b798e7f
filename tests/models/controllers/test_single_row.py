"""The short way for one row gives the score of the long way, whatever a controller looks at."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from harness.models.controllers import Network, Observation
from harness.models.controllers.controller import SingleRow, Sizes, score_at
from harness.models.controllers.learned import AtLeast

EXITS, WIDTH = 4, 24
EVERY = [Observation("hidden", *flags) for flags in itertools.product((False, True), repeat=3)]
ACTIVATIONS: tuple[Literal["tanh", "relu"], ...] = ("tanh", "relu")


def network(observation: Observation, activation: Literal["tanh", "relu"], *hidden: int) -> Network:
    chance = torch.Generator().manual_seed(7)
    widths = (observation.width(WIDTH, EXITS), *hidden, 1)
    layers = (
        (torch.randn(rows, columns, generator=chance) / columns**0.5, torch.randn(rows, generator=chance))
        for columns, rows in itertools.pairwise(widths)
    )
    return Network(tuple(layers), activation)


def single(observation: Observation, net: Network, place: int, sizes: Sizes | None = None) -> SingleRow:
    return SingleRow(score_at(observation, net, place, EXITS), sizes)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def states(request: pytest.FixtureRequest) -> Tensor:
    """Residual streams of one row that grow from exit to exit, ``[exits, 1, width]``."""
    chance = torch.Generator().manual_seed(0)
    grown = torch.randn(EXITS, 1, WIDTH, generator=chance) * torch.tensor([0.3, 1.0, 20.0, 300.0]).view(-1, 1, 1)
    return grown.to(request.param)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 5)], ids=["linear", "one hidden layer", "two"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("observation", EVERY, ids=str)
def test_both_ways_score_alike(
    observation: Observation, activation: Literal["tanh", "relu"], hidden: tuple[int, ...], states: Tensor
) -> None:
    net = network(observation, activation, *hidden)
    before = states.clone()
    for place in range(EXITS):
        previous = states[place - 1] if place else None
        expected = net(observation.build(states[place], previous, place, EXITS)).squeeze(-1)
        got = single(observation, net, place)(states[place], previous)
        assert got is not None
        assert (got.shape, got.dtype) == ((1,), torch.float32)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(states, before)


def test_asking_twice_gives_the_same() -> None:
    observation = Observation(normalise=True, change=True, place=True)
    row = single(observation, network(observation, "tanh", 5), 1)
    x, y = torch.randn(1, WIDTH), torch.randn(1, WIDTH)
    first = row(x, y)
    assert first is not None
    row(torch.randn(1, WIDTH), None)
    again = row(x, y)
    assert again is not None
    assert torch.equal(first, again)


def test_networks_that_share_sizes_give_what_each_gives_alone(states: Tensor) -> None:
    """Bit for bit, whichever state was measured last."""
    observation, sizes = Observation(normalise=True, change=True), Sizes()
    nets = [network(observation, "relu", 5 + place) for place in range(EXITS)]
    together = [single(observation, net, place, sizes) for place, net in enumerate(nets)]
    each = list(states.unbind(0))
    for place in [0, 1, 2, 3, 1, 3]:
        previous = each[place - 1] if place else None
        alone = single(observation, nets[place], place)(each[place], previous)
        shared = together[place](each[place], previous)
        assert alone is not None
        assert shared is not None
        assert torch.equal(alone, shared)


def test_a_state_of_zeros_has_a_score() -> None:
    observation = Observation(normalise=True, change=True)
    net = network(observation, "tanh", 5)
    zeros = torch.zeros(1, WIDTH)
    got = single(observation, net, 1)(zeros, zeros)
    assert got is not None
    torch.testing.assert_close(got, net(observation.build(zeros, zeros, 1, EXITS)).squeeze(-1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("observation", [Observation(normalise=True), Observation(change=True)], ids=str)
def test_a_state_without_a_size_is_left_to_the_long_way(observation: Observation, bad: float) -> None:
    state = torch.ones(1, WIDTH)
    state[0, 3] = bad
    assert single(observation, network(observation, "relu", 5), 0)(state, None) is None


def test_an_earlier_state_without_a_size_gives_no_number() -> None:
    observation = Observation(normalise=True, change=True)
    earlier = torch.full((1, WIDTH), float("inf"))
    got = single(observation, network(observation, "tanh", 5), 1)(torch.ones(1, WIDTH), earlier)
    assert got is not None
    assert not bool(got >= 0)


@pytest.mark.parametrize("least", [0.1, -0.1, 2.9444389791664403, 0.0, math.inf, -math.inf])
def test_one_row_is_compared_as_torch_compares(least: float) -> None:
    """In float32, to which the threshold is rounded: scores beside it, itself, NaN and infinity."""
    near = torch.tensor(least, dtype=torch.float32)
    beside = [torch.nextafter(near, torch.tensor(end)) for end in (-math.inf, math.inf)]
    for score in (near, *beside, torch.tensor(math.nan), torch.tensor(math.inf), torch.tensor(-math.inf)):
        rule = AtLeast(lambda view, score=score: score.view(1), least)  # type: ignore[arg-type, misc]
        assert rule.should_exit(None).tolist() == (score.view(1) >= least).tolist()  # type: ignore[arg-type]
