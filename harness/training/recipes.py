"""Recipes that ``harness train`` has built in: their options are its flags. No torch: help is instant."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from harness.config.model import Configuration, DocumentChoice, WithPresets
from harness.contracts import Split
from harness.contracts.recipes import Trained, TrainingRun, WeightsRule
from harness.host.libraries import require
from harness.models.exit_modules import ExitModuleName
from harness.training.options import (
    ControllerOptions,
    LearnedTasks,
    ObservationName,
    Resume,
    TraceChoice,
    TraceOptions,
    TrainingOptions,
)


def _by(place: str) -> Callable[[Any, TrainingRun], Trained]:
    """Return the ``train`` of a recipe: a function of its options and the run, found when it is called."""

    def train(options: Any, run: TrainingRun) -> Trained:
        trained: Trained = resolve_name(f"harness.training.{place}")(options, run)
        return trained

    return train


# ------------------------------------------------------------------------------- exit-capable weights and heads


EXIT_MODULE = Field(
    default="linear", description="What reads an exit before the model's own head: NAME or NAME/SIZE of exit_modules."
)


class LiteRecipe(Configuration):
    """How to tune; saved in the artefacts. The defaults are what two cores can do in an hour."""

    method: Literal["lora", "full"] = Field(
        default="lora", description="lora (Hu 2021, arXiv 2106.09685, on every linear map of every layer) or full."
    )
    exit_head: Literal["shared", "shortcut"] = Field(
        default="shortcut",
        description="shared (the model's own) or shortcut (an exit module before it, trained along).",
    )
    exit_module: ExitModuleName = EXIT_MODULE
    weights_rule: WeightsRule = Field(
        default="uniform", description="Loss weights of the exits; last: none, as if the model had no exits"
    )
    learning_rate: float = Field(
        default=3e-4, gt=0, allow_inf_nan=False, description="Of the weights, or of LoRA's factors."
    )
    shortcut_learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False, description="Of the shortcuts.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Learning rate after a warm-up of 3 % of the steps"
    )
    steps: int = Field(default=1000, ge=1, description="Optimiser steps.")
    length: int = Field(default=256, ge=2, description="Tokens of a packed sequence.")
    batch: int = Field(default=8, ge=1, description="Sequences a device takes at once.")
    accumulate: int = Field(default=1, ge=1, description="Gradient accumulation steps.")
    exits_per_step: int | None = Field(
        default=3, ge=0, description="Random exits a step besides the last layer (stochastic exits); 0 for all."
    )
    token_share: float = Field(default=0.5, gt=0, le=1, description="Share of tokens each step's loss looks at.")
    distill: float = Field(
        default=0.5, ge=0, le=1, description="Share of an early exit's loss that follows the last layer, not the label."
    )
    layer_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Probability that a sequence skips the last layer; earlier ones less, as LayerSkip has it.",
    )
    rank: int = Field(default=32, ge=1, description="Of LoRA; its scale is twice that.")
    checkpointing: bool = Field(default=False, description="Recompute activations in the backward pass to save memory.")

    @field_validator("exits_per_step")
    @classmethod
    def _all(cls, value: int | None) -> int | None:
        return value or None

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step reads."""
        return self.length * self.batch * self.accumulate


