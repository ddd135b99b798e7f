"""The comparison GREEN-CODE did not make: early exit without a KV cache beside full depth with one.

Everything is a share of full depth *without* a cache, the baseline of the published savings, so that the two ways of
saving stand in one column. Published shares are of the authors' own runs (:mod:`reports.green_code.published_runs`);
measured ones are paired by block, with 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.errors import StoreError
from harness.records.estimate import Estimate
from harness.records.summary import Summary, SummaryRow
from reports.green_code.published_runs import green_code
from reports.metrics.depth import LAYERS_SKIPPED
from reports.metrics.faithfulness import AGREEMENT
from reports.metrics.speedups import ENERGY_RATIO, SPEEDUP
from reports.tables.columns import MISSING
from reports.tables.writers import escape_markdown, markdown_code, markdown_row

__all__ = ["KVFigureRow", "Share", "kv_figure", "kv_markdown", "render_kv_figure"]

THRESHOLD = 0.9
"""The published agent's, in the middle of the paper's range."""

BAR = 24

CAVEATS = (
    "published: medians over Llama-3.2-3B and OPT-2.7B, Java and Python, with the range; one run each, energy of a "
    "Quadro RTX 8000; the cached runs have longer prompts (30 % of the file, not 20 %), which counts against them; "
    "rl at threshold 0.9",
    "measured: another model and machine; what carries over is the order of the settings, not the shares; ~ marks "
    "energy that no sensor read in this run: an estimate repeats the time",
)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of the baseline with what it may range over: settings where published, a 95 % interval where measured."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.2f}"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True, slots=True)
class KVFigureRow:
    """One setting.

    Attributes:
        operating_point, kv: measured; its label and KV policy.
        published_time, published_energy: share of the authors' uncached full depth; ``None`` where they have no such
            run.
        time, energy: share of this run's uncached full depth; energy ``None`` without a reading.
        energy_measured: a sensor of this run read it.
        agreement, layers_skipped: measured.
    """

    operating_point: str
    kv: str
    published_time: Share | None
    published_energy: Share | None
    time: Share | None
    energy: Share | None
    energy_measured: bool
    agreement: float | None
    layers_skipped: float | None


def kv_figure(summary: Summary, task: str) -> tuple[KVFigureRow, ...]:
    """Return the settings of one task, uncached first.

    Raises:
        StoreError: the run's baseline is not full depth without a cache.
    """
    rows = [row for row in summary.rows if row.task == task]
    if not rows or rows[0].strategy != "full" or rows[0].kv != "none":
        raise StoreError(
            "this run's baseline is not full depth without a KV cache. Run `harness reproduce green-code --figure kv`."
        )
    return tuple(map(_row, rows))


def _row(row: SummaryRow) -> KVFigureRow:
    return KVFigureRow(
        operating_point=row.operating_point,
        kv=row.kv,
        published_time=_published(row, "time_s"),
        published_energy=_published(row, "energy_j"),
        time=_inverse(row.estimate(SPEEDUP)),
        energy=_inverse(row.estimate(ENERGY_RATIO)),
        energy_measured=row.energy_measured,
        agreement=row.value(AGREEMENT),
        layers_skipped=row.value(LAYERS_SKIPPED),
    )


def _inverse(ratio: Estimate | None) -> Share | None:
    """The share of the baseline's cost that a ratio of the baseline's cost over this one's leaves."""
    if ratio is None or not ratio.value:
        return None
    interval = ratio.interval
    return Share(1 / ratio.value) if interval is None else Share(1 / ratio.value, 1 / interval[1], 1 / interval[0])


def _published(row: SummaryRow, quantity: str) -> Share | None:
    """Median and range over the authors' models and languages of a tuned run over the same uncached full depth."""
    strategy = "full" if row.strategy == "full" else "rl" if row.kv == "none" else ""
    runs = [run for run in green_code() if run.weights == "tuned"]
    whole = {(run.model, run.language): run for run in runs if run.kv == "none" and run.strategy == "full"}
    shares = [
        getattr(run, quantity) / getattr(whole[run.model, run.language], quantity)
        for run in runs
        if run.kv == row.kv and run.strategy == strategy and run.threshold in (None, THRESHOLD)
    ]
    if not shares or row.strategy not in {"full", "rl"}:
        return None
    return Share(median(shares)) if len(set(shares)) == 1 else Share(median(shares), min(shares), max(shares))


def render_kv_figure(summary: Summary, width: int = 80) -> RenderableType:
    """Return the figure of every task for a terminal: a table, bars where there is room, and what to know about it.

    Args:
        summary: of a run whose baseline is full depth without a cache.
        width: of the terminal, characters.
    """
    parts: list[RenderableType] = []
    shown = (0, 2, 3, 4) if width < _ALL_COLUMNS else (0, 1, 2, 3, 4)  # energy is what the paper is about
    for task in dict.fromkeys(row.task for row in summary.rows):
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
        for place in shown:
            grid.add_column(HEADER[place], justify="right" if place else "left", no_wrap=True, vertical="bottom")
        grid.add_column("", no_wrap=True)
        for row in kv_figure(summary, task):
            bar = "█" * max(1, round(BAR * min(1.0, row.time.value))) if row.time and width >= _WITH_BARS else ""
            style = "" if row.kv == "none" else "green"
            cells = _cells(row)
            grid.add_row(*(Text(cells[place], style) for place in shown), Text(bar, style))
        parts.extend([Text(), Line(f"{task}: share of full depth without a KV cache", "bold"), grid])
    parts.extend(Line(f"• {line}", "dim") for line in (*CAVEATS, *summary.notes))
    return Group(*parts)


_ALL_COLUMNS, _WITH_BARS = 98, 120  # characters
HEADER = ("operating point", "published\ntime", "published\nenergy", "measured\ntime", "measured\nenergy")


def _cells(row: KVFigureRow) -> list[str]:
    energy = MISSING if row.energy is None else str(row.energy)
    if row.energy is not None and not row.energy_measured:
        energy = f"~{energy}"
    shares = (row.published_time, row.published_energy, row.time)
    return [row.operating_point, *(MISSING if share is None else str(share) for share in shares), energy]


def kv_markdown(summary: Summary) -> str:
    """Return the same as Markdown."""
    lines = ["# Early exit and the KV cache", ""]
    for task in dict.fromkeys(row.task for row in summary.rows):
        title = f"## {escape_markdown(task)}: share of full depth without a KV cache"
        lines += [title, "", *_pipes(kv_figure(summary, task)), ""]
    lines += [f"- {escape_markdown(line)}" for line in (*CAVEATS, *summary.notes)]
    return "\n".join(lines) + "\n"


def _pipes(rows: Sequence[KVFigureRow]) -> Iterator[str]:
    yield "| operating point | published time | published energy | time here | energy here | layers skipped |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in rows:
        skipped = MISSING if row.layers_skipped is None else f"{100 * row.layers_skipped:.1f} %"
        cells = (*_cells(row)[1:], skipped)
        yield markdown_row([markdown_code(row.operating_point), *map(escape_markdown, cells)])
