"""The early-exit decision as a Gymnasium environment: one token after another, one exit point after another.

Clear and slow. Training on traces uses :class:`harness.training.agents.exit_vec_env.ExitVecEnv`, which does the same
for many episodes at once; this class is its reference, and steps a live model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from harness.training.agents.episodes import Episodes
from harness.training.agents.reward import EXIT

__all__ = ["ExitEnv", "ReplayedTokens", "Tally", "Token", "TokenSource", "action_space", "observation_space"]


@dataclass(frozen=True, slots=True)
class Token:
    """One token with everything its exit points say.

    Attributes:
        observations: ``[exits, width]`` float32.
        rewards: of both actions, ``[exits, 2]``.
        optimal: place of its best exit; ``exits`` for the last layer.
    """

    observations: NDArray[np.float32]
    rewards: NDArray[np.float32]
    optimal: int


class TokenSource(Protocol):
    """Where the tokens of episodes come from: a trace, or a model that runs."""

    exits: int
    width: int

    def begin(self, generator: np.random.Generator) -> Token:
        """Draw an episode and return its first token."""

    def follow(self, place: int) -> Token | None:
        """Return the token after the current one, which stopped at this exit; ``None`` when the episode is over.

        Args:
            place: of the exit, from 0; ``exits`` for the last layer.
        """


@dataclass(slots=True)
class Tally:
    """Events since the last call.

    Attributes:
        exits: tokens that stopped at each exit, and at the last layer, ``[exits + 1]``.
        optimal: tokens by their best exit, ``[exits + 1]``.
        episodes: episodes that ended.
        reward: sum of their rewards.
    """

    exits: NDArray[np.int64]
    optimal: NDArray[np.int64]
    episodes: int = 0
    reward: float = 0.0

    @classmethod
    def empty(cls, exits: int) -> Tally:
        """Return one of nothing."""
        return cls(np.zeros(exits + 1, dtype=np.int64), np.zeros(exits + 1, dtype=np.int64))

    def add(self, other: Tally) -> None:
        """Add another one."""
        self.exits += other.exits
        self.optimal += other.optimal
        self.episodes += other.episodes
        self.reward += other.reward


def observation_space(width: int) -> Any:
    """Return the space of observations: any numbers."""
    return spaces.Box(-np.inf, np.inf, (width,), np.float32)


def action_space() -> Any:
    """Return the space of actions: 0 continues, 1 exits."""
    return spaces.Discrete(2)


class ExitEnv(gymnasium.Env[NDArray[np.float32], int]):  # type: ignore[misc]
    """One episode at a time. Actions: 0 continues, 1 exits; continuing at the last exit point ends the token at the
    last layer. The episode ends behind its last token; the observation then stays what it was.

    Args:
        tokens: where they come from.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, tokens: TokenSource) -> None:
        self.observation_space = observation_space(tokens.width)
        self.action_space = action_space()
        self._tokens, self._place = tokens, 0
        self._token: Token | None = None
        self._reward = 0.0
        self._tally = Tally.empty(tokens.exits)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._token = self._tokens.begin(self.np_random)
        self._place, self._reward = 0, 0.0
        return self._token.observations[0], {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Continue or exit."""
        token, place = self._token, self._place
        assert token is not None, "step before reset"
        exits = self._tokens.exits
        reward = float(token.rewards[place, action])
        self._reward += reward
        if action != EXIT and place < exits - 1:
            self._place += 1
            return token.observations[self._place], reward, False, False, {}
        taken = place if action == EXIT else exits
        self._tally.exits[taken] += 1
        self._tally.optimal[token.optimal] += 1
        following = self._tokens.follow(taken)
        if following is None:
            self._tally.episodes += 1
            self._tally.reward += self._reward
            return token.observations[place], reward, True, False, {}
        self._token, self._place = following, 0
        return following.observations[0], reward, False, False, {}

    def take_tally(self) -> Tally:
        """Return what happened since the last call."""
        tally, self._tally = self._tally, Tally.empty(self._tokens.exits)
        return tally


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
