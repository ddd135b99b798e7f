"""What each exit can do on held-out text: token accuracy and agreement with the last layer, teacher-forced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

__all__ = ["ExitRow", "exit_table", "render"]

ROWS = 512  # tokens whose logits exist at the same time


class ExitRow(TypedDict):
    """One exit on one stream.

    ``accuracy``: share of next tokens it predicts; ``agreement``: share where it predicts what the last layer does.
    """

    stream: str
    layer: int
    tokens: int
    accuracy: float
    agreement: float


@torch.inference_mode()
def exit_table(
    read: Callable[[Tensor], tuple[Sequence[Tensor], Tensor]],
    head: Any,
    layers: Sequence[int],
    num_layers: int,
    streams: Sequence[tuple[str, Tensor]],
) -> list[ExitRow]:
    """Measure exits.

    Args:
        read: sequences ``[batch, length]`` → what the LM head reads at each of ``layers``, and at the last layer.
        head: LM head module.
        layers: exits to measure; the last layer comes on its own.
        num_layers: decoder layers.
        streams: name and held-out sequences ``[n, length]``.
    """
    table: list[ExitRow] = []
    for name, sequences in streams:
        right = torch.zeros(len(layers) + 1)
        same = torch.zeros(len(layers) + 1)
        tokens = 0
        for sequence in torch.split(sequences.long(), 4):
            states, last = read(sequence)
            labels = sequence[:, 1:].flatten()
            flat = [state[:, :-1].flatten(0, 1) for state in (*states, last)]
            for start in range(0, len(labels), ROWS):
                part = slice(start, start + ROWS)
                tops = [
                    F.linear(rows[part].to(head.weight.dtype), head.weight, getattr(head, "bias", None))
                    .argmax(-1)
                    .cpu()
                    for rows in flat
                ]
                right += torch.tensor([(top == labels[part]).sum() for top in tops])
                same += torch.tensor([(top == tops[-1]).sum() for top in tops])
            tokens += len(labels)
        for index, layer in enumerate((*layers, num_layers)):
            table.append(
                ExitRow(
                    stream=name,
                    layer=layer,
                    tokens=tokens,
                    accuracy=round(right[index].item() / tokens, 4),
                    agreement=round(same[index].item() / tokens, 4),
                )
            )
    return table


def render(before: Sequence[ExitRow], after: Sequence[ExitRow]) -> str:
    """Return both tables side by side as Markdown, one line per stream and exit."""
    lines = [
        "| held-out text | exit layer | tokens | accuracy before | after | agreement before | after |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    later = {(row["stream"], row["layer"]): row for row in after}
    for row in before:
        now = later.get((row["stream"], row["layer"]))
        cells = [f"{now['accuracy']:.3f}", f"{now['agreement']:.3f}"] if now else ["–", "–"]
        lines.append(
            f"| {row['stream']} | {row['layer']} | {row['tokens']} | {row['accuracy']:.3f} | {cells[0]} "
            f"| {row['agreement']:.3f} | {cells[1]} |"
        )
    return "\n".join(lines)
