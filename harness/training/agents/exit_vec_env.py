"""Many episodes of traced tokens at once: what makes 500,000 steps a matter of a minute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from harness.training.agents.episodes import Episodes
from harness.training.agents.exit_env import Tally, action_space, observation_space
from harness.training.agents.reward import EXIT

__all__ = ["ExitVecEnv"]


class ExitVecEnv(VecEnv):  # type: ignore[misc]
    """:class:`harness.training.agents.exit_env.ExitEnv` on :class:`ReplayedTokens`, ``count`` times, by indexing.

    Args:
        episodes: tokens and the rule by which episodes are drawn.
        count: episodes at once.
        seed: of the draws.
    """

    def __init__(self, episodes: Episodes, count: int, seed: int = 0) -> None:
        super().__init__(count, observation_space(episodes.width), action_space())
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
        """Go back to what :meth:`state` returned, at the next reset; to the start, where no episode had begun.

        Raises:
            ValueError: it is of other episodes.
        """
        for name, ours in self.state().items():
            theirs = state.get(name)
            if theirs is None or (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
                raise ValueError(f"it lacks {name} of {len(ours)} episodes")
        rows, ends, places = state["rows"], state["ends"], state["places"]
        if not ends.any():
            return
        known = len(self._observations) // self._exits
        if not ((rows >= 0) & (rows < ends) & (ends <= known) & (places >= 0) & (places < self._exits)).all():
            raise ValueError("an episode stands outside the trace")
        self._rows, self._ends = state["rows"].copy(), state["ends"].copy()
        self._places, self._sums = state["places"].copy(), state["sums"].copy()
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
