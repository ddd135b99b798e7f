"""The network of a controller is the torch sequence it was trained as."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from harness.models.controllers import Network
from harness.models.controllers.controller import Activation

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


def test_an_activation_makes_a_difference(inputs: Tensor) -> None:
    network = Network.of_module(modules_of(SHAPES[-1], "tanh"))
    other = Network(network.layers, "relu")
    assert (network(inputs) - other(inputs)).abs().max() > 0.1


def test_training_on_leaves_the_network_behind(inputs: Tensor) -> None:
    modules = modules_of(SHAPES[-1])
    network = Network.of_module(modules)
    before = network(inputs)
    with torch.no_grad():
        for parameter in nn.Sequential(*modules).parameters():
            parameter.add_(1.0)
    assert torch.equal(network(inputs), before)
    assert not torch.equal(nn.Sequential(*modules)(inputs), before)


# -------------------------------------------------------------------------------------- difference


@pytest.mark.parametrize("widths", [(6, 2), (6, 4, 2), (6, 5, 4, 3)])
def test_a_difference_is_one_output_less_another(widths: Sequence[int], inputs: Tensor) -> None:
    network = Network.of_module(modules_of(widths))
    outputs = network(inputs)
    for first in range(widths[-1]):
        for second in range(widths[-1]):
            single = network.difference(first, second)(inputs)
            assert single.shape == (20, 1)
            torch.testing.assert_close(single[:, 0], outputs[:, first] - outputs[:, second])
    assert network.difference(1, 0)(inputs).abs().max() > 0.1


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_difference_keeps_the_rest_of_the_network(activation: Activation) -> None:
    network = Network.of_module(modules_of((6, 5, 4, 3), activation))
    less = network.difference(1, 0)
    assert less.activation == activation
    assert same(Network(less.layers[:-1], activation), Network(network.layers[:-1], activation))


# ----------------------------------------------------------------------------------------- storage


@pytest.mark.parametrize("widths", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_tensors_are_read_back(widths: Sequence[int], activation: Activation) -> None:
    network = Network(Network.of_module(modules_of(widths)).layers, activation)
    assert same(Network.of(network.tensors("shared"), "shared", activation), network)


def test_networks_beside_each_other_are_told_apart() -> None:
    """Also where one's name begins with another's, or one is deeper."""
    networks = {
        "1": Network.of_module(modules_of((6, 1))),
        "10": Network.of_module(modules_of((6, 5, 4, 1))),
        "100": Network.of_module(modules_of((6, 4, 1))),
    }
    tensors = {key: tensor for name, network in networks.items() for key, tensor in network.tensors(name).items()}
    assert len(tensors) == 2 + 6 + 4
    for name, network in networks.items():
        assert same(Network.of(tensors, name, "tanh"), network)


def test_half_precision_on_disk_is_single_precision_in_use(inputs: Tensor) -> None:
    network = Network.of_module(modules_of(SHAPES[-1]))
    halved = network.to(torch.float16)
    assert {tensor.dtype for tensor in halved.tensors("x").values()} == {torch.float16}
    found = Network.of(halved.tensors("x"), "x", "tanh")
    assert {tensor.dtype for tensor in found.tensors("x").values()} == {torch.float32}
    assert same(found, halved.to(torch.float32))
    torch.testing.assert_close(found(inputs), network(inputs), atol=2e-2, rtol=1e-2)
