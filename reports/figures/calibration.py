"""Figures of scores: does a probability hold, does agreement rise with the score, how well does each exit rank.

All of it is replayed and teacher-forced (:mod:`harness.records.calibration`), and every caption says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.records.calibration import Calibration, ExitCalibration, ScoreCalibration
from reports.figures.figure import Figure, slug
from reports.figures.layout import Width, blank, legend_below, panels, say_size
from reports.figures.style import INK, QUIET, Look, look_of
from reports.figures.training import exit_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_LINES = ("-", "--", ":", "-.")


def calibration_figures(calibrations: Iterable[Calibration]) -> list[Figure]:
    """Return the figures of sweeps; of several sweeps, numbered."""
    found: list[Figure] = []
    for number, calibration in enumerate(calibrations):
        prefix = slug(calibration.model) + (f"-{number + 1}" if number else "")
        for make in (reliability, agreement_by_score, auroc_by_exit):
            found.extend(make(calibration, prefix))
    return found


def reliability(calibration: Calibration, prefix: str) -> list[Figure]:
    """Return estimated probability against observed agreement; nothing where no score is a probability."""
    scores = [score for score in calibration.scores if score.probability]
    if not scores:
        return []
    caption = (
        f"{_where(calibration)} Share of tokens that are the last layer's, against the score that estimates its "
        "probability, in ten bins of about equal size; on the dashed line the estimate holds, below it the score is "
        "too sure. Black: all exit points together, with 95 % intervals (over documents). Coloured: single "
        "exit points, shallow bright, deep dark. n counts tokens, once per exit point. ECE: "
        "expected calibration error of all together."
    )
    return [Figure(f"calibration-{prefix}-reliability", "Does the probability hold?", caption, partial(_grid, scores))]


def agreement_by_score(calibration: Calibration, prefix: str) -> list[Figure]:
    """Return agreement over the quantiles of each score; nothing without scores."""
    scores = [score for score in calibration.scores if score.pooled.auroc is not None]
    if not scores:
        return []
    caption = (
        f"{_where(calibration)} Share of tokens that are the last layer's, by quantile of the score over all exit "
        "points: the least certain tenth is on the left. A useful score climbs from low to high; a useless one stays "
        "at the grey line, the mean. Bars: 95 % intervals (over documents). Wide steps are ties."
    )
    title = "Agreement by certainty of the score"
    return [Figure(f"calibration-{prefix}-quantiles", title, caption, partial(_quantiles, scores))]


def auroc_by_exit(calibration: Calibration, prefix: str) -> list[Figure]:
    """Return the AUROC of each score at each exit point; nothing where none is defined."""
    scores = [score for score in calibration.scores if any(each.auroc is not None for each in score.exits)]
    if not scores:
        return []
    without = [score.score for score in calibration.scores if score not in scores]
    caption = (
        f"{_where(calibration)} AUROC: probability that a token which is the last layer's scores higher than one which "
        "is not; 0.5 is chance, below it the score points the wrong way. Bars: 95 % intervals (bootstrap over "
        "documents). Ties count one half, so a score that its rule cuts off below some value looks worse than what it "
        "was made from. " + (f"No value: {', '.join(without)}." if without else "")
    )
    title = "How well scores rank right exits"
    return [
        Figure(f"calibration-{prefix}-auroc", title, caption.strip(), partial(_aurocs, scores, calibration.exit_points))
    ]


# ------------------------------------------------------------------------------------- drawing


def _grid(scores: Sequence[ScoreCalibration], width: Width) -> Canvas:
    columns = min(3 if width == "text" else 2, len(scores))
    canvas, grid = panels(width, len(scores), 2.2, across=columns, in_column=columns, sharey=True)
    for axes, score in zip(grid, scores, strict=True):
        axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1)
        deepest = max(each.exit_layer or 0 for each in score.exits)
        colours = exit_colours([each.exit_layer or 0 for each in score.exits])
        for each, colour in zip(score.exits, colours.values(), strict=True):
            deep = each.exit_layer in (score.exits[0].exit_layer, deepest)
            axes.plot(
                *_points(each), color=colour, linewidth=1, alpha=0.9, label=f"layer {each.exit_layer}" if deep else None
            )
        _with_intervals(axes, *_points(score.pooled), score.pooled, Look(INK, "o"), "all exit points")
        axes.set_title(_wrapped(score.score, 26 if width == "text" else 20), fontsize=7)
        error = f"n = {score.pooled.tokens:,}" + ("" if score.pooled.ece is None else f"\nECE {score.pooled.ece:.3f}")
        axes.text(0.97, 0.05, error, transform=axes.transAxes, ha="right", fontsize=7, color=INK)
        right = max([1.0, *(b.score for each in score.exits for b in each.bins)])
        axes.set(xlim=(-0.02, right + 0.02), ylim=(-0.02, 1.02))
    for axes in grid[::columns]:
        axes.set_ylabel("agreement with last layer")
    for axes in grid[-columns:]:
        axes.set_xlabel("estimated probability")
    legend_below(canvas, *grid[0].get_legend_handles_labels())
    return canvas


def _quantiles(scores: Sequence[ScoreCalibration], width: Width) -> Canvas:
    canvas = blank(width, 2.8)
    axes = canvas.subplots()
    axes.axhline(scores[0].pooled.agreement, color=QUIET, linewidth=1)
    for score, line in _lines(scores):
        at = [100 * (each.quantiles[0] + each.quantiles[1]) / 2 for each in score.pooled.bins]
        agreement = [each.agreement for each in score.pooled.bins]
        look = look_of(score.strategy)
        _with_intervals(axes, at, agreement, score.pooled, look, score.score, line)
        for each in score.pooled.bins:
            if each.quantiles[1] - each.quantiles[0] > 0.2:  # a tie: no more than that is known
                low, high = each.quantiles
                axes.hlines(each.agreement, 100 * low, 100 * high, color=look.colour, linewidth=0.8)
    axes.set(xlabel="quantile of the score, % (most certain right)", ylabel="agreement with the last layer")
    axes.set(xlim=(0, 100), ylim=(0, 1.02))
    say_size(axes, f"n = {scores[0].pooled.documents} documents")
    legend_below(canvas, *axes.get_legend_handles_labels())
    return canvas


def _aurocs(scores: Sequence[ScoreCalibration], exit_points: Sequence[int], width: Width) -> Canvas:
    canvas = blank(width, 2.8)
    axes = canvas.subplots()
    axes.axhline(0.5, color=QUIET, linewidth=1, linestyle="--")
    axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                  va="center", fontsize=7.5, color=INK, annotation_clip=False)  # fmt: skip
    step = 0.6 / max(1, len(scores))
    for number, (score, line) in enumerate(_lines(scores)):
        shown = [each for each in score.exits if each.auroc is not None and each.exit_layer in exit_points]
        at = [exit_points.index(each.exit_layer or 0) + step * (number - (len(scores) - 1) / 2) for each in shown]
        areas = [each.auroc or 0.0 for each in shown]
        spans = [each.auroc_ci or (area, area) for each, area in zip(shown, areas, strict=True)]
        look = look_of(score.strategy)
        axes.errorbar(
            at, areas, yerr=_errors(areas, spans), color=look.colour, marker=look.marker, markersize=4.5, linewidth=1,
            linestyle=line, elinewidth=0.9, capsize=1.5, label=score.score,
        )  # fmt: skip
    axes.set_xticks(range(len(exit_points)), [str(layer) for layer in exit_points])
    axes.grid(visible=False, axis="x")
    low = min([0.5, *(each.auroc for score in scores for each in score.exits if each.auroc is not None)])
    axes.set(xlabel="exit layer", ylabel="AUROC", ylim=(max(0.0, low - 0.06), 1.0))
    say_size(axes, f"n = {scores[0].pooled.documents} documents")
    legend_below(canvas, *axes.get_legend_handles_labels())
    return canvas


def _points(each: ExitCalibration) -> tuple[list[float], list[float]]:
    return [b.score for b in each.bins], [b.agreement for b in each.bins]


def _with_intervals(
    axes: Axes, at: Sequence[float], values: Sequence[float], each: ExitCalibration, look: Look, label: str,
    line: str = "-",
) -> None:  # fmt: skip
    spans = [b.agreement_ci or (b.agreement, b.agreement) for b in each.bins]
    axes.errorbar(
        at, values, yerr=_errors(values, spans), color=look.colour, marker=look.marker, markersize=4, linewidth=1.4,
        linestyle=line, elinewidth=0.9, capsize=1.5, label=label, zorder=4,
    )  # fmt: skip


def _errors(values: Sequence[float], spans: Sequence[tuple[float, float]]) -> list[list[float]]:
    """Distances down and up; an interval of resamples may miss the value itself by a hair."""
    below = [max(0.0, value - low) for value, (low, _) in zip(values, spans, strict=True)]
    above = [max(0.0, high - value) for value, (_, high) in zip(values, spans, strict=True)]
    return [below, above]


def _lines(scores: Sequence[ScoreCalibration]) -> list[tuple[ScoreCalibration, str]]:
    """Give each score a line style: scores of one strategy share a colour and differ by it."""
    seen: dict[str, int] = {}
    found = []
    for score in scores:
        number = seen[score.strategy] = seen.get(score.strategy, -1) + 1
        found.append((score, _LINES[number % len(_LINES)]))
    return found


def _where(calibration: Calibration) -> str:
    title = calibration.title.removeprefix("replayed: ")
    return f"Replayed, teacher-forced: {calibration.model}, {title}."


def _wrapped(text: str, width: int) -> str:
    return "\n".join(text[place : place + width] for place in range(0, len(text), width))
