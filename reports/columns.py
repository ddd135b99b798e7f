"""The columns of a report: how each number is written, and what it means in plain words.

Terminal and Markdown share them, so that a number never looks different in two places. Decimals are decided
per column from its largest value (three significant digits), never per cell. Not measured is ``–``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from harness.records import SummaryRow
from reports.tables import ResultTable

__all__ = ["DETAILS", "HEADLINE", "MISSING", "Column", "Section", "columns_of", "time_unit"]

MISSING = "–"
_MILLISECONDS_BELOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Column:
    """One column of one table.

    Attributes:
        key: field of the summary row.
        header: one or two lines; ``-`` at a line's end is a hyphenation.
        cells: text for every row, in the table's order.
        meaning: one phrase for the footer.
        unit: a line of its own under the header; for energy, where the number comes from.
        left: align left (text and intervals) instead of right.
    """

    key: str
    header: str
    cells: tuple[str, ...]
    meaning: str
    unit: str = ""
    left: bool = False

    @property
    def lines(self) -> str:
        """Header and unit, at most two lines."""
        return "\n".join(filter(None, (self.header, self.unit)))

    @property
    def term(self) -> str:
        """The header in one line, without its unit."""
        return re.sub("-\n", "", self.header).replace("\n/", "/").replace("\n", " ")

    @property
    def empty(self) -> bool:
        """Whether no row has a value."""
        return all(cell == MISSING for cell in self.cells)


@dataclass(frozen=True, slots=True)
class Section:
    """Columns that belong together.

    Attributes:
        title: what they answer.
        keys: fields of the summary row, in reading order.
    """

    title: str
    keys: tuple[str, ...]


HEADLINE = Section(
    "What each operating point gives and saves",
    (
        "n",
        "errors",
        "edit_similarity",
        "agreement",
        "layers_skipped",
        "oracle_fraction",
        "speedup",
        "latency_p50_s",
        "energy_j_per_token",
    ),
)
DETAILS = (
    Section(
        "Time and energy",
        (
            "latency_p50_s",
            "latency_p90_s",
            "latency_p99_s",
            "ttft_p50_s",
            "tpot_p50_s",
            "tokens_per_s",
            "energy_j_per_token",
            "energy_j",
        ),
    ),
    Section(
        "Depth and decoding speed",
        (
            "exit_layer_mean",
            "layers_skipped",
            "oracle_fraction",
            "exit_checks_per_token",
            "lm_head_per_token",
            "kv_fill_layers_per_token",
            "decode_speedup",
            "roofline_speedup",
            "roofline_fraction",
        ),
    ),
    Section(
        "Against fixed exit at the same mean depth",
        ("agreement_over_fixed", "edit_similarity_over_fixed"),
    ),
    Section(
        "Scores",
        (
            "exact_match",
            "edit_similarity",
            "token_accuracy",
            "agreement",
            "bleu",
            "rouge_l",
            "codebleu",
            "syntax",
            "dataflow",
            "dataflow_defined",
            "chrf",
        ),
    ),
)


def time_unit(seconds: Iterable[float | None]) -> tuple[str, float]:
    """Return the unit that suits these times and what to multiply seconds by."""
    longest = max((value for value in seconds if value is not None), default=0.0)
    return ("ms", 1e3) if longest < _MILLISECONDS_BELOW_S else ("s", 1.0)


def columns_of(table: ResultTable) -> Mapping[str, Column]:
    """Return every column of a table by the summary row's field name."""
    unit, scale = time_unit(row.latency_p99_s for row in table.rows)
    source = _energy_label(table.rows)
    columns = (
        _count(table, "n", "n", "samples scored"),
        _count(table, "errors", "errors", "samples that failed"),
        _fraction(table, "edit_similarity", "edit\nsim.", "edit similarity to the reference, 1 is identical"),
        _fraction(table, "agreement", "agree-\nment", "share of tokens that equal full depth's at the same place"),
        _percent(table, "layers_skipped", "layers\nskipped", "share of the model's layers a decoded token did not run"),
        _percent(
            table,
            "oracle_fraction",
            "of\noracle",
            "layers skipped over what the oracle skips (above 100 %: exits before any layer is right)",
        ),
        _speedup(table, "speedup", "speed-up", "full depth's time over this one's, whole request, same prompts"),
        _quantity(table, "latency_p50_s", "p50", "median latency of a request", scale=scale, unit=unit),
        _quantity(table, "latency_p90_s", "p90", "90th percentile of the latency", scale=scale, unit=unit),
        _quantity(table, "latency_p99_s", "p99", "99th percentile of the latency", scale=scale, unit=unit),
        _quantity(table, "ttft_p50_s", "TTFT", "median time to the first token", scale=scale, unit=unit),
        _quantity(table, "tpot_p50_s", "TPOT", "median time per later token", scale=scale, unit=unit),
        _quantity(table, "tokens_per_s", "tokens\nper s", "all tokens over all time"),
        _quantity(
            table, "energy_j_per_token", "J/token", "energy over generated tokens, prefill included", unit=source
        ),
        _quantity(table, "energy_j", "J total", "energy of all windows", unit=source),
        _quantity(table, "exit_layer_mean", "layers\n/token", "decoder layers a decoded token ran"),
        _quantity(table, "exit_checks_per_token", "checks\n/token", "times the strategy was asked"),
        _quantity(table, "lm_head_per_token", "LM heads\n/token", "LM-head evaluations, the output's included"),
        _quantity(
            table, "kv_fill_layers_per_token", "KV fills\n/token", "skipped layers whose keys, values were filled"
        ),
        _speedup(table, "decode_speedup", "decoding speed-up", "speed-up of the time per token after the first"),
        _ratio(table, "roofline_speedup", "roof-\nline", "decoding speed-up if only bytes moved took time"),
        _percent(table, "roofline_fraction", "of band-\nwidth", "bytes moved per second over the measured bandwidth"),
        _difference(
            table, "agreement_over_fixed", "agreement", "agreement minus that of fixed exits as deep, per sample"
        ),
        _difference(
            table, "edit_similarity_over_fixed", "edit similarity", "edit similarity minus that of fixed exits as deep"
        ),
        _fraction(table, "exact_match", "exact\nmatch", "share of completions identical to the reference"),
        _fraction(table, "token_accuracy", "token\nacc.", "share of tokens that equal the reference's"),
        _fraction(table, "bleu", "BLEU", "n-gram precision"),
        _fraction(table, "rouge_l", "ROUGE-L", "longest common subsequence"),
        _fraction(table, "codebleu", "Code-\nBLEU", "n-grams, keywords, syntax and data flow together"),
        _fraction(table, "syntax", "syn-\ntax", "matching syntax subtrees"),
        _fraction(table, "dataflow", "data\nflow", "matching data-flow edges"),
        _fraction(table, "dataflow_defined", "flow\ndefined", "share of samples whose reference has data flow"),
        _fraction(table, "chrf", "chrF", "character n-grams"),
    )
    return {column.key: column for column in columns}


