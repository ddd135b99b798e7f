"""The contract of an exit module: what makes of the state at an exit an estimate of the last layer's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

from harness.contracts.weights import LinearMap

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExitModuleFacts:
    """Facts about an exit module for planning and reports.

    Attributes:
        note: what it computes, for a table; a clause without a period.
        sizes: what a choice's ``size`` counts, in the plural; empty where it has none.
        default_size: its size where none is chosen.
    """

    note: str
    sizes: str = ""
    default_size: int | None = None


@dataclass(frozen=True, slots=True)
class LinearFit:
    """The affine map with the least squared error from an exit's states to the last layer's; D is the hidden size.

    Attributes:
        weight: ``[D, D]`` float32. bias: ``[D]`` float32.
        spread: mean of x xᵀ over the exit's states x, each weighted as in the fit, ``[D, D]`` float64.
    """

    weight: Tensor
    bias: Tensor
    spread: Tensor


class ExitModule(ABC):
    """The module of one exit. Subclass it and register the class in ``harness.exit_modules``.

    All its weights are linear maps: the engine stores them in the format of the model's own, training takes them from
    parameters, and both read :meth:`__call__`. A row's result must be what the row alone would get.

    Args:
        maps: its linear maps by prefix, as :meth:`shapes` has them. An artefact holds the weight and the bias of each
            as ``LAYER.PREFIXweight`` and ``LAYER.PREFIXbias``.
    """

    facts: ClassVar[ExitModuleFacts]

    def __init__(self, maps: Mapping[str, LinearMap]) -> None:
        self.maps = maps

    @classmethod
    @abstractmethod
    def shapes(cls, hidden_size: int, size: int | None) -> Mapping[str, tuple[int, int]]:
        """Return what it is made of: prefix → ``(out, in)`` of a linear map with a bias.

        Raises:
            OptionError: it cannot have that size.
        """

    @classmethod
    @abstractmethod
    def begin(cls, fit: LinearFit, size: int | None) -> Mapping[str, Tensor]:
        """Return the tensors that training begins with, ``PREFIXweight`` and ``PREFIXbias`` of each map, float32."""

    @abstractmethod
    def __call__(self, hidden: Tensor) -> Tensor:
        """Return what the final norm reads, of states after the exit's layer, both ``[n, hidden_size]``."""

    def mapped(self, change: Callable[[str, LinearMap], LinearMap]) -> Self:
        """Return the same module with its maps changed, each by its prefix and itself."""
        return type(self)({prefix: change(prefix, one) for prefix, one in self.maps.items()})

    @property
    def nbytes(self) -> int:
        """Bytes of weights that reading a row reads."""
        return sum(one.nbytes for one in self.maps.values())
