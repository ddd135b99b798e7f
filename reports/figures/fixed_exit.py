"""Quality against the layer of a fixed exit (the form of GREEN-CODE's Fig. 1), base and tuned weights side by side.

Runs of one task, data source and model share a figure, with a line for each kind of weights, exit head, KV policy,
weights format, dtype and batch size. GREEN-CODE's own curves stand behind them in grey: published, of other models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from harness.contracts import Metric, numbers
from harness.records.estimate import Estimate
from harness.records.summary import SummaryRow
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.task_table import TaskTable, task_tables
from reports.metrics.faithfulness import EXACT_PREFIX, exact_prefixes
from reports.metrics.vocabulary import FIGURES, in_section, metrics_of
from reports.published.numbers import LAYERS, PublishedRun, green_code
from reports.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_PUBLISHED_STYLES = {"Llama-3.2-3B": (0, (1, 1.2)), "OPT-2.7B": (0, (5, 2))}
_PUBLISHED_WEIGHTS = {"pretrained": "base", "tuned": "tuned"}
_PUBLISHED_PANELS = ("exact_match", "rouge_l")  # columns of their results
_THEIR_CODEBLEU = "codebleu"  # another score than ours, as the caption says
_Published: TypeAlias = dict[tuple[str, str], list[PublishedRun]]  # model and weights → runs by depth


@dataclass(frozen=True)
class _Line:
    """One curve: its label and its rows by layers executed, from shallow to deep."""

    label: str
    table: TaskTable
    rows: tuple[tuple[int, SummaryRow], ...]

    @property
    def row(self) -> SummaryRow:
        """Of its shallowest exit; how it decoded is the same at all."""
        return self.rows[0][1]

    def curve(self, metric: Metric) -> list[tuple[int, Estimate]]:
        """Return layers executed and estimates, of rows that have the metric."""
        table, full, found = self.table, self.table.full, []
        for layer, row in self.rows:
            cell = table.cell(row)
            if metric is not EXACT_PREFIX:
                estimate = table.resampling.score(cell, metric.name, row.value(metric))
            else:
                estimate = table.resampling.mean(cell, exact_prefixes(cell, table.cell(full))) if full else None
            found += [(layer, estimate)] if estimate is not None else []
        return found


def figures(runs: Sequence[RecordedRun]) -> list[Figure]:
    """Return one figure per task, data source and model that some run has fixed exits of; none of random weights."""
    groups: dict[tuple[str, str, str, str], list[_Line]] = {}
    for table in (table for run in runs for table in task_tables(run)):
        row = table.first
        if not table.random_weights and (lines := _lines(table)):
            groups.setdefault((row.task, row.protocol, row.source, row.model), []).extend(lines)
    return [_figure(task, model, lines) for (task, _, _, model), lines in groups.items()]


def _lines(table: TaskTable) -> list[_Line]:
    """Return a table's curves: fixed exits of one KV policy and weights format, and full depth as the deepest.

    It skips no layer, so that its tokens are the same under every policy; the same policy's is taken if there is one.
    """
    depth, first = table.run.manifest.model.num_layers, table.first
    found = []
    whole = [row for row in table.rows if not (row.lossless or row.stop or row.prompt_exit)]
    for kv, stored, keep in dict.fromkeys((row.kv, row.weights_format, row.keep) for row in whole):
        alike = [row for row in whole if (row.weights_format, row.keep) == (stored, keep)]
        full = sorted((row for row in alike if row.strategy == "full"), key=lambda row: row.kv != kv)
        places = {depth: full[0]} if full else {}
        fixed = {row.options.get("layer"): row for row in alike if row.strategy == "fixed" and row.kv == kv}
        places |= {layer: row for layer, row in fixed.items() if isinstance(layer, int)}
        if fixed:
            weights = {"pretrained": "base"}.get(first.weights, first.weights)
            kept = f", keep {keep}" if keep else ""
            how = f"kv {kv}, {numbers(stored, first.dtype)}, batch {first.batch_size}{kept}"
            label = f"{weights} weights, {first.exit_head} head, {how}"
            found.append(_Line(label, table, tuple(sorted(places.items()))))
    return found


def _figure(task: str, model: str, lines: list[_Line]) -> Figure:
    shown = {line.label: line for line in reversed(lines)}  # a second run of the same kind is no other curve
    kept = [line for line in lines if shown[line.label] is line][: len(drawing.LOOKS)]
    possible = in_section(metrics_of(row for line in kept for _, row in line.rows), FIGURES)
    curves = {metric: [line.curve(metric) for line in kept] for metric in possible}
    drawn = {metric: found for metric, found in curves.items() if any(found)}
    missing = [metric.title or metric.term for metric in possible if metric not in drawn]
    published = _published(kept)
    return Figure(
        f"{drawing.slug(task)}-{drawing.slug(model)}-fixed-exit",
        f"Quality against the layer of a fixed exit: {task}, {model}",
        " ".join(_caption(kept, len(lines) - len(kept), list(drawn), missing, published)),
        partial(_draw, kept, drawn, published),
    )


def _published(lines: Sequence[_Line]) -> _Published:
    """Return the authors' curves of the same language and kind of weights, cached as ours."""
    row = lines[0].table.first
    if row.protocol != "green-code" or all(line.row.kv != "propagate" for line in lines):
        return {}
    wanted = {_PUBLISHED_WEIGHTS.get(line.table.first.weights) for line in lines}
    curves: dict[tuple[str, str], list[PublishedRun]] = {}
    for run in sorted(green_code(), key=lambda run: run.exit_layer_mean):
        same = (run.language, run.kv) == (row.language, "propagate") and run.strategy in {"fixed", "full"}
        if same and run.weights in wanted:
            curves.setdefault((run.model, run.weights), []).append(run)
    return curves


