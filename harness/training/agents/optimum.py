"""The optimum of a reward on traced tokens, by backward induction, and how far an agent is from it.

A trace says what every exit point would have answered, whatever is decided, so that the value of each decision can be
averaged instead of explored. The policy knows the exit point, the bin of the probability there, and the highest bin
before at this token (Eq. 2 and 3 punish leaving behind the first right exit, so the past matters). It is the optimum
among policies of this state, a lower bound of what one that sees the hidden state could earn, and it maximises
GREEN-CODE's Eq. 4: the sum of a token's rewards without discount. Held to an agreement by a threshold on its preference
it is no optimum: plain thresholds may earn more. Cross-fitted over documents, its returns are out of sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.records.estimate import Estimate, Interval
from harness.training.agents.episodes import Episodes
from harness.training.agents.reward import CONTINUE, EXIT
from harness.training.traces.training_set import exit_places, threshold_keeping
from reports.statistics.intervals import draws, replicate_interval

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

BINS = 24
FOLDS = 5
PRIOR = 20.0
"""Tokens that the mean over all pasts weighs beside those of one past."""


@dataclass(frozen=True, eq=False)
class BinnedPolicy:
    """Inner edges of each exit point's bins, ``[exits, bins - 1]``, and the value of exiting less that of going on,
    ``[exits, bins, bins]``: by bin, and by the highest bin at the exit points before (0 at the first).
    """

    edges: Floats
    advantages: Floats

    def __call__(self, scores: Floats) -> Floats:
        """Return the advantage of exiting at every exit point, ``[n, exits]``; the optimum exits from 0 on."""
        bins, before = _states(scores, self.edges)
        return self.advantages[np.arange(scores.shape[1]), bins, before]


def fit_optimum(scores: Floats, rewards: Floats, *, bins: int = BINS, prior: float = PRIOR) -> BinnedPolicy:
    """Return the policy with the highest mean return on tokens of scores ``[n, exits]`` and rewards ``[n, exits, 2]``.

    ``bins`` have equal counts; by ``prior`` tokens a state's means are drawn to those of its bin, whatever came before.
    """
    exits = scores.shape[1]
    edges = np.quantile(scores, np.arange(1, bins) / bins, axis=0).T
    current, before = _states(scores, edges)
    advantages = np.zeros((exits, bins, bins))
    ahead = np.zeros(len(scores))  # value of where each token is next; 0 at the last layer
    for exit_ in range(exits - 1, -1, -1):
        place = current[:, exit_] * bins + before[:, exit_]
        leave = _means(place, rewards[:, exit_, EXIT], bins, prior)
        go_on = _means(place, rewards[:, exit_, CONTINUE] + ahead, bins, prior)
        advantages[exit_] = leave - go_on
        ahead = np.maximum(leave, go_on).reshape(-1)[place]
    return BinnedPolicy(edges, advantages)


def cross_fitted_advantages(
    scores: Floats, rewards: Floats, documents: Places, *, seed: int = 0, folds: int = FOLDS
) -> Floats:
    """Return the advantage of exiting at every exit point, by policies fitted on other documents, ``[n, exits]``.

    There are at least two different ``documents``, ``[n]``; the seed decides which go together.
    """
    numbers, document = np.unique(documents, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(numbers)) % min(folds, len(numbers))
    found = np.empty_like(scores)
    for part in range(fold.max() + 1):
        inside = fold[document] == part
        found[inside] = fit_optimum(scores[~inside], rewards[~inside])(scores[inside])
    return found


def returns(rewards: Floats, places: Places) -> Floats:
    """Return the sum of the rewards of tokens, ``[n]``, that stop at these places; ``exits`` is the last layer."""
    passed = np.concatenate((np.zeros((len(rewards), 1)), rewards[:, :, CONTINUE].cumsum(1)), axis=1)
    leave = np.concatenate((rewards[:, :, EXIT], np.zeros((len(rewards), 1))), axis=1)
    rows = np.arange(len(rewards))
    summed: Floats = passed[rows, places] + leave[rows, places]
    return summed


def _states(scores: Floats, edges: Floats) -> tuple[Places, Places]:
    """Return each token's bin at every exit point, and the highest one before, ``[n, exits]`` each."""
    bins = np.stack(
        [np.searchsorted(edge, column, side="right") for edge, column in zip(edges, scores.T, strict=True)], axis=1
    )
    before = np.zeros_like(bins)
    before[:, 1:] = np.maximum.accumulate(bins, axis=1)[:, :-1]
    return bins, before


def _means(place: Places, values: Floats, bins: int, prior: float) -> Floats:
    """Return the mean value of each state, ``[bins, bins]``, shrunk to its bin's, and that to the mean of all."""
    count = np.bincount(place, minlength=bins * bins).reshape(bins, bins).astype(float)
    total = np.bincount(place, values, minlength=bins * bins).reshape(bins, bins)
    overall = values.mean()
    prior = max(prior, 1e-9)  # where a state has no token
    by_bin = (total.sum(1) + prior * overall) / (count.sum(1) + prior)
    means: Floats = (total + prior * by_bin[:, None]) / (count + prior)
    return means


Ranged = tuple[float, Interval | None]
"""A value and its 95 % interval over documents, ``None`` where they are too few."""
FIGURES = ("agreement", "exit_layer", "reward")
HIGHEST_PRICE = 32.0
"""Of a wrong exit: 98 % agreement takes 4 to 10 with the rewards there are."""


