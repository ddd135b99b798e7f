"""The input of a controller, its network, and one row's score in few operations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from harness.errors import ArtefactError
from harness.models.controllers import OBSERVATIONS, Network, Observation
from harness.models.controllers.controller import Activation, SingleRow, Sizes, score_at
from harness.models.controllers.learned import AtLeast

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


@pytest.mark.parametrize(
    ("name", "width"),
    [("paper", 2048), ("normal", 2048), ("rich", 2048 + 3), ("exit", 2048 + 3)],
)
def test_named_observations_and_their_widths(name: str, width: int) -> None:
    assert OBSERVATIONS[name].width(2048, 9) == width
    assert (OBSERVATIONS[name].state == "exit") is (name == "exit")


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


@pytest.mark.parametrize(
    "facts", [{"state": "logits"}, {"state": "hidden", "entropy": True}, {"layers": [4]}, [1], None]
)
def test_a_definition_of_another_version_is_refused(facts: Any) -> None:
    with pytest.raises(ArtefactError) as refused:
        Observation.of(facts)
    assert str(refused.value) == f"the observation {facts} is not known to this version. Train the controller again."


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


@pytest.mark.parametrize("widths", [(6, 2), (6, 4, 2), (6, 5, 4, 3)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_difference_is_one_output_less_another(widths: Sequence[int], activation: Activation, inputs: Tensor) -> None:
    network = Network.of_module(modules_of(widths, activation))
    outputs = network(inputs)
    for first in range(widths[-1]):
        for second in range(widths[-1]):
            single = network.difference(first, second)(inputs)
            assert single.shape == (20, 1)
            torch.testing.assert_close(single[:, 0], outputs[:, first] - outputs[:, second])
    assert network.difference(1, 0)(inputs).abs().max() > 0.1


@pytest.mark.parametrize("widths", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tensors_are_read_back(widths: Sequence[int], activation: Activation) -> None:
    network = Network(Network.of_module(modules_of(widths)).layers, activation)
    assert same(Network.of(network.tensors("shared"), "shared", activation), network)
    halved = network.to(torch.float16)
    assert {tensor.dtype for tensor in halved.tensors("x").values()} == {torch.float16}
    assert same(Network.of(halved.tensors("x"), "x", activation), halved.to(torch.float32))  # float32 in use


def test_networks_beside_each_other_are_told_apart() -> None:
    """Also where one's name begins with another's, or one is deeper."""
    networks = {
        name: Network.of_module(modules_of(widths))
        for name, widths in (("1", (6, 1)), ("10", (6, 5, 4, 1)), ("100", (6, 4, 1)))
    }
    tensors = {key: tensor for name, network in networks.items() for key, tensor in network.tensors(name).items()}
    assert len(tensors) == 2 + 6 + 4
    for name, network in networks.items():
        assert same(Network.of(tensors, name, "tanh"), network)


BROAD = 24
OF_HIDDEN = [Observation("hidden", *flags) for flags in itertools.product((False, True), repeat=3)]


def network(observation: Observation, activation: Literal["tanh", "relu"], *hidden: int) -> Network:
    chance = torch.Generator().manual_seed(7)
    widths = (observation.width(BROAD, EXITS), *hidden, 1)
    layers = (
        (torch.randn(rows, columns, generator=chance) / columns**0.5, torch.randn(rows, generator=chance))
        for columns, rows in itertools.pairwise(widths)
    )
    return Network(tuple(layers), activation)


def single(observation: Observation, net: Network, place: int, sizes: Sizes | None = None) -> SingleRow:
    return SingleRow(score_at(observation, net, place, EXITS), sizes)


@pytest.fixture(params=[torch.float32, torch.bfloat16, torch.float16], ids=str)
def row_states(request: pytest.FixtureRequest) -> Tensor:
    """Residual streams of one row that grow from exit to exit, ``[exits, 1, width]``."""
    chance = torch.Generator().manual_seed(0)
    grown = torch.randn(EXITS, 1, BROAD, generator=chance) * torch.tensor([0.3, 1.0, 20.0, 300.0]).view(-1, 1, 1)
    return grown.to(request.param)


@pytest.mark.parametrize("hidden", [(), (5,), (6, 5)], ids=["linear", "one hidden layer", "two"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("observation", OF_HIDDEN, ids=str)
def test_both_ways_score_alike(
    observation: Observation, activation: Literal["tanh", "relu"], hidden: tuple[int, ...], row_states: Tensor
) -> None:
    net = network(observation, activation, *hidden)
    before = row_states.clone()
    for place in range(EXITS):
        previous = row_states[place - 1] if place else None
        expected = net(observation.build(row_states[place], previous, place, EXITS)).squeeze(-1)
        got = single(observation, net, place)(row_states[place], previous)
        assert got is not None
        assert (got.shape, got.dtype) == ((1,), torch.float32)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(row_states, before)


def test_networks_that_share_sizes_give_what_each_gives_alone(row_states: Tensor) -> None:
    """Bit for bit, whichever state was measured last."""
    observation, sizes = Observation(normalise=True, change=True), Sizes()
    nets = [network(observation, "relu", 5 + place) for place in range(EXITS)]
    together = [single(observation, net, place, sizes) for place, net in enumerate(nets)]
    each = list(row_states.unbind(0))
    for place in [0, 1, 2, 3, 1, 3]:
        previous = each[place - 1] if place else None
        alone = single(observation, nets[place], place)(each[place], previous)
        shared = together[place](each[place], previous)
        assert alone is not None
        assert shared is not None
        assert torch.equal(alone, shared)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("observation", [Observation(normalise=True), Observation(change=True)], ids=str)
def test_a_state_without_a_size_is_left_to_the_long_way(observation: Observation, bad: float) -> None:
    state = torch.ones(1, BROAD)
    state[0, 3] = bad
    assert single(observation, network(observation, "relu", 5), 0)(state, None) is None


def test_zeros_have_a_score_and_what_follows_a_state_without_a_size_has_no_number() -> None:
    observation = Observation(normalise=True, change=True)
    net, zeros = network(observation, "tanh", 5), torch.zeros(1, BROAD)
    got = single(observation, net, 1)(zeros, zeros)
    assert got is not None
    torch.testing.assert_close(got, net(observation.build(zeros, zeros, 1, EXITS)).squeeze(-1))
    got = single(observation, net, 1)(torch.ones(1, BROAD), torch.full((1, BROAD), math.inf))
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
