"""Checkpoints of heads in training: weights, moments, learning rate, and where the order of the tokens stood."""

from __future__ import annotations

import json
from dataclasses import dataclass

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from harness.training.checkpoints import Checkpoints, damaged, network_tensors, restore_network

__all__ = ["HeadCheckpoint", "HeadCheckpoints"]


@dataclass(frozen=True)
class HeadCheckpoint:
    """State of a checkpoint besides the heads, their optimiser and its schedule.

    Attributes:
        steps: done so far.
        order: state of the random generator from which the order of the last step's epoch was drawn.
    """

    steps: int
    order: Tensor


class HeadCheckpoints(Checkpoints):
    """The checkpoints of one training of heads; the last two stay."""

    def save(self, heads: nn.Module, optimiser: Optimizer, schedule: LRScheduler, at: HeadCheckpoint) -> None:
        """Write one, and remove all but it and the one before."""
        tensors = network_tensors("heads", heads, optimiser) | {"order": at.order}
        rates = [{"lr": group["lr"], "betas": group["betas"]} for group in optimiser.param_groups]
        self.write(at.steps, tensors, {"rates": rates, "schedule": schedule.state_dict()})

    def load(self, heads: nn.Module, optimiser: Optimizer, schedule: LRScheduler) -> HeadCheckpoint:
        """Read the latest into heads, optimiser and schedule.

        Raises:
            TrainingError: there is none, or it is of another training; gives both values.
        """
        found = self.read()
        tensors = found.tensors()
        restore_network(found.path, tensors, "heads", heads, optimiser)
        with damaged(found.path):
            for group, rates in zip(optimiser.param_groups, found.facts["rates"], strict=True):
                (first, second), rate = map(float, rates["betas"]), float(rates["lr"])
                group.update({"lr": rate, "betas": (first, second)})
            if not _alike(json.loads(json.dumps(schedule.state_dict())), found.facts["schedule"]):
                raise ValueError("the schedule of the learning rate is another one's")
            schedule.load_state_dict(found.facts["schedule"])
            return HeadCheckpoint(int(found.facts["steps"]), tensors["order"])


def _alike(ours: object, theirs: object) -> bool:
    """Tell whether two JSON values have the same form: keys, lengths and types, a whole number counting as a number."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_alike(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    if type(ours) in (int, float):
        return type(theirs) in (int, float)
    return type(ours) is type(theirs)
