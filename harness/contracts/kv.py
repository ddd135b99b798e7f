"""The contract of a KV policy: what a token that exits early leaves in the layers it skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self, TypeAlias

from harness.contracts.models import KVInput

if TYPE_CHECKING:
    from torch import Tensor


Prefetch: TypeAlias = Literal["none", "deepen", "draft", "all"]
"""What is computed while nobody waits: prompts that exits left shallow, drafts behind the last answer, or both."""
Keep: TypeAlias = Literal["none", "prompt", "exact", "all"]
"""Which keys and values a request leaves to the next one that begins alike: none; those of its prompt; those of its
completion, too, where they are full depth's; or also those that the KV policy made of exits' states."""


@dataclass(frozen=True, slots=True)
class KVFacts:
    """Facts about a policy for planning and reports. Recorded with each operating point.

    Attributes:
        keeps_cache: keys and values are kept between tokens, so that prefill yields the first token at full depth;
            otherwise every token runs its whole prefix.
        fills: skipped layers are filled by their K,V projections, whose weights are read for each of them.
        defers: skipped layers run later, in the pass of a token that goes deeper, so that their weights are read once
            for both.
        note: what a table of such rows must say, after the policy's name; empty for nothing.
    """

    keeps_cache: bool = True
    fills: bool = False
    defers: bool = False
    note: str = ""

    @property
    def exact(self) -> bool:
        """Whether every state is full depth's for the same tokens: nothing that a token skipped is read by another."""
        return self.defers or not self.keeps_cache


@dataclass(frozen=True, slots=True)
class Waiting:
    """Consecutive positions of one row that stopped after the same number of layers."""

    start: int  # the first position
    hidden: Tensor  # their states before the final norm, [k, hidden_size]


@dataclass(frozen=True, slots=True)
class Leaving:
    """Rows whose new token stops at an exit. What needs work is computed when called.

    Attributes:
        layer: layers executed.
        rows: rows of the batch.
        positions: position of each row's new token.
        hidden: returns the new tokens' hidden states, ``[n, hidden_size]``.
        estimates: returns what the exit's shortcut makes of them, ``[n, hidden_size]``; its evaluations are charged.
        runs: returns, for each row, all positions that stop with it: those that joined on the way and the new token.
    """

    layer: int
    rows: Sequence[int]
    positions: Sequence[int]
    hidden: Callable[[], Tensor]
    estimates: Callable[[], Tensor]
    runs: Callable[[], Sequence[Waiting]]


class KVFill(Protocol):
    """Fills skipped layers from states, and charges the rows for it."""

    def __call__(
        self, layer: int, rows: Sequence[int], positions: Sequence[int], hidden: Tensor, final: Tensor | None = None
    ) -> None:
        """Fill the layers with 0-based index ≥ ``layer`` at one position of each row, from states ``[n, hidden_size]``.

        With ``final``, estimates of the last layer's states, each layer is filled from the point between the two where
        it stands.
        """


@dataclass(frozen=True, slots=True)
class KVBatch:
    """The object a policy acts on: the cache of the rows that decode together."""

    num_layers: int  # decoder layers
    rows: int  # how many rows there may be at a time
    positions: int  # longest sequence of a row
    kv_input: KVInput  # what a policy that fills skipped layers is to fill them from
    entries: Tensor  # the cache, [num_layers, rows, 2 × KV heads, positions, head_dim], keys before values
    fill: KVFill  # the model's own way to make keys and values of states


class KVPolicy:
    """One policy, made anew for each batch. Subclass it, override what differs, register it in ``harness.kv``.

    As it stands, a token that exits leaves nothing: in deeper layers its slots keep what they held. Methods are called
    once per token, pause or exit, never per layer.

    Args:
        batch: the cache to act on. A policy that keeps none is never made.
    """

    facts: ClassVar[KVFacts] = KVFacts()

    def __init__(self, batch: KVBatch) -> None:
        self.batch = batch

    def join(self, row: int, length: int) -> None:
        """A prompt of ``length`` tokens takes a row: forget what the row's last occupant left.

        Leave the prompt's own positions as prefill fills them: later prompts that begin alike reuse them.
        """

    def begin(self, rows: Sequence[int], positions: Sequence[int]) -> Sequence[int]:
        """A new token begins in each of these rows, at these positions; return depths at which the pass must pause.

        They ascend, above 0: where something may join it, or where what is visible changes.
        """
        return ()

    def take(self, row: int, depth: int) -> Waiting | None:
        """Hand over what waits at a depth and goes deeper with the row's new token, which follows it directly."""
        return None

    def visible(self, rows: Tensor, positions: Tensor, layers: int) -> Tensor | None:
        """Return what slots may attend to in the layers from the pause before up to ``layers``.

        ``[n, longest position + 1 or more]`` bool for slots of these rows at these positions, ``[n]``, after which
        nothing may be visible; ``None`` where all up to the slot's own is.
        """
        return None

    def leave(self, leaving: Leaving) -> None:
        """Some rows' tokens stop here."""

    def settled(self, row: int, length: int) -> int:
        """Return how many of a row's first ``length`` positions hold full depth's K,V, although tokens exited.

        As it stands none: only what no exited token was read by is known to be full depth's.
        """
        return 0

    def rehearsal(self) -> Self:
        """Return a twin for a pass that only looks ahead: what it takes still waits here."""
        return self
