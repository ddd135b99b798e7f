"""How sure logits are: the numbers that exit rules compare, each one or two passes over the vocabulary.

Logits of any float type are widened to float32 first. A trace holds the same numbers, so that a rule that asks for
these instead of logits can be replayed.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["entropy", "top_probability", "two_best"]


def top_probability(logits: Tensor) -> Tensor:
    """Return the probability of the best token, ``[n, vocab_size]`` → ``[n]`` float32."""
    logits = logits.float()
    return (logits.amax(-1) - logits.logsumexp(-1)).exp()


def two_best(logits: Tensor) -> Tensor:
    """Return the probabilities of the best and the second token, ``[n, vocab_size]`` → ``[n, 2]`` float32."""
    logits = logits.float()
    return (logits.topk(2, dim=-1).values - logits.logsumexp(-1, keepdim=True)).exp()


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy in nats, ``[n, vocab_size]`` → ``[n]`` float32.

    H = log Σ eˣ − Σ x·eˣ / Σ eˣ over logits x shifted by their maximum.
    """
    shifted = logits.float()
    shifted = shifted - shifted.amax(-1, keepdim=True)
    weights = shifted.exp()
    total = weights.sum(-1)
    return total.log() - (shifted * weights).sum(-1) / total
