"""Options of ``harness train rl``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from harness.config.model import Configuration, Source
from harness.config.presets import WithPresets
from harness.training.options import ControllerOptions, ObservationName, Resume

__all__ = ["AgentOptions", "AgentSettings"]

Coefficient = Annotated[float, Field(ge=0, le=1)]


class AgentSettings(Configuration):
    """How PPO learns (Schulman 2017, arXiv 1707.06347). The defaults are GREEN-CODE's Table III."""

    steps: int = Field(default=500_000, ge=1, description="Decisions to learn from, rounded up to whole rollouts.")
    rollout: int = Field(
        default=4096, ge=1, description="Decisions between two updates, over all episodes that run at once."
    )
    batch: int = Field(default=512, ge=2, description="Decisions per gradient step.")
    epochs: int = Field(default=6, ge=1, description="Passes over each rollout.")
    learning_rate: float = Field(default=5e-5, gt=0, allow_inf_nan=False, description="At the beginning; linear to 0.")
    discount: float = Field(default=0.99, ge=0, le=1, description="Of rewards a step later (γ in Table III).")
    gae_lambda: float = Field(default=0.95, ge=0, le=1, description="Of advantages (Schulman 2016, arXiv 1506.02438).")
    entropy: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Weight of the policy's entropy.")
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(64, 64),
        description="Units of each hidden layer, of policy and value network alike; tanh between. Repeatable.",
    )
    envs: int = Field(default=64, ge=1, description="Episodes at once; 1 with --live.")

    @model_validator(mode="after")
    def _whole_rollouts(self) -> Self:
        if self.rollout % self.envs:
            raise ValueError(f"--envs {self.envs} must divide the {self.rollout} steps of a rollout")
        return self


class AgentOptions(AgentSettings, ControllerOptions, WithPresets):
    """Options of ``harness train rl``.

    Preset paper is GREEN-CODE's Table III; tuned stopped earliest at 98 % agreement, with the savings reward.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"observation": "paper", "reward": "auto"},
        "tuned": {"steps": 2_000_000, "learning_rate": 1e-3, "discount": 0.0, "entropy": 0.05},
    }
    """With discount 0 an agent weighs each decision by its own reward alone: it learns where stopping pays, not how to
    plan.

    SmolLM2-135M, 253,000 traced tokens, held-out mean exit layer at 98 % agreement: Table III with Eq. 2 and 3 28.6;
    learning rate 1e-3, discount 0.9, entropy 0.05 27.9; with the savings reward and entropy 0.02 24.5; then discount 1
    27.5, discount 0 23.9; from there entropy 0.05 23.3, four times the steps 23.3, penalty 10 instead of 4 23.6, 128
    units 23.6.
    """

    preset: Literal["paper", "tuned"] = Field(default="tuned", description="Sets what is not given")
    reward: Literal["auto", "java", "python", "savings"] = Field(
        default="savings",
        description="savings; or GREEN-CODE's, java, python, or auto: one of these by the documents, also where "
        "one of their coefficients is given.",
    )
    alpha: Coefficient | None = Field(default=None, description="Weight of exiting right but late.")
    beta: Coefficient | None = Field(default=None, description="Weight of exiting too early.")
    gamma: Coefficient | None = Field(default=None, description="Weight of continuing in vain.")
    epsilon: Coefficient | None = Field(default=None, description="Penalty of exiting wrong and late.")
    penalty: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="With --reward savings: price of a wrong exit. Default: 4."
    )
    tokens: int = Field(default=15, ge=1, description="Tokens of an episode.")
    observation: ObservationName = "rich"
    live: bool = Field(default=False, description="Let the model generate (slow) instead of replaying.")
    sources: tuple[Source, ...] = Field(
        default=("embedded",), description="With --live: where the trace's documents are. Repeatable."
    )
    device: str = Field(default="auto", description="With --live: auto, cpu, cuda or cuda:N.")
    save_steps: int = Field(default=50_000, ge=1, description="Decisions between checkpoints.")
    resume: Resume = False
    optimum: bool = Field(
        default=False,
        description="Train nothing: say what a policy fitted to the reward does on the trace, beside thresholds and "
        "the model's agent; also written to optimum-NAME.json.",
    )

    @property
    def coefficients(self) -> dict[str, float]:
        """The reward's options that were given, by name."""
        names = ("alpha", "beta", "gamma", "epsilon", "penalty")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def filled(self) -> Self:
        """Return the same with the preset's values, and a reward that has the coefficients that were given."""
        filled = self.under(self.preset)
        if "reward" in self.model_fields_set or not self.coefficients.keys() - {"penalty"}:
            return filled
        return filled.replace(reward="auto")
