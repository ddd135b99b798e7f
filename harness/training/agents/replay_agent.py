"""Replay of a trained agent on held-out documents, over thresholds; and the threshold it is shipped with."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from harness.models.controllers import Network
from harness.training.agents.episodes import Episodes
from harness.training.traces.thresholds import ReplayRow, render_replay, replay_rows, threshold_keeping

__all__ = ["agent_scores", "replay_agent"]


@torch.inference_mode()
def agent_scores(policy: Network, episodes: Episodes) -> Tensor:
    """Return logit(exit) − logit(continue) at every exit of some documents' tokens, ``[n, exits]``.

    Args:
        policy: the difference of the logits.
        episodes: the documents.
    """
    rows = episodes.rows()
    parts = [
        policy(torch.from_numpy(episodes.observations[rows[begin : begin + 1024]]).float()).squeeze(-1)
        for begin in range(0, len(rows), 1024)
    ]
    return torch.cat(parts)


def replay_agent(scores: Tensor, held_out: Episodes, keep: float) -> tuple[dict[str, Any], float, str]:
    """Return what an agent would have done on held-out documents, its default threshold, and both as Markdown.

    Args:
        scores: of the agent there, see :func:`agent_scores`.
        held_out: documents it has not learned from.
        keep: least agreement with the last layer that the default threshold must have; the loosest such one is taken,
            1 (never exit) if there is none.
    """
    rows = held_out.rows()
    right = torch.from_numpy(held_out.right[rows])
    points, num_layers = held_out.exit_points, held_out.num_layers
    inclined = scores[scores >= 0]  # below, it prefers to continue, whatever the threshold
    thresholds = [0.0]
    if len(inclined):
        shares = torch.arange(1, 20) / 20
        thresholds += torch.quantile(inclined[:: len(inclined) // 1_000_000 + 1], shares).tolist()
    table = replay_rows(scores, right, points, num_layers, sorted(set(thresholds)))
    least = threshold_keeping(scores, right, points, num_layers, keep)
    threshold = 1.0 if least is None else _probability(max(0.0, least["threshold"]))
    table = [ReplayRow(**{**row, "threshold": _probability(row["threshold"])}) for row in table]
    agreement = dict(zip(map(str, points), right.float().mean(0).tolist(), strict=True))
    optimal = torch.tensor([*points, num_layers], dtype=torch.float32)[torch.from_numpy(held_out.optimal[rows])]
    replayed = {
        "documents": len(held_out.documents),
        "tokens": len(rows),
        "thresholds": table,
        "fixed_exits": agreement,
        "best_exits": optimal.mean().item(),
        "keep": keep,
    }
    said = "it never exits by default" if least is None else f"default threshold {threshold:.4f}"
    report = [
        render_replay("threshold", table),
        "",
        f"{len(rows)} tokens of {len(held_out.documents)} held-out documents; {said}, for {keep:.0%} agreement.",
        f"First right exits: mean layer {optimal.mean().item():.2f}. Agreement of fixed exits: "
        + ", ".join(f"{layer}: {share:.3f}" for layer, share in agreement.items()),
    ]
    return replayed, threshold, "\n".join(report)


def _probability(difference: float) -> float:
    """Return softmax's share of exit, from the difference of the logits."""
    return 1 / (1 + math.exp(-difference))
