"""Inputs of SpecEE's predictors: a few candidate tokens of the LM head, and how they fare from exit to exit."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["candidate_features"]


def candidate_features(logits: Tensor, before: Tensor | None) -> Tensor:
    """Return logits, their softmax among themselves and its change since the exit before, ``[n, k]`` → ``[n, 3k]``.

    Args:
        logits: of the candidates at this exit, ``[n, k]`` float32, the same token in the same column at every exit.
        before: at the exit point before; ``None`` at the first, where nothing has changed.
    """
    shares = logits.softmax(-1)
    change = torch.zeros_like(shares) if before is None else shares - before.softmax(-1)
    return torch.cat((logits, shares, change), dim=-1)
