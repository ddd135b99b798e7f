"""Every score of a task is a metric, and so is its mean difference to full depth, paired by sample.

A score that stands in samples is one even where the package it comes from is not installed: it is then called by its
name. Only the first repeat is scored, since the others generate the same text again. What the task scores over all
completions together wins over the mean of the samples, also when it says ``None``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import TYPE_CHECKING

from harness.contracts import Better, Metric, Score, Wording
from harness.contracts.scores import registered_scores
from reports.metrics.sections import AGAINST_FULL, LEADERBOARD, SCORE_DIFFERENCES, SCORES
from reports.statistics.intervals import mean

if TYPE_CHECKING:
    from harness.records import SampleRecord
    from reports.metrics.point import Point
    from reports.metrics.units import Units
    from reports.summary.measured import Measured

EDIT_SIMILARITY = "edit_similarity"
"""The one score that both protocols and both languages report and that moves with every token."""

_SHORT = {"similarity": "sim.", "accuracy": "acc."}
"""Words that headers abbreviate."""
_DIFFERENCE = "_difference"
EDIT_SIMILARITY_DIFFERENCE = f"{EDIT_SIMILARITY}{_DIFFERENCE}"
_LAST = 4
"""Place among the scores of one that names none."""
_ABSENT = "as recorded: it is not among the scores that are registered here"


@cache
def score_metrics(name: str) -> tuple[Metric, Metric]:
    """Return the metrics of one score: itself, and its difference to full depth."""
    score = registered_scores().get(name)
    title, meaning, unit, better = _facts(score) if score else (name, _ABSENT, "", None)
    decides = score is not None and score.decides
    placed = score is not None and score.sections is not Score.sections
    sections = {SCORES: _LAST, **(score.sections if score else Score.sections)}
    short = " ".join(_SHORT.get(word, word) for word in title.split(" "))
    words = name.replace("_", " ")
    wording = Wording(f"{words} {{}} higher", f"{words} {{}} lower", words)
    wording = wording if better != "lower" else Wording(wording.worse, wording.better, words)
    value = Metric(
        name=name,
        header=short.replace(" ", "\n", 1),
        title=title,
        meaning=meaning,
        compute=partial(_value, name),
        units=partial(_units, name),
        kind="score",
        black_box=True,
        better=better,
        unit=unit,
        form="number" if unit else "fraction",
        sections=sections,
        priority=2 if placed else 8,  # one that names no place comes after layers and latency
        change=wording if decides else None,
    )
    difference = Metric(
        name=f"{name}{_DIFFERENCE}",
        header=f"Δ {short}",
        title=f"{title} minus full depth’s",
        meaning=f"{title} minus full depth's, mean over samples",
        compute=partial(_differences, name),
        paired="difference",
        kind="score",
        black_box=True,
        better=better,
        unit=unit,
        form="difference",
        sections={
            **({AGAINST_FULL: 4 + sections[SCORES]} if sections[SCORES] < _LAST else {SCORE_DIFFERENCES: 1}),
            **({LEADERBOARD: 2.2} if name == EDIT_SIMILARITY else {}),
        },
        verdict=wording if decides else None,
        always_told=name == EDIT_SIMILARITY,
    )
    return value, difference


def recorded_scores(cells: Iterable[Measured]) -> set[str]:
    """Return the names of all scores that samples have."""
    return {name for cell in cells for sample in cell.scored for name in sample.scores}


def scores_of_sample(sample: SampleRecord) -> list[tuple[Metric, float]]:
    """Return the scores of one sample with their metrics, those that decide about quality first."""
    found = [(score_metrics(name)[0], score) for name, score in sample.scores.items() if score is not None]
    return sorted(found, key=lambda pair: (pair[0].change is None, min(pair[0].sections.values())))


def scores_of(names: Iterable[str]) -> list[str]:
    """Return which names of metrics are scores: those whose difference is among them, too."""
    known = set(names)
    return [name for name in known if f"{name}{_DIFFERENCE}" in known]


def _facts(score: Score) -> tuple[str, str, str, Better | None]:
    """Title, meaning, unit and direction of a score."""
    meaning = score.meaning
    if not meaning[:2].isupper():
        meaning = meaning[:1].lower() + meaning[1:]
    return score.title, meaning, score.unit, score.better


def _value(name: str, point: Point) -> float | None:
    if name in point.corpus_scores:
        return point.corpus_scores[name]
    return mean(score for sample in point.cell.scored if (score := sample.scores.get(name)) is not None)


def _units(name: str, point: Point) -> Units:
    found = ((sample.sample_id, sample.scores.get(name)) for sample in point.cell.scored)
    return {frozenset([sample_id]): (score, 1.0) for sample_id, score in found if score is not None}


def _differences(name: str, point: Point) -> dict[str, float]:
    """Score here minus score at full depth for each sample that has both; later repeats say nothing new."""
    theirs = {sample.sample_id: sample.scores.get(name) for sample in point.full.scored}
    found = {}
    for sample in point.cell.scored:
        here, there = sample.scores.get(name), theirs.get(sample.sample_id)
        if here is not None and there is not None:
            found[sample.sample_id] = here - there
    return found
