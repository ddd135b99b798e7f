"""Where tokens leave: exit layers by the token's place in the completion, and by its kind.

One row per operating point that decides (a fixed exit has nothing to show). Colour is the share of the tokens at one
place, or of one kind, that left after each layer; a column adds up to 1. The line is their mean with its 95 % interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.records.estimate import Estimate
from harness.records.summary import SummaryRow
from reports.completions.token_kinds import KINDS, kinds_of
from reports.figures import drawing
from reports.figures.drawing import Figure, Width
from reports.figures.task_table import TaskTable, task_tables
from reports.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure as Canvas

_MOST_POSITIONS = 64
_FEWEST = 10  # tokens; of fewer a column says nothing


@dataclass(frozen=True)
class Histogram:
    """Exit layers of the tokens of one operating point, by group: tokens of (group, layer), and each group's mean."""

    counts: Counter[tuple[Hashable, int]]
    means: dict[Hashable, tuple[int, Estimate]]  # group → tokens, and their mean exit layer


def figures(run: RecordedRun) -> list[Figure]:
    """Return the figures of every table; of many operating points several, each with some of them."""
    found = []
    for table in task_tables(run):
        deciding = [row for row in table.rows if len(_layers(table, row)) > 1]
        for name, which, rows in drawing.parted(deciding, drawing.ROWS) if deciding else ():
            title = f"Where tokens leave: {table.first.task}{which}"
            stem = table.stem(f"exit-layers{name}")
            found.append(Figure(stem, title, _caption(table, rows), partial(_draw, table, rows)))
    return found


def by_group(table: TaskTable, row: SummaryRow, *, kinds: bool) -> Histogram:
    """Group the tokens that a strategy was asked about, of each sample's first repeat.

    By their place in the completion, from 1 (with a cache the first is prefill's, which nobody was asked about), or by
    their :mod:`reports.completions.token_kinds`, those without text left out.
    """
    cell, tokens = table.cell(row), list[tuple[Hashable, int, int]]()
    for sample in cell.scored:
        block, layers = cell.unit(sample), cell.decoded_layers(sample)
        groups: Sequence[Hashable] = range(1 + cell.conditions.cached, 1 + cell.conditions.cached + _MOST_POSITIONS)
        if kinds:
            found = kinds_of(sample.token_texts, row.language)
            groups = found[len(found) - len(layers) :] if found else ()
        tokens += [(group, block, layer) for group, layer in zip(groups, layers, strict=False) if group is not None]
    means = table.resampling.mean_by((group, block, float(layer)) for group, block, layer in tokens)
    return Histogram(Counter((group, layer) for group, _, layer in tokens), means)


def _layers(table: TaskTable, row: SummaryRow) -> set[int]:
    cell = table.cell(row)
    return {layer for sample in cell.scored for layer in cell.decoded_layers(sample)}


def _has_texts(table: TaskTable, row: SummaryRow) -> bool:
    return any(sample.token_texts for sample in table.cell(row).scored)


def _caption(table: TaskTable, rows: Sequence[SummaryRow]) -> str:
    parts = [
        table.provenance.replace("Error bars", "Vertical bars on the line of means"),
        "Colour: share of the tokens in a column that left after each layer; a mean without bar: too few blocks.",
    ]
    if any(table.cell(row).conditions.cached for row in rows):
        parts.append("The first token comes from prefill at full depth and is not shown.")
    if any(_has_texts(table, row) for row in rows):
        parts.append(
            f"Kinds come from a small lexer that does not see the prompt; below {_FEWEST} tokens a kind is left out; "
            "n is the number of tokens. Kinds stand at different places, so that the two halves are not independent."
        )
    else:
        parts.append("This run holds no token texts, so kinds are unknown.")
    return " ".join(parts)


def _draw(table: TaskTable, rows: Sequence[SummaryRow], width: Width) -> Canvas:
    kinds = any(_has_texts(table, row) for row in rows)
    halves = 2 if kinds else 1
    canvas, grid = drawing.panels(
        width, halves * len(rows), 1.8 if width == "text" else drawing.STACKED, across=halves, sharey=True
    )
    layers = sorted({table.run.manifest.model.num_layers}.union(*(_layers(table, row) for row in rows)))
    mesh: QuadMesh | None = None
    for number, row in enumerate(rows):
        left, right = grid[halves * number], grid[halves * (number + 1) - 1]
        histogram = by_group(table, row, kinds=False)
        if histogram.means:
            mesh = _heat(left, histogram, sorted(histogram.means, key=lambda place: int(str(place))), layers)
        left.set_title(drawing.shortened(row.operating_point, 36 if kinds or width == "text" else 20))
        left.set(ylabel="exit layer", xlabel="place of the token in the completion")
        if kinds:
            histogram = by_group(table, row, kinds=True)
            shown: list[Hashable] = [kind for kind in KINDS if histogram.means.get(kind, (0,))[0] >= _FEWEST]
            if shown:
                _heat(right, histogram, shown, layers, joined=False)
                labels = [f"{kind} (n {histogram.means[kind][0]})" for kind in shown]
                right.set_xticks(range(len(shown)), labels, rotation=25, ha="right", rotation_mode="anchor")
            else:
                right.set_axis_off()
            if width == "column":
                right.set_ylabel("exit layer")
        drawing.say_size(right, f"n = {row.n} samples")
    if mesh is not None:
        shrink = min(1.0, 1.6 / len(rows) + 0.2)
        aspect = 20 if width == "text" else 10 * len(grid)
        canvas.colorbar(mesh, ax=grid, label="share of tokens", shrink=shrink, aspect=aspect, pad=0.01)
    return canvas


def _heat(
    axes: Axes, histogram: Histogram, groups: Sequence[Hashable], layers: Sequence[int], *, joined: bool = True
) -> QuadMesh:
    """Draw shares as colour, a band around each layer at which anything left, and the means over them."""
    first = int(str(groups[0])) if joined else 0
    places = [first + place for place in range(len(groups))]
    middles = [(low + high) / 2 for low, high in pairwise(layers)]
    half = (middles[0] - layers[0], layers[-1] - middles[-1]) if middles else (0.5, 0.5)
    edges = [layers[0] - half[0], *middles, layers[-1] + half[1]]
    shares = [[histogram.counts[group, layer] / histogram.means[group][0] for group in groups] for layer in layers]
    across = [*(place - 0.5 for place in places), places[-1] + 0.5]
    mesh = axes.pcolormesh(across, edges, shares, cmap="Blues", vmin=0, vmax=1, rasterized=True)
    means = [histogram.means[group][1] for group in groups]
    drawing.curve(
        axes, places, means, drawing.Look("#d55e00", "o"), linestyle="-" if joined else "", markersize=3, linewidth=1
    )
    axes.set_yticks(layers[:: -(-len(layers) // 6)])
    axes.grid(visible=False)
    return mesh
