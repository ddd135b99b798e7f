"""A sweep in a terminal: what keeps the requested agreement, the plot, every row, the drift, the notes."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.records.calibration import Calibration
from harness.sweep.records import Sweep, SweepRow
from reports.tables.plot import BOUND, FRONT, Marker, draw
from reports.tables.writers import fold_label

__all__ = ["render"]

LEGEND = (
    "● no other row has at least this agreement and this expected speed-up (chance is not considered)",
    "◇ a bound that looks at the answer, not a candidate",
    "agree: tokens equal to the last layer's, with the 95 % interval over documents",
    "expected: full depth's bytes per token over this row's, not a measurement",
    "of bound: share of the layers the bound skips that are skipped here too, by tokens that agree",
    "checks, heads: times the strategy is asked, LM-head evaluations, per token",
)
DRIFT = (
    "agree: up to the first token of a sample that is not full depth's, the only place where live and replayed can be "
    "compared token by token; to the end: at the same place, all that follows from it included"
)
SCORES = (
    "AUROC: how often a right token scores higher than a wrong one, over all exit points; 0.5 is chance; error: of a "
    "score that is a probability, its mean distance from the agreement observed"
)
DRAFTS = (
    "tokens: that came out of a verification; accepted: share of drafts that full depth agreed with; layers: read a "
    "token, one that several tokens ran in one pass once, and run for drafts that were discarded"
)
_WIDEST = 78


def render(sweep: Sweep, *, keep: float, width: int, calibration: Calibration | None = None) -> RenderableType:
    """Return a rich renderable.

    Args:
        sweep: what was found.
        keep: agreement that the first table asks for.
        width: columns of the terminal.
        calibration: of the same scores, where they were judged.
    """
    letters = _letters(sweep.rows)
    parts: list[RenderableType] = [
        Text(),
        Line(sweep.title, "bold"),
        Line(
            f"{sweep.model}, {sweep.weights} weights, {sweep.dtype}, exit head {sweep.exit_head.partition(':')[0]}",
            "dim",
        ),
        Text(),
        Text(f"Shallowest that agrees on at least {100 * keep:g} % of tokens, replayed", "bold"),
        _table(_keeping(sweep.rows, keep), letters, width),
        Text(),
        Text("Agreement against expected speed-up, replayed", "bold"),
        draw(
            [
                Marker(letters[row.strategy], row.expected_speedup, row.agreement, row.pareto, row.rehearsed)
                for row in sweep.rows
            ],
            "expected speed-up, × (more is better)",
            "agreement with the last layer (more is better)",
            width=max(30, min(width, _WIDEST)),
        ),
        Line("  ".join(f"{letter} {strategy}" for strategy, letter in letters.items()), "dim"),
        Text(),
        Text(f"All {len(sweep.rows)} operating points, replayed", "bold"),
        _table(sweep.rows, letters, width),
    ]
    lossless = [row for row in sweep.rows if row.lossless]
    if lossless:
        parts += [
            Text(),
            Text("Lossless decoding: what is drafted and verified, replayed", "bold"),
            _drafts(lossless, letters, width),
            Text(DRAFTS, "dim"),
        ]
    if calibration is not None and calibration.scores:
        parts += [
            Text(),
            Line(f"How well scores tell right exits from wrong ones, {calibration.measurement}", "bold"),
            _scores(calibration, width),
            Text(SCORES, "dim"),
        ]
    if sweep.drift:
        parts += [
            Text(),
            Text("Drift: the same operating points decoded live", "bold"),
            _drift(sweep),
            Text(DRIFT, "dim"),
        ]
    parts += [Text(), *(Text(line, "dim") for line in LEGEND), Text(), *_notes(sweep.notes)]
    return Group(*parts)


def _letters(rows: Sequence[SweepRow]) -> dict[str, str]:
    names = dict.fromkeys(row.strategy for row in rows)
    return {name: string.ascii_uppercase[place] if place < 26 else "+" for place, name in enumerate(names)}


def _keeping(rows: Sequence[SweepRow], keep: float) -> list[SweepRow]:
    """Return each strategy's row of the fewest layers that agrees often enough."""
    best: dict[str, SweepRow] = {}
    for row in rows:
        if row.agreement >= keep and row.exit_layer_mean < best.get(row.strategy, row).exit_layer_mean + 1e-12:
            best[row.strategy] = row
    return sorted(best.values(), key=lambda row: row.exit_layer_mean)


