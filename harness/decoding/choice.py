"""The token that logits choose, and whether they choose one at all.

To ``argmax`` NaN is the greatest of all, and infinity is greater than any number. So the logit of the token that it
finds is finite only where the row has no such logit: whoever reads it beside the token knows, and nobody looks at the
vocabulary again. (``Tensor.max``, which gives both, takes half as long again as ``argmax`` on a CPU.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from harness.decoding.transfer import read
from harness.errors import ModelError

__all__ = ["Best", "Scores", "best", "choices", "not_finite", "undefined"]

Best: TypeAlias = tuple[Tensor, Tensor]
"""Tokens, ``[n]`` int64, and their logits, ``[n]``."""

Scores: TypeAlias = tuple[int, list[int], Tensor]
"""A layer, rows of the batch, and a number for each of them, ``[n]``."""


def best(logits: Tensor) -> Best:
    """Return the best token of each row and its logit, ``[n, vocab_size]`` → ``[n]`` twice."""
    tokens = logits.argmax(-1, keepdim=True)
    return tokens.squeeze(-1), logits.gather(-1, tokens).squeeze(-1)


def choices(found: Best) -> list[tuple[int, float]]:
    """Return best tokens and their logits to the host."""
    return list(zip(*read(*found), strict=True))


def undefined(scores: Sequence[Scores]) -> Iterator[tuple[int, int]]:
    """Yield (row, layer) of every score that is NaN, which compares with nothing; all come to the host at once."""
    for (layer, rows, _), numbers in zip(scores, read(*(numbers for _, _, numbers in scores)), strict=True):
        yield from ((row, layer) for row, number in zip(rows, numbers, strict=True) if math.isnan(number))


def not_finite(what: str, layer: int, token: int, dtype: torch.dtype) -> ModelError:
    """Return the refusal of a row that cannot go on.

    Args:
        what: what is not finite, in the plural.
        layer: decoder layers executed.
        token: which new token, from 1.
        dtype: of the activations.
    """
    name = str(dtype).removeprefix("torch.")
    if dtype is torch.float32:
        cause = "weights or activations are NaN or overflow. Check the model's files, or fetch them again"
    else:
        cause = f"weights or activations overflow in {name}. Try --dtype float32"
    return ModelError(f"{what} of layer {layer} are not finite at token {token}: {cause}.")
