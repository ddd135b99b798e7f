"""Observations from which a learned controller decides whether a token may stop."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from harness.contracts.state_tests import TINY
from harness.errors import ArtefactError

__all__ = ["OBSERVATIONS", "Observation"]


@dataclass(frozen=True, slots=True)
class Observation:
    """Builds a controller's input from the states at an exit point.

    Attributes:
        state: ``hidden``, the residual stream (GREEN-CODE); or ``exit``, what the final norm reads there: the hidden
            state through the exit's shortcut, the same as ``hidden`` with the shared head.
        normalise: divide the state by its root mean square, which grows a hundredfold over the layers.
        change: add three numbers: the logarithm of the state's root mean square, the cosine with the state of the
            previous exit point asked for this token (0 at the first), and the change of that logarithm since then.
        place: add the exit point as a one-hot vector.
    """

    state: Literal["hidden", "exit"] = "hidden"
    normalise: bool = False
    change: bool = False
    place: bool = False

    def width(self, hidden_size: int, exits: int) -> int:
        """Return the length of the input vector."""
        return hidden_size + (3 if self.change else 0) + (exits if self.place else 0)

    def build(self, state: Tensor, previous: Tensor | None, place: int, exits: int) -> Tensor:
        """Return the inputs ``[n, width]``.

        Args:
            state: states at this exit point, ``[n, hidden_size]``.
            previous: states at the exit point before, the same rows; ``None`` at the first.
            place: which exit point this is, from 0.
            exits: how many there are.
        """
        state = state.float()
        if not (self.normalise or self.change or self.place):
            return state
        parts = [state]
        if self.normalise or self.change:
            scale = state.pow(2).mean(-1, keepdim=True).add_(TINY).rsqrt_()
            if self.normalise:
                parts[0] = state * scale
            if self.change:
                parts += _change(state, scale, None if previous is None else previous.float())
        if self.place:
            one_hot = state.new_zeros(len(state), exits)
            one_hot[:, place] = 1
            parts.append(one_hot)
        return torch.cat(parts, dim=-1)

    def build_all(self, states: Tensor) -> Tensor:
        """Return the inputs of every exit point, ``[n, exits, hidden_size]`` → ``[n, exits, width]`` float32."""
        exits = states.shape[1]
        return torch.stack(
            [self.build(states[:, e], states[:, e - 1] if e else None, e, exits) for e in range(exits)], dim=1
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the definition as JSON-able facts."""
        return asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Observation:
        """Read what :meth:`as_dict` wrote.

        Raises:
            ArtefactError: a definition this version does not know.
        """
        try:
            found = cls(**facts)
        except TypeError:
            found = cls(state="unknown")  # type: ignore[arg-type]
        whole = all(type(flag) is bool for flag in (found.normalise, found.change, found.place))
        if not whole or found.state not in ("hidden", "exit"):
            raise ArtefactError(f"the observation {facts} is not known to this version. Train the controller again.")
        return found


OBSERVATIONS = {
    "paper": Observation(),
    "normal": Observation(normalise=True),
    "rich": Observation(normalise=True, change=True),
    "exit": Observation(state="exit", normalise=True, change=True),
}
"""Values of ``--observation``; ``paper`` is GREEN-CODE's (section IV-B): the hidden state as it is."""


def _change(state: Tensor, scale: Tensor, previous: Tensor | None) -> list[Tensor]:
    size = scale.log().neg_()
    if previous is None:
        return [size, torch.zeros_like(size), torch.zeros_like(size)]
    before = previous.pow(2).mean(-1, keepdim=True).add_(TINY).rsqrt_()
    cosine = (state * previous).mean(-1, keepdim=True) * scale * before
    return [size, cosine, size + before.log()]
