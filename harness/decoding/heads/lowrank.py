"""A product of two thin matrices, and the best rows of it exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import CheapHead, HeadFacts, HeadLogits, LMHead
from harness.decoding.heads.int8 import ExactRows
from harness.errors import ArtefactError


class LowRank(CheapHead):
    """Read all tokens through a few directions of the state, then the likeliest of them exactly.

    Logits W h are first A B h, with B h of ``size`` numbers: of all such products the one with the least squared error
    on traced states, since the artefact holds the root R of their second moments in the order of how much it moves
    logits (``harness train lowrank``): A = W R_r, B = (R⁻¹)_r. What A B leaves out of a logit has variance v there, so
    that the logit counts as v/2 more in Σ exp, as if it was Gaussian. The :attr:`EXACT` best logits are then replaced.

    Source: Shim, Lee, Choi, Boo and Sung, "SVD-Softmax", NeurIPS 2017, section 3 (a preview of a few singular
    directions, then the full rows of candidates). Deviations: directions are weighted by the states' moments, and v/2.
    """

    facts: ClassVar[HeadFacts] = HeadFacts(
        note="a low-rank preview of every logit, of which the best are then exact",
        sizes="directions",
        default_size=64,
        artefact="lowrank",
    )
    EXACT: ClassVar[int] = 16

    def __init__(self, lm_head: LMHead, size: int | None, tensors: Mapping[str, Tensor]) -> None:
        root = tensors.get("root", torch.empty(0, 0)).float().to(lm_head.device)
        if root.shape != (lm_head.width, lm_head.width):
            raise ArtefactError(
                f"the low-rank head is of width {root.shape[-1]}, the LM head of {lm_head.width}. Train it again."
            )
        rank = min(size or lm_head.width, lm_head.width)
        preview = lm_head.rows(None) @ root  # [vocab_size, width], its columns from the most important on
        self._directions: Tensor = torch.linalg.inv(root)[:rank].t().contiguous()
        self._preview = lm_head.pack(preview[:, :rank].contiguous())
        half = preview[:, rank:].pow(2).sum(1) / 2
        self._bias = half if lm_head.bias is None else half + lm_head.bias
        self._exact = ExactRows(lm_head, self.EXACT)

    @property
    def nbytes(self) -> int:
        """Those of both thin matrices, of the correction and of the rows that are read exactly."""
        return self._directions.nbytes + self._preview.nbytes + self._bias.nbytes + self._exact.nbytes

    def __call__(self, states: Tensor) -> HeadLogits:
        """Preview every logit, and replace the best."""
        logits = self._preview(states @ self._directions).add_(self._bias)
        self._exact.replace(logits, states)
        return HeadLogits(logits)
