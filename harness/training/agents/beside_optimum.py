"""Reward and agreement of an agent on traced tokens, beside the optimum of its own reward and plain thresholds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.training.agents.optimum import cross_fitted_advantages, returns
from harness.training.agents.reward import EXIT
from harness.training.traces.thresholds import exit_places, threshold_keeping
from reports.statistics.intervals import draws, replicate_interval

__all__ = ["BesideOptimum", "PolicyRow", "TracedTokens", "beside_optimum", "render_optimum"]

Floats = NDArray[np.float64]
Ranged = tuple[float, tuple[float, float] | None]
"""A value and its 95 % interval over documents, ``None`` where they are too few."""

FIGURES = ("agreement", "exit_layer", "reward")
POLICIES = ("optimum", "constrained optimum", "agent")
HIGHEST_PRICE = 32.0
"""Of a wrong exit: 98 % agreement takes 4 to 10 with the rewards there are."""


@dataclass(frozen=True, eq=False)
class TracedTokens:
    """Tokens of a trace, with what every exit decision on them would have brought.

    Attributes:
        probability: of the exit head's token, ``[n, exits]``.
        right: whether it is the last layer's, ``[n, exits]`` bool.
        rewards: of both actions, ``[n, exits, 2]``.
        document: number of each token's document, ``[n]``.
        exit_points: layers of the exits.
        num_layers: decoder layers.
    """

    probability: Tensor
    right: Tensor
    rewards: Tensor
    document: Tensor
    exit_points: tuple[int, ...]
    num_layers: int


class PolicyRow(TypedDict):
    """One policy on the tokens that are looked at.

    ``policy``: ``optimum`` of the reward; ``constrained optimum``, the one that keeps the wanted
    agreement by itself (Lagrangian: a wrong exit costs more); ``agent``; or the name of a score, for a threshold on it.
    ``kept``: whether its threshold is the loosest that keeps the wanted agreement; else it is the policy as it is.
    ``agreement``: share of tokens equal to the last layer's. ``exit_layer``: mean layers. ``reward``: mean sum of a
    token's rewards.
    """

    policy: str
    kept: bool
    agreement: Ranged
    exit_layer: Ranged
    reward: Ranged


class Distance(TypedDict):
    """An agent less the optimum, paired by document.

    ``reward``: of a token, both as they are. ``exit_layer``: where both keep the wanted agreement; ``None`` where one
    of them cannot.
    """

    reward: Ranged
    exit_layer: Ranged | None


class BesideOptimum(TypedDict):
    """The comparison, JSON-able; ``distance`` is ``None`` without an agent."""

    keep: float
    tokens: int
    documents: int
    rows: list[PolicyRow]
    distance: Distance | None


def beside_optimum(
    tokens: TracedTokens,
    looked_at: Tensor,
    scores: Mapping[str, Tensor],
    *,
    agent: Tensor | None,
    keep: float,
    seed: int,
) -> BesideOptimum:
    """Compare policies on some tokens, the optimum fitted on all tokens of other documents.

    Args:
        tokens: of the trace.
        looked_at: tokens to compare on, ``[n]`` bool; none that the agent or a score has learned from.
        scores: name → score there, for plain thresholds, ``[looked_at, exits]``.
        agent: logit(exit) − logit(continue) there, ``[looked_at, exits]``.
        keep: agreement at which mean layers are compared.
        seed: decides the folds.
    """
    rewards = tokens.rewards.double().numpy()
    rule = _Rule(tokens, looked_at, rewards[looked_at.numpy()], keep)
    optimum = _advantages(tokens, rewards, 0.0, seed)[looked_at]
    decided = {"optimum": optimum} if agent is None else {"optimum": optimum, "agent": agent}
    asis = {name: rule(score, 0.0) for name, score in decided.items()}
    constrained = {"constrained optimum": _constrained(tokens, looked_at, rewards, rule, seed)}
    held = {name: rule.keeping(score) for name, score in {**decided, **constrained, **scores}.items()}
    kept = {name: sums for name, sums in held.items() if sums is not None}
    rows = [_row(name, False, sums, rule) for name, sums in asis.items()]
    rows += [_row(name, True, sums, rule) for name, sums in kept.items()]
    distance: Distance | None = None
    if agent is not None:
        both = {"optimum", "agent"} <= kept.keys()
        distance = {
            "reward": rule.ranged(asis["agent"]["reward"] - asis["optimum"]["reward"]),
            "exit_layer": rule.ranged(kept["agent"]["exit_layer"] - kept["optimum"]["exit_layer"]) if both else None,
        }
    return {
        "keep": keep,
        "tokens": int(looked_at.sum()),
        "documents": rule.documents,
        "rows": rows,
        "distance": distance,
    }


def _advantages(tokens: TracedTokens, rewards: Floats, price: float, seed: int) -> Tensor:
    """Return cross-fitted advantages of exiting where a wrong exit costs something more, ``[n, exits]``."""
    priced = rewards.copy()
    priced[:, :, EXIT] -= price * (~tokens.right).numpy()
    probability, document = tokens.probability.double().numpy(), tokens.document.long().numpy()
    return torch.from_numpy(cross_fitted_advantages(probability, priced, document, seed=seed))


def _constrained(tokens: TracedTokens, looked_at: Tensor, rewards: Floats, rule: _Rule, seed: int) -> Tensor:
    """Return the advantages of the optimum at the least price of wrong exits that makes it keep the agreement."""
    low, high = 0.0, HIGHEST_PRICE
    while high - low > 0.25:
        middle = (low + high) / 2
        if rule.agreement(_advantages(tokens, rewards, middle, seed)[looked_at]) >= rule.keep:
            high = middle
        else:
            low = middle
    return _advantages(tokens, rewards, high, seed)[looked_at]


class _Rule:
    """Exits where a score is high enough, and adds up per document what that brings."""

    def __init__(self, tokens: TracedTokens, looked_at: Tensor, rewards: Floats, keep: float) -> None:
        self._right, self._rewards, self.keep = tokens.right[looked_at], rewards, keep
        self._points, self._layers = tokens.exit_points, tokens.num_layers
        _, self._document = np.unique(tokens.document[looked_at].numpy(), return_inverse=True)
        self._count = np.bincount(self._document).astype(float)
        self._drawn = draws(self.documents)

    @property
    def documents(self) -> int:
        return len(self._count)

    def __call__(self, scores: Tensor, threshold: float) -> dict[str, Floats]:
        """Return the sums of :data:`FIGURES` over each document's tokens, ``[documents]`` each."""
        places = exit_places(scores >= threshold)
        always = torch.cat((self._right, torch.ones(len(places), 1, dtype=torch.bool)), dim=1)
        layers = torch.tensor([*self._points, self._layers])[places]
        right = always.gather(1, places.unsqueeze(1)).squeeze(1)
        values = (right.double().numpy(), layers.double().numpy(), returns(self._rewards, places.numpy()))
        return {
            name: np.bincount(self._document, value).astype(float) for name, value in zip(FIGURES, values, strict=True)
        }

    def agreement(self, scores: Tensor) -> float:
        """Return the share of tokens equal to the last layer's where exits happen from 0 on."""
        return float(self(scores, 0.0)["agreement"].sum() / self._count.sum())

    def keeping(self, scores: Tensor) -> dict[str, Floats] | None:
        """Return the same at the loosest threshold that keeps the agreement; ``None`` if none does."""
        found = threshold_keeping(scores, self._right, self._points, self._layers, self.keep)
        return None if found is None else self(scores, found["threshold"])

    def ranged(self, sums: Floats) -> Ranged:
        """Return a mean per token with its interval."""
        replicates = (self._drawn @ sums) / (self._drawn @ self._count)
        return float(sums.sum() / self._count.sum()), replicate_interval(replicates, self.documents)


