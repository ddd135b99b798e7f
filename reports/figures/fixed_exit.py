"""Quality against the layer of a fixed exit (the form of GREEN-CODE's Fig. 1), base and tuned weights side by side.

Runs of one task, data source and model share a figure, with a line for each kind of weights, exit head, KV policy,
weights format, dtype and batch size.
GREEN-CODE's own curves stand behind them in grey, as what they are: published, of other models on another machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.contracts import Metric
from harness.records.estimate import Estimate
from harness.records.summary import SummaryRow
from reports.figures.drawing import (
    LINE_COLOURS,
    LINE_MARKERS,
    QUIET,
    Figure,
    Width,
    legend_below,
    panels,
    say_size,
    shortened,
    slug,
)
from reports.figures.task_table import PlacedPoint, TaskTable, task_tables
from reports.metrics.faithfulness import EXACT_PREFIX, exact_prefixes
from reports.metrics.vocabulary import FIGURES, in_section, metrics_of
from reports.published.numbers import LAYERS, PublishedRun, green_code
from reports.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MOST_LINES = 8
_PUBLISHED_STYLES = {"Llama-3.2-3B": (0, (1, 1.2)), "OPT-2.7B": (0, (5, 2))}
_PUBLISHED_WEIGHTS = {"pretrained": "base", "tuned": "tuned"}
_PUBLISHED_PANELS = ("exact_match", "rouge_l")  # columns of their results
_THEIR_CODEBLEU = "codebleu"  # another score than ours, as the caption says
_Published: TypeAlias = Sequence[tuple[str, str, list[PublishedRun]]]  # model, weights, runs


@dataclass(frozen=True)
class _Line:
    """One curve: its label and its points by layers executed, from shallow to deep."""

    label: str
    table: TaskTable
    places: tuple[tuple[int, PlacedPoint], ...]

    @property
    def row(self) -> SummaryRow:
        """Of its shallowest exit; how it decoded is the same at all."""
        return self.places[0][1].row

    def curve(self, metric: Metric) -> list[tuple[int, Estimate]]:
        """Return layers executed and estimates, of points that have the metric."""
        found = ((layer, self._estimate(metric, point)) for layer, point in self.places)
        return [(layer, estimate) for layer, estimate in found if estimate is not None]

    def _estimate(self, metric: Metric, point: PlacedPoint) -> Estimate | None:
        table, full = self.table, self.table.full
        if metric is not EXACT_PREFIX:
            return table.resampling.score(point.cell, metric.name, point.row.value(metric))
        return table.resampling.mean(point.cell, exact_prefixes(point.cell, full.cell)) if full else None


def figures(runs: Sequence[RecordedRun]) -> list[Figure]:
    """Return one figure per task, data source and model that some run has fixed exits of; none of random weights."""
    return [_figure(task, model, lines) for (task, _, _, model), lines in _groups(runs).items()]


def absence(runs: Sequence[RecordedRun]) -> str:
    """Return why no run has a curve; empty where one has."""
    if _groups(runs):
        return ""
    return "no curve of quality against a fixed exit's layer: no run with real weights has the strategy fixed"


def _groups(runs: Sequence[RecordedRun]) -> dict[tuple[str, str, str, str], list[_Line]]:
    """Return the curves of each task, protocol, data source and model that has any."""
    groups: dict[tuple[str, str, str, str], list[_Line]] = {}
    for run in runs:
        for table in task_tables(run):
            row = table.first
            if not table.random_weights and (lines := _lines(table)):
                groups.setdefault((row.task, row.protocol, row.source, row.model), []).extend(lines)
    return groups


def _lines(table: TaskTable) -> list[_Line]:
    """Return a table's curves: fixed exits of one KV policy and weights format, and full depth as the deepest.

    It skips no layer, so that its tokens are the same under every policy; the same policy's is taken if there is one.
    """
    depth, row = table.run.manifest.model.num_layers, table.first
    found = []
    for kv, stored in dict.fromkeys((point.row.kv, point.row.weights_format) for point in table.points):
        alike = [
            point
            for point in table.points
            if point.row.weights_format == stored and not (point.row.lossless or point.row.stop)
        ]
        places = {}
        for point in alike:
            if point.row.kv == kv and point.row.strategy in {"fixed", "full"}:
                layer = depth if point.row.strategy == "full" else point.row.options.get("layer")
                if isinstance(layer, int):
                    places[layer] = point
        if any(point.row.strategy == "fixed" for point in places.values()):
            full = next((point for point in alike if point.row.strategy == "full"), None)
            if full is not None:
                places.setdefault(depth, full)
            weights = {"pretrained": "base"}.get(row.weights, row.weights)
            label = f"{weights} weights, {row.exit_head} head, kv {kv}"
            found.append(_Line(label, table, tuple(sorted(places.items()))))
    return found


def _figure(task: str, model: str, lines: list[_Line]) -> Figure:
    shown: dict[tuple[object, ...], _Line] = {}
    for line in lines:  # a second run of the same kind is another sample of it, not another curve
        shown.setdefault((line.label, line.row.weights_format, line.row.dtype, line.row.batch_size), line)
    kept = _told_apart(list(shown.values())[:_MOST_LINES])
    possible = in_section(metrics_of(point.row for line in kept for _, point in line.places), FIGURES)
    curves = {metric: [line.curve(metric) for line in kept] for metric in possible}
    drawn = {metric: found for metric, found in curves.items() if any(found)}
    missing = [metric.title or metric.term for metric in possible if metric not in drawn]
    published = _published(kept)
    return Figure(
        f"{slug(task)}-{slug(model)}-fixed-exit",
        f"Quality against the layer of a fixed exit: {task}, {model}",
        " ".join(_caption(kept, len(lines) - len(kept), list(drawn), missing, published)),
        partial(_draw, kept, drawn, published),
    )


def _told_apart(lines: Sequence[_Line]) -> list[_Line]:
    """Add weights format, dtype and batch size to the labels where lines, or their runs' formats, differ in them."""
    formats = {name for line in lines for name in line.table.table.formats}
    dtypes, batches = {line.row.dtype for line in lines}, {line.row.batch_size for line in lines}
    found = []
    for line in lines:
        stored, dtype = line.row.weights_format, line.row.dtype
        numbers = f"{stored} with {dtype}" if len(dtypes) > 1 and line.row.numbers != dtype else stored
        label = f"{line.label}, {numbers}" if len(formats) > 1 or len(dtypes) > 1 else line.label
        label += f", batch {line.row.batch_size}" if len(batches) > 1 else ""
        found.append(replace(line, label=label))
    return found


