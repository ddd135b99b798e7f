"""The columns of a report: how each number is written, and what it means in plain words.

Terminal and Markdown share them, so that a number never looks different in two places. Decimals are decided
per column from its largest value (three significant digits), never per cell. Not measured is ``–``. A comparison with
full depth that passes its test carries a ``*``; which column stands where is in :mod:`reports.tables.sections`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from harness.records.summary import SummaryRow
from reports.summary.against_full import is_distinguishable
from reports.tables.result import ResultTable

__all__ = ["MISSING", "Column", "columns_of", "time_unit"]

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
        prose: sentences, which may wrap.
    """

    key: str
    header: str
    cells: tuple[str, ...]
    meaning: str
    unit: str = ""
    left: bool = False
    prose: bool = False

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
            table, "prefill_s", "prefill", "mean time to the first token, waiting left out", scale=scale, unit=unit
        ),
        _quantity(table, "decode_s", "decode", "mean time of a request after the first token", scale=scale, unit=unit),
        _percent(table, "prefill_share", "prefill\nshare", "prefill over prefill and decode, all requests"),
        _quantity(table, "queue_p50_s", "wait\np50", "median wait before a request began", scale=scale, unit=unit),
        _quantity(table, "queue_p99_s", "wait\np99", "99th percentile of that wait", scale=scale, unit=unit),
        _quantity(
            table, "energy_j_per_token", "J/token", "energy over generated tokens, prefill included", unit=source
        ),
        _quantity(table, "energy_j_per_request", "J/re-\nquest", "energy over finished samples", unit=source),
        _quantity(table, "energy_net_j_per_token", "net\nJ/token", "the same as J/token less idle power", unit=source),
        _quantity(table, "mean_power_w", "mean\nW", "energy over time", unit=source),
        _quantity(table, "idle_power_w", "idle\nW", "power with the model loaded and nothing running", unit=source),
        _speedup(table, "energy_ratio", "energy ratio", "full depth's energy over this one's, same prompts", source),
        _speedup(table, "energy_net_ratio", "net energy ratio", "the same net of idle power", source),
        _quantity(table, "energy_j", "J total", "energy of all windows", unit=source),
        _quantity(table, "exit_layer_mean", "layers\n/token", "decoder layers a decoded token ran"),
        _quantity(table, "exit_checks_per_token", "checks\n/token", "times the strategy was asked"),
        _quantity(table, "lm_head_per_token", "LM heads\n/token", "LM-head evaluations, the output's included"),
        _quantity(
            table, "kv_fill_layers_per_token", "KV fills\n/token", "skipped layers whose keys, values were filled"
        ),
        _speedup(table, "decode_speedup", "decoding speed-up", "speed-up of the time per token after the first"),
        _ratio(table, "layers_speedup", "layers\nonly", "decoding speed-up that the skipped layers' bytes alone allow"),
        _ratio(table, "heads_speedup", "after\nheads", "the same with the LM heads evaluated to decide"),
        _ratio(table, "shortcuts_speedup", "after\nmaps", "and with the exits' shortcut maps"),
        _ratio(
            table,
            "roofline_speedup",
            "roof-\nline",
            "and with KV fills: decoding speed-up if only bytes moved took time",
        ),
        _percent(
            table,
            "roofline_achieved",
            "of roof-\nline",
            "decoding speed-up over its roofline (above 100 %: large reads are faster than small)",
        ),
        _percent(table, "roofline_fraction", "of band-\nwidth", "bytes moved per second over the measured bandwidth"),
        _difference(table, "edit_similarity_difference", "Δ edit sim.", "edit similarity minus full depth's"),
        _difference(table, "exact_match_difference", "Δ exact match", "exact match minus full depth's"),
        _difference(table, "codebleu_difference", "Δ CodeBLEU", "CodeBLEU minus full depth's, mean over samples"),
        _prose(table, "verdict", "in words", "what may be said, with 95 % intervals"),
        _difference(
            table,
            "agreement_over_fixed",
            "agreement over fixed",
            "agreement minus that of fixed exits as deep, per sample",
        ),
        _difference(
            table,
            "edit_similarity_over_fixed",
            "edit sim. over fixed",
            "edit similarity minus that of fixed exits as deep",
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
    return _with_interval(table, key, header, meaning, "{:+.3f}", "{:+.3f}", "")


def _speedup(table: ResultTable, key: str, header: str, meaning: str, source: str = "") -> Column:
    return _with_interval(table, key, header, meaning, "{:.2f}×", "{:.2f}", source)


def _with_interval(
    table: ResultTable, key: str, header: str, meaning: str, number: str, bound: str, source: str
) -> Column:
    cells = []
    for row in table.rows:
        value, interval = getattr(row, key), getattr(row, f"{key}_ci")
        text = MISSING if value is None else number.format(value)
        if interval is not None:
            text += f" [{bound.format(interval[0])}, {bound.format(interval[1])}]"
        cells.append(f"{text} *" if is_distinguishable(row, key) else text)
    unit = f"[95 %], {source}" if source else "[95 % interval]"
    return Column(key, header, tuple(cells), meaning, unit, left=True)


def _prose(table: ResultTable, key: str, header: str, meaning: str) -> Column:
    return Column(
        key, header, tuple(getattr(row, key) or MISSING for row in table.rows), meaning, left=True, prose=True
    )
