"""Rows that may be compared with each other, what must be said of them, and a metric's estimates as their column."""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.contracts import Metric, numbers
from harness.records.conditions import in_one_table
from harness.records.estimate import MISSING, Estimate, NoInterval
from harness.records.summary import Summary, SummaryRow
from reports.metrics.evaluation import is_distinguishable
from reports.metrics.faithfulness import EXACT_PREFIX
from reports.metrics.speedups import SPEEDUP
from reports.metrics.time import LATENCY_P99
from reports.metrics.vocabulary import HEADLINE, in_section, metrics_of, sections_of
from reports.tables.table import Column, Tone

LEGEND = (
    ("●", "on the front: faster than full depth beyond chance (*), or full depth, and no row keeps as much text (exact "
          "prefix) and is as fast"),
    ("◇", "an upper bound, not a candidate"),
    ("*", "differs from full depth: Holm-corrected p ≤ 0.05, and the interval excludes no difference"),
    ("[too few]", "too few blocks, samples, or samples that differ for an interval, so neither interval nor test"),
    ("[flagged]", "something else moved the machine in most windows, of this row or of full depth: no ratio is told"),
    ("[same work]", "no layer was left out and nothing drafted, so a gain is not the strategy's"),
    ("[estimate]", "made of the time, which an interval would repeat"),
    (MISSING, "not measured, or not defined"),
)  # fmt: skip
"""Marks in tables and what each means, wherever that is told."""
_LOSSLESS = ("@lossless", "what exits or a draft source say is verified, and full depth's tokens come out")
_KEEP = ("@keep=", "keys and values that a request of an editor session leaves to the next; none is cold")
_STOP = ("@stop=", "a rule ends completions early; what is left is scored against the whole reference")
_WITHHELD = (NoInterval.FLAGGED, NoInterval.SAME_WORK)
_MOVED = 3  # rows named whose speed-up flagged windows moved, those that they moved most
_LETTERS = string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Rows of one task × model × machine, full depth first."""

    rows: tuple[SummaryRow, ...]
    machine: str

    @property
    def letters(self) -> tuple[str, ...]:
        """One character per row that names it in every part of the report; ``+`` beyond the 52nd."""
        return tuple(_LETTERS[: len(self.rows)].ljust(len(self.rows), "+"))

    @property
    def heading(self) -> str:
        """Task and protocol."""
        return f"{self.rows[0].task} · {self.rows[0].protocol}"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Data, model, decoding and machine, and windows where some were flagged: name and text of each."""
        row, windows = self.rows[0], windows_of(self.rows)
        weights = f"{row.weights} weights{' (accuracy columns mean nothing)' * (row.weights == 'random')}"
        return (
            ("data", f"{row.source} ({row.language}), {self.size}"),
            ("model", f"{row.model}, {weights}, exit head {row.exit_head}"),
            ("decoding", f"{self.numbers}, kv {self.policies}, batch {row.batch_size}"),
            ("machine", self.machine),
            *([("windows", windows)] if windows else []),
        )

    @property
    def formats(self) -> tuple[str, ...]:
        """Weights formats of the rows, full depth's first."""
        return tuple(dict.fromkeys(row.weights_format for row in self.rows))

    @property
    def numbers(self) -> str:
        """The number formats of weights and activations, in words."""
        return numbers(", ".join(self.formats), self.rows[0].dtype)

    @property
    def policies(self) -> str:
        """KV policies of the rows, full depth's first."""
        return ", ".join(dict.fromkeys(row.kv for row in self.rows if row.kv))

    @property
    def size(self) -> str:
        """Samples and repeats, as a range where operating points differ."""
        n, repeats = _span([row.n for row in self.rows]), _span([row.repeats for row in self.rows])
        return f"n = {n} samples × {repeats} repeat{'' if repeats == '1' else 's'}"

    @property
    def disturbed(self) -> bool:
        """Whether something else moved the machine in most windows, all of them or full depth's."""
        counted, flagged = sum(row.windows for row in self.rows), sum(row.flagged for row in self.rows)
        return 2 * flagged > counted or 2 * self.rows[0].flagged > self.rows[0].windows

    @property
    def uneven(self) -> bool:
        """Whether operating points scored different numbers of samples, or any sample failed."""
        return len({row.n for row in self.rows}) > 1 or any(row.errors for row in self.rows)


