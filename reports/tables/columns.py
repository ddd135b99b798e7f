"""The columns of a report: how each number is written, and what it means in plain words.

Terminal and Markdown share them, so that a number never looks different in two places. Decimals are decided
per column from its largest value (three significant digits), never per cell. Not measured is ``–``. A comparison with
full depth that passes its test carries a ``*``, one without an interval ``[too few]``. What is a column, where it
stands and how it is written are facts of the metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from harness.contracts import Metric
from harness.records.estimate import MISSING, TOO_FEW, Estimate, NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.evaluation import is_distinguishable
from reports.metrics.sections import HEADLINE, in_section, sections_of
from reports.metrics.time import LATENCY_P99
from reports.metrics.vocabulary import metrics_of
from reports.tables.result import ResultTable

__all__ = [
    "MISSING",
    "TOO_FEW",
    "Column",
    "columns_of",
    "explanations",
    "headline_columns",
    "section_columns",
    "section_titles",
    "time_unit",
    "unmeasured",
    "verdicts",
]

_MILLISECONDS_BELOW_S = 10.0
_MOST_DECIMALS = 9
"""What is smaller than a billionth of its unit is nothing."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of one table.

    Attributes:
        key: name of the metric, or field of the summary row.
        header: one or two lines; ``-`` at a line's end is a hyphenation.
        cells: text for every row, in the table's order.
        meaning: one phrase for the footer.
        unit: a line of its own under the header; for energy, where the number comes from.
        left: align left (text and intervals) instead of right.
        metric: what it shows; ``None`` for a field of the row.
    """

    key: str
    header: str
    cells: tuple[str, ...]
    meaning: str
    unit: str = ""
    left: bool = False
    metric: Metric | None = None

    @property
    def lines(self) -> str:
        """Header and unit, at most two lines."""
        return "\n".join(filter(None, (self.header, self.unit)))

    @property
    def term(self) -> str:
        """The header in one line, without its unit."""
        return self.header if self.metric is None else self.metric.term

    @property
    def narrow(self) -> Column:
        """The column without its intervals."""
        values = tuple(cell.partition(" [")[0] for cell in self.cells)
        return replace(self, header=self.header.replace(" ", "\n", 1), cells=values, unit="", left=False)

    @property
    def empty(self) -> bool:
        """Whether no row has a value."""
        return all(cell == MISSING for cell in self.cells)


def time_unit(seconds: Iterable[float | None]) -> tuple[str, float]:
    """Return the unit that suits these times and what to multiply seconds by."""
    longest = max((value for value in seconds if value is not None), default=0.0)
    return ("ms", 1e3) if longest < _MILLISECONDS_BELOW_S else ("s", 1.0)


def columns_of(table: ResultTable) -> Mapping[str, Column]:
    """Return every column of a table in reading order, by the name of its metric.

    One that says in every row what the metric says that it restates is left out.
    """
    return {metric.name: _column(table, metric) for metric in metrics_of(table.rows) if not _restated(table, metric)}


def headline_columns(table: ResultTable, columns: Mapping[str, Column]) -> list[Column]:
    """Return the filled columns of the first table, in reading order.

    Every row says its KV policy; numbers of samples stand in it where operating points differ in them.
    """
    counts = [
        Column("n", "n", tuple(str(row.n) for row in table.rows), "samples scored"),
        Column("errors", "errors", tuple(str(row.errors) for row in table.rows), "samples that failed"),
    ]
    policies = Column(
        "kv", "KV", tuple(row.kv or MISSING for row in table.rows), "what skipped layers leave", left=True
    )
    return [
        policies,
        *(counts if table.uneven else []),
        *section_columns(HEADLINE, columns),
    ]


def section_columns(section: str, columns: Mapping[str, Column]) -> list[Column]:
    """Return the filled columns of a section, in reading order."""
    metrics = [column.metric for column in columns.values() if column.metric is not None and not column.empty]
    return [columns[metric.name] for metric in in_section(metrics, section)]


def section_titles(columns: Mapping[str, Column]) -> list[str]:
    """Return the titles of the sections below the headline."""
    return sections_of(column.metric for column in columns.values() if column.metric is not None)


def verdicts(table: ResultTable) -> tuple[str, ...]:
    """Return what may be said of each row against full depth."""
    return tuple(row.verdict or MISSING for row in table.rows)


def explanations(rows: Iterable[SummaryRow]) -> list[list[Column]]:
    """Return every column that a row fills, once, by the first section it stands in, the headline's first."""
    columns = columns_of(ResultTable(tuple(rows), ""))
    left = {key: column.metric for key, column in columns.items() if column.metric is not None and not column.empty}
    found = []
    for title in (HEADLINE, *section_titles(columns)):
        metrics = in_section(left.values(), title)
        found.append([columns[metric.name] for metric in metrics])
        left = {key: metric for key, metric in left.items() if metric not in metrics}
    return found


def unmeasured(columns: Mapping[str, Column]) -> str:
    """Return the sentence that names the columns left out because no row has a value; empty if there are none."""
    names = [column.term for column in columns.values() if column.empty]
    return f"No row has a value, so no column: {', '.join(names)}." if names else ""


def _restated(table: ResultTable, metric: Metric) -> bool:
    return bool(metric.restates) and all(row.estimate(metric) == row.estimate(metric.restates) for row in table.rows)


def _column(table: ResultTable, metric: Metric) -> Column:
    """Write a metric's estimates."""
    estimates = [row.estimate(metric) for row in table.rows]
    scale, unit = 1.0, _energy_label(table.rows) if metric.kind == "energy" else ""
    if metric.form == "seconds":
        unit, scale = time_unit(row.value(LATENCY_P99) for row in table.rows)
    largest = max((abs(one.value * scale) for one in estimates if one is not None), default=0.0)
    number, bound = _FORMS.get(metric.form) or (f"{{:.{_decimals(largest)}f}}",) * 2
    factor = 100 if metric.form == "percent" else scale
    intervals = "low" in metric.parts
    if intervals:
        unit = f"[95 %], {unit}" if unit else "[95 % interval]"

    def write(one: Estimate | None) -> str:
        if one is None:
            return MISSING
        text = number.format(one.value * factor)
        if intervals and one.interval is not None:
            text += f" [{', '.join(bound.format(end * factor) for end in one.interval)}]"
        elif one.no_interval is not None:
            text += f" [{MISSING if one.no_interval is NoInterval.UNDEFINED else TOO_FEW}]"
        return f"{text} *" if is_distinguishable(metric, one) else text

    cells = tuple(map(write, estimates))
    return Column(metric.name, metric.header, cells, metric.meaning, unit, left=intervals, metric=metric)


_FORMS = {
    "count": ("{:.0f}", "{:.0f}"),
    "fraction": ("{:.3f}", "{:.3f}"),
    "percent": ("{:.1f} %", "{:.1f}"),
    "ratio": ("{:.2f}×", "{:.2f}"),
    "difference": ("{:+.3f}", "{:+.3f}"),
}


def _decimals(largest: float) -> int:
    """How many decimals give three significant digits."""
    return min(_MOST_DECIMALS, max(0, 2 - math.floor(math.log10(largest)))) if largest > 0 else 0


def _energy_label(rows: Iterable[SummaryRow]) -> str:
    """``estimate``, a sensor's name, or ``none``: what the column's header must say."""
    named = {row.energy_source for row in rows if row.n} - {"none"}
    return "mixed" if len(named) > 1 else next(iter(named), "none")
