"""All metrics there are, those that are registered and two for every score, and the sections that they stand in.

A section that is not listed here comes last, under its own name. Every score of a task is a metric, and so is its mean
difference to full depth, also where the package that a recorded score comes from is not installed. What the task scores
over all completions together wins over the mean of the samples, also when it says ``None``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import TYPE_CHECKING

from harness.contracts import Metric, Score, Wording
from harness.contracts.scores import registered_scores
from harness.errors import RegistryError
from harness.records.summary import SummaryRow
from harness.registry import METRICS
from harness.registry import SCORES as KNOWN_SCORES
from reports.statistics.intervals import mean

if TYPE_CHECKING:
    from harness.records import SampleRecord
    from reports.metrics.point import Point, Units
    from reports.summary.measured import Measured

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
SESSIONS = "Editor sessions"
"""Only in runs of them."""
REPEATS = "Between repeats"
DEPTH = "Depth and work"
EQUAL_DEPTH = "Against fixed exit at the same mean depth"
SCORES = "Scores"
SCORE_DIFFERENCES = "Scores minus full depth's"
_ORDER = (
    *(SESSIONS, AGAINST_FULL, AGREEMENTS, STOPS, DRAFTS, BYTE_MODEL, TIME, REPEATS, ENERGY, DEPTH, EQUAL_DEPTH, SCORES),
    SCORE_DIFFERENCES,
)

EDIT_SIMILARITY = "edit_similarity"
"""The one score that both protocols and both languages report and that moves with every token."""
_DIFFERENCE = "_difference"
EDIT_SIMILARITY_DIFFERENCE = f"{EDIT_SIMILARITY}{_DIFFERENCE}"
_SHORT = {"similarity": "sim.", "accuracy": "acc."}
"""Words that headers abbreviate."""
_LAST = 4
"""Place among the scores of one that names none."""


def in_section(metrics: Iterable[Metric], *sections: str) -> list[Metric]:
    """Return the metrics that stand in any of some sections, by their place in the first of them."""
    placed = []
    for metric in metrics:
        place = next((metric.sections[name] for name in sections if name in metric.sections), None)
        placed += [(place, metric)] if place is not None else []
    return [metric for _, metric in sorted(placed, key=lambda pair: pair[0])]


def sections_of(metrics: Iterable[Metric]) -> list[str]:
    """Return the titles of the sections below the headline that some metric stands in, in reading order."""
    named = dict.fromkeys(name for metric in metrics for name in metric.sections)
    others = [name for name in named if name not in (*_ORDER, HEADLINE, LEADERBOARD, FIGURES)]
    return [name for name in _ORDER if name in named] + others


def all_metrics(scores: Iterable[str] = ()) -> tuple[Metric, ...]:
    """Return every metric in reading order."""
    named = {*_general_scores(), *scores} - SummaryRow.model_fields.keys()
    return _ordered(tuple(sorted(named)))


def metrics_of(rows: Iterable[SummaryRow]) -> tuple[Metric, ...]:
    """Return every metric in reading order, those of rows included that nothing installed here explains."""
    names = dict.fromkeys(name for row in rows for name in row.metrics)
    scores = {name for name in names if f"{name}{_DIFFERENCE}" in names or name in KNOWN_SCORES}
    known = all_metrics(scores)
    explained = {metric.name for metric in known}
    return (*known, *(_unexplained(name) for name in names if name not in explained))


@cache
def _ordered(scores: tuple[str, ...]) -> tuple[Metric, ...]:
    made = [metric for name in scores for metric in score_metrics(name)]
    found = [*_registered(), *(metric for metric in made if metric.name not in METRICS)]
    return tuple(dict.fromkeys(one for section in sections_of(found) for one in in_section(found, section)))


@cache
def _general_scores() -> frozenset[str]:
    """Return the names of the scores that judge every completion; those of one benchmark are named where recorded."""
    return frozenset(name for name, score in registered_scores().items() if score.judges_all)


@cache
def _registered() -> tuple[Metric, ...]:
    found = []
    for name, metric in METRICS.usable().items():
        with METRICS.leaving_out(name):
            if not isinstance(metric, Metric) or metric.name != name:
                raise RegistryError(f"the metric '{name}' ({METRICS.entry(name).target}) is no Metric of that name.")
            if (metric.of_sample is None) == (metric.compute is None):
                raise RegistryError(f"the metric '{name}' must have one of of_sample and compute.")
            found.append(metric)
    return tuple(found)


@cache
def _unexplained(name: str) -> Metric:
    meaning = "as recorded: the package that this metric comes from is not installed here"
    return Metric(name=name, header=name, meaning=meaning, compute=lambda _: None)


@cache
def score_metrics(name: str) -> tuple[Metric, Metric]:
    """Return the metrics of one score: itself, and its difference to full depth."""
    title, meaning, unit, better = name, "as recorded: it is not among the scores that are registered here", "", None
    score = registered_scores().get(name)
    if score is not None:
        title, meaning, unit, better = score.title, score.meaning, score.unit, score.better
        meaning = meaning if meaning[:2].isupper() else meaning[:1].lower() + meaning[1:]
    sections = {SCORES: _LAST, **(score.sections if score else Score.sections)}
    placed = score is not None and score.sections is not Score.sections
    short = " ".join(_SHORT.get(word, word) for word in title.split(" "))
    words = name.replace("_", " ")
    wording = Wording(f"{words} {{}} higher", f"{words} {{}} lower", words)
    wording = wording if better != "lower" else Wording(wording.worse, wording.better, words)
    decisive = wording if score is not None and score.decides else None
    metric = partial(Metric, kind="score", black_box=True, better=better, unit=unit)
    value = metric(
        name=name,
        header=short.replace(" ", "\n", 1),
        title=title,
        meaning=meaning,
        compute=partial(_value, name),
        units=partial(_units, name),
        form="number" if unit else "fraction",
        sections=sections,
        priority=2 if placed else 8,  # one that names no place comes after layers and latency
        change=decisive,
    )
    difference = metric(
        name=f"{name}{_DIFFERENCE}",
        header=f"Δ {short}",
        title=f"{title} minus full depth’s",
        meaning=f"{title} minus full depth's, mean over samples",
        compute=partial(_differences, name),
        paired="difference",
        form="difference",
        sections={
            **({AGAINST_FULL: 4 + sections[SCORES]} if sections[SCORES] < _LAST else {SCORE_DIFFERENCES: 1}),
            **({LEADERBOARD: 2.2} if name == EDIT_SIMILARITY else {}),
        },
        verdict=decisive,
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
