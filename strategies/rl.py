"""Exit when a reinforcement-learning agent says so: GREEN-CODE's controller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, Strategy
from harness.models.controllers import Controller, Scorer, find_controller

__all__ = ["ReinforcementLearning"]


@dataclass(frozen=True)
class ReinforcementLearning(Strategy):
    """Exit iff the agent prefers to exit and softmax(logits / temperature)[exit] ≥ threshold.

    GREEN-CODE (Ilager 2025, sections IV and V): a PPO policy on the hidden state, actions *continue* and *exit*,
    deployed as a plain network. What the paper calls "temperature threshold T" is ``threshold``; its temperature is 1.
    With two actions both conditions are one comparison of logit(exit) − logit(continue). The reward that the agent was
    trained for is in its JSON: GREEN-CODE's Eq. 2 and 3, or a plainer one that pays for the layers it saves.
    """

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least probability of exit; the agent's own when left out; 1 never exits"),
    ] = None
    temperature: Annotated[
        float | None, Field(gt=0, description="divides both logits; the agent's own when left out")
    ] = None
    agent: Annotated[str, Field(description="trained agent: a path, a name, or empty for the model's own")] = ""

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once its agent is found and checked."""
        self._find(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The agent."""
        return {"agent": self._find(model).artefact.sha256}

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The agent's own."""
        facts = self._find(model).artefact.facts
        return {"threshold": facts["threshold"], "temperature": facts.get("temperature", 1.0)}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Load the agent; loaded once, however many batches there are."""
        agent = self._find(model)
        threshold = agent.artefact.facts["threshold"] if self.threshold is None else self.threshold
        temperature = agent.artefact.facts.get("temperature", 1.0) if self.temperature is None else self.temperature
        return _rule(agent.scorer(batch.device), _least_difference(threshold, temperature))

    def _find(self, model: ModelInfo) -> Controller:
        return find_controller("rl", self.agent, model)


@lru_cache(maxsize=64)
def _rule(score: Scorer, least: float) -> _Agent:
    """One object per setting: it has no state, so that rows of several requests can be asked together."""
    return _Agent(score, least)


@dataclass(frozen=True, slots=True)
class _Agent:
    score: Scorer
    least: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare the difference of the two logits."""
        return self.score(view) >= self.least


def _least_difference(threshold: float, temperature: float) -> float:
    """Return what logit(exit) − logit(continue) must reach: p ≥ threshold, and exit the more probable one."""
    if threshold >= 1:
        return math.inf
    return max(0.0, temperature * math.log(threshold / (1 - threshold))) if threshold > 0 else 0.0