def _published(lines: Sequence[_Line]) -> _Published:
    """Return the authors' curves of the same language and kind of weights, cached as ours."""
    row = lines[0].table.first
    if row.protocol != "green-code" or all(line.row.kv != "propagate" for line in lines):
        return []
    wanted = {line.table.first.weights for line in lines}
    curves = []
    for model in LAYERS:
        for weights in sorted(ours for name, ours in _PUBLISHED_WEIGHTS.items() if name in wanted):
            runs = [
                run
                for run in green_code()
                if (run.model, run.weights, run.language, run.kv) == (model, weights, row.language, "propagate")
                and run.strategy in {"fixed", "full"}
            ]
            if runs:
                curves.append((model, weights, sorted(runs, key=lambda run: run.exit_layer_mean)))
    return curves


def _caption(
    lines: Sequence[_Line], left_out: int, metrics: Sequence[Metric], missing: Sequence[str], published: _Published
) -> Iterator[str]:
    yield "Quality of completions when every token leaves after the same layer; the last point is full depth."
    yield from (f"{line.label}: run {line.table.run.name}, {line.table.table.size}." for line in lines)
    if len({line.places[0][1].cell.task.fingerprint for line in lines}) > 1:
        yield "The curves are of different samples."
    yield f"Data: {lines[0].table.first.source}. Bands: 95 % intervals, bootstrap over blocks of samples."
    names = [metric.name for metric in metrics]
    if _THEIR_CODEBLEU in names:
        yield "A corpus score that is no mean of samples (CodeBLEU) has no interval."
    if EXACT_PREFIX in metrics:
        yield "The exact prefix is of the tokens of full depth of the same run."
    if missing:
        yield f"Not measured, so not drawn: {', '.join(missing)}."
    if left_out:
        yield f"{left_out} further curves of the same kinds are left out."
    if published and any(name in _PUBLISHED_PANELS for name in names):
        models = " and ".join(dict.fromkeys(model for model, _, _ in published))
        yield (
            f"Grey: published results of GREEN-CODE's authors, not measured here: {models} on one Quadro RTX 8000, "
            "other data and longer prompts, placed at the same share of the model's depth."
        )
        if _THEIR_CODEBLEU in names:
            yield (
                "Their CodeBLEU is not drawn: it counts missing data flow as 1, and two of their scripts read Python "
                "as Java."
            )


