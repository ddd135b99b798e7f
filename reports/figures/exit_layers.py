"""Where tokens leave: exit layers by the token's place in the completion, and by its kind.

One row per operating point that decides (a fixed exit has nothing to show). Colour is the share of the tokens at one
place, or of one kind, that left after each layer; a column adds up to 1. The line is their mean with its 95 % interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from harness.records.estimate import Estimate
from reports.completions.token_kinds import KINDS, kinds_of
from reports.figures.figure import Figure
from reports.figures.layout import ROWS, STACKED, Width, panels, say_size
from reports.figures.task_table import PlacedPoint, TaskTable, shortened, task_tables
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
    """Exit layers of the tokens of one operating point, by group.

    Attributes:
        counts: (group, layer) → tokens.
        means: group → tokens, and their mean exit layer.
    """

    counts: Counter[tuple[Hashable, int]]
    means: dict[Hashable, tuple[int, Estimate]]

    def share(self, group: Hashable, layer: int) -> float:
        """Return the share of a group's tokens that left after a layer."""
        return self.counts[group, layer] / self.means[group][0]


def figures(run: RecordedRun) -> list[Figure]:
    """Return the figures of every table; of many operating points several, each with some of them."""
    found = []
    for table in task_tables(run):
        deciding = [point for point in table.points if _varies(point)]
        parts = [deciding[start : start + ROWS] for start in range(0, len(deciding), ROWS)]
        for number, points in enumerate(parts, 1):
            suffix = f"-{number}" if len(parts) > 1 else ""
            found.append(
                Figure(
                    table.stem(f"exit-layers{suffix}"),
                    f"Where tokens leave: {table.task}" + (f" ({number} of {len(parts)})" if suffix else ""),
                    _caption(table, points),
                    _drawer(table, points),
                )
            )
    return found


def absence(run: RecordedRun) -> str:
    """Return what a run lacks of these figures; empty where it has both halves."""
    tables = list(task_tables(run))
    if not any(_varies(point) for table in tables for point in table.points):
        return "no figure of exit layers: every operating point leaves after one and the same layer"
    if not any(_has_texts(point) for table in tables for point in table.points):
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
            for place, layer in enumerate(layers, first)
            if place < first + _MOST_POSITIONS
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


def _varies(point: PlacedPoint) -> bool:
    return len({layer for sample in point.cell.scored for layer in point.cell.decoded_layers(sample)}) > 1


def _has_texts(point: PlacedPoint) -> bool:
    return any(sample.token_texts for sample in point.cell.scored)


def _caption(table: TaskTable, points: Sequence[PlacedPoint]) -> str:
    parts = [
        table.provenance.replace("Error bars", "Vertical bars on the line of means"),
        "Colour: share of the tokens in a column that left after each layer; a mean without bar: too few blocks.",
    ]
    if any(point.cell.conditions.cached for point in points):
        parts.append("The first token comes from prefill at full depth and is not shown.")
    if any(_has_texts(point) for point in points):
        parts.append(
            f"Kinds come from a small lexer that does not see the prompt; below {_FEWEST} tokens a kind is left out; "
            "n is the number of tokens. Kinds stand at different places, so that the two halves are not independent."
        )
    else:
        parts.append("This run holds no token texts, so kinds are unknown.")
    return " ".join(parts)


def _drawer(table: TaskTable, points: Sequence[PlacedPoint]) -> Callable[[Width], Canvas]:
    def draw(width: Width) -> Canvas:
        kinds = any(_has_texts(point) for point in points)
        halves = 2 if kinds else 1
        height = 1.8 if width == "text" else STACKED
        canvas, grid = panels(width, halves * len(points), height, across=halves, sharey=True)
        depth = table.run.manifest.model.num_layers
        layers = sorted(
            {layer for p in points for sample in p.cell.scored for layer in p.cell.decoded_layers(sample)} | {depth}
        )
        mesh: QuadMesh | None = None
        for row, point in enumerate(points):
            histogram = by_position(table, point)
            places: list[Hashable] = sorted(histogram.means, key=lambda place: int(str(place)))
            left = grid[halves * row]
            mesh = _heat(left, histogram, places, layers) or mesh
            left.set_title(shortened(point.row.operating_point, 36 if kinds or width == "text" else 20))
            left.set_ylabel("exit layer")
            left.set_xlabel("place of the token in the completion")
            if kinds:
                _kinds(grid[halves * row + 1], by_kind(table, point), layers)
                if width == "column":
                    grid[halves * row + 1].set_ylabel("exit layer")
            say_size(grid[halves * (row + 1) - 1], f"n = {point.row.n} samples")
        if mesh is not None:
            shrink = min(1.0, 1.6 / len(points) + 0.2)
            aspect = 20 if width == "text" else 10 * len(grid)
            canvas.colorbar(mesh, ax=grid, label="share of tokens", shrink=shrink, aspect=aspect, pad=0.01)
        return canvas

    return draw


def _kinds(axes: Axes, histogram: Histogram, layers: Sequence[int]) -> None:
    shown: list[Hashable] = [kind for kind in KINDS if histogram.means.get(kind, (0,))[0] >= _FEWEST]
    if not shown:
        axes.set_axis_off()
        return
    _heat(axes, histogram, shown, layers, joined=False)
    axes.set_xticks(
        range(len(shown)),
        [f"{kind} (n {histogram.means[kind][0]})" for kind in shown],
        rotation=25,
        ha="right",
        rotation_mode="anchor",
    )


def _heat(
    axes: Axes, histogram: Histogram, groups: Sequence[Hashable], layers: Sequence[int], *, joined: bool = True
) -> QuadMesh | None:
    """Draw shares as colour, a band around each layer at which anything left, and the means over them."""
    if not groups:
        return None
    first = int(str(groups[0])) if joined else 0
    xs = [first + place for place in range(len(groups))]
    shares = [[histogram.share(group, layer) for group in groups] for layer in layers]
    mesh = axes.pcolormesh(
        [first - 0.5 + place for place in range(len(groups) + 1)],
        _edges(layers),
        shares,
        cmap="Blues",
        vmin=0,
        vmax=1,
        rasterized=True,
    )
    means = [histogram.means[group][1] for group in groups]
    reach = [
        (max(0.0, one.value - ends[0]), max(0.0, ends[1] - one.value)) if (ends := one.interval) else (0.0, 0.0)
        for one in means
    ]
    axes.errorbar(
        xs,
        [one.value for one in means],
        yerr=list(zip(*reach, strict=True)),
        color=_MEAN,
        fmt="o-" if joined else "o",
        markersize=3,
        linewidth=1.0,
        elinewidth=0.9,
    )
    axes.set_yticks(layers[:: -(-len(layers) // 6)])
    axes.grid(visible=False)
    return mesh


def _edges(layers: Sequence[int]) -> list[float]:
    """Return the borders of bands around layers, half-way between neighbours."""
    if len(layers) == 1:
        return [layers[0] - 0.5, layers[0] + 0.5]
    middles = [(low + high) / 2 for low, high in pairwise(layers)]
    return [1.5 * layers[0] - 0.5 * layers[1], *middles, 1.5 * layers[-1] - 0.5 * layers[-2]]
