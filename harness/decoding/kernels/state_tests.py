"""Checks of a state test between compiled layers, so that a token runs to where it exits in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray  # type: ignore[attr-defined]
from torch import Tensor

from harness.contracts import StateScore, StateTest
from harness.contracts.state_tests import TINY
from harness.decoding.kernels.elements import exponential, floats, reordered, wait
from harness.decoding.kernels.lanes import Float32, one_row_of, pointer, share

__all__ = ["AT", "TEST_COLUMNS", "Asking", "PackedTest", "score"]

# Of a check: the layer after which it is made; the first layer's outputs, and addresses of its weight, bias and change;
# whether the state is normalised; the activation; how many layers follow, and the address of what they have.
AT, COUNT, WEIGHT, BIAS, CHANGE, NORMALISE, ACTIVATION, DEPTH, LATER, TEST_COLUMNS = range(10)
# Of a layer behind the first: addresses of weight and bias, and its outputs.
_WEIGHT, _BIAS, _COUNT, _COLUMNS = range(4)
_KINDS = {"tanh": 0, "relu": 1}
_RELU = _KINDS["relu"]
_FLAT = 44.0  # from where on 1 - tanh is none in float32

_products = one_row_of(Float32())


@reordered
def _inverse(squares: Any, hidden: int) -> Any:
    """Return one over the root of a mean square; NaN where that is no finite number."""
    square = squares / np.float32(hidden) + np.float32(TINY)
    return np.float32(1.0) / np.sqrt(square) if square < np.float32(np.inf) else np.float32(np.nan)


@reordered
def _activate(kind: int, x: Any, count: int) -> None:
    for place in range(count):
        value = x[place]
        if kind == _RELU:
            x[place] = value if not value < 0 else np.float32(0.0)
        else:
            small = exponential(np.float32(-2.0) * (np.float32(_FLAT) if abs(value) > _FLAT else abs(value)))
            size = (np.float32(1.0) - small) / (np.float32(1.0) + small)
            x[place] = size if value >= 0 else -size


@reordered
def score(  # noqa: PLR0912
    test: Any, back: bool, state: int, kept: int, hidden: int, sums_at: int, own: int, barrier: int, members: int,
    member: int,
) -> Any:  # fmt: skip
    """Return a state's score, the same on every thread, and keep the state for the check that comes next.

    Args:
        test: of a check.
        back: whether there is a state at the exit point before.
        state: address of the newest token's.
        kept: address of the one before.
        hidden: numbers in each.
        sums_at: address of room for the first layer's outputs, shared by the threads.
        own: address of room for twice as many, of this thread.
        barrier: of the team.
        members: how many threads it has.
        member: which of them this is.
    """
    x, y, sums, count = floats(state, hidden), floats(kept, hidden), floats(sums_at, test[COUNT]), test[COUNT]
    squares, others, dot = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    for place in range(hidden):
        squares += x[place] * x[place]
    scale = _inverse(squares, hidden)
    size, cosine, growth = np.float32(0.0), np.float32(0.0), np.float32(0.0)
    if test[CHANGE] != 0:
        size = -np.log(scale)
        if back:
            for place in range(hidden):
                others += y[place] * y[place]
                dot += x[place] * y[place]
            before = _inverse(others, hidden)
            cosine = dot / np.float32(hidden) * scale * before
            growth = np.log(before) + size
    first, last = share(count, member, members)
    if test[WEIGHT] != 0:
        _products(test[WEIGHT], 4 * hidden, first, last, state, hidden, sums_at)
        if test[NORMALISE] != 0:
            for row in range(first, last):
                sums[row] *= scale
    else:
        for row in range(first, last):
            sums[row] = np.float32(0.0)
    bias = floats(test[BIAS], count)
    for row in range(first, last):
        sums[row] += bias[row]
    if test[CHANGE] != 0:
        change = floats(test[CHANGE], 3 * count)
        for row in range(first, last):
            sums[row] += change[row] * size + change[count + row] * cosine + change[2 * count + row] * growth
    wait(barrier, members)
    first, last = share(hidden, member, members)
    for place in range(first, last):
        y[place] = x[place]
    inner, outer = floats(own, count), floats(own + 4 * count, count)
    for row in range(count):
        inner[row] = sums[row]
    width = count
    for depth in range(test[DEPTH]):
        later = carray(pointer(test[LATER] + 8 * _COLUMNS * depth), _COLUMNS, np.int64)
        outputs = later[_COUNT]
        weight, bias = floats(later[_WEIGHT], outputs * width), floats(later[_BIAS], outputs)
        _activate(test[ACTIVATION], inner, width)
        for row in range(outputs):
            total = bias[row]
            for place in range(width):
                total += weight[row * width + place] * inner[place]
            outer[row] = total
        for row in range(outputs):
            inner[row] = outer[row]
        width = outputs
    return inner[0]


def _fits(one: StateScore, hidden: int, most: int) -> bool:
    """Whether a score's tensors are what is read of them: nothing else stands between them and the memory behind."""
    count = width = one.bias.numel()
    shapes = [(one.bias, (count,)), (one.weight, (count, hidden)), (one.change, (3, count))]
    for weight, bias in one.later:
        shapes += [(weight, (bias.numel(), width)), (bias, (bias.numel(),))]
        width = bias.numel()
        if width > count:
            return False
    given = [(tensor, shape) for tensor, shape in shapes if tensor is not None]
    plain = all(tensor.dtype is torch.float32 and tensor.device.type == "cpu" for tensor, _ in given)
    plain &= one.activation in _KINDS
    return plain and width == 1 and count <= most and all(tensor.shape == shape for tensor, shape in given)


