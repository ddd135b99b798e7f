"""How a change is written: the same text in the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.contracts import Metric
from reports.comparing.change import UNMEASURED, Change
from reports.comparing.metrics import AGREEMENT
from reports.comparing.results import PointChange, RunChange
from reports.metrics.sections import HEADLINE
from reports.statistics.plausible import all_plausible, is_plausible
from reports.tables.columns import MISSING, TOO_FEW, time_unit

__all__ = [
    "DETAIL_HEADER",
    "LEGEND",
    "Detail",
    "change_text",
    "detail_rows",
    "header",
    "headline",
    "interval_text",
    "runs",
]

DETAIL_HEADER = ("", "A", "B", "change", "95 % interval", "p (Holm)", "")

LEGEND = (
    "Changes from A to B: relative for costs (%), absolute for scores and layers (pp: percentage points).",
    "A = B: share of tokens that are the same in both; no change, but their agreement itself.",
    "Speed-up: over full depth of the same run, so that a machine that is slower or faster in B mostly cancels.",
    "* a change: Holm-corrected p ≤ 0.05, and the interval excludes none · – not compared, for the reason given",
    "p (Holm): the family is one measure at all operating points of a task; measures are not corrected for each other.",
    "[too few]: prompts, blocks, or prompts whose scores differ, for an interval or a test.",
)


@dataclass(frozen=True, slots=True)
class Detail:
    """One metric of one operating point, as text.

    Attributes:
        cells: as ``DETAIL_HEADER`` names them.
        distinguishable: there is a change.
    """

    cells: tuple[str, str, str, str, str, str, str]
    distinguishable: bool


def runs(comparison: RunChange) -> tuple[tuple[str, str], ...]:
    """Return two lines that say what A and B are: letter, folder, time and model."""
    lines = []
    for letter, run in (("A", comparison.a), ("B", comparison.b)):
        model = run.manifest.model
        sha = f" {model.weights_sha256[:12]}" if model.weights_sha256 else ""
        words = f"{run.name}, {run.manifest.created[:16]} UTC, {model.name}, {model.weights} weights{sha}"
        lines.append((letter, words))
    return tuple(lines)


def headline(points: Sequence[PointChange]) -> list[Metric]:
    """Return the metrics of the first table that some point has, the most telling first.

    A narrow terminal drops the last ones.
    """
    changes = [one for point in points for one in point.changes if one.value is not None and one.measured]
    shown = dict.fromkeys(one.metric for one in changes if one.metric is AGREEMENT or HEADLINE in one.metric.sections)
    told = dict.fromkeys(one.metric for one in changes if one.metric.change and one.metric not in shown)
    return [*sorted(shown, key=lambda metric: metric.priority if metric is not AGREEMENT else 3), *told]


def header(one: Change) -> str:
    """Return the column header of a metric's change."""
    sign = "" if one.metric is AGREEMENT else "Δ "
    source = f" ({one.source})" if not one.measured and one.source else ""
    return f"{sign}{one.metric.title or one.metric.term}{source}"


def change_text(one: Change) -> str:
    """Return the change itself, marked when it is one."""
    if one.value is None or not is_plausible(one.value):
        return MISSING
    return _changed(one, one.value) + (" *" if one.distinguishable else "")


def interval_text(one: Change) -> str:
    """Return the interval of the change in brackets, or that too few units have none; empty where nothing changed."""
    if one.interval is None or not all_plausible(one.interval):
        return f"[{TOO_FEW}]" if one.no_interval is not None else ""
    low, high = (_changed(one, bound).removesuffix(" %").removesuffix(" pp") for bound in one.interval)
    return f"[{low}, {high}]"


def detail_rows(point: PointChange) -> tuple[Detail, ...]:
    """Return every metric of an operating point that applies to it and that some run has."""
    rows = []
    for one in point.changes:
        if one.applies and one.reason != UNMEASURED:
            p = MISSING if one.p_holm is None else f"{one.p_holm:.3f}" if one.p_holm >= 0.001 else "< 0.001"
            title = header(one).removeprefix("Δ ")
            a, b = _level(one, one.a), _level(one, one.b)
            note = one.reason or ("" if one.paired else "unpaired")
            cells = (title, a, b, change_text(one), interval_text(one) or MISSING, p, note)
            rows.append(Detail(cells, one.distinguishable))
    return tuple(rows)


def _changed(one: Change, value: float) -> str:
    if one.metric is AGREEMENT:
        return f"{value:.3f}"
    if one.metric.is_cost or one.metric.form == "percent":
        return _signed(f"{100 * value:+.1f} {'%' if one.metric.is_cost else 'pp'}")
    return _signed(f"{value:+.2f}" if one.metric.form == "number" else f"{value:+.3f}")


def _signed(text: str) -> str:
    """A true minus, and no sign before what rounds to nothing."""
    digits = text.strip("+-%p ")
    return text.lstrip("+-") if not digits.strip("0.") else text.replace("-", "−")


def _level(one: Change, value: float | None) -> str:
    if value is None or not is_plausible(value):
        return MISSING
    form, unit = one.metric.form, one.metric.unit
    if form == "seconds":
        symbol, scale = time_unit([one.a, one.b])
        return f"{value * scale:.1f} {symbol}" if symbol == "ms" else f"{value:.2f} s"
    if form == "number":
        return f"{value:.4g}{f' {unit}' if len(unit) == 1 else ''}"
    return {"ratio": f"{value:.3f}×", "percent": f"{100 * value:.1f} %"}.get(form, f"{value:.3f}")