def _energy_label(rows: Iterable[SummaryRow]) -> str:
    """``estimate``, a sensor's name, or ``none``: what the column's header must say."""
    sources = {row.energy_source for row in rows if row.n}
    named = sources - {"none"}
    if len(named) > 1:
        return "mixed"
    return next(iter(named), "none")


def _values(table: ResultTable, key: str) -> list[float | None]:
    return [getattr(row, key) for row in table.rows]


def _written(values: Iterable[float | None], write: Callable[[float], str]) -> tuple[str, ...]:
    return tuple(MISSING if value is None else write(value) for value in values)


def _count(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    return Column(key, header, _written(_values(table, key), lambda value: f"{value:.0f}"), meaning)


def _fraction(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    return Column(key, header, _written(_values(table, key), lambda value: f"{value:.3f}"), meaning)


def _percent(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    return Column(key, header, _written(_values(table, key), lambda value: f"{100 * value:.1f} %"), meaning)


def _ratio(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    return Column(key, header, _written(_values(table, key), lambda value: f"{value:.2f}×"), meaning)


def _quantity(table: ResultTable, key: str, header: str, meaning: str, *, scale: float = 1.0, unit: str = "") -> Column:
    values = [None if value is None else value * scale for value in _values(table, key)]
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0
    return Column(key, header, _written(values, lambda value: f"{value:.{decimals}f}"), meaning, unit)


def _difference(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    cells = []
    for row in table.rows:
        value, interval = getattr(row, key), getattr(row, f"{key}_ci")
        text = MISSING if value is None else f"{value:+.3f}"
        cells.append(text if interval is None else f"{text} [{interval[0]:+.3f}, {interval[1]:+.3f}]")
    return Column(key, header, tuple(cells), meaning, "[95 % interval]", left=True)


def _speedup(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    cells = []
    for row in table.rows:
        value, interval = getattr(row, key), getattr(row, f"{key}_ci")
        text = MISSING if value is None else f"{value:.2f}×"
        cells.append(text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]")
    return Column(key, header, tuple(cells), meaning, "[95 % interval]", left=True)
