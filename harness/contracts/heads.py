"""The contract of a cheap head: an approximation of the LM head that says how sure an exit is, at part of its cost."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from harness.contracts.weights import LinearMap

if TYPE_CHECKING:
    from torch import Tensor

FULL_HEAD = "full"
"""Name of the LM head itself among heads; none is registered by it."""


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """Which head reads an exit."""

    name: str = FULL_HEAD  # as registered in harness.heads, or full for the LM head
    size: int | None = None  # how much of it; None for its own default

    @classmethod
    def of(cls, text: str) -> HeadChoice:
        """Read ``NAME`` or ``NAME/SIZE``.

        Raises:
            ValueError: the size is no whole number above 0; a phrase that says so.
        """
        name, slash, size = text.partition("/")
        if slash and not (size.isascii() and size.isdigit() and int(size)):
            raise ValueError(f"{size!r} is no size: write NAME/SIZE with a whole number above 0")
        return cls(name, int(size) if slash else None)

    @property
    def is_full(self) -> bool:
        """Whether it is the LM head."""
        return self.name == FULL_HEAD

    def __str__(self) -> str:
        return self.name if self.size is None else f"{self.name}/{self.size}"


LM_HEAD = HeadChoice()
"""The choice of the LM head itself."""


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """Facts about a head for planning and reports.

    Attributes:
        note: what its readings approximate, for a table; a clause without a period.
        sizes: what a choice's ``size`` counts, in the plural; empty where it has none.
        default_size: its size where none is chosen.
        artefact: kind of the trained artefact it is made from, which the recipe of that name makes; empty for none.
    """

    note: str
    sizes: str = ""
    default_size: int | None = None
    artefact: str = ""


@dataclass(frozen=True, slots=True)
class LMHead:
    """The LM head that a cheap head stands in for."""

    vocab_size: int  # its rows
    width: int  # columns
    device: str  # torch device of its weights
    # returns the rows of some tokens, [k] int64 → [k, width] float32; of all for None. A copy
    rows: Callable[[Tensor | None], Tensor]
    bias: Tensor | None  # [vocab_size] float32, or None
    pack: Callable[[Tensor], LinearMap]  # stores a float32 matrix [out, in] near-exactly, so that it is read fast


@dataclass(frozen=True, slots=True)
class HeadLogits:
    """Output of a cheap head for some states.

    Attributes:
        logits: ``[n, k]`` float32, approximately those of the LM head.
        token_ids: which tokens the columns are of, ``[k]`` int64; ``None`` where they are the vocabulary.
        rest: log Σ exp of the logits of all other tokens, estimated, ``[n]`` float32; ``None`` where there are none,
            or they are taken to weigh nothing.
    """

    logits: Tensor
    token_ids: Tensor | None = None
    rest: Tensor | None = None


class CheapHead(ABC):
    """One head, made once for a model. Subclass it and register the class in ``harness.heads``.

    Readings are made for the rows of a batch together, and each must be what the row alone would get.

    Args:
        lm_head: what it approximates.
        size: as chosen, or the default; ``None`` where it has none.
        tensors: of its artefact, by name; empty without one.

    Raises:
        ArtefactError: the tensors do not fit the LM head.
    """

    facts: ClassVar[HeadFacts]

    @abstractmethod
    def __init__(self, lm_head: LMHead, size: int | None, tensors: Mapping[str, Tensor]) -> None: ...

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of weights that reading one row reads."""

    @abstractmethod
    def __call__(self, states: Tensor) -> HeadLogits:
        """Read states as the LM head gets them, behind the final norm: ``[n, width]`` float32."""


class Reading(Protocol):
    """A head's reading of the rows of a view, computed at most once; ``n`` is their number."""

    @property
    def top_token(self) -> Tensor:
        """The best token, ``[n]`` int64."""

    @property
    def top_probability(self) -> Tensor:
        """Its probability, ``[n]`` float32."""

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]`` float32; the best one's is found on the way."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the distribution, ``[n]``, nats; all that a cheap head does not read counts as one token, which
        makes it a lower bound.
        """

    def best_tokens(self, count: int) -> Tensor:
        """Return the best tokens of each row, best first, ``[n, count]`` int64; fewer where the head reads fewer."""
