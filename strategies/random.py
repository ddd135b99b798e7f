"""Exit at random: the control that knows nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, Strategy


@dataclass(frozen=True)
class Random(Strategy):
    """Exit with a fixed probability at each exit point.

    Rule: exit when u < q, u uniform in [0, 1). Cost per check: one random number.
    A control: a strategy that does not beat it at equal mean depth has learned nothing. Every row draws
    from its own generator, seeded by the run's seed and the sample, so that batch size and resuming
    change nothing.
    """

    probability: Annotated[float, Field(ge=0, le=1, description="q, chance of leaving at each exit point")] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**31, description="added to the run's own seed")] = 0

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Seed one generator per row."""
        seeds = [(seed * 1_000_003 + self.seed) % 2**63 for seed in batch.seeds]
        return _Draws(self.probability, [torch.Generator().manual_seed(seed) for seed in seeds])


@dataclass(frozen=True)
class _Draws:
    probability: float
    generators: list[torch.Generator]

    def should_exit(self, view: ExitView) -> Tensor:
        drawn = torch.cat([torch.rand(1, generator=self.generators[row]) for row in view.rows.tolist()])
        return drawn < self.probability
