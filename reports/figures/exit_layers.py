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
from reports.completions.token_kinds import KINDS, kinds_of
from reports.figures.drawing import ROWS, STACKED, Figure, Width, panels, reach, say_size, shortened
from reports.figures.task_table import PlacedPoint, TaskTable, task_tables
from reports.recorded import RecordedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure as Canvas

_MOST_POSITIONS = 64
_MEAN = "#d55e00"
_FEWEST = 10  # tokens; of fewer a column says nothing


@dataclass(frozen=True)
class Histogram:
    """Exit layers of the tokens of one operating point, by group."""

    counts: Counter[tuple[Hashable, int]]
    means: dict[Hashable, tuple[int, Estimate]]

    def share(self, group: Hashable, layer: int) -> float:
        """Return the share of a group's tokens that left after a layer."""
        return self.counts[group, layer] / self.means[group][0]


def figures(run: RecordedRun) -> list[Figure]:
    """Return the figures of every table; of many operating points several, each with some of them."""
    found = []
    for table in task_tables(run):
        deciding = [point for point in table.points if len(_layers(point)) > 1]
        parts = [deciding[start : start + ROWS] for start in range(0, len(deciding), ROWS)]
        for number, points in enumerate(parts, 1):
            name, which = (f"-{number}", f" ({number} of {len(parts)})") if len(parts) > 1 else ("", "")
            title = f"Where tokens leave: {table.first.task}{which}"
            stem = table.stem(f"exit-layers{name}")
            found.append(Figure(stem, title, _caption(table, points), partial(_draw, table, points)))
    return found


def absence(run: RecordedRun) -> str:
    """Return what a run lacks of these figures; empty where it has both halves."""
    points = [point for table in task_tables(run) for point in table.points]
    if not any(len(_layers(point)) > 1 for point in points):
        return "no figure of exit layers: every operating point leaves after one and the same layer"
    if not any(map(_has_texts, points)):
        return "no exit layers by kind of token: the run was recorded before token texts were; run it again for them"
    return ""


def by_position(table: TaskTable, point: PlacedPoint) -> Histogram:
    """Group the decided tokens by their place in the completion, from 1; with a cache the first is prefill's."""
    first = 2 if point.cell.conditions.cached else 1
    return _histogram(
        table,
        [
            (place, block, layer)
            for block, layers, _ in _decided(point)
            for place, layer in enumerate(layers[:_MOST_POSITIONS], first)
        ],
    )


def by_kind(table: TaskTable, point: PlacedPoint) -> Histogram:
    """Group the decided tokens by :mod:`reports.completions.token_kinds`; tokens without text are left out."""
    return _histogram(
        table,
        [
            (kind, block, layer)
            for block, layers, kinds in _decided(point)
            for kind, layer in zip(kinds, layers, strict=False)
            if kind is not None
        ],
    )


def _decided(point: PlacedPoint) -> list[tuple[int, Sequence[int], list[str | None]]]:
    """Block, exit layers and kinds of the tokens that a strategy was asked about, of each sample's first repeat."""
    found = []
    for sample in point.cell.scored:
        layers = point.cell.decoded_layers(sample)
        kinds = kinds_of(sample.token_texts, point.row.language)[len(sample.token_texts) - len(layers) :]
        found.append((point.cell.windows[sample.window].block, layers, kinds if sample.token_texts else []))
    return found


def _histogram(table: TaskTable, tokens: list[tuple[Hashable, int, int]]) -> Histogram:
    means = table.resampling.mean_by((group, block, float(layer)) for group, block, layer in tokens)
    return Histogram(Counter((group, layer) for group, _, layer in tokens), means)


def _layers(point: PlacedPoint) -> set[int]:
    return {layer for sample in point.cell.scored for layer in point.cell.decoded_layers(sample)}


def _has_texts(point: PlacedPoint) -> bool:
    return any(sample.token_texts for sample in point.cell.scored)