def _caption(
    lines: Sequence[_Line], left_out: int, metrics: Sequence[Metric], missing: Sequence[str], published: _Published
) -> Iterator[str]:
    yield "Quality of completions when every token leaves after the same layer; the last point is full depth."
    yield from (f"{line.label}: run {line.table.run.name}, {line.table.table.size}." for line in lines)
    if len({line.table.cell(line.row).task.fingerprint for line in lines}) > 1:
        yield "The curves are of different samples."
    yield f"Data: {lines[0].table.first.source}. Bars: 95 % intervals, bootstrap over blocks of samples."
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
        models = " and ".join(sorted({model for model, _ in published}))
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
    canvas, grid = drawing.panels(width, count, 1.9, across=across, in_column=across, sharex=True)
    depth = lines[0].table.run.manifest.model.num_layers
    for axes, (metric, found) in zip(grid, curves.items(), strict=True):
        for line, known, look in zip(lines, found, drawing.LOOKS, strict=False):
            if known:
                layers, estimates = zip(*known, strict=True)
                drawing.curve(axes, layers, estimates, look, label=drawing.shortened(line.label, 90))
        for (model, weights), runs in published.items() if metric.name in _PUBLISHED_PANELS else ():
            share = depth / LAYERS[model]
            theirs = {share * run.exit_layer_mean: getattr(run, metric.name) for run in runs}
            shown = {layer: score for layer, score in theirs.items() if score is not None}
            colour, style = drawing.QUIET if weights == "tuned" else "#c4c4c4", _PUBLISHED_STYLES[model]
            if shown:
                name = f"published (GREEN-CODE): {model}, {weights}"
                axes.plot([*shown], [*shown.values()], color=colour, linestyle=style, linewidth=1, zorder=1, label=name)
        axes.set_ylabel(metric.title or metric.term)
        axes.set_ylim(0, max(axes.get_ylim()[1], 0.05))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[-across:]:
        axes.set_xlabel("layers executed")
        axes.xaxis.set_tick_params(labelbottom=True)
    drawing.say_size(grid[min(across, len(grid)) - 1], " or ".join(dict.fromkeys(line.table.size for line in lines)))
    drawing.legend_below(canvas)
    return canvas
