"""The ``propagate`` policy: keys and values of the exit hidden state."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from harness.contracts import KVBatch, KVFacts, KVPolicy, Leaving

if TYPE_CHECKING:
    from torch import Tensor


class Propagate(KVPolicy):
    """Fill the layers a token skipped from its exit hidden state.

    CALM (Schuster 2022, arXiv 2207.07061, section 3). ``--kv-input shortcut`` fills from the line between that state
    and what the exit's shortcut makes of it. A token is filled when the row's next one begins, so that the last is not.
    """

    facts: ClassVar[KVFacts] = KVFacts(fills=True)

    def __init__(self, batch: KVBatch) -> None:
        super().__init__(batch)
        self._unfilled: list[_Unfilled] = []

    def join(self, row: int, length: int) -> None:
        """Discard what the row's last occupant left to fill."""
        others = set(range(self.batch.rows)) - {row}
        self._unfilled = [owed.only(others) for owed in self._unfilled]

    def begin(self, rows: Sequence[int], positions: Sequence[int]) -> Sequence[int]:
        """Fill what the last token of these rows left open."""
        for owed in self._unfilled:
            kept = owed.only(rows)
            if kept.rows:
                self.batch.fill(kept.layer, kept.rows, kept.positions, kept.hidden, kept.final)
        self._unfilled.clear()
        return ()

    def leave(self, leaving: Leaving) -> None:
        """Keep the exit hidden states."""
        final = leaving.estimates() if self.batch.kv_input == "shortcut" else None
        self._unfilled.append(_Unfilled(leaving.layer, leaving.rows, leaving.positions, leaving.hidden(), final))


@dataclass(frozen=True, slots=True)
class _Unfilled:
    """Tokens that left at one exit, still to be filled."""

    layer: int
    rows: Sequence[int]
    positions: Sequence[int]
    hidden: Tensor
    final: Tensor | None

    def only(self, rows: Container[int]) -> _Unfilled:
        places = [place for place, row in enumerate(self.rows) if row in rows]
        if len(places) == len(self.rows):
            return self
        from harness.decoding.backbone import pick

        return _Unfilled(
            self.layer,
            [self.rows[place] for place in places],
            [self.positions[place] for place in places],
            pick(self.hidden, places),
            None if self.final is None else pick(self.final, places),
        )