def windows_of(rows: Sequence[SummaryRow]) -> str:
    """Say how many windows were flagged, and which speed-ups are others without; empty where rows do not know."""
    counted, flagged = sum(row.windows for row in rows), sum(row.flagged for row in rows)
    if not counted:
        return ""
    said = f"{flagged or 'none'} of {counted} flagged"
    moved = [
        (abs(math.log(without / found)), f"{row.operating_point} {without:.2f}× ({found:.2f}× with them)")
        for row in rows
        if (without := row.speedup_unflagged) and (found := row.value(SPEEDUP)) and f"{without:.2f}" != f"{found:.2f}"
    ]
    told = [text for _, text in sorted(moved, reverse=True)]
    more = f" and {len(told) - _MOVED} more" if len(told) > _MOVED else ""
    return f"{said}; speed-up without them: {', '.join(told[:_MOVED])}{more}" if told else said


def split_tables(summary: Summary) -> tuple[ResultTable, ...]:
    """Group a summary's rows into tables, in order of first appearance."""
    groups: dict[tuple[object, ...], list[SummaryRow]] = {}
    for row in summary.rows:
        groups.setdefault(in_one_table(row), []).append(row)
    return tuple(ResultTable(tuple(rows), summary.machine) for rows in groups.values())


def is_candidate(row: SummaryRow) -> bool:
    """Whether a row is something one could deploy. A rehearsed one is a bound: it knows the answer for free."""
    return not row.rehearsed


def is_reference(row: SummaryRow, metric: Metric) -> bool:
    """Whether a row is the full depth that the others are held against in a metric: 1 by definition, no interval."""
    return row.strategy == "full" and row.estimate(metric) == Estimate(value=1.0)


def is_asserted(row: SummaryRow) -> bool:
    """Whether a row is lossless and its tokens are full depth's in every completion, so that it scores the same."""
    same = row.estimate(EXACT_PREFIX)
    return (
        row.lossless and same is not None and same.value == 1.0 and same.interval is None and same.no_interval is None
    )


def mark(row: SummaryRow) -> str:
    """Return the character that says without colour what kind of row it is; a space for an ordinary one."""
    return "●" if row.pareto else " " if is_candidate(row) else "◇"


def tone(row: SummaryRow) -> Tone:
    """Return how a row looks where there are colours."""
    return "front" if row.pareto else "" if is_candidate(row) else "bound"


def dimensions(row: SummaryRow) -> tuple[str, ...]:
    """Return what a row was decoded with beside strategy, options and drafts: KV, format, and the four from stop on."""
    return row.kv, row.weights_format, row.stop, row.keep, row.prompt_exit, row.prefetch


