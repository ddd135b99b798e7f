"""Quality against the layer of a fixed exit (the form of GREEN-CODE's Fig. 1), base and tuned weights side by side.

Runs of one task, data source and model share a figure, with a line for each kind of weights, exit head, KV policy,
weights format, dtype and batch size.
GREEN-CODE's own curves stand behind them in grey, as what they are: published, of other models on another machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from harness.contracts import Metric
from harness.records.estimate import Estimate
from harness.records.summary import SummaryRow
from reports.figures.figure import Figure, slug
from reports.figures.layout import Width, legend_below, panels, say_size
from reports.figures.style import LINE_COLOURS, LINE_MARKERS, QUIET
from reports.figures.task_table import PlacedPoint, TaskTable, shortened, task_tables
from reports.metrics.faithfulness import EXACT_PREFIX, exact_prefixes
from reports.metrics.sections import FIGURES, in_section
from reports.metrics.vocabulary import metrics_of
from reports.published.green_code import LAYERS, PublishedRun, green_code
from reports.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_MOST_LINES = 8
_PUBLISHED_STYLES = {"Llama-3.2-3B": (0, (1, 1.2)), "OPT-2.7B": (0, (5, 2))}
_PUBLISHED_WEIGHTS = {"pretrained": "base", "tuned": "tuned"}
_PUBLISHED_PANELS = ("exact_match", "rouge_l")  # columns of their results
_THEIR_CODEBLEU = "codebleu"  # another score than ours, as the caption says


@dataclass(frozen=True)
class _Line:
    """One curve: its label and (layers executed, estimate) by metric, from shallow to deep."""

    label: str
    weights: str
    table: TaskTable
    places: tuple[tuple[int, PlacedPoint], ...]
    curves: dict[Metric, list[tuple[int, Estimate]]] = field(default_factory=dict)

    @property
    def row(self) -> SummaryRow:
        """Of its shallowest exit; how it decoded is the same at all."""
        return self.places[0][1].row


def figures(runs: Sequence[RecordedRun]) -> list[Figure]:
    """Return one figure per task, data source and model that some run has fixed exits of; none of random weights."""
    return [_figure(key, lines) for key, lines in _groups(runs).items()]


def absence(runs: Sequence[RecordedRun]) -> str:
    """Return why no run has a curve; empty where one has."""
    if _groups(runs):
        return ""
    return "no curve of quality against a fixed exit's layer: no run with real weights has the strategy fixed"


def _groups(runs: Sequence[RecordedRun]) -> dict[tuple[str, ...], list[_Line]]:
    """Return the curves of each task, data source and model that has any."""
    groups: dict[tuple[str, ...], list[_Line]] = {}
    for run in runs:
        for table in task_tables(run):
            row = table.table.rows[0]
            if not table.random_weights:
                key = (row.task, row.protocol, row.source, row.model)
                groups.setdefault(key, []).extend(_lines(table))
    return {key: lines for key, lines in groups.items() if lines}


def _lines(table: TaskTable) -> list[_Line]:
    """Return a table's curves: fixed exits of one KV policy and weights format, and full depth as the deepest.

    It skips no layer, so that its tokens are the same under every policy; the same policy's is taken if there is one.
    """
    depth = table.run.manifest.model.num_layers
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
            row = table.table.rows[0]
            weights = {"pretrained": "base"}.get(row.weights, row.weights)
            label = f"{weights} weights, {row.exit_head} head, kv {kv}"
            found.append(_Line(label, row.weights, table, tuple(sorted(places.items())), {}))
    return found


def _figure(key: tuple[str, ...], lines: list[_Line]) -> Figure:
    task, _, _, model = key
    shown: dict[tuple[object, ...], _Line] = {}
    for line in lines:  # a second run of the same kind is another sample of it, not another curve
        shown.setdefault((line.label, line.row.weights_format, line.row.dtype, line.row.batch_size), line)
    kept = _told_apart(list(shown.values())[:_MOST_LINES])
    for line in kept:
        line.curves.update(_curves(line))
    metrics = [metric for metric in _panels(kept) if any(line.curves.get(metric) for line in kept)]
    published = _published(kept)
    return Figure(
        f"{slug(task)}-{slug(model)}-fixed-exit",
        f"Quality against the layer of a fixed exit: {task}, {model}",
        " ".join((_caption(kept, len(lines) - len(kept), metrics), *_published_caption(published, metrics))),
        _drawer(kept, metrics, published),
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


def _panels(lines: Sequence[_Line]) -> list[Metric]:
    """Return the metrics that may have a panel."""
    return in_section(metrics_of(point.row for line in lines for _, point in line.places), FIGURES)


def _curves(line: _Line) -> dict[Metric, list[tuple[int, Estimate]]]:
    table, full = line.table, line.table.full
    found: dict[Metric, list[tuple[int, Estimate]]] = {}
    for metric in _panels([line]):
        for layer, point in line.places:
            if metric is not EXACT_PREFIX:
                estimate = table.resampling.score(point.cell, metric.name, point.row.value(metric))
            elif full is not None:
                mean = table.resampling.mean(point.cell, exact_prefixes(point.cell, full.cell))
                estimate = None if mean is None else mean.estimate
            else:
                estimate = None
            if estimate is not None:
                found.setdefault(metric, []).append((layer, estimate))
    return found


def _published(lines: Sequence[_Line]) -> list[tuple[str, str, list[PublishedRun]]]:
    """Return the authors' curves of the same language and kind of weights, cached as ours: (model, weights, runs)."""
    row = lines[0].table.table.rows[0]
    if row.protocol != "green-code" or all(line.places[0][1].row.kv != "propagate" for line in lines):
        return []
    wanted = {_PUBLISHED_WEIGHTS[line.weights] for line in lines if line.weights in _PUBLISHED_WEIGHTS}
    curves = []
    for model in LAYERS:
        for weights in sorted(wanted):
            runs = [
                run
                for run in green_code()
                if (run.model, run.weights, run.language, run.kv) == (model, weights, row.language, "propagate")
                and run.strategy in {"fixed", "full"}
            ]
            if runs:
                curves.append((model, weights, sorted(runs, key=lambda run: run.exit_layer_mean)))
    return curves