class Lite(LiteRecipe, DocumentChoice, TrainingOptions, WithPresets):
    """Tune a model with the aggregated loss of all its exits (LITE; GREEN-CODE Eq. 1).

    Preset paper is GREEN-CODE's setting: 4 × 32 sequences a step, 2–3k steps, all exits, all tokens; layerskip trains
    from random weights with layer dropout and an exit a step (LayerSkip, arXiv 2404.16710).
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "method": "full",
            "exit_head": "shared",
            "weights_rule": "green-code",
            "learning_rate": 1e-5,
            "schedule": "linear",
            "steps": 2500,
            "length": 1024,
            "batch": 4,
            "accumulate": 32,
            "exits_per_step": 0,
            "token_share": 1.0,
            "distill": 0.0,
            "checkpointing": True,
        },
        "layerskip": {
            "method": "full",
            "exit_head": "shared",
            "weights_rule": "layerskip",
            "learning_rate": 1e-3,
            "steps": 2000,
            "batch": 16,
            "exits_per_step": 1,
            "token_share": 1.0,
            "distill": 0.0,
            "layer_dropout": 0.1,
            "weights": "random",
            "exit_points": "all",
        },
        "lora": {},
    }
    """LayerSkip's own model of 24 layers from scratch has p_max 0.1, e_scale 0.2 and the exits of every 23rd layer in
    turn (C_rot,R=23). What differs: the exit of a step is drawn, not next in turn; layer dropout does not rise in time;
    learning rate, batch and length are those of a small model.
    """

    preset: Literal["paper", "layerskip", "lora"] = Field(
        default="lora",
        description="lora makes an adapter that runs find; paper and layerskip train all weights, into a model folder.",
    )
    split: Split = Field(default="train", description="Part of each dataset to learn from")
    documents: int | None = Field(default=None, ge=1, description="Documents of each source at most. Default: all.")
    weights: Literal["pretrained", "random"] = Field(default="pretrained", description="What tuning begins with")
    exit_points: str = Field(default="paper", description="paper, all, or layers such as 4,8,12.")
    start_from: str | None = Field(
        default=None, description="Tune the adapter and shortcuts of this folder, or shipped set, further."
    )
    save_steps: int = Field(default=50, ge=1, description="Steps between checkpoints.")
    resume: Resume = False

    train = _by("lite.fit:train_lite")


class Shortcut(TraceOptions):
    """Fit what reads every exit to the last layer, in closed form: an exit head for weights that stay as they are.

    Then, where steps are given, by gradient descent on the tokens that a trace holds.
    """

    exit_module: ExitModuleName = EXIT_MODULE
    ridge: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="Damping, relative to the mean variance.")
    steps: int = Field(default=0, ge=0, description="Steps of AdamW behind the closed form.")
    batch: int = Field(default=256, ge=1, description="Tokens of a step, each read at three random exits.")
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="Peak of a cosine schedule.")
    distill: float = Field(
        default=1.0, ge=0, le=1, description="Share of an exit's loss that follows the last layer, not the next token."
    )

    @field_validator("name")
    @classmethod
    def _found(cls, name: str | None) -> str | None:
        if name is not None and not name.startswith("shortcut"):
            raise ValueError("input should begin with shortcut, since shortcuts are looked for as shortcut*.json")
        return name

    train = _by("shortcut:train_shortcut")


class TokenShortlist(DocumentChoice, TrainingOptions):
    """Count the tokens of train splits, for the head that reads the most frequent ones alone; a minute."""

    documents: int | None = Field(default=None, ge=2, description="Documents of each source at most. Default: all.")
    size: int = Field(default=16384, ge=2, description="Tokens that are ranked: the largest shortlist there can be.")

    train = _by("cheap_heads:count_tokens")


class PromptExit(DocumentChoice, TrainingOptions):
    """Fit the maps that prompts with exits need, in closed form, on documents that full depth reads; minutes.

    By ridge regression from the states at the exit to the keys and values of each layer above, before rotation; then,
    where steps are given, by distillation of full depth's distribution behind a prompt, about a second a step.
    """

    artefacts: str | None = Field(
        default=None, description="Where the model's adapter is: a folder of `harness train`, or a shipped set."
    )
    layers: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(14, 18, 22), description="Layers after which tokens of a prompt may stop. Repeatable."
    )
    split: Split = Field(default="train", description="Part of each dataset to learn from")
    documents: int | None = Field(default=60, ge=2, description="Documents of each source at most.")
    length: int = Field(default=640, ge=32, description="Tokens a document is cut at.")
    tail: int = Field(default=64, ge=1, description="Last tokens that are read by all layers where maps are measured.")
    before: int = Field(default=1, ge=0, le=8, description="Tokens before it that a map reads beside a token.")
    rank: int = Field(default=512, ge=1, description="Of a map, at most.")
    ridge: float = Field(default=1e-4, ge=0, allow_inf_nan=False, description="Damping, relative to the mean variance.")
    steps: int = Field(default=0, ge=0, description="Steps of distillation for each layer, a document each.")
    learning_rate: float = Field(default=2e-4, gt=0, le=1, description="Peak of a cosine schedule, Adam.")

    train = _by("prompt_exits:fit_maps")


class LowRankHead(TraceChoice):
    """Find the directions of traced states that move logits most, for the low-rank head, in closed form."""

    train = _by("cheap_heads:fit_lowrank")


# ------------------------------------------------------------------------------------------ heads that decide


class NetworkSize(Configuration):
    """Size of small heads, and how long they learn."""

    hidden: int = Field(default=128, ge=0, description="Width of the hidden layer; 0: linear, as in the paper.")
    epochs: int = Field(default=20, ge=1, description="Passes over the trace.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")


class HeadRecipe(NetworkSize):
    """How to train heads; saved in the artefact."""

    objective: Literal["likelihood", "certainty", "return", "actions"] = Field(
        default="likelihood",
        description="likelihood (cross-entropy with the label), certainty (mean squared error, BERxiT), return (of a "
        "policy whose reward is that of ConsistentEE) or actions (cross-entropy with exit, stop or continue).",
    )
    shared: bool = Field(default=False, description="One network for all exit points instead of one each.")
    weight_decay: float = Field(default=1e-2, ge=0, allow_inf_nan=False, description="Of AdamW.")
    auxiliary: float = Field(
        default=0.3,
        ge=0,
        allow_inf_nan=False,
        description="Weight of two further targets, confidence and entropy; 0: none.",
    )
    batch: int = Field(default=512, ge=1, description="Tokens a step, each at every exit point.")


class ReturnRecipe(HeadRecipe):
    """How to train policies of ConsistentEE; saved in the artefact."""

    objective: Literal["return"] = "return"
    shared: Literal[False] = False
    saving: float = Field(
        default=0.2, ge=0, allow_inf_nan=False, description="α: what all layers cost an easy token, in right tokens."
    )


class HeadOptions(HeadRecipe, ControllerOptions):
    """Options of a recipe that trains heads on what exits said."""

    observation: ObservationName = "rich"

    train = _by("heads:train_heads")


class LikelihoodHeads(HeadOptions):
    """Train one head per exit point that tells whether the answer is already there (CALM)."""

    objective: Literal["likelihood"] = "likelihood"
    shared: Literal[False] = False


class CertaintyHead(HeadOptions):
    """Train one head for all exit points that regresses their certainty (BERxiT's learning to exit)."""

    objective: Literal["certainty"] = "certainty"
    shared: Literal[True] = True
    hidden: int = Field(default=256, ge=0, description="Width of the hidden layer; 0: linear, as in the paper.")


class ConsistentHeads(ReturnRecipe, HeadOptions):
    """Train one policy per exit point that earns by staying right, and by leaving early where that is easy."""


class ActionHeads(NetworkSize, ControllerOptions):
    """Train one head per exit point that chooses to exit, to stop the completion or to go on (SEC)."""

    observation: ObservationName = "rich"
    hidden: int = Field(default=16, ge=0, description="Width of the hidden layer; 0: linear.")
    precision: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Share of stopped tokens that no layer gets right, which --keep is to exits.",
    )

    train = _by("heads:train_actions")


