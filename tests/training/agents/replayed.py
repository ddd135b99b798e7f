"""Traced tokens for the slow environment, which is the reference of the fast one."""

from __future__ import annotations

import numpy as np

from harness.training.agents.episodes import Episodes
from harness.training.agents.exit_env import Token


class ReplayedTokens:
    """Tokens of traced documents, teacher-forced: whatever the agent does, the trace's tokens follow.

    Args:
        episodes: the tokens, and the rule by which episodes are drawn.
    """

    def __init__(self, episodes: Episodes) -> None:
        self.exits, self.width = episodes.exits, episodes.width
        self._episodes = episodes
        self._row = self._end = 0

    def begin(self, generator: np.random.Generator) -> Token:
        """Draw an episode."""
        rows, ends = self._episodes.draw(generator, 1)
        return self.at(int(rows[0]), int(ends[0]))

    def at(self, row: int, end: int) -> Token:
        """Begin a chosen episode: its first row, and the row behind its last one."""
        self._row, self._end = row, end
        return self._read()

    def follow(self, place: int) -> Token | None:
        """Return the next row."""
        self._row += 1
        return self._read() if self._row < self._end else None

    def _read(self) -> Token:
        found, row = self._episodes, self._row
        return Token(found.observations[row].astype(np.float32), found.rewards[row], int(found.optimal[row]))
