"""What rounding may do to a model's logits: a bound, found without asking whoever rounds.

A weights format says how far its products may be off (``WeightsFacts.relative_error``), and a model decides what that
does to its logits: sharp attention turns a small error into a large one, a flat one averages it out, thirty layers add
theirs up. So the same model is run once more with every product off by as much, in a random direction
(:func:`disturbed`). How far its logits then move bounds what the format may do; a defect, of a kernel or of keys and
values, moves them further, however it looks on its own.

Not promised: a proof. Noise is drawn once, and a format's error can be larger than it says on rows unlike Gaussian
ones; ``tests/decoding/test_rounding.py`` holds the bound against every format and family.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.contracts import LinearMap, WeightsFacts
from harness.decoding.backbone import Backbone

__all__ = ["FLOAT32_ERROR", "disturbed", "largest_error", "product_error"]

FLOAT32_ERROR = 1e-6
"""Of a product in float32, over its norm: sums of other order differ by as much."""

STANDARD_DEVIATIONS = 6.0
"""Of the disturbed logits, that a format's may be off anywhere in a completion. int4 and bfloat16 reach 4.4 in tiny
models of every family, fp16 1.9."""


def product_error(facts: WeightsFacts) -> float:
    """Return the bound on the error of a format's products, over their norm."""
    return max(facts.relative_error, FLOAT32_ERROR)


def disturbed(backbone: Backbone, error: float, seed: int = 0) -> Backbone:
    """Return a model each of whose products is off by a share of its norm, in random directions; weights are shared.

    Args:
        backbone: the model.
        error: the share.
        seed: of the directions.
    """
    generator = torch.Generator(backbone.device).manual_seed(seed)

    def off(product: LinearMap) -> LinearMap:
        return _Disturbed(product, error, generator)

    return replace(
        backbone,
        blocks=[block.packed(off) for block in backbone.blocks],
        project_out=None if backbone.project_out is None else off(backbone.project_out),
        lm_head=off(backbone.lm_head),
    )


def largest_error(logits: Tensor, moved: Tensor) -> float:
    """Return what rounding may do to any one logit of a completion.

    Args:
        logits: of its places, ``[tokens, vocab_size]``.
        moved: the same of the disturbed model. A shift of a place's logits together moves no token and does not count.
    """
    return STANDARD_DEVIATIONS * float((moved - logits).float().std(-1).max())


@dataclass(frozen=True, slots=True, eq=False)
class _Disturbed:
    product: LinearMap
    error: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        exact = self.product(x)
        size = exact.float().square().mean(-1, keepdim=True).sqrt() * self.error
        noise = torch.randn(exact.shape, generator=self.generator, device=exact.device)
        return (exact + noise * size).to(exact.dtype)

    def rows(self, start: int) -> _Disturbed:
        return _Disturbed(self.product.rows(start), self.error, self.generator)

    @property
    def shape(self) -> tuple[int, int]:
        return self.product.shape

    @property
    def nbytes(self) -> int:
        return self.product.nbytes
