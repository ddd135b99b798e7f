"""Figures of scores: does a probability hold, does agreement rise with the score, how well does each exit rank.

All of it is replayed and teacher-forced (:mod:`harness.records.calibration`), and every caption says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.records.calibration import Calibration, ExitCalibration, ScoreCalibration
from harness.records.estimate import Estimate
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.training import exit_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_LINES = ("-", "--", ":", "-.")


def calibration_figures(calibrations: Iterable[Calibration]) -> list[Figure]:
    """Return the figures of sweeps, of each those that its scores have data for; of several sweeps, numbered."""
    return [figure for number, calibration in enumerate(calibrations) for figure in _figures_of(calibration, number)]


def _figures_of(calibration: Calibration, number: int) -> Iterator[Figure]:
    stem = f"calibration-{drawing.slug(calibration.model)}" + (f"-{number + 1}" if number else "")
    title = calibration.title.removeprefix("replayed: ")
    where = f"Replayed, teacher-forced: {calibration.model}, {title}."
    if scores := [score for score in calibration.scores if score.probability]:
        caption = (
            f"{where} Share of tokens that are the last layer's, against the score that estimates its "
            "probability, in ten bins of about equal size; on the dashed line the estimate holds, below it the score "
            "is too sure. Black: all exit points together, with 95 % intervals (over documents). Coloured: single "
            "exit points, shallow bright, deep dark. n counts tokens, once per exit point. ECE: "
            "expected calibration error of all together."
        )
        yield Figure(f"{stem}-reliability", "Does the probability hold?", caption, partial(_reliability, scores))
    if scores := [score for score in calibration.scores if score.pooled.auroc is not None]:
        caption = (
            f"{where} Share of tokens that are the last layer's, by quantile of the score over all exit points: the "
            "least certain tenth is on the left. A useful score climbs from low to high; a useless one stays at the "
            "grey line, the mean. Bars: 95 % intervals (over documents)."
        )
        yield Figure(f"{stem}-quantiles", "Agreement by certainty of the score", caption, partial(_quantiles, scores))
    if scores := [score for score in calibration.scores if any(each.auroc is not None for each in score.exits)]:
        without = [score.score for score in calibration.scores if score not in scores]
        caption = (
            f"{where} AUROC: probability that a token which is the last layer's scores higher than one which is not; "
            "0.5 is chance, below it the score points the wrong way. Bars: 95 % intervals (bootstrap over documents). "
            "Ties count one half, so a score that its rule cuts off below some value looks worse than what it was made "
            "from." + (f" No value: {', '.join(without)}." if without else "")
        )
        draw = partial(_aurocs, scores, calibration.exit_points)
        yield Figure(f"{stem}-auroc", "How well scores rank right exits", caption, draw)


def _reliability(scores: Sequence[ScoreCalibration], width: Width) -> Canvas:
    columns = min(3 if width == "text" else 2, len(scores))
    canvas, grid = drawing.panels(width, len(scores), 2.2, across=columns, in_column=columns, sharey=True)
    for axes, score in zip(grid, scores, strict=True):
        axes.plot([0, 1], [0, 1], "--", color=drawing.QUIET, linewidth=1)
        layers = [each.exit_layer or 0 for each in score.exits]
        for each, (layer, colour) in zip(score.exits, exit_colours(layers).items(), strict=True):
            label = f"layer {layer}" if layer in (layers[0], max(layers)) else None
            agreement = [b.agreement for b in each.bins]
            axes.plot([b.score for b in each.bins], agreement, color=colour, linewidth=1, alpha=0.9, label=label)
        at, black = [b.score for b in score.pooled.bins], drawing.Look(drawing.INK, "o")
        drawing.curve(axes, at, _agreements(score.pooled), black, label="all exit points")
        letters = 26 if width == "text" else 20
        name = "\n".join(score.score[at : at + letters] for at in range(0, len(score.score), letters))
        axes.set_title(name, fontsize=7)
        error = f"n = {score.pooled.tokens:,}" + ("" if score.pooled.ece is None else f"\nECE {score.pooled.ece:.3f}")
        axes.text(0.97, 0.05, error, transform=axes.transAxes, ha="right", fontsize=7, color=drawing.INK)
        right = max([1.0, *(b.score for each in score.exits for b in each.bins)])
        axes.set(xlim=(-0.02, right + 0.02), ylim=(-0.02, 1.02))
    for axes in grid[::columns]:
        axes.set_ylabel("agreement with last layer")
    for axes in grid[-columns:]:
        axes.set_xlabel("estimated probability")
    drawing.legend_below(canvas)
    return canvas


def _quantiles(scores: Sequence[ScoreCalibration], width: Width) -> Canvas:
    canvas, axes = drawing.blank(width, 2.8)
    axes.axhline(scores[0].pooled.agreement, color=drawing.QUIET, linewidth=1)
    for score, line in _lines(scores):
        at = [50 * sum(each.quantiles) for each in score.pooled.bins]
        drawing.curve(
            axes, at, _agreements(score.pooled), drawing.look_of(score.strategy), linestyle=line, label=score.score
        )
    axes.set(xlabel="quantile of the score, % (most certain right)", ylabel="agreement with the last layer")
    axes.set(xlim=(0, 100), ylim=(0, 1.02))
    drawing.say_size(axes, f"n = {scores[0].pooled.documents} documents")
    drawing.legend_below(canvas)
    return canvas


def _aurocs(scores: Sequence[ScoreCalibration], exit_points: Sequence[int], width: Width) -> Canvas:
    canvas, axes = drawing.blank(width, 2.8)
    axes.axhline(0.5, color=drawing.QUIET, linewidth=1, linestyle="--")
    drawing.near(axes, "chance", (1, 0.5), (3, 0), xycoords=("axes fraction", "data"), fontsize=7.5)
    lowest = 0.5
    for offset, (score, line) in zip(drawing.offsets(len(scores), 0.6), _lines(scores), strict=True):
        known = {
            exit_points.index(each.exit_layer) + offset: Estimate.of(each.auroc, each.auroc_ci)
            for each in score.exits
            if each.auroc is not None and each.exit_layer in exit_points
        }
        drawing.curve(
            axes, [*known], [*known.values()], drawing.look_of(score.strategy), linestyle=line, label=score.score
        )
        lowest = min([lowest, *(one.value for one in known.values())])
    axes.set_xticks(range(len(exit_points)), [str(layer) for layer in exit_points])
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="exit layer", ylabel="AUROC", ylim=(max(0.0, lowest - 0.06), 1.0))
    drawing.say_size(axes, f"n = {scores[0].pooled.documents} documents")
    drawing.legend_below(canvas)
    return canvas


def _agreements(each: ExitCalibration) -> list[Estimate]:
    return [Estimate.of(b.agreement, b.agreement_ci) for b in each.bins]


def _lines(scores: Sequence[ScoreCalibration]) -> Iterator[tuple[ScoreCalibration, str]]:
    """Give each score a line style: scores of one strategy share a colour and differ by it."""
    seen: dict[str, int] = {}
    for score in scores:
        number = seen[score.strategy] = seen.get(score.strategy, -1) + 1
        yield score, _LINES[number % len(_LINES)]
