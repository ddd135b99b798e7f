"""An exit policy fitted to a reward, by backward induction on a trace.

A trace says what every exit point would have answered, whatever is decided, so that the value of each decision can be
averaged instead of explored. The policy knows the exit point, the bin of a score there, and the highest bin that the
score was in before at this token (Eq. 2 and 3 punish leaving behind the first right exit, so the past matters). It is
the optimum among policies of this state, a lower bound of what a policy that sees the hidden state could earn, and it
maximises GREEN-CODE's Eq. 4: the sum of a token's rewards without discount. Held to an agreement by a threshold on its
preference it is no optimum: plain thresholds may earn more. Cross-fitted over documents, its returns are out of sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.training.agents.reward import CONTINUE, EXIT

__all__ = ["BinnedPolicy", "cross_fitted_advantages", "fit_optimum", "returns"]

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

BINS = 24
FOLDS = 5
PRIOR = 20.0
"""Tokens that the mean over all pasts weighs beside those of one past."""


@dataclass(frozen=True, eq=False)
class BinnedPolicy:
    """A policy on binned scores.

    Attributes:
        edges: inner edges of the bins of each exit point, ``[exits, bins - 1]``.
        advantages: value of exiting less that of going on, ``[exits, bins, bins]``: by bin, and by the highest bin at
            the exit points before (0 at the first). The optimum exits where it is at least 0.
    """

    edges: Floats
    advantages: Floats

    def __call__(self, scores: Floats) -> Floats:
        """Return the advantage of exiting at every exit point of some tokens, ``[n, exits]`` → ``[n, exits]``."""
        bins, before = _states(scores, self.edges)
        return self.advantages[np.arange(scores.shape[1]), bins, before]


def fit_optimum(scores: Floats, rewards: Floats, *, bins: int = BINS, prior: float = PRIOR) -> BinnedPolicy:
    """Return the policy with the highest mean return on some tokens.

    Args:
        scores: of every exit point, ``[n, exits]``.
        rewards: of :data:`CONTINUE` and :data:`EXIT` there, ``[n, exits, 2]``.
        bins: of equal counts, at each exit point.
        prior: tokens by which a state's means are drawn to those of its bin, whatever came before; 0 for none.
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

    Args:
        scores: ``[n, exits]``.
        rewards: ``[n, exits, 2]``.
        documents: number of each token's document, ``[n]``; at least two different ones.
        seed: decides which documents go together.
        folds: parts; no more than there are documents.
    """
    numbers, document = np.unique(documents, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(numbers)) % min(folds, len(numbers))
    found = np.empty_like(scores)
    for part in range(fold.max() + 1):
        inside = fold[document] == part
        found[inside] = fit_optimum(scores[~inside], rewards[~inside])(scores[inside])
    return found


def returns(rewards: Floats, places: Places) -> Floats:
    """Return the sum of the rewards of tokens that stop at some exits, ``[n]``.

    Args:
        rewards: ``[n, exits, 2]``.
        places: where each stops, ``[n]``; ``exits`` for the last layer.
    """
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
    by_bin = _divide(total.sum(1) + prior * overall, count.sum(1) + prior, overall)
    return _divide(total + prior * by_bin[:, None], count + prior, by_bin[:, None])


def _divide(total: Floats, count: Floats, otherwise: Floats | float) -> Floats:
    empty = count == 0
    return np.where(empty, otherwise, total / np.where(empty, 1, count))
