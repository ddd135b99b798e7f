"""Replay of an exit rule on a trace: mean exit layer against agreement, over thresholds.

Teacher-forced: the tokens are the trace's, so the drift that real exits cause is not in these numbers. They choose
thresholds and compare training recipes; results come from live decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

__all__ = ["ReplayRow", "exit_places", "render_replay", "replay_rows", "threshold_keeping"]

QUANTILES = tuple(place / 40 for place in range(1, 40))


class ReplayRow(TypedDict):
    """One threshold on a trace.

    ``exit_layer``: mean decoder layers, tokens that ran to the end included. ``agreement``: share of tokens equal to
    the last layer's.
    """

    threshold: float
    exit_layer: float
    agreement: float


def exit_places(leaves: Tensor) -> Tensor:
    """Return the place of the first exit taken, ``[n, exits]`` bool → ``[n]`` int64; ``exits`` for the last layer."""
    always = torch.cat((leaves, torch.ones(len(leaves), 1, dtype=torch.bool)), dim=1)
    return always.int().argmax(1)


def replay_rows(
    scores: Tensor,
    right: Tensor,
    exit_points: Sequence[int],
    num_layers: int,
    thresholds: Sequence[float] | None = None,
) -> list[ReplayRow]:
    """Return one row per threshold of the rule *exit where score ≥ threshold*.

    Args:
        scores: ``[n, exits]``; minus infinity where nothing may exit.
        right: whether the exit's token is the last layer's, ``[n, exits]`` bool.
        exit_points: layers of the exits.
        num_layers: decoder layers.
        thresholds: to try; quantiles of the observed scores when left out, so that none of them is empty.
    """
    if thresholds is None:
        thresholds = sorted(set(torch.quantile(_sample(_finite(scores)), torch.tensor(QUANTILES)).tolist()))
    layers = torch.tensor([*exit_points, num_layers], dtype=torch.float32)
    correct = torch.cat((right, torch.ones(len(right), 1, dtype=torch.bool)), dim=1)
    rows = []
    for threshold in thresholds:
        places = exit_places(scores >= threshold)
        rows.append(
            ReplayRow(
                threshold=threshold,
                exit_layer=layers[places].mean().item(),
                agreement=correct.gather(1, places.unsqueeze(1)).float().mean().item(),
            )
        )
    return rows


def threshold_keeping(
    scores: Tensor, right: Tensor, exit_points: Sequence[int], num_layers: int, keep: float
) -> ReplayRow | None:
    """Return the loosest threshold, by bisection, whose agreement is at least ``keep``; ``None`` if no exit helps."""
    low, high = _finite(scores).min().item(), _finite(scores).max().item()
    best: ReplayRow | None = None
    for _ in range(24):
        middle = (low + high) / 2
        (row,) = replay_rows(scores, right, exit_points, num_layers, [middle])
        if row["agreement"] >= keep:
            best, high = row, middle
        else:
            low = middle
    return best


def render_replay(title: str, rows: Sequence[ReplayRow]) -> str:
    """Return rows as Markdown."""
    lines = [f"| {title} (replayed) | mean exit layer | agreement |", "|--:|--:|--:|"]
    lines += [f"| {row['threshold']:.4g} | {row['exit_layer']:.2f} | {row['agreement']:.4f} |" for row in rows]
    return "\n".join(lines)


def _finite(scores: Tensor) -> Tensor:
    """Those that are finite; a zero where none is."""
    flat = scores.float().flatten()
    kept = flat[flat.isfinite()]
    return kept if len(kept) else torch.zeros(1)


def _sample(scores: Tensor) -> Tensor:
    """A million values at most: torch.quantile takes no more than 16."""
    flat = scores.flatten()
    return flat if flat.numel() <= 1_000_000 else flat[:: flat.numel() // 1_000_000 + 1]
