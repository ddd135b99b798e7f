"""The paper's bars beside ours: what its agent skips, saves and keeps, and what exits and a KV cache leave of the cost.

Published bars are hatched and have no interval, since there is none; ours have 95 % intervals. Colours are of systems,
which are not strategies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from textwrap import fill
from typing import TYPE_CHECKING, Any

from reports.figures.figure import Figure, slug
from reports.figures.layout import Width, legend_below, panels, say_size
from reports.figures.style import INK, QUIET
from reports.published.against import COLUMNS, FULL, Comparison
from reports.published.green_code import THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

GRID = ("layers_skipped", "time_saving", "energy_saving", "rouge_l_kept", "codebleu_kept", "agent_time")
CACHE = ("time_of_uncached", "energy_of_uncached")
LOOKS = {
    "paper": (("#9ecae1", "///"), ("#fdd0a2", "\\\\\\"), ("#c7e9c0", "..."), ("#dadaeb", "xxx")),
    "here": (("#0072b2", ""), ("#d55e00", ""), ("#009e73", ""), ("#cc79a7", ""), ("#e69f00", "")),
}
"""Whose → colours and hatches of its systems, in the order of the rows."""


def comparison_figures(comparison: Comparison) -> list[Figure]:
    """Return the paper's grid, and what exits and the cache leave of full depth's cost without a cache."""
    where = f"{comparison.task.name}, {comparison.run.manifest.model.name}"
    caption = ". ".join(line[0].upper() + line[1:] for line in comparison.notes)
    return [
        Figure(f"green-code-{kind}-{slug(where)}", title := f"GREEN-CODE, published and measured: {what} ({where})",
               caption, partial(_draw, comparison, title, quantities, cache=kind == "cache"))
        for kind, what, quantities in (
            ("grid", "the agent's grid", GRID),
            ("cache", "cost over full depth without a KV cache", CACHE),
        )
    ]  # fmt: skip


def _draw(comparison: Comparison, title: str, quantities: Sequence[str], width: Width, *, cache: bool) -> Canvas:
    settings = [*([FULL] if cache else ()), *(f"threshold {threshold:g}" for threshold in THRESHOLDS)]
    beside, height, letters = (3, 2.3, 24) if width == "text" else (1, 1.2, 40)
    canvas, axes = panels(width, len(quantities), height, across=beside, sharex=True)
    for ax, name in zip(axes, quantities, strict=True):
        _panel(ax, comparison, settings, name, cache=cache)
        column = COLUMNS[name]
        ax.set_title(fill(f"{column.header} {column.unit}".strip(), letters))
    for ax in axes[::beside]:
        ax.set_ylabel("%")
    for ax in axes[-beside:]:
        ax.set_xlabel("agent's threshold")
    samples = max(row.n for row in comparison.run.summary.rows if row.task == comparison.task.name)
    say_size(axes[min(beside // 2, len(axes) - 1)], f"n = {samples} samples")
    said = "n: measured here. Black lines: 95 % intervals; published numbers have none."
    legend_below(canvas, *axes[0].get_legend_handles_labels(), title=said)
    canvas.suptitle(fill(title, 44 if width == "column" else 90), x=0.01, ha="left", fontweight="bold", fontsize=8)
    return canvas


def _panel(ax: Axes, comparison: Comparison, settings: Sequence[str], name: str, *, cache: bool) -> None:
    rows = [
        row for row in comparison.rows if row.setting in settings and (cache or not row.paper_model or row.kv == "none")
    ]
    looks = {whose: iter(some) for whose, some in LOOKS.items()}
    systems = list(dict.fromkeys(row.system for row in rows))
    wide = 0.8 / len(systems)
    for place, system in enumerate(systems):
        colour, hatch = next(looks[system.partition(",")[0]])
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "#555555", "linewidth": 0.4 * bool(hatch)}
        ax.bar(0, 0, 0, label=system, **look)  # the legend has every system, whatever is missing
        for row in rows:
            value = row.values.get(name) if row.system == system else None
            if value is None:
                continue
            x = settings.index(row.setting) + (place - (len(systems) - 1) / 2) * wide
            ax.bar(x, 100 * value.value, wide * 0.92, **look)
            if value.interval is not None:
                ax.vlines(x, 100 * value.interval[0], 100 * value.interval[1], color=INK, linewidth=0.9)
    labels = [setting.removeprefix("threshold ").removesuffix(" depth") for setting in settings]
    ax.set_xticks(range(len(settings)), labels)
    ax.axhline(0, color=QUIET, linewidth=0.8)
    ax.grid(axis="x", visible=False)
    if name.endswith("_kept"):
        ax.axhline(100, color=QUIET, linewidth=0.8, linestyle=":")
        ax.set_ylim(bottom=0)
    if not any(name in row.values for row in rows):
        ax.text(0.5, 0.5, "no number", transform=ax.transAxes, ha="center", color=QUIET)
