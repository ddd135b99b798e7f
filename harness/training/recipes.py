"""Recipes that ``harness train`` has built in: their options and functions.

No torch at import: a command's flags are read from these classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.contracts.recipes import Trained, TrainingRun
from harness.host.libraries import require
from harness.training.options import (
    ActionOptions,
    AgentOptions,
    ControllerOptions,
    ExcessOptions,
    HeadOptions,
    LiteOptions,
    LowRankOptions,
    PredictorOptions,
    ReturnOptions,
    ShortcutOptions,
    ShortlistOptions,
)


class Lite(LiteOptions):
    """Tune a model with the aggregated loss of all its exits (LITE; GREEN-CODE Eq. 1).

    Preset paper is GREEN-CODE's setting: 4 × 32 sequences a step, 2–3k steps, all exits, all tokens.
    """

    def train(self, run: TrainingRun) -> Trained:
        """Tune; see :func:`harness.training.lite.train_lite.train_lite`."""
        from harness.training.lite.train_lite import train_lite

        result = train_lite(self, run)
        if not result.report:  # stopped, or another process than the first
            return Trained(finished=result.finished)
        if result.recipe.method == "full":
            model = self.folder / "model"
            note = (
                f"The tuned model is {model}: use it with --model {model} --artefacts {self.folder}, and give what "
                f"learns from it --out {self.folder}, too"
            )
        else:
            note = f"Adapter, shortcuts, exits.md and training.jsonl are in {self.folder}"
        return Trained(result.report, note)


class Shortcut(ShortcutOptions):
    """Fit linear maps from every exit to the last layer, in closed form: an exit head for untuned weights."""

    def train(self, run: TrainingRun) -> Trained:
        """Fit; see :func:`harness.training.shortcut.train_shortcut`."""
        from harness.training.shortcut import train_shortcut

        result = train_shortcut(self, run)
        rows = [f"| {layer} | {before:.3f} | {after:.3f} |" for layer, (before, after) in result.agreement.items()]
        report = "\n".join(["| exit layer | agreement before | with the maps |", "|--:|--:|--:|", *rows])
        return Trained(report, f"{result.tokens} held-out tokens. The maps are in {result.artefact.path}")


class TokenShortlist(ShortlistOptions):
    """Count the tokens of train splits, for the head that reads the most frequent ones alone; a minute."""

    def train(self, run: TrainingRun) -> Trained:
        """Count; see :func:`harness.training.cheap_heads.count_tokens`."""
        from harness.training.cheap_heads import count_tokens

        return count_tokens(self, run)


class LowRankHead(LowRankOptions):
    """Find the directions of traced states that move logits most, for the low-rank head, in closed form."""

    def train(self, run: TrainingRun) -> Trained:
        """Fit; see :func:`harness.training.cheap_heads.fit_lowrank`."""
        from harness.training.cheap_heads import fit_lowrank

        return fit_lowrank(self, run)


class _Heads(HeadOptions):
    def train(self, run: TrainingRun) -> Trained:
        """Train; see :func:`harness.training.heads.learning.train_on_trace`."""
        from harness.training.heads.learning import train_on_trace

        result = train_on_trace(self, run)
        return Trained(finished=False) if result is None else result.said()


class LikelihoodHeads(_Heads):
    """Train one head per exit point that tells whether the answer is already there (CALM)."""

    objective: Literal["likelihood"] = "likelihood"
    shared: Literal[False] = False


class CertaintyHead(_Heads):
    """Train one head for all exit points that regresses their certainty (BERxiT's learning to exit)."""

    objective: Literal["certainty"] = "certainty"
    shared: Literal[True] = True
    hidden: int = Field(default=256, ge=0, description="Width of the hidden layer; 0: linear, as in the paper.")


class ConsistentHeads(ReturnOptions, _Heads):
    """Train one policy per exit point that earns by staying right, and by leaving early where that is easy."""


class ActionHeads(ActionOptions):
    """Train one head per exit point that chooses to exit, to stop the completion or to go on (SEC)."""

    def train(self, run: TrainingRun) -> Trained:
        """Train; see :func:`harness.training.heads.train_actions.train_actions`."""
        from harness.training.heads.train_actions import train_actions

        return train_actions(self, run)


class ExcessHeads(ExcessOptions):
    """Train one head per exit point and one for the last layer that tells where a function ends (CodeFast)."""

    def train(self, run: TrainingRun) -> Trained:
        """Train; see :func:`harness.training.heads.train_excess.train_excess`."""
        from harness.training.heads.train_excess import train_excess

        return train_excess(self, run)


class TokenTable(ControllerOptions):
    """Count how often each exit says what the last layer says, by the token that was read (HashEE)."""

    least: int = Field(default=4, ge=1, description="Times that a token must have been read to stand in the table.")

    def train(self, run: TrainingRun) -> Trained:
        """Count; see :func:`harness.training.count_agreement.count_agreement`."""
        from harness.training.count_agreement import count_agreement

        return count_agreement(self, run, self.least).said()


class CandidatePredictors(PredictorOptions):
    """Train one small network per exit point that looks at a few candidate tokens of the LM head (SpecEE)."""

    def train(self, run: TrainingRun) -> Trained:
        """Train; see :func:`harness.training.train_predictor.train_predictor`."""
        from harness.training.train_predictor import train_predictor

        return train_predictor(self, run).said()


class Agent(AgentOptions):
    """Train GREEN-CODE's agent (PPO) to decide where each token exits; minutes, on traces.

    Preset paper is GREEN-CODE's Table III; tuned stopped earliest at 98 % agreement, with the savings reward.
    """

    def train(self, run: TrainingRun) -> Trained:
        """Train; see :func:`harness.training.agents.train_agent.train_agent`."""
        if self.optimum:
            from harness.training.agents.optimum import find_optimum

            return find_optimum(self.filled(), run)
        require("train", "stable_baselines3", "gymnasium")
        from harness.models.artefacts import read_artefact
        from harness.training.agents.train_agent import train_agent
        from harness.training.identity import exit_head_note

        result = train_agent(self.filled(), run)
        if not result.finished:
            return Trained(finished=False)
        log = f"{self.name or run.recipe}-training.jsonl"
        head = exit_head_note(read_artefact(result.path, run.recipe).facts["exit_head"])
        return Trained(result.report, f"The agent is {result.path}; {log} beside it has its rewards. {head}")