def _caption(lines: Sequence[_Line], left_out: int, metrics: Sequence[Metric]) -> str:
    parts = ["Quality of completions when every token leaves after the same layer; the last point is full depth."]
    parts += [f"{line.label}: run {line.table.run.name}, {line.table.table.size}." for line in lines]
    if len({_fingerprint(line) for line in lines}) > 1:
        parts.append("The curves are of different samples.")
    parts.append(
        f"Data: {lines[0].table.table.rows[0].source}. Bands: 95 % intervals, bootstrap over blocks of samples."
    )
    if any(metric.name == _THEIR_CODEBLEU for metric in metrics):
        parts.append("A corpus score that is no mean of samples (CodeBLEU) has no interval.")
    if EXACT_PREFIX in metrics:
        parts.append("The exact prefix is of the tokens of full depth of the same run.")
    missing = [_title(metric) for metric in _panels(lines) if metric not in metrics]
    if missing:
        parts.append(f"Not measured, so not drawn: {', '.join(missing)}.")
    if left_out:
        parts.append(f"{left_out} further curves of the same kinds are left out.")
    return " ".join(parts)


def _published_caption(
    curves: Sequence[tuple[str, str, list[PublishedRun]]], metrics: Sequence[Metric]
) -> Iterator[str]:
    if not curves or not any(metric.name in _PUBLISHED_PANELS for metric in metrics):
        return
    models = " and ".join(dict.fromkeys(model for model, _, _ in curves))
    yield (
        f"Grey: published results of GREEN-CODE's authors, not measured here: {models} on one Quadro RTX 8000, other "
        "data and longer prompts, placed at the same share of the model's depth."
    )
    if any(metric.name == _THEIR_CODEBLEU for metric in metrics):
        yield (
            "Their CodeBLEU is not drawn: it counts missing data flow as 1, and two of their scripts read Python as "
            "Java."
        )


def _fingerprint(line: _Line) -> str:
    return line.places[0][1].cell.task.fingerprint


def _drawer(
    lines: Sequence[_Line], metrics: Sequence[Metric], published: Sequence[tuple[str, str, list[PublishedRun]]]
) -> Callable[[Width], Canvas]:
    def draw(width: Width) -> Canvas:
        from matplotlib.ticker import MaxNLocator

        across = (3 if len(metrics) > 4 else 2) if width == "text" else min(2, len(metrics))
        canvas, grid = panels(width, len(metrics), 1.9, across=across, in_column=across, sharex=True)
        depth = lines[0].table.run.manifest.model.num_layers
        for axes, metric in zip(grid, metrics, strict=True):
            if metric.name in _PUBLISHED_PANELS:
                _draw_published(axes, metric.name, depth, published)
            for place, line in enumerate(lines):
                _draw_line(axes, line, metric, place)
            axes.set_ylabel(_title(metric))
            axes.set_ylim(0, max(axes.get_ylim()[1], 0.05))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid[-across:]:
            axes.set_xlabel("layers executed")
            axes.xaxis.set_tick_params(labelbottom=True)
        handles: dict[str, Any] = {}
        for axes in grid:
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        sizes = dict.fromkeys(line.table.size for line in lines)
        say_size(grid[min(across, len(grid)) - 1], " or ".join(sizes))
        legend_below(canvas, list(handles.values()), list(handles))
        return canvas

    return draw


def _title(metric: Metric) -> str:
    return metric.title or metric.term


def _draw_line(axes: Axes, line: _Line, metric: Metric, place: int) -> None:
    curve = line.curves.get(metric)
    if not curve:
        return
    colour, layers = LINE_COLOURS[place], [layer for layer, _ in curve]
    look: Any = {"color": colour, "marker": LINE_MARKERS[place], "markersize": 4.5, "zorder": 4, "clip_on": False}
    axes.plot(layers, [estimate.value for _, estimate in curve], label=shortened(line.label, 72), **look)
    banded = [(layer, estimate.interval) for layer, estimate in curve if estimate.interval is not None]
    if len(banded) == len(curve):
        axes.fill_between(
            layers,
            [ci[0] for _, ci in banded],
            [ci[1] for _, ci in banded],
            color=colour,
            alpha=0.15,
            linewidth=0,
            zorder=3,
        )


def _draw_published(axes: Axes, name: str, depth: int, curves: Sequence[tuple[str, str, list[PublishedRun]]]) -> None:
    for model, weights, runs in curves:
        places = [
            (depth * run.exit_layer_mean / LAYERS[model], score)
            for run in runs
            if (score := getattr(run, name, None)) is not None
        ]
        if places:
            axes.plot(
                [x for x, _ in places],
                [y for _, y in places],
                color=QUIET if weights == "tuned" else "#c4c4c4",
                linestyle=_PUBLISHED_STYLES[model],
                linewidth=1.0,
                zorder=1,
                label=f"published (GREEN-CODE): {model}, {weights}",
            )
