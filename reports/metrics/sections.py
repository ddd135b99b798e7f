"""Where metrics stand: the sections of a report, in reading order, and the places outside them.

A metric says in which of these it stands (:attr:`harness.contracts.Metric.sections`). A section that is not listed here
comes last, under its own name.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.contracts import Metric

HEADLINE = "headline"
"""The first table of a report, and the front page of the leaderboard."""
LEADERBOARD = "leaderboard"
"""Only the front page of the leaderboard."""
FIGURES = "figures"
"""Figures with a panel or a bar per measure of quality."""

AGAINST_FULL = "Against full depth"
AGREEMENTS = "Agreement with full depth"
DRAFTS = "Drafts of lossless decoding"
STOPS = "Tokens saved, and what accepted text costs"
BYTE_MODEL = "Expected and realised decoding speed-up"
TIME = "Time of a request"
ENERGY = "Energy and power"
REPEATS = "Between repeats"
DEPTH = "Depth and work"
EQUAL_DEPTH = "Against fixed exit at the same mean depth"
SCORES = "Scores"
SCORE_DIFFERENCES = "Scores minus full depth's"

_ORDER = (
    *(AGAINST_FULL, AGREEMENTS, STOPS, DRAFTS, BYTE_MODEL, TIME, REPEATS, ENERGY, DEPTH, EQUAL_DEPTH, SCORES),
    SCORE_DIFFERENCES,
)


def in_section(metrics: Iterable[Metric], *sections: str) -> list[Metric]:
    """Return the metrics that stand in any of some sections, by their place in the first of them."""
    placed = [(place, metric) for metric in metrics if (place := _place(metric, sections)) is not None]
    return [metric for _, metric in sorted(placed, key=lambda pair: pair[0])]


def sections_of(metrics: Iterable[Metric]) -> list[str]:
    """Return the titles of the sections below the headline that some metric stands in, in reading order."""
    named = dict.fromkeys(name for metric in metrics for name in metric.sections)
    others = [name for name in named if name not in (*_ORDER, HEADLINE, LEADERBOARD, FIGURES)]
    return [name for name in _ORDER if name in named] + others


def _place(metric: Metric, sections: Iterable[str]) -> float | None:
    return next((metric.sections[name] for name in sections if name in metric.sections), None)