def beside_optimum(
    everything: Episodes, held_out: Episodes, probability: Tensor, agent: Tensor, *, keep: float, seed: int
) -> dict[str, Any]:
    """Compare an agent with policies on held-out documents, the optimum fitted on all tokens of other documents.

    ``probability`` is that of the exit head's token at all tokens, ``[n, exits]``; ``agent`` has logit(exit) −
    logit(continue) at the held-out ones; mean layers are compared at the agreement ``keep``; the seed decides folds.

    Returns:
        JSON-able: ``keep``, ``tokens`` and ``documents`` looked at; ``rows``, each of a ``policy`` (``optimum`` of the
        reward; ``constrained optimum``, the one that keeps the wanted agreement by itself, since a wrong exit costs
        more; ``agent``; or ``probability``), whether its threshold is the loosest that keeps the agreement (``kept``;
        else it is the policy as it is), and the share of tokens equal to the last layer's (``agreement``), mean layers
        (``exit_layer``) and mean sum of a token's rewards (``reward``), each a :data:`Ranged`; and ``distance``, the
        agent less the optimum, paired by document: of the ``reward`` as they are, and of the ``exit_layer`` where both
        keep the agreement, ``None`` where one cannot.
    """
    rows, points, num_layers = held_out.rows(), everything.exit_points, everything.num_layers
    numbers = np.repeat(np.arange(len(everything.documents)), [found.tokens for found in everything.documents])
    looked_at = np.unique(numbers[rows], return_inverse=True)[1]
    count = np.bincount(looked_at).astype(float)
    drawn = draws(len(count))
    right = torch.from_numpy(everything.right[rows])
    layers = np.array([*points, num_layers])
    correct = np.concatenate((everything.right[rows], np.ones((len(rows), 1), dtype=bool)), axis=1)
    rewards = everything.rewards.astype(np.float64)

    def advantages(price: float) -> Tensor:
        """Where a wrong exit costs that much more."""
        priced = rewards.copy()
        priced[:, :, EXIT] -= price * ~everything.right
        fitted = cross_fitted_advantages(probability.double().numpy(), priced, numbers, seed=seed)
        return torch.from_numpy(fitted[rows])

    def sums(scores: Tensor, threshold: float) -> dict[str, Floats]:
        """Add up over each document's tokens what exiting from a threshold on brings, ``[documents]`` each."""
        places = exit_places(scores >= threshold).numpy()
        values = (correct[np.arange(len(rows)), places], layers[places], returns(rewards[rows], places))
        return {name: np.bincount(looked_at, value).astype(float) for name, value in zip(FIGURES, values, strict=True)}

    def ranged(summed: Floats) -> Ranged:
        """Return a mean per token with its interval."""
        return float(summed.sum() / count.sum()), replicate_interval((drawn @ summed) / (drawn @ count), len(count))

    low, high = 0.0, HIGHEST_PRICE
    while high - low > 0.25:
        middle = (low + high) / 2
        if sums(advantages(middle), 0.0)["agreement"].sum() / count.sum() >= keep:
            high = middle
        else:
            low = middle
    decided = {"optimum": advantages(0.0), "agent": agent}
    asis = {name: sums(score, 0.0) for name, score in decided.items()}
    thresholds = {**decided, "constrained optimum": advantages(high), "probability": probability[rows]}
    kept = {}
    for name, score in thresholds.items():
        found = threshold_keeping(score, right, points, num_layers, keep)
        if found is not None:
            kept[name] = sums(score, found["threshold"])
    both = {"optimum", "agent"} <= kept.keys()
    return {
        "keep": keep,
        "tokens": len(rows),
        "documents": len(count),
        "rows": [
            {"policy": name, "kept": held, **{figure: ranged(found[figure]) for figure in FIGURES}}
            for held, policies in ((False, asis), (True, kept))
            for name, found in policies.items()
        ],
        "distance": {
            "reward": ranged(asis["agent"]["reward"] - asis["optimum"]["reward"]),
            "exit_layer": ranged(kept["agent"]["exit_layer"] - kept["optimum"]["exit_layer"]) if both else None,
        },
    }


def render_optimum(found: Mapping[str, Any], reward: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown; ``reward`` as :func:`harness.training.agents.reward.describe` returns it."""
    keep = f"{found['keep']:.0%}"
    lines = ["| policy (replayed) | agreement | mean exit layer | mean reward of a token |", "|:--|--:|--:|--:|"]
    for row in found["rows"]:
        name = "threshold on the probability" if row["policy"] == "probability" else row["policy"]
        name += f", held to {keep}" if row["kept"] else " as it is"
        cells = (_text(row[figure], decimals) for figure, decimals in zip(FIGURES, (3, 2, 3), strict=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    coefficients = ", ".join(f"{name} {value:g}" for name, value in reward.items() if name != "rule")
    earned, layers = found["distance"]["reward"], found["distance"]["exit_layer"]
    held = f", {_text(layers, 2, '+')} layers at {keep} agreement." if layers else f"; one of them cannot hold {keep}."
    lines += [
        "",
        f"Reward: {reward['rule']} ({coefficients}). Optimum: backward induction on binned probabilities, cross-fitted "
        f"over documents; {found['tokens']} tokens of {found['documents']} documents, 95 % intervals over documents. "
        "Held: from the loosest preference on that keeps the agreement, chosen on the same tokens. Constrained: wrong "
        "exits are priced so that the optimum keeps it by itself.",
        f"Distance of the agent to the optimum of its reward: {_text(earned, 3, '+')} reward a token{held}",
    ]
    return "\n".join(lines)


def _text(ranged: Ranged, decimals: int, sign: str = "") -> str:
    return Estimate.of(*ranged).text(f"{{:{sign}.{decimals}f}}", f"{{:.{decimals}f}}")
