"""A small multilayer perceptron as plain tensors: what is left of a controller once it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["Activation", "Network"]

Activation = Literal["tanh", "relu"]


@dataclass(frozen=True, slots=True)
class Network:
    """Linear maps with an activation between them.

    Attributes:
        layers: (weight ``[out, in]``, bias ``[out]``) in order.
        activation: between the layers; none after the last.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    activation: Activation = "tanh"

    def __call__(self, x: Tensor) -> Tensor:
        """Map inputs ``[n, in]`` to outputs ``[n, out]``."""
        *inner, (weight, bias) = self.layers
        act = torch.tanh if self.activation == "tanh" else torch.relu
        for inner_weight, inner_bias in inner:
            x = act(F.linear(x, inner_weight, inner_bias))
        return F.linear(x, weight, bias)

    def difference(self, first: int, second: int) -> Network:
        """Return the network whose single output is output ``first`` minus output ``second``."""
        weight, bias = self.layers[-1]
        last = (
            weight[first : first + 1] - weight[second : second + 1],
            bias[first : first + 1] - bias[second : second + 1],
        )
        return Network((*self.layers[:-1], last), self.activation)

    def to(self, dtype: torch.dtype) -> Network:
        """Return the same network in another dtype."""
        return Network(tuple((weight.to(dtype), bias.to(dtype)) for weight, bias in self.layers), self.activation)

    @property
    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(tensor).all()) for layer in self.layers for tensor in layer)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors by name, for an artefact."""
        return {
            f"{prefix}.{place}.{part}": tensor
            for place, layer in enumerate(self.layers)
            for part, tensor in zip(("weight", "bias"), layer, strict=True)
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prefix: str, activation: Activation) -> Network:
        """Read what :meth:`tensors` wrote."""
        layers: list[tuple[Tensor, Tensor]] = []
        while f"{prefix}.{len(layers)}.weight" in tensors:
            name = f"{prefix}.{len(layers)}"
            layers.append((tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()))
        return cls(tuple(layers), activation)

    @classmethod
    def of_module(cls, modules: Sequence[torch.nn.Module]) -> Network:
        """Read the linear layers and the activation of a torch sequence."""
        linear = [module for module in modules if isinstance(module, torch.nn.Linear)]
        activation: Activation = "relu" if any(isinstance(module, torch.nn.ReLU) for module in modules) else "tanh"
        return cls(tuple((m.weight.detach().clone(), m.bias.detach().clone()) for m in linear), activation)
