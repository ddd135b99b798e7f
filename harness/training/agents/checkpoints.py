"""Checkpoints of an agent in training: safetensors and JSON, never stable-baselines3's pickles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.artefacts import read_artefact, write_artefact
from harness.errors import ArtefactError, TrainingError
from harness.training.agents.exit_env import Tally

__all__ = ["AgentCheckpoint", "AgentCheckpoints"]


@dataclass(frozen=True)
class AgentCheckpoint:
    """What a checkpoint holds besides the policy and its optimiser.

    Attributes:
        steps: decisions the agent has learned from.
        env: where the episodes stood; empty where that cannot be kept (a live model begins new ones).
        tally: of all episodes so far.
    """

    steps: int
    env: Mapping[str, NDArray[Any]]
    tally: Tally


class AgentCheckpoints:
    """The checkpoints of one training; the last two stay.

    Args:
        folder: where they lie.
        kind: of the agent's artefact.
        facts: JSON-able; what is learned, and how. A run with other facts does not resume from them.
    """

    def __init__(self, folder: Path, kind: str, facts: Mapping[str, Any]) -> None:
        self._folder, self._kind = folder, f"{kind}-checkpoint"
        self._facts: dict[str, Any] = json.loads(json.dumps(dict(facts)))
        self._written: list[Path] = []

    def latest(self) -> Path | None:
        """Return the JSON of the one with the most steps; while training, of those this run has written."""
        return max(self._written or self._folder.glob("step-*.json"), key=_steps, default=None)

    def save(self, policy: Any, steps: int, env: Mapping[str, NDArray[Any]], tally: Tally) -> None:
        """Write one, and remove all but it and the one before.

        Args:
            policy: of stable-baselines3, with its optimiser.
            steps: as in :class:`AgentCheckpoint`, like the rest.
            env: where the episodes stand.
            tally: of all episodes.
        """
        tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
        for number, moments in policy.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"env.{name}": torch.from_numpy(array) for name, array in env.items()}
        tensors |= {"tally.exits": torch.from_numpy(tally.exits), "tally.optimal": torch.from_numpy(tally.optimal)}
        facts = {"training": self._facts, "steps": steps, "episodes": tally.episodes, "episode_rewards": tally.reward}
        path = self._folder / f"step-{steps:09d}.json"
        write_artefact(path, self._kind, tensors, facts)
        self._written = [*(kept for kept in self._written[-1:] if kept != path), path]
        for old in self._folder.glob("step-*"):
            if old.with_suffix(".json") not in self._written:
                old.unlink()

    def load(self, policy: Any) -> AgentCheckpoint:
        """Read the latest into a policy and its optimiser.

        Raises:
            TrainingError: there is none, or it is of another training; gives both values.
        """
        path = self.latest()
        if path is None:
            raise TrainingError(f"{self._folder} holds no checkpoint to resume from. Leave --resume away to begin.")
        found = read_artefact(path, self._kind)
        for name, ours in self._facts.items():
            theirs = found.facts["training"].get(name)
            if theirs != ours:
                raise TrainingError(
                    f"{path} was trained with {name.replace('_', ' ')} {theirs}, now it is {ours}. Leave --resume away "
                    "to begin anew."
                )
        tensors = found.tensors()
        try:
            policy.load_state_dict(_part(tensors, "policy."))
        except RuntimeError as error:
            raise ArtefactError(f"{path} is of another network: {error}.") from None
        state = policy.optimizer.state_dict()
        for name, tensor in _part(tensors, "optimizer.").items():
            number, _, moment = name.partition(".")
            state["state"].setdefault(int(number), {})[moment] = tensor
        policy.optimizer.load_state_dict(state)
        tally = Tally(
            tensors["tally.exits"].numpy(), tensors["tally.optimal"].numpy(),
            int(found.facts["episodes"]), float(found.facts["episode_rewards"]),
        )  # fmt: skip
        self._written = [path]
        env = {name: tensor.numpy() for name, tensor in _part(tensors, "env.").items()}
        return AgentCheckpoint(int(found.facts["steps"]), env, tally)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _steps(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
