"""Quality of each exit on held-out text: token accuracy and agreement with the last layer, teacher-forced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias, TypedDict

import torch
import torch.nn.functional as F  # noqa: N812
from scipy.stats import t as student
from torch import Tensor

__all__ = ["ExitRow", "exit_table", "render"]

POSITIONS = 3072
"""Positions of a stream that are looked at, in equal shares over its documents; fewer where those are short."""
CONFIDENCE = 0.95

Interval: TypeAlias = tuple[float, float]


class ExitRow(TypedDict):
    """One exit on one stream.

    ``accuracy``: share of next tokens it predicts; ``agreement``: share where it predicts what the last layer does;
    each with its 95 % interval over documents, ``None`` where their number allows none. ``documents``: that
    ``tokens`` positions were drawn from.
    """

    stream: str
    layer: int
    documents: int
    tokens: int
    accuracy: float
    accuracy_interval: Interval | None
    agreement: float
    agreement_interval: Interval | None


@torch.inference_mode()
def exit_table(
    read: Callable[[Tensor], tuple[Sequence[Tensor], Tensor]],
    head: Any,
    layers: Sequence[int],
    num_layers: int,
    streams: Sequence[tuple[str, Sequence[Tensor]]],
    length: int,
) -> list[ExitRow]:
    """Measure exits at random positions of every held-out document, the same whenever the documents are the same.

    Args:
        read: tokens ``[1, n]`` → what the LM head reads at each of ``layers``, and at the last layer.
        head: LM head module.
        layers: exits to measure; the last layer comes on its own.
        num_layers: decoder layers.
        streams: name and held-out documents, ``[n]`` each, two tokens or more.
        length: tokens that are read at once: what comes before in a document, no position sees.
    """
    table: list[ExitRow] = []
    for name, documents in streams:
        chance = torch.Generator().manual_seed(0)
        each = math.ceil(POSITIONS / len(documents))
        right, same, counts = [], [], []
        for document in documents:
            tops, labels = [], []
            for piece, places in _drawn(document.long(), length, each, chance):
                states, last = read(piece.unsqueeze(0))
                tops.append(torch.stack([_top(state[0, places.to(state.device)], head) for state in (*states, last)]))
                labels.append(piece[places + 1])
            chosen = torch.cat(tops, dim=1)  # [exits, positions]
            right.append((chosen == torch.cat(labels)).sum(1))
            same.append((chosen == chosen[-1]).sum(1))
            counts.append(chosen.shape[1])
        sizes = torch.tensor(counts, dtype=torch.float64)
        hits = [torch.stack(found, dim=1).double() for found in (right, same)]  # [exits, documents]
        for index, layer in enumerate((*layers, num_layers)):
            accuracy, agreement = (_share(found[index], sizes) for found in hits)
            table.append(
                ExitRow(
                    stream=name,
                    layer=layer,
                    documents=len(documents),
                    tokens=sum(counts),
                    accuracy=accuracy[0],
                    accuracy_interval=accuracy[1],
                    agreement=agreement[0],
                    agreement_interval=agreement[1],
                )
            )
    return table


def _drawn(tokens: Tensor, length: int, count: int, chance: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pieces of a document in random order, and positions in each, until there are so many or no more."""
    pieces = [piece for piece in torch.split(tokens, length) if len(piece) > 1]
    for number in torch.randperm(len(pieces), generator=chance).tolist():
        places = torch.randperm(len(pieces[number]) - 1, generator=chance)[:count]
        yield pieces[number], places
        count -= len(places)
        if not count:
            return


def _top(states: Tensor, head: Any) -> Tensor:
    """Return the LM head's first choice for states ``[n, hidden_size]``, on the CPU."""
    return F.linear(states.to(head.weight.dtype), head.weight, getattr(head, "bias", None)).argmax(-1).cpu()


def _share(hits: Tensor, sizes: Tensor) -> tuple[float, Interval | None]:
    """Return hits over positions, both ``[documents]``, and the interval of that ratio of totals.

    Documents are the independent units: a linearised ratio over clusters of unequal size (Cochran 1977, "Sampling
    Techniques", chapter 9A). Student's t has Kish's effective number of them less one as its degrees of freedom.
    """
    number, total = len(sizes), float(sizes.sum())
    share = float(hits.sum()) / total
    spread = float(((hits - share * sizes) ** 2).sum())
    if number < 2 or not spread:
        return round(share, 4), None
    degrees = max(1.0, total**2 / float((sizes**2).sum()) - 1)
    error = math.sqrt(number / (number - 1) * spread) / total
    reach = float(student.ppf((1 + CONFIDENCE) / 2, degrees)) * error
    return round(share, 4), (round(max(0.0, share - reach), 4), round(min(1.0, share + reach), 4))


def render(before: Sequence[ExitRow], after: Sequence[ExitRow]) -> str:
    """Return both tables side by side as Markdown, one line per stream and exit."""
    lines = [
        "| held-out text | exit layer | documents | tokens | accuracy [95 % over documents] before | after "
        "| agreement [95 % over documents] before | after |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    later = {(row["stream"], row["layer"]): row for row in after}
    for row in before:
        now = later.get((row["stream"], row["layer"]))
        cells = [
            _cell(row["accuracy"], row["accuracy_interval"]),
            _cell(now["accuracy"], now["accuracy_interval"]) if now else "–",
            _cell(row["agreement"], row["agreement_interval"]),
            _cell(now["agreement"], now["agreement_interval"]) if now else "–",
        ]
        facts = [row["stream"], row["layer"], row["documents"], row["tokens"], *cells]
        lines.append(f"| {' | '.join(map(str, facts))} |")
    return "\n".join(lines)


def _cell(share: float, interval: Interval | None) -> str:
    return f"{share:.3f}" if interval is None else f"{share:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
