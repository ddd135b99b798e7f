"""``harness train hash``: how often each exit says what the last layer says, by the token that was read."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.contracts.recipes import TrainingRun
from harness.models.artefacts import write_artefact
from harness.training.options import ControllerOptions
from harness.training.traces.training_set import SavedController, TrainingSet

NEVER = 1.0
"""A threshold that no share reaches: a token that was read n times has n / (n + 1) at most (kept as 1 from 4096 on)."""


def count_agreement(options: ControllerOptions, run: TrainingRun, least: int) -> SavedController:
    """Count a table on a trace and write it.

    Args:
        options: of the recipe.
        run: of the recipe.
        least: times that a token must have been read to stand in the table.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    data = TrainingSet.open(options, run)
    read = data.traces.columns("input")["input"].long()
    token_ids, shares = shares_of(read[data.learned], data.right(data.learned), least)
    place = torch.full((int(read.max()) + 1,), len(token_ids))
    place[token_ids] = torch.arange(len(token_ids))
    shares = shares.half()
    scores = torch.cat((shares.float(), torch.zeros(1, shares.shape[1])))[place[read[data.held_out]]]
    tensors = {"token_ids": token_ids.int(), "shares": shares}
    return data.saved(
        scores, {"least": least}, lambda path, facts: write_artefact(path, run.recipe, tensors, facts), never=NEVER
    )


def shares_of(read: Tensor, right: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return tokens, ascending ``[m]`` int64, and how often each exit was right after each, ``[m, exits]`` float32.

    A token that was read n times counts as read once more, and wrong then at every exit.

    Args:
        read: the token that was read, ``[n]`` int64.
        right: whether each exit's token was the last layer's, ``[n, exits]`` bool.
        least: times that a token must have been read.
    """
    token_ids, inverse, counts = torch.unique(read, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(token_ids), right.shape[1]).index_add_(0, inverse, right.float())
    often = counts >= least
    return token_ids[often], (hits / (counts + 1).unsqueeze(1))[often]
