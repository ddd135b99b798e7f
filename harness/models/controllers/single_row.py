"""One row's score in few operations: what a controller costs a token is mostly the number of small kernels it starts.

Observation and first layer become one formula. The columns of the first weight that read the state, the three numbers
of the change and the exit point are ``W = [S | C | P]``. With state ``x``, its inverse root mean square ``r``, the
change ``c`` and exit point ``e``: ``W · [r·x, c, one-hot(e)] + b = r·(S x) + C c + (b + P_e)``. Nothing is scaled or
joined.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.models.controllers.network import Network
from harness.models.controllers.observation import TINY, Observation

__all__ = ["SingleRow", "Sizes"]


class Sizes:
    """A state as a vector and its inverse root mean square; what was asked for last is remembered.

    The state at an exit point is the one before at the next.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, float] | None = None

    def of(self, state: Tensor) -> tuple[Tensor, float]:
        """Return ``[hidden_size]`` float32 of a state ``[1, hidden_size]``, and its size; NaN where it has none."""
        last = self._last  # read once: several threads may ask
        if last is not None and last[0] is state:
            return last[1:]
        x = state.squeeze(0).float()
        square = torch.dot(x, x).item() / x.shape[0] + TINY
        scale = 1 / math.sqrt(square) if square < math.inf else math.nan
        self._last = state, x, scale
        return x, scale


class SingleRow:
    """A network of a controller, for one row on the CPU.

    Equal to ``network(observation.build(…))`` up to rounding.

    Args:
        observation: what it looks at.
        network: maps inputs ``[n, width]`` to ``[n, 1]``.
        exits: how many exit points there are.
        sizes: of states, shared by the networks that are asked about the same ones.
    """

    def __init__(self, observation: Observation, network: Network, exits: int, sizes: Sizes | None = None) -> None:
        self._sizes = sizes or Sizes()
        (weight, bias), *self._later = network.layers
        self._width = weight.shape[1] - observation.width(0, exits)
        self._state = weight[:, : self._width].contiguous()
        self._biases = [bias + weight[:, place - exits] if observation.place else bias for place in range(exits)]
        self._normalise = observation.normalise
        change = weight[:, self._width : self._width + 3] if observation.change else weight[:, :0]
        self._change = tuple(column.contiguous() for column in change.unbind(1))
        self._act = torch.tanh_ if network.activation == "tanh" else torch.relu_

    def __call__(self, state: Tensor, previous: Tensor | None, place: int) -> Tensor | None:
        """Return the score ``[1]``; ``None`` where the state's size is no finite number.

        Args:
            state: at this exit point, ``[1, hidden_size]``.
            previous: at the exit point before, ``[1, hidden_size]``; ``None`` at the first.
            place: which exit point this is, from 0.
        """
        if self._normalise or self._change:
            y, before = (state, 0.0) if previous is None else self._sizes.of(previous)
            x, scale = self._sizes.of(state)
            if not math.isfinite(scale):
                return None
        else:
            x, scale = state.squeeze(0).float(), 1.0
        out = torch.addmv(self._biases[place], self._state, x, alpha=scale if self._normalise else 1.0)
        if self._change:
            size, cosine, growth = self._change
            out.add_(size, alpha=-math.log(scale))
            if previous is not None:
                out.add_(cosine, alpha=torch.dot(x, y).item() / self._width * scale * before)
                out.add_(growth, alpha=math.log(before) - math.log(scale))
        for weight, bias in self._later:
            out = torch.addmv(bias, weight, self._act(out))
        return out
