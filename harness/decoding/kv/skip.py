"""The ``skip`` policy: skipped layers stay empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from harness.contracts import KVBatch, KVFacts, KVPolicy, Leaving

if TYPE_CHECKING:
    from torch import Tensor


class Skip(KVPolicy):
    """Leave a hole in the layers a token skipped: later tokens do not see it there. A lossy control."""

    facts: ClassVar[KVFacts] = KVFacts(note="exited tokens leave holes in the cache, a lossy control.")

    def __init__(self, batch: KVBatch) -> None:
        import torch

        super().__init__(batch)
        device = batch.entries.device
        self._depth = torch.zeros((batch.rows, batch.positions), dtype=torch.int64, device=device)
        self._positions = torch.arange(batch.positions, device=device)
        self._length = batch.positions  # of the longest row, with the token that is processed
        self._exits: set[int] = set()  # depths at which a token of this batch has left

    def join(self, row: int, length: int) -> None:
        """A prompt runs through all layers."""
        self._depth[row, :length] = self.batch.num_layers

    def begin(self, rows: Sequence[int], positions: Sequence[int]) -> Sequence[int]:
        """A token sees itself in every layer; pause where holes begin."""
        self._note(rows, positions, self.batch.num_layers)
        self._length = max(positions) + 1
        return sorted(self._exits)

    def visible(self, rows: Tensor, positions: Tensor, layers: int) -> Tensor | None:
        """Hide positions that hold fewer layers."""
        if not self._exits:
            return None
        length = self._length
        return (self._positions[:length] <= positions.unsqueeze(1)) & (self._depth[rows, :length] >= layers)

    def leave(self, leaving: Leaving) -> None:
        """Note how deep each token went."""
        self._note(leaving.rows, leaving.positions, leaving.layer)
        self._exits.add(leaving.layer)

    def _note(self, rows: Sequence[int], positions: Sequence[int], depth: int) -> None:
        from harness.decoding.backbone import upload

        device = self._depth.device
        self._depth[upload(rows, device), upload(positions, device)] = depth