class CandidatePredictors(NetworkSize, ControllerOptions):
    """Train one small network per exit point that looks at a few candidate tokens of the LM head (SpecEE)."""

    head: str = Field(
        default="shortlist", description="What proposes candidates at the first exit point: full, or a cheap head."
    )
    candidates: int = Field(default=8, ge=2, le=256, description="Tokens that are looked at.")
    hidden: int = Field(default=32, ge=1, description="Width of the hidden layer.")
    learning_rate: float = Field(default=3e-3, gt=0, le=1, description="Peak of a one-cycle schedule, AdamW.")

    train = _by("heads:train_predictors")


class ExcessHeads(TraceOptions):
    """Train one head per exit point and one for the last layer that tells where a function ends (CodeFast)."""

    tasks: LearnedTasks = ()
    precision: float = Field(
        default=0.9, gt=0, le=1, description="Share of held-out stops that must be ends of functions."
    )
    l2: float = Field(default=1e-4, ge=0, le=1, description="Weight of the squared weights beside the cross-entropy.")

    train = _by("heads:train_excess")


class TokenTable(ControllerOptions):
    """Count how often each exit says what the last layer says, by the token that was read (HashEE)."""

    least: int = Field(default=4, ge=1, description="Times that a token must have been read to stand in the table.")

    train = _by("heads:count_agreement")


# ------------------------------------------------------------------------------------------------------- agents


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
    envs: int = Field(default=64, ge=1, description="Episodes at once.")

    @model_validator(mode="after")
    def _whole_rollouts(self) -> Self:
        if self.rollout % self.envs:
            raise ValueError(f"--envs {self.envs} must divide the {self.rollout} steps of a rollout")
        return self


class Agent(AgentSettings, ControllerOptions, WithPresets):
    """Train GREEN-CODE's agent (PPO) to decide where each token exits; minutes, on traces.

    Preset paper is GREEN-CODE's Table III; tuned stopped earliest at 98 % agreement, with the savings reward.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"observation": "paper", "reward": "auto"},
        "tuned": {
            "steps": 2_000_000, "rollout": 16_384, "batch": 2048, "envs": 256, "epochs": 1, "learning_rate": 3e-3,
            "discount": 0.0, "entropy": 0.05,
        },
    }  # fmt: skip
    """With discount 0 an agent weighs each decision by its own reward alone: on given tokens, which do not depend on
    where it stops, that is a contextual bandit.

    SmolLM2-135M, 253,000 traced tokens, held-out mean exit layer at 98 % agreement: Table III with Eq. 2 and 3 28.6;
    learning rate 1e-3, discount 0.9, entropy 0.05 27.9; with the savings reward and entropy 0.02 24.5; then discount 1
    27.5, discount 0 23.9; from there entropy 0.05 23.3, four times the steps 23.3, penalty 10 instead of 4 23.6, 128
    units 23.6. Optimum 21.0 to 21.6; Table III as shipped, by task, 4.9 (py150) and 6.0 (javacorpus) behind it. These
    had batches of 512 and six epochs, by which an agent exits too often: of 4,025 tokens and 300,000 decisions it keeps
    74 % of others as it is and earns -0.81 a token, by one epoch of large batches 98 % and -0.01 (28.3 and 28.1 layers
    at 98 %).
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
    save_steps: int = Field(default=50_000, ge=1, description="Decisions between checkpoints.")
    resume: Resume = False

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

    def train(self, run: TrainingRun) -> Trained:
        """Train it."""
        require("train", "stable_baselines3", "gymnasium")
        return _by("agents.train_agent:train_agent")(self.filled(), run)
