"""The rows of the most frequent tokens alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from harness.contracts import CheapHead, HeadFacts, HeadLogits, LMHead
from harness.errors import ArtefactError


class Shortlist(CheapHead):
    """Read only the rows of the tokens that are most frequent in train data, and estimate what the others weigh.

    Source: Zhao et al., "FR-Spec", ACL 2025, arXiv 2502.14856, section 3.2 (frequency-ranked rows, there for drafts
    that are verified). Deviation: FR-Spec's probabilities are over the shortlist alone, so that a token outside of it
    makes whichever is best inside look sure. Here the other rows count as draws from one Gaussian, with their mean m
    and covariance C: log Σ exp(w·h) ≈ log n + m·h + hᵀCh/2, of which C keeps its :attr:`DIRECTIONS` largest axes.
    """

    facts: ClassVar[HeadFacts] = HeadFacts(
        note="probabilities over the most frequent tokens and an estimate of all others together; a token outside is "
        "never the best one",
        sizes="tokens",
        default_size=4096,
        artefact="shortlist",
    )
    DIRECTIONS: ClassVar[int] = 32

    def __init__(self, lm_head: LMHead, size: int | None, tensors: Mapping[str, Tensor]) -> None:
        ranked = tensors.get("token_ids", torch.empty(0)).long().flatten()
        count = min(size or len(ranked), lm_head.vocab_size)
        if not 2 <= count <= len(ranked) or not 0 <= int(ranked.min()) <= int(ranked.max()) < lm_head.vocab_size:
            raise ArtefactError(
                f"the shortlist ranks {len(ranked):,} of {lm_head.vocab_size:,} tokens, and {count:,} are asked for. "
                f"Use head=shortlist/{len(ranked)} at most, or train it with a larger --size."
            )
        self._token_ids = ranked[:count].to(lm_head.device)
        self._rows = lm_head.pack(lm_head.rows(self._token_ids))
        self._bias = None if lm_head.bias is None else lm_head.bias[self._token_ids]
        outside = torch.ones(lm_head.vocab_size, dtype=torch.bool, device=lm_head.device)
        outside[self._token_ids] = False
        others = outside.nonzero().squeeze(1)
        self._mean: Tensor | None = None
        if len(others):
            rows = lm_head.rows(others)
            self._mean, self._axes = _gaussian(rows, self.DIRECTIONS)
            self._offset = _log_mass(None if lm_head.bias is None else lm_head.bias[others], len(others))

    @property
    def nbytes(self) -> int:
        """Those of the shortlist's rows and of the Gaussian."""
        estimate = 0 if self._mean is None else self._mean.nbytes + self._axes.nbytes
        return self._rows.nbytes + estimate

    def __call__(self, states: Tensor) -> HeadLogits:
        """Multiply the rows of the shortlist."""
        logits = self._rows(states)
        if self._bias is not None:
            logits = logits + self._bias
        if self._mean is None:
            return HeadLogits(logits, self._token_ids)
        spread = torch.linalg.vector_norm(states @ self._axes, dim=1)
        return HeadLogits(logits, self._token_ids, self._offset + states @ self._mean + spread * spread / 2)


def _gaussian(rows: Tensor, directions: int) -> tuple[Tensor, Tensor]:
    """Return the mean of rows, ``[width]``, and the largest axes of their covariance, ``[width, directions]``."""
    mean = rows.mean(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.t() @ centred / len(rows))
    return mean, (vectors[:, -directions:] * values[-directions:].clamp_min(0).sqrt()).contiguous()


def _log_mass(bias: Tensor | None, count: int) -> Tensor:
    return torch.tensor(float(count)).log() if bias is None else bias.logsumexp(0)
