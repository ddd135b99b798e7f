"""From counted levels of scores to ``calibration.json``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from harness.config.options import effective_options
from harness.records.calibration import Calibration, ExitCalibration, ReliabilityBin, ScoreCalibration
from harness.sweep.grid import SWEPT
from harness.sweep.records import Sweep
from harness.sweep.scores import ScoreTally
from reports.statistics.calibration import auroc, auroc_interval, calibration_error, equal_bins, share_intervals

BINS = 10

_NOTES = (
    "Scores of every traced token at every exit point, also past the one where a rule would have exited; a token is "
    "right where the exit's token is the last layer's, whatever the text says.",
    "A score is known only as far as thresholds resolve it: learned scores below the lowest threshold count as "
    "ties. Intervals resample documents, 95 %. Over all exit points, deeper exits are right more often, so a score "
    "that grows with depth ranks better there than at any single one.",
    f"Expected calibration error: {BINS} bins of about equal size, only for scores that are the strategy's own "
    "estimate of the probability that an exit is right.",
)

Counts = NDArray[np.int64]


def describe_scores(
    sweep: Sweep, tallies: Sequence[ScoreTally], left_out: Mapping[str, str], *, generated: bool
) -> Calibration:
    """Return the calibration of the scores.

    Args:
        sweep: of the same tokens.
        tallies: what was counted.
        left_out: strategies without a score, with the reason.
        generated: the traced tokens are the model's own.
    """
    began = time.perf_counter()
    scores = tuple(map(_score, tallies))
    seconds = time.perf_counter() - began + sum(tally.seconds for tally in tallies)
    return Calibration(
        title=sweep.title,
        traces=sweep.traces,
        tokens=sweep.tokens,
        documents=sweep.documents,
        generated=generated,
        model=sweep.model,
        weights=sweep.weights,
        dtype=sweep.dtype,
        exit_head=sweep.exit_head,
        num_layers=sweep.num_layers,
        exit_points=sweep.exit_points,
        fingerprint=sweep.fingerprint,
        notes=(*sweep.notes, *_NOTES),
        scores=scores,
        left_out=dict(left_out),
        seconds=round(seconds, 3),
    )


def _score(tally: ScoreTally) -> ScoreCalibration:
    point = tally.points[0]
    probability = point.strategy.probabilistic
    right, tokens = tally.right.numpy().astype(np.int64), tally.tokens.numpy().astype(np.int64)
    values = np.array(tally.thresholds)
    each = [
        _exit(layer, right[place], tokens[place], values, probability) for place, layer in enumerate(tally.exit_points)
    ]
    return ScoreCalibration(
        score=str(tally.spec),
        strategy=tally.spec.name,
        options={name: value for name, value in effective_options(point.strategy).items() if name != SWEPT},
        artefacts=point.record.artefacts,
        probability=probability,
        ascending=tally.ascending,
        levels=len(values) + 1,
        pooled=_exit(None, right.sum(0), tokens.sum(0), values, probability),
        exits=tuple(each),
    )


def _exit(
    layer: int | None, right: Counts, tokens: Counts, thresholds: NDArray[np.float64], probability: bool
) -> ExitCalibration:
    """Return one exit point's part; counts are ``[documents, levels]``."""
    wrong = tokens - right
    bins = tuple(_bins(right, tokens, thresholds))
    count = int(tokens.sum())
    error = calibration_error([b.score for b in bins], [b.agreement for b in bins], [b.tokens for b in bins])
    return ExitCalibration(
        exit_layer=layer,
        tokens=count,
        documents=len(tokens),
        agreement=int(right.sum()) / count,
        auroc=auroc(right.sum(0), wrong.sum(0)),
        auroc_ci=auroc_interval(right, wrong),
        ece=error if probability else None,
        bins=bins,
    )


def _bins(right: Counts, tokens: Counts, thresholds: NDArray[np.float64]) -> Iterator[ReliabilityBin]:
    by_level = tokens.sum(0)
    edges = np.concatenate((thresholds[:1], thresholds, thresholds[-1:]))  # level k lies between edges k and k + 1
    middles = (edges[:-1] + edges[1:]) / 2
    runs = equal_bins(by_level, BINS)
    here = np.stack([right[:, run].sum(1) for run in runs], axis=1)
    there = np.stack([tokens[:, run].sum(1) for run in runs], axis=1)
    below, count = 0, int(by_level.sum())
    for place, (run, interval) in enumerate(zip(runs, share_intervals(here, there), strict=True)):
        size = int(there[:, place].sum())
        used = np.flatnonzero(by_level[run]) + run.start
        yield ReliabilityBin(
            scores=(float(edges[used[0]]), float(edges[used[-1] + 1])),
            score=float((middles[run] * by_level[run]).sum() / size),
            quantiles=(below / count, (below + size) / count),
            tokens=size,
            agreement=int(here[:, place].sum()) / size,
            agreement_ci=interval,
        )
        below += size
