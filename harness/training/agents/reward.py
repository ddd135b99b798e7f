"""The reward for stopping a token, or for letting it run on: GREEN-CODE's Eq. 2 and 3, and a plainer rule.

The equations pay 1 for stopping at the first right exit, and 1 for every exit point before it that is passed; behind
it, stopping and running on are both punished by the layers since. :class:`SavingsReward` pays for what early exit is
for. What a policy fitted to either keeps and earns on a trace: :mod:`harness.training.agents.optimum`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from harness.errors import ConfigError
from harness.registry import TASKS
from harness.training.recipes import Agent
from harness.training.traces.reading import matches
from harness.training.traces.store import Traces
from harness.training.traces.training_set import exit_places

CONTINUE, EXIT = 0, 1
"""The two actions."""


@dataclass(frozen=True, slots=True)
class RewardCoefficients:
    """Weights of the penalties, each in [0, 1]; rewards are always 1 (GREEN-CODE, Ilager 2025, Eq. 2 and 3)."""

    alpha: float  # of stopping right but later than the first exit that is right
    beta: float  # of stopping too early, with a wrong token; the paper wants α ≤ β
    gamma: float  # of running on from an exit that was right, or past one
    epsilon: float = 0.1  # of stopping, with a wrong token, behind an exit that was right


@dataclass(frozen=True, slots=True)
class SavingsReward:
    """Right stops earn the layers they save, wrong ones cost a fixed price, running on is free.

    Stopping right after layer l earns (L − l) / (L − first exit point), wherever the first right exit was. That makes
    an optimal-stopping problem of each token; ``penalty``, of a wrong token, sets the precision asked for.
    """

    penalty: float = 4.0


Reward: TypeAlias = RewardCoefficients | SavingsReward

REWARDS: dict[str, Reward] = {
    "java": RewardCoefficients(1.0, 1.0, 1.0),
    "python": RewardCoefficients(0.5, 0.5, 0.5),
    "savings": SavingsReward(),
}
"""Name → reward. ``java`` and ``python`` are the paper's (section VI-D: β = γ = 1 for JavaCorpus, 0.5 for PY150).

The paper says no more of α than α ≤ β, and nothing of ε: here α = β and ε = 0.1.
"""


def describe(reward: Reward) -> dict[str, Any]:
    """Return a reward as JSON-able facts."""
    rule = "GREEN-CODE Eq. 2 and 3" if isinstance(reward, RewardCoefficients) else "savings"
    return {"rule": rule, **asdict(reward)}


def reward_table(right: Tensor, exit_points: Sequence[int], num_layers: int, reward: Reward) -> tuple[Tensor, Tensor]:
    """Return the reward of both actions at every exit of some tokens, and the place of each token's best exit.

    ℓ_opt is the first exit point whose token is the last layer's, else the last layer. ℓ_next is the next exit point,
    the last layer behind the last one. Layer distances are divided by the longest there is, last layer − first exit
    point, so that penalties lie in [−1, 0]; the rewards of 1 stay 1. (The published code divides everything by one
    number, which leaves 0.04 of the reward and cancels γ.)

    ``right`` is ``[n, exits]`` bool; rewards are ``[n, exits, 2]`` float32, of :data:`CONTINUE` and :data:`EXIT`, and
    places ``[n]`` int64, ``exits`` for the last layer.
    """
    layers = torch.tensor([*exit_points, num_layers], dtype=torch.float32)
    span = num_layers - exit_points[0]
    best = exit_places(right)
    optimal = layers[best].unsqueeze(1)  # [n, 1]
    current, following = layers[:-1].unsqueeze(0), layers[1:].unsqueeze(0)  # [1, exits]
    one = torch.ones(())
    if isinstance(reward, SavingsReward):
        leave = torch.where(right, (num_layers - current) / span, -reward.penalty * one)
        return torch.stack((torch.zeros_like(leave), leave), dim=-1), best
    leave = torch.where(
        right,
        torch.where(current == optimal, one, (optimal - current) * reward.alpha / span),
        torch.where(current < optimal, (current - optimal) * reward.beta / span, -reward.epsilon * one),
    )
    go_on = torch.where(current < optimal, one, (optimal - following) * reward.gamma / span)
    return torch.stack((go_on, leave), dim=-1), best


def choose_reward(options: Agent, traces: Traces) -> Reward:
    """Return the reward of the options; ``auto`` goes by the language of the trace's documents."""
    name = options.reward
    if name == "auto":
        tasks = {str(found["stream"]).partition(",")[0] for found in traces.documents if matches(found, options.tasks)}
        languages = {TASKS.load(task)().language for task in tasks if task in TASKS}
        name = languages.pop() if len(languages) == 1 else "python"
    reward = REWARDS.get(name, REWARDS["python"])
    given = options.coefficients
    for key in given.keys() - asdict(reward).keys():
        raise ConfigError(f"--{key} is no part of the {name} reward, which has {', '.join(asdict(reward))}.")
    return replace(reward, **given)  # type: ignore[arg-type]  # the keys were checked
