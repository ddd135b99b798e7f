"""The prompts whose keys and values the rows of a cache hold: of one that begins alike only the rest is to be read.

Nothing is stored here but tokens: keys and values stay where they were computed, in the row of the request that left
or that still runs. Only positions of prompts count, since only prefill runs all layers whatever the KV policy does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

__all__ = ["FEWEST", "KeptPrompts"]

FEWEST = 16
"""Tokens that must be alike: reading fewer takes no time, and read anew they are computed as they are alone."""


@dataclass(frozen=True, slots=True)
class _Kept:
    owner: str
    tokens: Sequence[int]
    length: int  # of them, from the first on, that are in the cache

    def shared(self, owner: str, prompt: Sequence[int]) -> int:
        """Return how many tokens at the beginning of a prompt are in the cache; its last one is always to be read."""
        if owner != self.owner:
            return 0
        most = min(self.length, len(prompt) - 1)
        pairs = zip(self.tokens[:most], prompt[:most], strict=True)
        same = next((place for place, (kept, token) in enumerate(pairs) if kept != token), most)
        return same if same >= FEWEST else 0


class KeptPrompts:
    """The prompts in the rows of a cache, the one that was begun longest ago first.

    Args:
        most: free rows whose prompts are kept; with 0 none is, and those of running rows are not shared either.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[int, _Kept] = {}

    def hold(self, row: int, owner: str | None, tokens: Sequence[int], length: int) -> None:
        """A row holds the first ``length`` of these tokens, and nothing else that counts; without an owner, nothing."""
        if self._most and owner is not None:
            self._kept[row] = _Kept(owner, tokens, length)
        else:
            self.forget(row)

    def forget(self, row: int) -> None:
        """A row holds nothing that may be used."""
        self._kept.pop(row, None)

    def find(self, owner: str | None, prompt: Sequence[int], row: int) -> tuple[int, int]:
        """Return which row holds most of a prompt's beginning, and how many tokens; where no other has more, ``row``.

        Prompts of another owner are never found, however alike.
        """
        best, most = row, 0
        if owner is not None:
            for other in sorted(self._kept, key=lambda other: other != row):
                length = self._kept[other].shared(owner, prompt)
                if length > most:
                    best, most = other, length
        return best, most

    def row_for(self, owner: str | None, prompt: Sequence[int], free: Collection[int]) -> int:
        """Return the free row that a prompt should take, and forget what is too much.

        The one that holds its beginning, unless that is less than half of what would be lost with it: then the prompt
        takes one that holds nothing, or else the one that was begun longest ago, and copies what is alike.
        """
        idle = [row for row in self._kept if row in free]
        for row in idle[: max(0, len(idle) - self._most)]:
            self.forget(row)
        emptiest = min(free, key=self._age)
        found, length = self.find(owner, prompt, emptiest)
        if length and found in free and 2 * length >= self._kept[found].length:
            return found
        return emptiest

    def _age(self, row: int) -> tuple[int, int]:
        """Order of rows to be given up: those that hold nothing, by number, then the others by when they were begun."""
        order = list(self._kept)
        return (order.index(row) + 1, row) if row in self._kept else (0, row)
