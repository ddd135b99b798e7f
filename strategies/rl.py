"""Exit when a reinforcement-learning agent says so: GREEN-CODE's controller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from harness.contracts import ModelInfo
from harness.models.controllers import LearnedStrategy, logit


@dataclass(frozen=True)
class ReinforcementLearning(LearnedStrategy):
    """Exit iff the agent prefers to exit and softmax(logits / temperature)[exit] ≥ threshold.

    GREEN-CODE (Ilager 2025, sections IV and V): a PPO policy on the hidden state, actions *continue* and *exit*,
    deployed as a plain network. What the paper calls "temperature threshold T" is ``threshold``; its temperature is 1.
    With two actions both conditions are one comparison of logit(exit) − logit(continue). The reward that the agent was
    trained for is in its JSON: GREEN-CODE's Eq. 2 and 3, or a plainer one that pays for the layers it saves.
    """

    kind: ClassVar[str] = "rl"
    option: ClassVar[str] = "agent"
    part: ClassVar[str] = "agent"

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least probability of exit; the agent's own when left out; 1 never exits"),
    ] = None
    temperature: Annotated[
        float | None, Field(gt=0, description="divides both logits; the agent's own when left out")
    ] = None
    agent: Annotated[str, Field(description="trained agent: a path, a name, or empty for the model's own")] = ""

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The agent's own threshold and temperature."""
        facts = self.controller(model).artefact.facts
        return {"threshold": facts["threshold"], "temperature": facts.get("temperature", 1.0)}

    def exit_threshold(self, options: Mapping[str, float]) -> float:
        """Return what logit(exit) − logit(continue) must reach: p ≥ threshold, and exit the more probable one."""
        return max(0.0, options["temperature"] * logit(options["threshold"]))
