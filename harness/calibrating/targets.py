"""Targets of a calibration: each document's loss, a number between 0 and 1.

``NAME=SHARE`` asks for a share of full depth's that is kept, ``NAME`` being a metric of agreement that has a value per
document; the loss is what is missing from 1. ``NAME_loss=AMOUNT`` allows a score to fall against full depth's on the
same document; the loss is ``max(0, full depth's − its own)`` (CALM, arXiv 2207.07061, section 4), which is no smaller
on average than the difference itself: documents that gain make up for none that lose.

A document whose operating point failed, or has no score where full depth has one, lost everything. One that full depth
failed on, or that the score says nothing of, has no loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.contracts import Metric
from harness.errors import ConfigError, DataError, did_you_mean
from harness.registry import METRICS, SCORES
from reports.metrics.faithfulness import AGREEMENT
from reports.metrics.point import Point
from reports.metrics.vocabulary import AGREEMENTS

LOSS = "_loss"
NEAREST = 1e-6
"""Distance that a target keeps from 0 and 1: nearer to them nothing, or everything, would do."""


@dataclass(frozen=True, slots=True)
class Target:
    """A promise about the mean over documents.

    Attributes:
        text: as written.
        name: of the metric of agreement, or of the score.
        risk: ε, the largest mean loss allowed.
        of_score: the loss is a score's.
    """

    text: str
    name: str
    risk: float
    of_score: bool


def parse_target(text: str) -> Target:
    """Read a target.

    Raises:
        ConfigError: it has another form, no such metric or score, or a value that is none.
    """
    name, _, value = text.strip().partition("=")
    of_score = name.endswith(LOSS)
    name = name.removesuffix(LOSS)
    try:
        given = float(value)
    except ValueError:
        given = 0.0
    if not NEAREST <= given <= 1 - NEAREST:
        raise ConfigError(
            f"--target '{text}': give a value between 0 and 1, as in agreement=0.95 or "
            f"{name if name in SCORES else 'SCORE'}_loss=0.02, and {NEAREST:g} from either end at least."
        )
    known = list(SCORES.names()) if of_score else [AGREEMENT.name, *_agreements()]
    if name not in known:
        what = "score" if of_score else "agreement"
        hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
        scores = f" A score's fall is {name}_loss." if name in SCORES else ""
        raise ConfigError(f"--target '{text}': no {what} '{name}'.{scores or hint}")
    if of_score:
        score = SCORES.load(name)()
        if score.unit or score.better != "higher" or not score.scores_samples:
            raise ConfigError(f"--target '{text}': {name} is no score of single documents between 0 and 1.")
    return Target(text.strip(), name, given if of_score else round(1 - given, 12), of_score)


def document_losses(point: Point, target: Target) -> dict[str, float]:
    """Return the loss of every document that has one, by sample id, in the order that full depth decoded them.

    Raises:
        DataError: one is not between 0 and 1.
    """
    cell, full = point.cell, point.full
    failed = {sample_id for sample_id, _ in cell.failed}
    if target.of_score:
        losses = dict(_score_losses(point, target.name))
    else:
        kept = _positionwise(point) if target.name == AGREEMENT.name else _shares(METRICS.load(target.name), point)
        losses = {sample_id: 1 - share for sample_id, share in kept.items()}
    order = [sample.sample_id for sample in full.scored]
    found = {sample_id: 1.0 if sample_id in failed else losses.get(sample_id) for sample_id in order}
    for sample_id, loss in found.items():
        if loss is not None and not -1e-9 <= loss <= 1 + 1e-9:
            raise DataError(f"{target.name} of {sample_id} is no share ({loss:g} lost): it cannot be calibrated.")
    return {sample_id: min(max(loss, 0.0), 1.0) for sample_id, loss in found.items() if loss is not None}


def _agreements() -> list[str]:
    """Names of the metrics that say which share of full depth's a document keeps."""
    return [
        name
        for name, one in METRICS.usable().items()
        if AGREEMENTS in one.sections and one.units and one.form == "fraction"
    ]


def _shares(metric: Metric, point: Point) -> dict[str, float]:
    assert metric.units is not None
    found = {}
    for prompts, (part, whole) in metric.units(point).items():
        (sample_id,) = prompts
        found[sample_id] = part / whole
    return found


def _positionwise(point: Point) -> dict[str, float]:
    """Share of full depth's decided tokens that stand at the same place: prefill's is full depth's for nothing."""
    found = {}
    for key in point.cell.shared(point.full):
        mine, theirs = (point.cell.decoded(cell.samples[key].token_ids) for cell in (point.cell, point.full))
        if key[1] == 0 and theirs:
            found[key[0]] = sum(a == b for a, b in zip(mine, theirs, strict=False)) / len(theirs)
    return found


def _score_losses(point: Point, name: str) -> Iterator[tuple[str, float]]:
    own = {sample.sample_id: sample.scores.get(name) for sample in point.cell.scored}
    for sample in point.full.scored:
        theirs, mine = sample.scores.get(name), own.get(sample.sample_id)
        if theirs is not None:
            yield sample.sample_id, 1.0 if mine is None else max(0.0, theirs - mine)
