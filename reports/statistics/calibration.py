"""How well a score ranks and how well it is calibrated, from counts by document and level of the score.

A **level** is a range of scores that no threshold in use tells apart; levels ascend with certainty. Documents are the
independent units: tokens of one document are alike, so intervals resample documents
(:mod:`reports.statistics.intervals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import MINIMUM_PAIRS, Pair, known, replicate_interval, resampled, share_bounds

Counts = NDArray[np.int64]
RESAMPLES = 1000


def auroc(right: Counts, wrong: Counts) -> float | None:
    """Return the probability that a right token has a higher level than a wrong one, ties counting one half.

    That is the area under the ROC curve (Mann and Whitney 1947; Hanley and McNeil 1982). ``None`` where there is no
    right or no wrong one, or all are of one level.
    """
    if not right.sum() or not wrong.sum() or np.count_nonzero(right + wrong) < 2:
        return None
    return float(_areas(right[None].astype(float), wrong[None].astype(float))[0])


def auroc_interval(right: Counts, wrong: Counts, *, seed: int = 0) -> tuple[float, float] | None:
    """Return the bootstrap 95 % interval of :func:`auroc` over documents."""
    documents = len(right)
    if documents < MINIMUM_PAIRS or auroc(right.sum(0), wrong.sum(0)) is None:
        return None
    used = (right + wrong).any(axis=0)
    here, there = right[:, used].astype(float), wrong[:, used].astype(float)
    areas = [_areas(counts @ here, counts @ there) for counts in resampled(documents, RESAMPLES, seed)]
    return replicate_interval(np.concatenate(areas), documents)


def share_intervals(right: Counts, tokens: Counts) -> list[tuple[float, float] | None]:
    """Return the 95 % interval over documents of right / tokens of each column, ``[documents, columns]``."""
    columns = zip(right.T.tolist(), tokens.T.tolist(), strict=True)
    return [known(share_bounds([Pair(*each) for each in zip(*column, strict=True)])) for column in columns]


def equal_bins(tokens: Counts, count: int) -> list[slice]:
    """Return runs of levels that hold about the same number of tokens, at most ``count`` of them, none empty.

    A level goes whole to the bin in which its middle falls, so that equal scores never part.
    """
    middle = (np.cumsum(tokens) - tokens / 2) / max(1, int(tokens.sum()))
    places = np.minimum((middle * count).astype(int), count - 1)
    edges = [0, *(np.flatnonzero(np.diff(places)) + 1).tolist(), len(tokens)]
    runs = [slice(low, high) for low, high in pairwise(edges)]
    return [run for run in runs if tokens[run].sum()]


def calibration_error(scores: Sequence[float], agreements: Sequence[float], tokens: Sequence[int]) -> float | None:
    """Return the expected calibration error of bins: Σ tokens · |agreement − score| / Σ tokens; ``None`` of none.

    With bins of equal size it is that of Nguyen and O'Connor (2015, arXiv 1508.05154); it depends on their number.
    """
    total = sum(tokens)
    distances = (n * abs(a - s) for s, a, n in zip(scores, agreements, tokens, strict=True))
    return sum(distances) / total if total else None


def _areas(right: NDArray[np.float64], wrong: NDArray[np.float64]) -> NDArray[np.float64]:
    """Area under the ROC curve of each row, ``[rows, levels]`` each; not finite where a row lacks one kind."""
    below = np.cumsum(wrong, axis=1) - wrong / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        areas: NDArray[np.float64] = (right * below).sum(1) / (right.sum(1) * wrong.sum(1))
    return areas