def _draw(
    lines: Sequence[_Line],
    curves: dict[Metric, list[list[tuple[int, Estimate]]]],
    published: _Published,
    width: Width,
) -> Canvas:
    from matplotlib.ticker import MaxNLocator

    count = len(curves)
    across = (3 if count > 4 else 2) if width == "text" else min(2, count)
    canvas, grid = panels(width, count, 1.9, across=across, in_column=across, sharex=True)
    depth = lines[0].table.run.manifest.model.num_layers
    handles: dict[str, Any] = {}
    for axes, (metric, found) in zip(grid, curves.items(), strict=True):
        if metric.name in _PUBLISHED_PANELS:
            _draw_published(axes, metric.name, depth, published)
        for place, (line, curve) in enumerate(zip(lines, found, strict=True)):
            if curve:
                _draw_line(axes, shortened(line.label, 72), curve, place)
        axes.set_ylabel(metric.title or metric.term)
        axes.set_ylim(0, max(axes.get_ylim()[1], 0.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axes in grid[-across:]:
        axes.set_xlabel("layers executed")
        axes.xaxis.set_tick_params(labelbottom=True)
    say_size(grid[min(across, len(grid)) - 1], " or ".join(dict.fromkeys(line.table.size for line in lines)))
    legend_below(canvas, list(handles.values()), list(handles))
    return canvas


def _draw_line(axes: Axes, label: str, curve: Sequence[tuple[int, Estimate]], place: int) -> None:
    layers, estimates = zip(*curve, strict=True)
    axes.plot(
        layers, [estimate.value for estimate in estimates], label=label, color=LINE_COLOURS[place],
        marker=LINE_MARKERS[place], markersize=4.5, zorder=4, clip_on=False,
    )  # fmt: skip
    bounds = [estimate.interval for estimate in estimates if estimate.interval is not None]
    if len(bounds) == len(curve):
        low, high = zip(*bounds, strict=True)
        axes.fill_between(layers, low, high, color=LINE_COLOURS[place], alpha=0.15, linewidth=0, zorder=3)


def _draw_published(axes: Axes, name: str, depth: int, curves: _Published) -> None:
    for model, weights, runs in curves:
        known = [run for run in runs if getattr(run, name, None) is not None]
        if known:
            axes.plot(
                [depth * run.exit_layer_mean / LAYERS[model] for run in known], [getattr(run, name) for run in known],
                color=QUIET if weights == "tuned" else "#c4c4c4", linestyle=_PUBLISHED_STYLES[model], linewidth=1.0,
                zorder=1, label=f"published (GREEN-CODE): {model}, {weights}",
            )  # fmt: skip
