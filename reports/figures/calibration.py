"""Figures of sweeps: does a probability hold, does agreement rise with the score, how well does each exit rank, and by
token, where do exits pay.

All of it is replayed and teacher-forced (:mod:`harness.records.calibration`), and every caption says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, cycle
from typing import TYPE_CHECKING

from harness.records.calibration import ALL, GROUPS, Calibration, ExitCalibration, ScoreCalibration, TokenGroup
from harness.records.estimate import Estimate
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.training import exit_colours

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_LINES = ("-", "--", ":", "-.")
_FEWEST = 10  # tokens; of fewer a group says nothing


def calibration_figures(calibrations: Iterable[Calibration]) -> list[Figure]:
    """Return the figures of sweeps, of each those that its scores have data for; of several sweeps, numbered.

    Those that replayed as many tokens of as many documents share the figure of where exits pay.
    """
    every = list(calibrations)
    found = [figure for number, calibration in enumerate(every) for figure in _figures_of(calibration, number)]
    alike: dict[tuple[object, ...], list[Calibration]] = {}
    for one in every:
        if one.groups:
            alike.setdefault((one.title, one.model, one.generated, one.num_layers, one.exit_points), []).append(one)
    for number, several in enumerate(alike.values()):
        stem = f"exits-pay-{drawing.slug(several[0].model)}" + (f"-{number + 1}" if number else "")
        found.append(Figure(stem, "Where exits pay, by token", _where(several), partial(_by_token, several)))
    return found


def _where(several: Sequence[Calibration]) -> str:
    """Return the caption."""
    one = several[0]
    text = "what the model generated" if one.generated else "the documents' own tokens, teacher-forced"
    drafts = " Accepted: share of the tokens drafted, lossless, that stood." if one.groups[0].drafts else ""
    return (
        f"Replayed: {one.model}, {one.title.removeprefix('replayed: ')}; {text}. An exit is right where it says what "
        f"the last layer says; where none is, all {one.num_layers} layers count. Agreement: share of tokens at which "
        f"it is.{drafts} Lines: 95 % intervals (over documents). Behind a name stands the number of its tokens; groups "
        "differ in more than their name. Kinds come from a small lexer."
    )


def _by_token(several: Sequence[Calibration], width: Width) -> Canvas:
    first = several[0]
    groups = [one for one in first.groups if one.tokens >= _FEWEST]
    every = [{(each.by, each.name): each for each in one.groups} for one in several]
    rows, labels, at = {}, dict[float, str](), 0.0
    for by in GROUPS:
        some = [one for one in groups if one.by == by]
        if some and by != ALL:
            labels[at + 0.15] = by
            at += 1
        for one in some:
            rows[one.by, one.name], labels[at] = at, f"{one.name} ({one.tokens:,})"
            at += 1
    places = (0,) if first.groups[0].drafts else tuple(dict.fromkeys((0, len(first.exit_points) // 2)))
    panels: dict[str, Callable[[TokenGroup], Estimate | None]] = {
        "layers until an exit is right": lambda one: Estimate.of(one.sufficient_layer, one.sufficient_layer_ci),
        **{f"agreement at layer {first.exit_points[place]}": partial(_agreement, place=place) for place in places},
    }
    if first.groups[0].drafts:
        panels["accepted drafts"] = lambda one: one.drafts[0].share
    canvas, grid = drawing.panels(
        width, len(panels), (0.2 if width == "text" else 0.135) * at + 0.4, across=3, sharey=True
    )
    for axes, (title, value) in zip(grid, panels.items(), strict=True):
        beside = drawing.offsets(len(several), 0.6)
        for look, calibration, known, offset in zip(cycle(drawing.LOOKS), several, every, beside, strict=False):
            found = {
                place + offset: estimate
                for group, place in rows.items()
                if group in known and (estimate := value(known[group])) is not None
            }
            for height, estimate in found.items():
                axes.hlines(height, *(estimate.interval or (estimate.value,) * 2), color=look.colour, linewidth=0.9)
            axes.plot(
                [estimate.value for estimate in found.values()],
                [*found],
                look.marker,
                color=look.colour,
                markersize=3.5,
                label=_name(calibration),
            )
        axes.set(xlabel=title, xlim=(0, first.num_layers if title.startswith("layers") else 1.0))
        axes.set_yticks([*labels], [*labels.values()])
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
    grid[0].set_ylim(at - 0.4, -0.6)
    for label in chain.from_iterable(axes.get_yticklabels() for axes in grid):
        label.set_fontweight("bold" if label.get_text() in GROUPS else "normal")
    drawing.say_size(grid[-1], f"n = {first.documents} documents")
    drawing.legend_below(canvas)
    return canvas


def _agreement(one: TokenGroup, place: int) -> Estimate:
    return Estimate.of(one.agreement[place], one.agreement_ci[place])


def _name(one: Calibration) -> str:
    """Return what tells a model's sweep from others of the same tokens."""
    weights = "base" if one.weights == "pretrained" else one.weights
    return f"{weights}, {'one head' if one.exit_head == 'shared' else 'exit modules'}"


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
