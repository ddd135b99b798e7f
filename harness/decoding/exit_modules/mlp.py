"""A low-rank perceptron beside the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts import ExitModule, ExitModuleFacts, LinearFit
from harness.errors import OptionError


class LowRankMLP(ExitModule):
    """h + W₂ silu(W₁ norm(h) + b₁) + b₂, with an inner width far below the state's.

    The norm has no gain, which W₁ can hold. Pairs of inner units begin with opposite signs, since silu(x) − silu(−x) is
    x: the perceptron begins as the affine map of least squares, the part of it beside h cut to half the inner width
    (reduced-rank regression, Izenman 1975), for states of the mean size.

    Source: the adapter of Houlsby et al. 2019, arXiv 1902.00751, section 2.1. Deviations: it stands at an exit and not
    inside each layer, norms what it reads, and does not begin as the identity.
    """

    facts: ClassVar[ExitModuleFacts] = ExitModuleFacts(
        note="the state and a low-rank perceptron of it", sizes="inner units", default_size=128
    )
    EPSILON: ClassVar[float] = 1e-6

    @classmethod
    def shapes(cls, hidden_size: int, size: int | None) -> Mapping[str, tuple[int, int]]:
        """Into the inner units, and out of them."""
        inner = size or cls.facts.default_size or 0
        if inner % 2 or not 0 < inner <= 2 * hidden_size:
            raise OptionError(
                f"the exit module mlp/{inner} has units in pairs, {2 * hidden_size} for this model at most. Give an "
                "even number."
            )
        return {"in_": (inner, hidden_size), "out_": (hidden_size, inner)}

    @classmethod
    def begin(cls, fit: LinearFit, size: int | None) -> Mapping[str, Tensor]:
        """Half the inner width of the affine map."""
        width = len(fit.bias)
        half = cls.shapes(width, size)["in_"][0] // 2
        scale = fit.spread.diagonal().mean().sqrt()  # h is norm(h) times this
        beside = fit.weight.double() - torch.eye(width, dtype=torch.float64)
        root = torch.linalg.cholesky(fit.spread + 1e-6 * scale**2 * torch.eye(width, dtype=torch.float64))
        directions = torch.linalg.svd(beside @ root)[0][:, :half]
        into, out = (scale * directions.t() @ beside).float(), directions.float()
        return {
            "in_weight": torch.cat((into, -into)),
            "in_bias": torch.zeros(2 * half),
            "out_weight": torch.cat((out, -out), dim=1),
            "out_bias": fit.bias,
        }

    def __call__(self, hidden: Tensor) -> Tensor:
        """Add what the perceptron makes of the normed state."""
        inner = self.maps["in_"](F.rms_norm(hidden, hidden.shape[-1:], eps=self.EPSILON))
        return hidden + self.maps["out_"](F.silu(inner))
