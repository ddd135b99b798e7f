"""Figures of scores: does a probability hold, does agreement rise with the score, how well does each exit rank.

All of it is replayed and teacher-forced (:mod:`harness.records.calibration`), and every caption says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.records.calibration import Calibration, ExitCalibration, ScoreCalibration
from reports.figures.drawing import (
    INK,
    QUIET,
    Figure,
    Look,
    Width,
    blank,
    legend_below,
    look_of,
    offsets,
    panels,
    reach,
    say_size,
    slug,
)
from reports.figures.training import exit_colours

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_LINES = ("-", "--", ":", "-.")


def calibration_figures(calibrations: Iterable[Calibration]) -> list[Figure]:
    """Return the figures of sweeps, of each those that its scores have data for; of several sweeps, numbered."""
    return [figure for number, calibration in enumerate(calibrations) for figure in _figures_of(calibration, number)]


def _figures_of(calibration: Calibration, number: int) -> Iterator[Figure]:
    stem = f"calibration-{slug(calibration.model)}" + (f"-{number + 1}" if number else "")
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
            "grey line, the mean. Bars: 95 % intervals (over documents). Wide steps are ties."
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
    canvas, grid = panels(width, len(scores), 2.2, across=columns, in_column=columns, sharey=True)
    for axes, score in zip(grid, scores, strict=True):
        axes.plot([0, 1], [0, 1], "--", color=QUIET, linewidth=1)
        layers = [each.exit_layer or 0 for each in score.exits]
        colours = exit_colours(layers)
        for each, colour in zip(score.exits, colours.values(), strict=True):
            label = f"layer {each.exit_layer}" if each.exit_layer in (score.exits[0].exit_layer, max(layers)) else None
            axes.plot(*_points(each), color=colour, linewidth=1, alpha=0.9, label=label)
        _with_intervals(axes, *_points(score.pooled), score.pooled, Look(INK, "o"), "all exit points")
        letters = 26 if width == "text" else 20
        name = "\n".join(score.score[at : at + letters] for at in range(0, len(score.score), letters))
        axes.set_title(name, fontsize=7)
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
    canvas, axes = blank(width, 2.8)
    axes.axhline(scores[0].pooled.agreement, color=QUIET, linewidth=1)
    for score, line in _lines(scores):
        at = [100 * (each.quantiles[0] + each.quantiles[1]) / 2 for each in score.pooled.bins]
        look = look_of(score.strategy)
        _with_intervals(axes, at, _points(score.pooled)[1], score.pooled, look, score.score, line)
        for each in score.pooled.bins:
            low, high = each.quantiles
            if high - low > 0.2:  # a tie: no more than that is known
                axes.hlines(each.agreement, 100 * low, 100 * high, color=look.colour, linewidth=0.8)
    axes.set(xlabel="quantile of the score, % (most certain right)", ylabel="agreement with the last layer")
    axes.set(xlim=(0, 100), ylim=(0, 1.02))
    return _finished(canvas, axes, scores)


def _aurocs(scores: Sequence[ScoreCalibration], exit_points: Sequence[int], width: Width) -> Canvas:
    canvas, axes = blank(width, 2.8)
    axes.axhline(0.5, color=QUIET, linewidth=1, linestyle="--")
    axes.annotate("chance", (1, 0.5), xycoords=("axes fraction", "data"), xytext=(3, 0), textcoords="offset points",
                  va="center", fontsize=7.5, color=INK, annotation_clip=False)  # fmt: skip
    lowest = 0.5
    for offset, (score, line) in zip(offsets(len(scores), 0.6), _lines(scores), strict=True):
        shown = [each for each in score.exits if each.auroc is not None and each.exit_layer in exit_points]
        at = [exit_points.index(each.exit_layer or 0) + offset for each in shown]
        areas = [each.auroc or 0.0 for each in shown]
        look = look_of(score.strategy)
        axes.errorbar(
            at, areas, yerr=reach(areas, [each.auroc_ci for each in shown]), color=look.colour, marker=look.marker,
            markersize=4.5, linewidth=1, linestyle=line, elinewidth=0.9, capsize=1.5, label=score.score,
        )  # fmt: skip
        lowest = min([lowest, *(each.auroc for each in score.exits if each.auroc is not None)])
    axes.set_xticks(range(len(exit_points)), [str(layer) for layer in exit_points])
    axes.grid(visible=False, axis="x")
    axes.set(xlabel="exit layer", ylabel="AUROC", ylim=(max(0.0, lowest - 0.06), 1.0))
    return _finished(canvas, axes, scores)


def _finished(canvas: Canvas, axes: Axes, scores: Sequence[ScoreCalibration]) -> Canvas:
    say_size(axes, f"n = {scores[0].pooled.documents} documents")
    legend_below(canvas, *axes.get_legend_handles_labels())
    return canvas


def _points(each: ExitCalibration) -> tuple[list[float], list[float]]:
    return [b.score for b in each.bins], [b.agreement for b in each.bins]


def _with_intervals(
    axes: Axes, at: Sequence[float], values: Sequence[float], each: ExitCalibration, look: Look, label: str,
    line: str = "-",
) -> None:  # fmt: skip
    axes.errorbar(
        at, values, yerr=reach(values, [b.agreement_ci for b in each.bins]), color=look.colour, marker=look.marker,
        markersize=4, linewidth=1.4, linestyle=line, elinewidth=0.9, capsize=1.5, label=label, zorder=4,
    )  # fmt: skip


def _lines(scores: Sequence[ScoreCalibration]) -> Iterator[tuple[ScoreCalibration, str]]:
    """Give each score a line style: scores of one strategy share a colour and differ by it."""
    seen: dict[str, int] = {}
    for score in scores:
        number = seen[score.strategy] = seen.get(score.strategy, -1) + 1
        yield score, _LINES[number % len(_LINES)]
