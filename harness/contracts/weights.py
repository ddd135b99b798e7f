"""The contract of a weights format: how a model's matrices are stored and multiplied."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Accuracy: TypeAlias = Literal["exact", "near-exact", "lossy"]

OWN_FORMAT = {"float32": "float32", "bfloat16": "bfloat16", "float16": "fp16"}
"""The format whose numbers are the activations' own, by their dtype."""


def numbers(weights_format: str, dtype: str) -> str:
    """Return what numbers a model is made of, in words: one where weights and activations have the same."""
    own = OWN_FORMAT.get(dtype, dtype)
    return dtype if weights_format == own else f"{weights_format} weights, {dtype} activations"


class LinearMap(Protocol):
    """A matrix and its bias, stored in one format: ``x @ weight.T + bias``."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows of the result and of the input: ``(out, in)``."""

    @property
    def nbytes(self) -> int:
        """Bytes read to apply it once."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map ``[n, in]`` to ``[n, out]``, in the dtype of ``x``."""

    def rows(self, start: int) -> LinearMap:
        """Return the map restricted to output columns from ``start`` on."""


@dataclass(frozen=True, slots=True)
class WeightsFacts:
    """Facts about a format for planning and reports. The name and the accuracy stand in every run.

    Attributes:
        bits: of one weight, scales and zero points included.
        accuracy: ``exact`` (float32 itself), ``near-exact`` (at least 99.5 % of the tokens are float32's, near-ties
            apart, so that ``auto`` may take it) or ``lossy`` (has to be asked for; stands in tables as a rival).
        table: torch dtype of the word embeddings, of which a token reads one row; empty for the activations' own.
        largest: the largest weight that it holds.
        relative_error: bound on the error of a product with Gaussian rows and weights, over its norm.
        invariant: a row's product has the same bits whichever rows are multiplied with it; not where torch itself
            multiplies, as it does for fp16 off the CPU.
        note: what a table of such rows must say, after the format's name; empty for nothing.
    """

    bits: float
    accuracy: Accuracy
    table: str = ""
    largest: float = math.inf
    relative_error: float = 0.0
    invariant: bool = False
    note: str = ""


class WeightsFormat(ABC):
    """One format. Subclass it and register it in ``harness.weights_formats``.

    Attributes:
        facts: what is known of it without a model.
    """

    facts: ClassVar[WeightsFacts]

    @property
    def head(self) -> WeightsFormat:
        """The format of the LM head and of what maps exits to it; its own unless overridden."""
        return self

    def obstacle(self, device: str) -> str | None:
        """Return why it cannot be used on a torch device of this machine, as a clause; ``None`` where it can."""
        return None

    def prepare(self, device: str) -> None:  # noqa: B027  # most have nothing to begin
        """Begin what takes time and needs no weights, beside the reading of a model that is worth it; here nothing."""

    def words(self, head: LinearMap) -> Tensor | None:
        """Return the numbers that an LM head of this format holds plainly, ``[vocab_size, width]``, in its storage.

        They serve as word embeddings where a model has the same weights for both. ``None`` where it holds no numbers.
        """
        return None

    @abstractmethod
    def pack(self, weight: Tensor, bias: Tensor | None) -> LinearMap:
        """Store a matrix ``[out, in]``, of any float dtype, on the device to decode on, and its bias ``[out]``."""
