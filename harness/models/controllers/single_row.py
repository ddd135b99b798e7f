"""One row's score in few operations: what a controller costs a token is mostly the number of small kernels it starts.

Observation and first layer become one formula, :class:`harness.contracts.StateScore`: the columns of the first weight
that read the state, the three numbers of the change and the exit point are ``W = [S | C | P]``, and
``W · [r·x, c, one-hot(e)] + b = r·(S x) + C c + (b + P_e)``. Nothing is scaled or joined.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.contracts import StateScore
from harness.contracts.state_tests import TINY
from harness.models.controllers.network import Network
from harness.models.controllers.observation import Observation

__all__ = ["SingleRow", "Sizes", "score_at"]


def score_at(observation: Observation, network: Network, place: int, exits: int) -> StateScore:
    """Return ``network(observation.build(…))`` of one row at one exit point as one formula.

    Args:
        observation: what the network looks at.
        network: maps inputs ``[n, width]`` to ``[n, 1]``.
        place: which exit point, from 0.
        exits: how many there are.
    """
    (weight, bias), *later = network.layers
    width = weight.shape[1] - observation.width(0, exits)
    return StateScore(
        bias=bias + weight[:, place - exits] if observation.place else bias,
        weight=weight[:, :width].contiguous(),
        change=weight[:, width : width + 3].t().contiguous() if observation.change else None,
        normalise=observation.normalise,
        later=tuple(later),
        activation=network.activation,
    )


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
    """A score, for one row on the CPU.

    Args:
        score: of :func:`score_at`.
        sizes: of states, shared by those that are asked about the same ones.
    """

    def __init__(self, score: StateScore, sizes: Sizes | None = None) -> None:
        assert score.weight is not None
        self._score, self._weight = score, score.weight
        self._change = None if score.change is None else tuple(score.change.unbind(0))
        self._sizes = sizes or Sizes()
        self._act = torch.tanh_ if score.activation == "tanh" else torch.relu_

    def __call__(self, state: Tensor, previous: Tensor | None) -> Tensor | None:
        """Return the score ``[1]``; ``None`` where the state's size is no finite number.

        Args:
            state: at this exit point, ``[1, hidden_size]``.
            previous: at the exit point before, ``[1, hidden_size]``; ``None`` at the first.
        """
        score = self._score
        if score.normalise or self._change is not None:
            y, before = (state, 0.0) if previous is None else self._sizes.of(previous)
            x, scale = self._sizes.of(state)
            if not math.isfinite(scale):
                return None
        else:
            x, scale = state.squeeze(0).float(), 1.0
        out = torch.addmv(score.bias, self._weight, x, alpha=scale if score.normalise else 1.0)
        if self._change is not None:
            size, cosine, growth = self._change
            out.add_(size, alpha=-math.log(scale))
            if previous is not None:
                out.add_(cosine, alpha=torch.dot(x, y).item() / x.shape[0] * scale * before)
                out.add_(growth, alpha=math.log(before) - math.log(scale))
        for weight, bias in score.later:
            out = torch.addmv(bias, weight, self._act(out))
        return out
