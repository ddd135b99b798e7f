"""``calibration.json``: how well the scores of exit strategies tell right exits from wrong ones, and where these are.

Everything is **replayed and teacher-forced**: of *every* token at an exit point, each behind the trace's own context.
*Right* means that the exit's token is the last layer's. ``None``: not defined, never zero.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field

from harness.contracts import Weights
from harness.records.estimate import Estimate
from harness.records.record import Record

CALIBRATION = "calibration.json"
"""Name of the file in a sweep's folder."""

Interval: TypeAlias = tuple[float, float]

ALL, KIND, POSITION, PROJECT = GROUPS = ("all tokens", "kind of token", "position in the file", "project")
"""By what tokens are grouped."""


class ReliabilityBin(Record):
    """Tokens of neighbouring scores.

    Attributes:
        scores: thresholds between which they lie, from the least to the most certain. score: their mean.
        quantiles: shares of the tokens that score below them, and below the next bin.
        tokens: how many.
        agreement: share of them whose token is the last layer's.
        agreement_ci: 95 % over documents; ``None`` with fewer than five, or where all are alike.
    """

    scores: Interval
    score: float
    quantiles: Interval
    tokens: int
    agreement: float
    agreement_ci: Interval | None


class ExitCalibration(Record):
    """A score at one exit point, or pooled over all of them, where a token counts once per exit point.

    Attributes:
        exit_layer: ``None``: pooled.
        tokens, documents: how many; pooled, a token counts once per exit point.
        agreement: share of all its tokens that are the last layer's.
        auroc: probability that a right token scores higher than a wrong one, ties counting one half; ``None`` where the
            score does not vary or all are right or all wrong.
        auroc_ci: bootstrap 95 % over documents.
        ece: expected calibration error: mean distance of score and agreement over the bins, weighted by tokens;
            ``None`` where the score is no probability.
        bins: about ten of equal size, from the least to the most certain.
    """

    exit_layer: int | None
    tokens: int
    documents: int
    agreement: float
    auroc: float | None
    auroc_ci: Interval | None
    ece: float | None
    bins: tuple[ReliabilityBin, ...]


class ScoreCalibration(Record):
    """The score that one strategy compares with its threshold.

    Attributes:
        score: the strategy as written, without its threshold.
        strategy, options, artefacts: as in a run's manifest, the threshold left out.
        probability: the score is the strategy's own estimate of the probability that an exit is right.
        ascending: a higher threshold lets fewer tokens go.
        levels: how many thresholds the score was told apart by.
        pooled: over all exit points.
        exits: per exit point that the strategy asks at.
    """

    score: str
    strategy: str
    options: dict[str, Any]
    artefacts: dict[str, str] = Field(default_factory=dict)
    probability: bool
    ascending: bool
    levels: int
    pooled: ExitCalibration
    exits: tuple[ExitCalibration, ...]


class GroupDrafts(Record):
    """Places in the text at which a lossless operating point drafted a token, and those whose draft stood.

    Attributes:
        operating_point: as in the sweep.
        drafted, accepted: tokens; one that is drafted again after a rejection counts again.
        accepted_ci: of the second over the first, 95 % over documents; ``None`` as of :class:`ReliabilityBin`.
    """

    operating_point: str
    drafted: int
    accepted: int
    accepted_ci: Interval | None

    @property
    def share(self) -> Estimate | None:
        """Of the drafts that stood; ``None`` where nothing was drafted."""
        return Estimate.of(self.accepted / self.drafted, self.accepted_ci) if self.drafted else None


class TokenGroup(Record):
    """Tokens that have something in common.

    Attributes:
        by: what they have in common, one of :data:`GROUPS`. name: of the group.
        tokens, documents: how many.
        sufficient_layer: mean of the layers up to the first exit whose token is the last layer's, all layers where
            there is none: what the oracle executes. sufficient_layer_ci: 95 % over documents.
        agreement: share of the tokens whose exit says what the last layer says, by exit point. agreement_ci: likewise.
        drafts: of the lossless operating points that were given, where the trace is of generated text.
    """

    by: str
    name: str
    tokens: int
    documents: int
    sufficient_layer: float
    sufficient_layer_ci: Interval | None
    agreement: tuple[float, ...]
    agreement_ci: tuple[Interval | None, ...]
    drafts: tuple[GroupDrafts, ...] = ()


class Calibration(Record):
    """How well scores tell right exits from wrong ones, and where exits are right at all.

    Attributes:
        schema_version: of this document.
        measurement: how all of it was found out.
        title: what was replayed, in words. traces: folder of the trace.
        tokens, documents: how many.
        generated: the context was what the model generated at full depth; else the documents' own text.
        model, weights, dtype, exit_head, num_layers, exit_points, fingerprint: the model.
        notes: sentences that must stand beside the numbers.
        scores: in the order the strategies were given.
        left_out: strategy → why it has no score here.
        groups: all tokens, then by kind, position and project; empty in files of earlier versions.
        seconds: what it took beside the sweep.
    """

    schema_version: int = 1
    measurement: Literal["replayed, teacher-forced"] = "replayed, teacher-forced"
    title: str
    traces: str
    tokens: int
    documents: int
    generated: bool
    model: str
    weights: Weights
    dtype: str
    exit_head: str
    num_layers: int
    exit_points: tuple[int, ...]
    fingerprint: str
    notes: tuple[str, ...]
    scores: tuple[ScoreCalibration, ...]
    left_out: dict[str, str] = Field(default_factory=dict)
    groups: tuple[TokenGroup, ...] = ()
    seconds: float
