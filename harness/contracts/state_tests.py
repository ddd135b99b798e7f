"""A rule as numbers: what layers that are compiled into one call can ask on a strategy's behalf."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from harness.errors import OptionError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TINY", "StateScore", "StateTest", "state_test_of"]

TINY = 1e-12
"""Added to mean squares, which may be zero."""


@dataclass(frozen=True, slots=True, eq=False)
class StateScore:
    """A small network's score of the state at one exit point.

    Of a state ``x`` its first layer makes ``r · (weight x) + c change + bias``, where ``r`` is the inverse root mean
    square of ``x``, or 1, and ``c`` are three numbers: the logarithm of the root mean square, the cosine with the state
    at the exit point before, and the change of that logarithm since then; the latter two are 0 at the first.

    Attributes:
        bias: ``[k]`` float32, as all its tensors.
        weight: ``[k, hidden_size]``; ``None`` for zeros.
        change: ``[3, k]``; ``None`` for zeros.
        normalise: whether ``r`` is not 1.
        later: weight ``[out, in]`` and bias ``[out]`` of the layers behind, the last with one output; an activation
            stands before each. None may be wider than the first, nor that wider than the model's own layers.
        activation: which.
    """

    bias: Tensor
    weight: Tensor | None = None
    change: Tensor | None = None
    normalise: bool = False
    later: tuple[tuple[Tensor, Tensor], ...] = ()
    activation: Literal["tanh", "relu"] = "tanh"


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class StateTest:
    """Exit where the score of a row's state reaches a least value; a score of NaN decides nothing, and the row fails.

    Attributes:
        scores: of the exit points at which the rule is asked, in their order.
        least: score from which a token exits, as float32 rounds it; NaN lets none go.
        state: ``hidden``, the residual stream; or ``exit``, that through the exit's shortcut.

    Raises:
        OptionError: a score holds something else than tensors, or there is no such state.
    """

    scores: tuple[StateScore, ...]
    least: float
    state: Literal["hidden", "exit"] = "hidden"

    def __post_init__(self) -> None:
        for one in self.scores:
            pairs = all(isinstance(layer, tuple) and len(layer) == 2 for layer in one.later)
            held = [each for each in (one.bias, one.weight, one.change) if each is not None]
            held += [each for layer in one.later for each in layer] if pairs else []
            if not pairs or one.bias is None or not all(hasattr(each, "data_ptr") for each in held):
                raise OptionError("a StateScore holds tensors, and in later pairs of them: weight and bias.")
        if self.state not in ("hidden", "exit"):
            raise OptionError(f"a StateTest reads the state 'hidden' or 'exit', not {self.state!r}.")


def state_test_of(rule: object, points: Sequence[int]) -> StateTest | None:
    """Return the test of a rule that is asked at some exit points; ``None`` where it has to be asked.

    A class that overrides ``should_exit`` alone has none: the test that it inherits is of something else.
    """
    for kind in type(rule).__mro__:
        if "state_test" in vars(kind):
            found: StateTest | None = rule.state_test(points)  # type: ignore[attr-defined]
            return found
        if "should_exit" in vars(kind):
            return None
    return None
