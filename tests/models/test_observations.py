"""The input of a controller, its network, and one row's score in few operations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from harness.models.controllers import OBSERVATIONS, Activation, AtLeast, Network, Observation, SingleRow, score_at

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


SHAPES = [(6, 1), (6, 4, 2), (6, 5, 4, 3)]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def modules_of(widths: Sequence[int], activation: Activation = "tanh") -> list[nn.Module]:
    torch.manual_seed(0)
    modules: list[nn.Module] = []
    for place, width in enumerate(widths[1:]):
        modules += [nn.Linear(widths[place], width), ACTIVATIONS[activation]()]
    return modules[:-1]


@pytest.fixture
def inputs() -> Tensor:
    return 20 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1))


def same(left: Network, right: Network) -> bool:
    pairs = zip(left.layers, right.layers, strict=True)
    return left.activation == right.activation and all(
        torch.equal(one, other) for mine, theirs in pairs for one, other in zip(mine, theirs, strict=True)
    )


@pytest.mark.parametrize("widths", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_network_is_its_torch_sequence(widths: Sequence[int], activation: Activation, inputs: Tensor) -> None:
    modules = modules_of(widths, activation)
    network = Network.of_module(modules)
    assert len(network.layers) == len(widths) - 1
    if len(widths) > 2:
        assert network.activation == activation
    got = network(inputs)
    assert not got.requires_grad
    torch.testing.assert_close(got, nn.Sequential(*modules)(inputs).detach())
    with torch.no_grad():
        for parameter in nn.Sequential(*modules).parameters():
            parameter.add_(1.0)
    assert torch.equal(network(inputs), got)  # training goes on without it


def test_a_difference_is_one_output_less_another(inputs: Tensor) -> None:
    network = Network.of_module(modules_of((6, 5, 4, 3)))
    outputs, single = network(inputs), network.difference(2, 0)(inputs)
    assert single.shape == (20, 1)
    torch.testing.assert_close(single[:, 0], outputs[:, 2] - outputs[:, 0])
    assert single.abs().max() > 0.1


@pytest.mark.parametrize("widths", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tensors_are_read_back(widths: Sequence[int], activation: Activation) -> None:
    network = Network(Network.of_module(modules_of(widths)).layers, activation)
    assert same(Network.of(network.tensors("shared"), "shared", activation), network)
    halved = network.to(torch.float16)
    assert {tensor.dtype for tensor in halved.tensors("x").values()} == {torch.float16}
    assert same(Network.of(halved.tensors("x"), "x", activation), halved.to(torch.float32))  # float32 in use


BROAD = 24


def network(observation: Observation, activation: Activation, *hidden: int) -> Network:
    chance = torch.Generator().manual_seed(7)
    layers = (
        (torch.randn(rows, columns, generator=chance) / columns**0.5, torch.randn(rows, generator=chance))
        for columns, rows in itertools.pairwise((observation.width(BROAD, EXITS), *hidden, 1))
    )
    return Network(tuple(layers), activation)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("observation", [one for one in EVERY if one.state == "hidden"], ids=str)
def test_one_row_scores_as_many_do(observation: Observation, dtype: torch.dtype) -> None:
    chance = torch.Generator().manual_seed(0)
    grown = torch.randn(EXITS, 1, BROAD, generator=chance) * torch.tensor([0.3, 1.0, 20.0, 300.0]).view(-1, 1, 1)
    states = grown.to(dtype)
    before = states.clone()
    for activation, hidden in itertools.product(("tanh", "relu"), ((), (5,), (6, 5))):
        net = network(observation, activation, *hidden)
        for place in range(EXITS):
            previous = states[place - 1] if place else None
            expected = net(observation.build(states[place], previous, place, EXITS)).squeeze(-1)
            got = SingleRow(score_at(observation, net, place, EXITS))(states[place], previous)
            assert got is not None
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(states, before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("observation", [Observation(normalise=True), Observation(change=True)], ids=str)
def test_a_state_without_a_size_is_left_to_the_long_way(observation: Observation, bad: float) -> None:
    state = torch.ones(1, BROAD)
    state[0, 3] = bad
    assert SingleRow(score_at(observation, network(observation, "relu", 5), 0, EXITS))(state, None) is None


@pytest.mark.parametrize("least", [0.1, -0.1, 2.9444389791664403, 0.0, math.inf, -math.inf])
def test_one_row_is_compared_as_torch_compares(least: float) -> None:
    """In float32, to which the threshold is rounded: scores beside it, itself, NaN and infinity."""
    near = torch.tensor(least, dtype=torch.float32)
    beside = [torch.nextafter(near, torch.tensor(end)) for end in (-math.inf, math.inf)]
    for score in (near, *beside, torch.tensor(math.nan), torch.tensor(math.inf), torch.tensor(-math.inf)):
        rule = AtLeast(lambda view, score=score: score.view(1), least)  # type: ignore[arg-type, misc]
        assert rule.should_exit(None).tolist() == (score.view(1) >= least).tolist()  # type: ignore[arg-type]
