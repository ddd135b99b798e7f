"""Checkpoints of an agent in training: safetensors and JSON, never stable-baselines3's pickles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray

from harness.training.agents.exit_env import Tally
from harness.training.checkpoints import Checkpoints, damaged, network_tensors, restore_network, tensors_under

__all__ = ["AgentCheckpoint", "AgentCheckpoints"]


@dataclass(frozen=True)
class AgentCheckpoint:
    """State of a checkpoint besides the policy and its optimiser.

    Attributes:
        steps: decisions the agent has learned from.
        env: where the episodes stood; empty where that cannot be kept (a live model begins new ones).
        tally: of all episodes so far.
    """

    steps: int
    env: Mapping[str, NDArray[Any]]
    tally: Tally


class AgentCheckpoints(Checkpoints):
    """The checkpoints of one agent in training; the last two stay."""

    def save(self, policy: Any, steps: int, env: Mapping[str, NDArray[Any]], tally: Tally, goal: int) -> None:
        """Write one, and remove all but it and the one before.

        Args:
            policy: of stable-baselines3, with its optimiser.
            steps: as in :class:`AgentCheckpoint`, like the rest.
            goal: steps that there shall be.
            env: where the episodes stand.
            tally: of all episodes.
        """
        tensors = network_tensors("policy", policy, policy.optimizer)
        tensors |= {f"env.{name}": torch.from_numpy(array) for name, array in env.items()}
        tensors |= {"tally.exits": torch.from_numpy(tally.exits), "tally.optimal": torch.from_numpy(tally.optimal)}
        facts = {"episodes": tally.episodes, "episode_rewards": tally.reward, "goal": goal}
        self.write(steps, tensors, facts)

    def load(self, policy: Any) -> AgentCheckpoint:
        """Read the latest into a policy and its optimiser.

        Raises:
            TrainingError: there is none, or it is of another training; gives both values.
        """
        found = self.read()
        tensors = found.tensors()
        restore_network(found.path, tensors, "policy", policy, policy.optimizer)
        with damaged(found.path):
            tally = Tally(
                tensors["tally.exits"].numpy(), tensors["tally.optimal"].numpy(),
                int(found.facts["episodes"]), float(found.facts["episode_rewards"]),
            )  # fmt: skip
            env = {name: tensor.numpy() for name, tensor in tensors_under(tensors, "env.").items()}
            return AgentCheckpoint(int(found.facts["steps"]), env, tally)