class PackedTest:
    """A state test as compiled layers read it; see :meth:`of`."""

    def __init__(self, scores: Sequence[StateScore], points: Sequence[int]) -> None:
        self._held: list[Tensor] = []
        self.table = torch.tensor(
            [self._row(one, point) for one, point in zip(scores, points, strict=True)], dtype=torch.int64
        )
        self.most = int(self.table[:, COUNT].max())

    @classmethod
    def of(cls, test: StateTest, points: Sequence[int], hidden: int, most: int) -> PackedTest | None:
        """Pack a test; ``None`` where it is not what is compiled here.

        Args:
            test: with a score for each point.
            points: layers after which it is made.
            hidden: width of a state, a multiple of 32.
            most: outputs that a layer of a network may have.
        """
        in_order = list(points) == sorted(set(points)) and len(points) == len(test.scores)
        return cls(test.scores, points) if in_order and all(_fits(one, hidden, most) for one in test.scores) else None

    def _row(self, one: StateScore, point: int) -> list[int]:
        later = [[self._at(weight), self._at(bias), len(bias)] for weight, bias in one.later]
        packed = torch.tensor(later, dtype=torch.int64).reshape(-1, _COLUMNS)
        return [
            point, len(one.bias), self._at(one.weight), self._at(one.bias), self._at(one.change), one.normalise,
            _KINDS[one.activation], len(later), self._at(packed),
        ]  # fmt: skip

    def _at(self, tensor: Tensor | None) -> int:
        if tensor is None or not tensor.numel():
            return 0
        self._held.append(tensor.contiguous())
        return self._held[-1].data_ptr()


class Asking:
    """The checks of one token, made on its way through compiled layers.

    Args:
        packed: the test.
        least: score from which the token exits.
        hidden: width of a state.

    Attributes:
        made: checks so far.
        left: layer after which the last of them let the token go; ``None`` while none has.
    """

    def __init__(self, packed: PackedTest, least: float, hidden: int) -> None:
        self._packed, self._hidden = packed, hidden
        self._least = int(np.float32(least).view(np.int32))
        self._room = torch.empty(hidden + packed.most + len(packed.table))
        self.made = 0
        self.left: int | None = None

    def put(self, given: Any) -> None:
        """Write into the parameters of a call what it is to ask."""
        packed, at = self._packed, self._room.data_ptr()
        given.tests, given.asked, given.tests_end = packed.table.data_ptr(), self.made, len(packed.table)
        given.kept, given.sums, given.scores = at, at + 4 * self._hidden, at + 4 * (self._hidden + packed.most)
        given.least, given.left = self._least, 0

    def take(self, given: Any) -> None:
        """Read from the parameters what came of it."""
        self.made = given.asked
        self.left = given.left or None
        given.tests_end = 0

    @property
    def scores(self) -> list[float]:
        """Scores of the checks that were made."""
        start = self._hidden + self._packed.most
        return self._room[start : start + self.made].tolist()
