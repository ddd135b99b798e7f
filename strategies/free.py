"""Two paths, a shallow and a deep one, with a threshold that is refitted while a completion is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, Draft, DraftRule, ExitRule, ExitView, ModelInfo
from harness.decoding.backbone import read
from harness.models.heads import ReadsHead

GRID = 100
"""Steps of the confidences among which a threshold is looked for."""
EDGE = 1e-3
"""Distance from 0 and 1 that confidences keep, where densities have no value."""
LEAST_VARIANCE = 1e-4


@dataclass(frozen=True)
class Free(ReadsHead):
    """Exit at one shallow layer S where the confidence reaches a threshold that the completion itself keeps fitting.

    Rule: max p_S ≥ τ, else all layers. With a_1, a_0 the Beta densities of confidences that were right and wrong (the
    shallow token was, or was not, full depth's) and π their shares, τ is the least confidence from which on
    π₁a₁(c) / (π₁a₁(c) + π₀a₀(c)) ≥ ζ; fitted by moments after every token whose full depth is known. Cost per check:
    one evaluation of the LM head, or of the cheap head that ``head`` names.

    Source: Bae et al., "FREE", EMNLP 2023, arXiv 2310.05424 (shallow-deep module; adaptive threshold estimator, a Beta
    mixture; synchronised parallel decoding, which is ``recompute`` here). What differs: the paper compares the tokens
    of all stacked positions when they go deep; in lossy decoding here exited tokens run their missing layers without an
    LM head, so that only those that went deep teach: one of ``every`` confident ones is sent deep for it, and counts
    for all of them. Losslessly verified drafts teach each, and none is sent. A row learns from its own tokens alone,
    starting from ``threshold``, until two of either kind are known; the paper shares one mixture between samples. The
    authors' code (raymin0223/fast_robust_early_exit) compares the lead of the best token over the second, leaves π out,
    refits between sequences, three hundred times, and looks for τ among ten confidences from 0.3 to 0.9 with ζ = 0.4.
    """

    layer: Annotated[int, Field(ge=1, description="S, decoder layers of the shallow path; an exit point")] = 14
    threshold: Annotated[float, Field(ge=0, le=1, description="τ to begin with, probability of the best token")] = 0.9
    posterior: Annotated[float, Field(gt=0, lt=1, description="ζ, least probability of being right that exits")] = 0.9
    every: Annotated[int, Field(ge=1, description="one of so many confident tokens goes deep, to be compared")] = 8

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Ask at the one layer.

        Raises:
            OptionError: the layer is not an exit point of the model.
        """
        super().exit_points(model)
        return (model.exit_point(self.layer, f"free:layer={self.layer}"),)

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Know nothing of any row."""
        return _Fitting(self)


@dataclass(frozen=True, slots=True)
class Seen:
    """A shallow token whose full depth is known: its confidence, whether it was right, and for how many it counts."""

    confidence: float
    right: bool
    weight: float = 1.0


def beta_of(seen: Sequence[Seen]) -> tuple[float, float]:
    """Return α and β of the Beta distribution with the mean and the variance of some confidences."""
    total = sum(one.weight for one in seen)
    values = [(min(max(one.confidence, EDGE), 1 - EDGE), one.weight / total) for one in seen]
    mean = sum(value * share for value, share in values)
    variance = max(sum((value - mean) ** 2 * share for value, share in values), LEAST_VARIANCE)
    both = max(mean * (1 - mean) / variance - 1, EDGE)
    return mean * both, (1 - mean) * both


def threshold_of(seen: Sequence[Seen], posterior: float) -> float | None:
    """Return the least confidence, on a grid, from which on a token is right with at least a probability.

    Infinity where there is none; ``None`` where fewer than two were right, or wrong.
    """
    kinds = [[one for one in seen if one.right is right] for right in (True, False)]
    if min(map(len, kinds)) < 2:
        return None
    terms = []
    for kind in kinds:
        alpha, beta = beta_of(kind)
        scale = math.log(sum(one.weight for one in kind)) + math.lgamma(alpha + beta)
        terms.append((scale - math.lgamma(alpha) - math.lgamma(beta), alpha - 1, beta - 1))
    least, wanted = math.inf, math.log(posterior / (1 - posterior))
    for step in range(GRID - 1, 0, -1):
        one, other = math.log(step / GRID), math.log(1 - step / GRID)
        right, wrong = (scale + first * one + second * other for scale, first, second in terms)
        if right - wrong < wanted:
            break
        least = step / GRID
    return least


@dataclass(slots=True)
class _Row:
    """State of a row; ``waiting`` has place of a token → its shallow token, not compared yet."""

    threshold: float
    drafts: bool = False
    confident: int = 0
    seen: list[Seen] = field(default_factory=list)
    waiting: dict[int, tuple[int, float, float]] = field(default_factory=dict)


class _Fitting(DraftRule):
    def __init__(self, options: Free) -> None:
        self._options = options
        self._rows: dict[int, _Row] = {}

    def _row(self, row: int) -> _Row:
        return self._rows.setdefault(row, _Row(self._options.threshold))

    def threshold(self, row: int) -> float:
        return self._row(row).threshold

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare with the row's threshold, and remember what is to be compared with full depth."""
        reading = self._options.reading(view)
        rows, *said = read(view.rows, reading.top_probability, reading.top_token)
        answer = []
        for number, made, (confidence, token) in zip(rows, view.token_ids, zip(*said, strict=True), strict=True):
            row = self._row(number)
            if not row.drafts:
                self._learn(row, made)
            sure = confidence >= row.threshold
            row.confident += sure
            sent = sure and not row.drafts and row.confident % self._options.every == 0
            answer.append(sure and not sent)
            if row.drafts or not answer[-1]:
                row.waiting[len(made)] = token, confidence, float(self._options.every if sent else 1)
        return torch.tensor(answer)

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        """Nothing; but the row decodes losslessly, so that drafts are compared."""
        self._row(draft.row).drafts = True
        return ()

    def verified(self, draft: Draft, accepted: int) -> None:
        """Learn from what is known now."""
        self._learn(self._row(draft.row), draft.token_ids)

    def _learn(self, row: _Row, made: Sequence[int]) -> None:
        known = [
            Seen(confidence, made[at] == token, weight)
            for at, (token, confidence, weight) in row.waiting.items()
            if at < len(made)
        ]
        row.waiting.clear()
        if known:
            row.seen += known
            fitted = threshold_of(row.seen, self._options.posterior)
            row.threshold = self._options.threshold if fitted is None else fitted
