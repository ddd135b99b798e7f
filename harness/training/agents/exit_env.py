"""The early-exit decision as a vectorised environment: one traced token after another, one exit point after another.

Actions: 0 continues, 1 exits; continuing at the last exit point ends the token at the last layer. An episode ends
behind its last token. 500,000 steps are a matter of a minute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from harness.training.agents.episodes import Episodes
from harness.training.agents.reward import EXIT


@dataclass(slots=True)
class Tally:
    """Tokens that stopped at each exit, and tokens by their best exit, ``[exits + 1]`` each, the last layer at the end;
    episodes that ended, and the sum of their rewards.
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


class ExitVecEnv(VecEnv):  # type: ignore[misc]
    """Teacher-forced episodes, ``count`` at once, by indexing; the seed is that of the draws."""

    def __init__(self, episodes: Episodes, count: int, seed: int = 0) -> None:
        seen = spaces.Box(-np.inf, np.inf, (episodes.width,), np.float32)
        super().__init__(count, seen, spaces.Discrete(2))
        self._episodes, self._exits = episodes, episodes.exits
        self._observations = episodes.observations.reshape(-1, episodes.width)  # [n · exits, width]
        self._rewards = episodes.rewards.reshape(-1, 2)
        self._generator = np.random.default_rng(seed)
        self._actions = np.zeros(count, dtype=np.int64)
        self._rows, self._ends = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
        self._places, self._sums = np.zeros(count, dtype=np.int64), np.zeros(count)
        self._restored = False
        self._tally = Tally.empty(self._exits)

    def reset(self) -> NDArray[np.float32]:
        """Begin new episodes; after :meth:`restore`, go on with the restored ones."""
        if not self._restored:
            self._begin(np.arange(self.num_envs))
        self._restored = False
        return self._look()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Note the actions, ``[count]``."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Take the step of every episode; one that ended begins anew, its last observation is in its info."""
        leaves = self._actions == EXIT
        rewards = self._rewards[self._rows * self._exits + self._places, self._actions]
        self._sums += rewards
        ended = leaves | (self._places == self._exits - 1)
        taken = np.where(leaves, self._places, self._exits)[ended]
        self._tally.exits += np.bincount(taken, minlength=self._exits + 1)
        self._tally.optimal += np.bincount(self._episodes.optimal[self._rows[ended]], minlength=self._exits + 1)
        done = ended & (self._rows + 1 == self._ends)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        over = done.nonzero()[0]
        if len(over):
            for place, last in zip(over.tolist(), self._look(over), strict=True):
                infos[place]["terminal_observation"] = last
            self._tally.episodes += len(over)
            self._tally.reward += float(self._sums[over].sum())
        self._places = np.where(ended, 0, self._places + 1)
        self._rows = self._rows + ended
        if len(over):
            self._begin(over)
        return self._look(), rewards, done, infos

    def take_tally(self) -> Tally:
        """Return what happened since the last call."""
        tally, self._tally = self._tally, Tally.empty(self._exits)
        return tally

    def state(self) -> dict[str, NDArray[Any]]:
        """Return where every episode stands."""
        return {
            "rows": self._rows.copy(),
            "ends": self._ends.copy(),
            "places": self._places.copy(),
            "sums": self._sums.copy(),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go back to what :meth:`state` returned, at the next reset; to the start, where no episode had begun."""
        if not state["ends"].any():
            return
        self._rows, self._ends, self._places, self._sums = (
            state[name].copy() for name in ("rows", "ends", "places", "sums")
        )
        self._restored = True

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Decide the draws from here on."""
        self._generator = np.random.default_rng(seed)
        return [seed] * self.num_envs

    def close(self) -> None:
        """Release nothing."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute, the same for every episode."""
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all episodes."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method once for all episodes."""
        return [getattr(self, method_name)(*method_args, **method_kwargs)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Tell that nothing is wrapped."""
        return [False] * self.num_envs

    def _begin(self, which: NDArray[np.int64]) -> None:
        self._rows[which], self._ends[which] = self._episodes.draw(self._generator, len(which))
        self._places[which], self._sums[which] = 0, 0.0

    def _look(self, which: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        places = self._rows * self._exits + self._places
        found = self._observations.take(places if which is None else places[which], axis=0)
        return found.astype(np.float32, copy=False)