def _table(rows: Sequence[SweepRow], letters: dict[str, str], width: int) -> Table:
    """Lay rows out; columns that do not fit a narrow terminal are only in the files."""
    marks = [f"{'●' if row.pareto else '◇' if row.rehearsed else ' '} {letters[row.strategy]}" for row in rows]
    names = [fold_label(row.operating_point, max(20, width // 4)) for row in rows]
    columns = {
        "mean\nlayer": [f"{row.exit_layer_mean:.2f}" for row in rows],
        "skipped": [f"{row.layers_skipped:.1%}" for row in rows],
        "agree": [f"{row.agreement:.4f}" for row in rows],
        "95 %": [_interval(row.agreement_ci, 4) for row in rows],
        "of\nbound": ["–" if row.oracle_share is None else f"{row.oracle_share:.2f}" for row in rows],
        "expected\nspeed-up": [f"{row.expected_speedup:.2f}×" for row in rows],
        "in\ntime": [_times(row.expected_time_speedup) for row in rows],
        "checks": [f"{row.exit_checks_per_token:.1f}" for row in rows],
        "heads": [f"{row.lm_head_per_token:.1f}" for row in rows],
    }
    if all(row.expected_time_speedup is None for row in rows):
        del columns["in\ntime"]
    for key in ("checks", "skipped", "heads", "of\nbound", "95 %"):
        lists = [marks, ["operating point", *names], *([name, *cells] for name, cells in columns.items())]
        if sum(_wide(cells) + 2 for cells in lists) <= width:  # a column is padded, and divided from the next
            break
        del columns[key]
    table = _grid("", "operating point")
    for name in columns:
        table.add_column(Text(name), justify="right", no_wrap=True, vertical="bottom")
    for place, row in enumerate(rows):
        style = FRONT if row.pareto else BOUND if row.rehearsed else ""
        cells = (marks[place], names[place], *(column[place] for column in columns.values()))
        table.add_row(*(Text(cell, style) for cell in cells))
    return table


def _wide(cells: Sequence[str]) -> int:
    return max((len(line) for cell in cells for line in cell.split("\n")), default=0)


def _drift(sweep: Sweep) -> Table:
    table = _grid("operating point")
    for column in ("mean layer", "agree", "to the end"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in sweep.drift:
        table.add_row(Line(row.operating_point))
        table.add_row("  replayed, trace", f"{row.replayed_exit_layer:.2f}", f"{row.replayed_agreement:.3f}")
        table.add_row("  replayed, live samples", f"{row.twin_exit_layer:.2f}", f"{row.twin_agreement:.3f}")
        table.add_row(
            f"  live, {row.samples} samples", f"{row.live_exit_layer:.2f}", f"{row.live_same_prefix:.3f}",
            f"{row.live_agreement:.3f}",
        )  # fmt: skip
        table.add_row(
            "  95 %", _interval(row.live_exit_layer_ci, 2), _interval(row.live_same_prefix_ci, 3),
            _interval(row.live_agreement_ci, 3),
        )  # fmt: skip
    return table


def _drafts(rows: Sequence[SweepRow], letters: dict[str, str], width: int) -> Table:
    table = _grid("", "operating point")
    for column in (
        "tokens",
        "accepted",
        "drafted\n/token",
        "layers\nread",
        "layers\ndiscarded",
        "expected\nspeed-up",
        "in\ntime",
    ):
        table.add_column(Text(column), justify="right", no_wrap=True, vertical="bottom")
    for row in rows:
        numbers = (
            row.tokens_per_verification, row.acceptance, row.drafted_per_token, row.layers_read_per_token,
            row.layers_discarded_per_token,
        )  # fmt: skip
        table.add_row(
            Text(f"{'●' if row.pareto else '◇' if row.rehearsed else ' '} {letters[row.strategy]}"),
            Text(fold_label(row.operating_point, max(20, width // 4))),
            *("–" if number is None else f"{number:.2f}" for number in numbers),
            f"{row.expected_speedup:.2f}×",
            _times(row.expected_time_speedup),
        )
    return table


def _times(speedup: float | None) -> str:
    return "–" if speedup is None else f"{speedup:.2f}×"


def _scores(calibration: Calibration, width: int) -> Table:
    table = _grid("score")
    for column in ("AUROC", "95 %", "error"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in calibration.scores:
        area, error = score.pooled.auroc, score.pooled.ece
        table.add_row(
            Text(fold_label(score.score, max(20, width // 4))),
            "–" if area is None else f"{area:.3f}",
            _interval(score.pooled.auroc_ci, 3),
            "–" if error is None else f"{error:.3f}",
        )
    return table


def _interval(interval: tuple[float, float] | None, places: int) -> str:
    return "–" if interval is None else f"{interval[0]:.{places}f} … {interval[1]:.{places}f}"


def _grid(*names: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim")
    for name in names:
        table.add_column(name, no_wrap=True, vertical="bottom")
    return table


def _notes(notes: Sequence[str]) -> Iterator[RenderableType]:
    for note in notes:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_row(Text("•"), Line(note))
        yield grid