def _row(policy: str, kept: bool, sums: Mapping[str, Floats], rule: _Rule) -> PolicyRow:
    agreement, exit_layer, reward = (rule.ranged(sums[name]) for name in FIGURES)
    return {"policy": policy, "kept": kept, "agreement": agreement, "exit_layer": exit_layer, "reward": reward}


def render_optimum(found: BesideOptimum, reward: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown; ``reward`` as :func:`harness.training.agents.reward.describe` returns it."""
    coefficients = ", ".join(f"{name} {value:g}" for name, value in reward.items() if name != "rule")
    return "\n".join(_lines(found, f"{reward['rule']} ({coefficients})"))


def _lines(found: BesideOptimum, rule: str) -> Iterator[str]:
    keep = f"{found['keep']:.0%}"
    yield "| policy (replayed) | agreement | mean exit layer | mean reward of a token |"
    yield "|:--|--:|--:|--:|"
    for row in found["rows"]:
        name = row["policy"] if row["policy"] in POLICIES else f"threshold on the {row['policy']}"
        name += f", held to {keep}" if row["kept"] else " as it is"
        yield f"| {name} | {_text(row['agreement'], 3)} | {_text(row['exit_layer'], 2)} | {_text(row['reward'], 3)} |"
    yield ""
    yield (
        f"Reward: {rule}. Optimum: backward induction on binned probabilities, cross-fitted over documents; "
        f"{found['tokens']} tokens of {found['documents']} documents, 95 % intervals over documents. "
        "Held: from the loosest preference on that keeps the agreement, chosen on the same tokens. Constrained: wrong "
        "exits are priced so that the optimum keeps it by itself."
    )
    if found["distance"] is not None:
        reward, layers = found["distance"]["reward"], found["distance"]["exit_layer"]
        yield f"Distance of the agent to the optimum of its reward: {_text(reward, 3, '+')} reward a token" + (
            f", {_text(layers, 2, '+')} layers at {keep} agreement." if layers else f"; one of them cannot hold {keep}."
        )


def _text(ranged: Ranged, decimals: int, sign: str = "") -> str:
    value, interval = ranged
    text = f"{value:{sign}.{decimals}f}"
    return text if interval is None else f"{text} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"
