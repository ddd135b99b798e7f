"""The ``recompute`` policy: exact keys and values, computed later."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Self

from harness.contracts import KVBatch, KVFacts, KVPolicy, Leaving, Waiting


class Recompute(KVPolicy):
    """Run the layers a token skipped later, beside the next token that goes deeper.

    Exited tokens wait with their hidden states (EE-LLM, Chen 2023, arXiv 2312.04916, "KV recomputation"), so that keys
    and values are those of full depth for the same token sequence.

    Per row the waiting positions form a stack whose depths fall towards the top: a token that goes deeper
    takes all that wait at its depth along, so what joins at a depth is always a run of positions that ends at the new
    token.
    """

    facts: ClassVar[KVFacts] = KVFacts(
        defers=True, note="layers an exited token skipped are run later, beside the next token that goes deeper."
    )

    def __init__(self, batch: KVBatch) -> None:
        super().__init__(batch)
        self._stacks: list[list[tuple[int, list[Waiting]]]] = [[] for _ in range(batch.rows)]  # depth, what waits there

    def join(self, row: int, length: int) -> None:
        """Nothing of the last occupant waits any longer."""
        self._stacks[row].clear()

    def begin(self, rows: Sequence[int], positions: Sequence[int]) -> Sequence[int]:
        """Pause wherever something waits."""
        return sorted({depth for row in rows for depth, _ in self._stacks[row]})

    def take(self, row: int, depth: int) -> Waiting | None:
        """Take all positions of a row that wait at a depth."""
        import torch

        stack = self._stacks[row]
        if not stack or stack[-1][0] != depth:
            return None
        _, waiting = stack.pop()
        return Waiting(waiting[0].start, torch.cat([run.hidden for run in waiting]))

    def leave(self, leaving: Leaving) -> None:
        """Let the new token, and what joined it on the way, wait at this depth."""
        for row, run in zip(leaving.rows, leaving.runs(), strict=True):
            stack = self._stacks[row]
            if stack and stack[-1][0] == leaving.layer:
                stack[-1][1].append(run)
            else:
                stack.append((leaving.layer, [run]))

    def settled(self, row: int, length: int) -> int:
        """All up to the first one that waits."""
        stack = self._stacks[row]
        return min(length, stack[0][1][0].start) if stack else length

    def rehearsal(self) -> Self:
        """A twin with stacks of its own over the same tensors."""
        twin = copy.copy(self)
        twin._stacks = [list(stack) for stack in self._stacks]
        return twin