def draft_families(rows: Sequence[SummaryRow]) -> dict[str, list[int]]:
    """Return the rows that differ in the longest draft alone: their places, shortest first, by a name for them."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if row.draft_max is not None:
            options = json.dumps(row.options, sort_keys=True, default=str)
            key = (row.strategy, options, row.decode, *dimensions(row))
            groups.setdefault(key, []).append(place)
    found = {}
    for places in groups.values():
        if len({rows[place].draft_max for place in places}) > 1:
            first = rows[places[0]]
            name = first.operating_point.replace(f"@draft={first.draft_max}", "")
            found[name] = sorted(places, key=lambda place: rows[place].draft_max or 0)
    return found


def legend(rows: Iterable[SummaryRow]) -> tuple[tuple[str, str], ...]:
    """Return the marks of these rows and what each means."""
    rows = list(rows)
    reasons = {one.no_interval for row in rows for one in row.metrics.values() if one.no_interval is not None}
    there = {f"[{reason.brief}]" for reason in reasons}
    signs = ((sign, meaning) for sign, meaning in LEGEND if not sign.startswith("[") or sign in there)
    named = [(_LOSSLESS, any(row.lossless for row in rows)), (_STOP, any(row.stop for row in rows))]
    named.append((_KEEP, len({row.keep for row in rows} - {""}) > 1))
    return (*signs, *(sign for sign, used in named if used))


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"


_MILLISECONDS_BELOW_S = 10.0
_FORMS = {"number": "digits", "seconds": "digits", "count": ".0f"}


def time_unit(seconds: Iterable[float | None]) -> tuple[str, float]:
    """Return the unit that suits these times and what to multiply seconds by."""
    longest = max((value for value in seconds if value is not None), default=0.0)
    return ("ms", 1e3) if longest < _MILLISECONDS_BELOW_S else ("s", 1.0)


def columns_of(rows: Sequence[SummaryRow]) -> dict[Metric, Column]:
    """Return every column of some rows in reading order, also those without any value.

    One that says in every row what the metric says that it restates is left out.
    """
    return {
        metric: _column(rows, metric)
        for metric in metrics_of(rows)
        if not (metric.restates and all(row.estimate(metric) == row.estimate(metric.restates) for row in rows))
    }


def headline_columns(rows: Sequence[SummaryRow], *, counts: bool) -> list[Column]:
    """Return the filled columns of the first table: the verdict's come first, and how each row decodes behind them."""
    of_metrics = {metric: column for metric, column in columns_of(rows).items() if not column.empty}
    said = [("kv", "KV", "what skipped layers leave")]
    said += [("keep", "keep", "keys and values that a request leaves to the next")] * any(row.keep for row in rows)
    counted = [("n", "samples scored"), ("errors", "samples that failed")] if counts else []
    return [
        *(of_metrics[metric] for metric in in_section(of_metrics, HEADLINE)),
        *[
            Column(
                header=header,
                cells=tuple(getattr(row, name) or None for row in rows),
                kind="text",
                name=name,
                meaning=meaning,
            )
            for name, header, meaning in said
        ],
        *[
            Column(header=name, cells=tuple(getattr(row, name) for row in rows), form=".0f", meaning=meaning)
            for name, meaning in counted
        ],
    ]


def sections_with_columns(columns: Mapping[Metric, Column]) -> list[tuple[str, list[Column]]]:
    """Return title and filled columns of each section below the headline that has one."""
    filled = [metric for metric, column in columns.items() if not column.empty]
    return [(title, [columns[one] for one in in_section(filled, title)]) for title in sections_of(filled)]


def explanations(rows: Sequence[SummaryRow]) -> list[list[Column]]:
    """Return every column that a row fills, once, by the first section it stands in, the headline's first."""
    columns = {metric: column for metric, column in columns_of(rows).items() if not column.empty}
    titles = (HEADLINE, *sections_of(columns))
    return [[columns.pop(metric) for metric in in_section(list(columns), title)] for title in titles]


def _column(rows: Sequence[SummaryRow], metric: Metric) -> Column:
    estimates = tuple(row.estimate(metric) for row in rows)
    scale, unit = 1.0, ""
    if metric.kind == "energy":  # an estimate, a sensor's name, or none
        named = {row.energy_source for row in rows if row.n} - {"none"}
        unit = "mixed" if len(named) > 1 else next(iter(named), "none")
    if metric.form == "seconds":
        unit, scale = time_unit(row.value(LATENCY_P99) for row in rows)
    return Column(
        header=metric.header,
        cells=estimates,
        form=_FORMS.get(metric.form, metric.form),
        scale=scale,
        unit=unit,
        meaning=metric.meaning,
        name=metric.name,
        intervals="low" in metric.parts,
        needs_interval=bool(metric.paired),
        priority=math.inf if metric.restates and metric.against != "full" else metric.priority,
        tones=tuple("faint" if one is not None and one.no_interval in _WITHHELD else "" for one in estimates),
        marks=tuple("*" if one is not None and is_distinguishable(metric, one) else "" for one in estimates),
    )
