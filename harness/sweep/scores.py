"""The score behind a strategy's threshold, as far as thresholds resolve it: for any strategy, without naming one.

A strategy only answers *exit* or *go on*. Asked about the same token at many thresholds, it reveals more: the
thresholds at which it exits place its score between two of them. Thresholds are placed so that no two neighbours have
more than a 64th of an exit point's tokens between them, and of a probability no more than a hundredth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.config import StrategySpec
from harness.config.options import build_strategy, option_range
from harness.contracts import ModelInfo
from harness.running.operating_points import OperatingPoint, operating_point
from harness.sweep.grid import SWEPT
from harness.sweep.replay_strategy import answers
from harness.sweep.tokens import TracedTokens
from harness.sweep.view import Charges

FINEST = 1 / 64
WIDEST = 0.01
HALVINGS = 30
MOST = 600
"""Levels that resolve any score finely enough."""


@dataclass(eq=False)
class ScoreTally:
    """How often each level of a score was right.

    Attributes:
        spec: the strategy without its threshold.
        thresholds: from that with the most exits to that with the fewest. A token's level is at how many of them it
            leaves, 0…``len(thresholds)``; higher is more certain.
        points: the strategy at each of them.
        ascending: whether higher thresholds let fewer tokens exit.
        documents: numbers of the trace's documents that are counted, ascending, ``[documents]`` int64.
        right, tokens: by exit point, document and level, ``[exits, documents, levels]`` int32.
        seconds: time spent.
    """

    spec: StrategySpec
    thresholds: tuple[float, ...]
    points: tuple[OperatingPoint, ...]
    ascending: bool
    documents: Tensor
    right: Tensor
    tokens: Tensor
    seconds: float = field(default=0.0)

    @property
    def exit_points(self) -> tuple[int, ...]:
        """Layers at which the strategy is asked."""
        return self.points[0].record.exit_points

    def add(self, tokens: TracedTokens, model: ModelInfo) -> None:
        """Count some more tokens."""
        began = time.perf_counter()
        levels = torch.zeros(len(self.exit_points), len(tokens), dtype=torch.int64)
        for point in self.points:
            for place, (_, decided) in enumerate(answers(point, tokens, model, Charges(len(tokens)))):
                levels[place] += decided
        _, documents, width = self.tokens.shape
        rows = torch.searchsorted(self.documents, tokens.document) * width
        for place, layer in enumerate(self.exit_points):
            cell = rows + levels[place]
            right = tokens.top(layer) == tokens.final
            self.tokens[place] += torch.bincount(cell, minlength=documents * width).view(documents, width)
            self.right[place] += torch.bincount(cell[right], minlength=documents * width).view(documents, width)
        self.seconds += time.perf_counter() - began


def families(specs: Sequence[StrategySpec]) -> tuple[list[StrategySpec], dict[str, str]]:
    """Return each strategy once, without its threshold, and why the others have no score."""
    kept: list[StrategySpec] = []
    left_out: dict[str, str] = {}
    for spec in specs:
        plain = StrategySpec(spec.name, tuple(option for option in spec.options if option[0] != SWEPT))
        if option_range(spec.name, SWEPT) is None:
            left_out[str(plain)] = f"it has no option {SWEPT} with a range"
        elif plain not in kept:
            kept.append(plain)
    return kept, left_out


def find_levels(spec: StrategySpec, observed: TracedTokens, model: ModelInfo, documents: Tensor) -> ScoreTally | None:
    """Return a strategy's levels, chosen on some tokens, with nothing counted yet; ``None`` if it always says the same.

    Args:
        spec: of :func:`families`.
        observed: tokens that the thresholds are laid on.
        model: facts.
        documents: numbers of those that will be counted, ascending, ``[documents]`` int64.
    """
    began = time.perf_counter()
    limits = option_range(spec.name, SWEPT)
    assert limits is not None
    seen: dict[float, tuple[OperatingPoint, Tensor]] = {}

    def exits(threshold: float) -> Tensor:
        """Share of the tokens that leave, by exit point."""
        if threshold not in seen:
            at = StrategySpec(spec.name, (*spec.options, (SWEPT, repr(threshold))))
            point = operating_point(at, build_strategy(at), model)
            decided = [answer for _, answer in answers(point, observed, model, Charges(len(observed)))]
            seen[threshold] = (point, torch.stack(decided).float().mean(1) if decided else torch.zeros(1))
        return seen[threshold][1]

    few, many = sorted(limits, key=lambda threshold: float(exits(threshold).sum()))
    if torch.equal(exits(few), exits(many)):
        return None
    probability = seen[few][0].strategy.probabilistic
    gaps = [(few, many, 0)]
    while gaps and len(seen) < MOST:
        low, high, depth = gaps.pop(0)  # the widest first
        between = float((exits(high) - exits(low)).abs().max())
        if depth == HALVINGS or not between or (between <= FINEST and not (probability and abs(high - low) > WIDEST)):
            continue
        middle = (low + high) / 2
        gaps += [(low, middle, depth + 1), (middle, high, depth + 1)]
    ordered = sorted(seen, reverse=few < many)
    thresholds = [  # of neighbours that decide alike, the outermost: the closest to the levels outside
        here
        for before, here, after in zip([None, *ordered], ordered, [*ordered[1:], None], strict=False)
        if before is None or after is None or not _alike(exits(before), exits(here), exits(after))
    ]
    shape = (len(seen[few][0].record.exit_points), len(documents), len(thresholds) + 1)
    right, counted = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape, dtype=torch.int32)
    points = tuple(seen[threshold][0] for threshold in thresholds)
    tally = ScoreTally(spec, tuple(thresholds), points, few > many, documents, right, counted)
    tally.seconds = time.perf_counter() - began
    return tally


def _alike(*shares: Tensor) -> bool:
    return all(torch.equal(shares[0], other) for other in shares[1:])