def _caption(table: TaskTable, points: Sequence[PlacedPoint]) -> str:
    parts = [
        table.provenance.replace("Error bars", "Vertical bars on the line of means"),
        "Colour: share of the tokens in a column that left after each layer; a mean without bar: too few blocks.",
    ]
    if any(point.cell.conditions.cached for point in points):
        parts.append("The first token comes from prefill at full depth and is not shown.")
    if any(map(_has_texts, points)):
        parts.append(
            f"Kinds come from a small lexer that does not see the prompt; below {_FEWEST} tokens a kind is left out; "
            "n is the number of tokens. Kinds stand at different places, so that the two halves are not independent."
        )
    else:
        parts.append("This run holds no token texts, so kinds are unknown.")
    return " ".join(parts)


def _draw(table: TaskTable, points: Sequence[PlacedPoint], width: Width) -> Canvas:
    kinds = any(map(_has_texts, points))
    halves = 2 if kinds else 1
    canvas, grid = panels(width, halves * len(points), 1.8 if width == "text" else STACKED, across=halves, sharey=True)
    layers = sorted({table.run.manifest.model.num_layers}.union(*map(_layers, points)))
    mesh: QuadMesh | None = None
    for row, point in enumerate(points):
        left, right = grid[halves * row], grid[halves * (row + 1) - 1]
        histogram = by_position(table, point)
        places: list[Hashable] = sorted(histogram.means, key=lambda place: int(str(place)))
        if places:
            mesh = _heat(left, histogram, places, layers)
        left.set_title(shortened(point.row.operating_point, 36 if kinds or width == "text" else 20))
        left.set_ylabel("exit layer")
        left.set_xlabel("place of the token in the completion")
        if kinds:
            histogram = by_kind(table, point)
            shown: list[Hashable] = [kind for kind in KINDS if histogram.means.get(kind, (0,))[0] >= _FEWEST]
            if shown:
                _heat(right, histogram, shown, layers, joined=False)
                labels = [f"{kind} (n {histogram.means[kind][0]})" for kind in shown]
                right.set_xticks(range(len(shown)), labels, rotation=25, ha="right", rotation_mode="anchor")
            else:
                right.set_axis_off()
            if width == "column":
                right.set_ylabel("exit layer")
        say_size(right, f"n = {point.row.n} samples")
    if mesh is not None:
        shrink = min(1.0, 1.6 / len(points) + 0.2)
        aspect = 20 if width == "text" else 10 * len(grid)
        canvas.colorbar(mesh, ax=grid, label="share of tokens", shrink=shrink, aspect=aspect, pad=0.01)
    return canvas


def _heat(
    axes: Axes, histogram: Histogram, groups: Sequence[Hashable], layers: Sequence[int], *, joined: bool = True
) -> QuadMesh:
    """Draw shares as colour, a band around each layer at which anything left, and the means over them."""
    first = int(str(groups[0])) if joined else 0
    across = [first - 0.5 + place for place in range(len(groups) + 1)]
    shares = [[histogram.share(group, layer) for group in groups] for layer in layers]
    mesh = axes.pcolormesh(across, _edges(layers), shares, cmap="Blues", vmin=0, vmax=1, rasterized=True)
    means = [histogram.means[group][1] for group in groups]
    values = [one.value for one in means]
    axes.errorbar(
        [first + place for place in range(len(groups))], values, yerr=reach(values, [one.interval for one in means]),
        color=_MEAN, fmt="o-" if joined else "o", markersize=3, linewidth=1.0, elinewidth=0.9,
    )  # fmt: skip
    axes.set_yticks(layers[:: -(-len(layers) // 6)])
    axes.grid(visible=False)
    return mesh


def _edges(layers: Sequence[int]) -> list[float]:
    """Return the borders of bands around layers, half-way between neighbours."""
    if len(layers) == 1:
        return [layers[0] - 0.5, layers[0] + 0.5]
    middles = [(low + high) / 2 for low, high in pairwise(layers)]
    return [1.5 * layers[0] - 0.5 * layers[1], *middles, 1.5 * layers[-1] - 0.5 * layers[-2]]
