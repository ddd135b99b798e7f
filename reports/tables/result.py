"""What one table is: the rows that may be compared with each other, and what its title must say.

Rows of a table share what :data:`harness.records.conditions.in_one_table` says, and the machine, which a summary has
only one of. Everything else that differs is an operating point, a KV policy and a weights format of its own included.
"""

from __future__ import annotations

import json
import math
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from harness.contracts import Metric, numbers
from harness.records.conditions import in_one_table
from harness.records.estimate import MISSING, Estimate
from harness.records.summary import Summary, SummaryRow
from reports.metrics.faithfulness import EXACT_PREFIX
from reports.metrics.speedups import SPEEDUP
from reports.tables.table import Tone

_LEGEND = (
    (
        "●",
        "on the front: faster than full depth beyond chance (*), or full depth, and no row keeps as much text (exact "
        "prefix) and is as fast",
    ),
    ("◇", "an upper bound, not a candidate"),
    ("*", "differs from full depth: Holm-corrected p ≤ 0.05, and the interval excludes no difference"),
    ("[too few]", "too few blocks, samples, or samples that differ for an interval, so neither interval nor test"),
    (MISSING, "not measured, or not defined"),
)
_LOSSLESS = ("@lossless", "what exits or a draft source say is verified, and full depth's tokens come out")
_STOP = ("@stop=", "a rule ends completions early; what is left is scored against the whole reference")
_MOVED = 3
"""Rows named whose speed-up flagged windows moved, those that they moved most."""
_LETTERS = string.ascii_uppercase + string.ascii_lowercase


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Rows of one task × model × machine, full depth first.

    Attributes:
        rows: at least one.
        machine: where they were measured.
    """

    rows: tuple[SummaryRow, ...]
    machine: str

    @property
    def letters(self) -> tuple[str, ...]:
        """One character per row that names it in every part of the report; ``+`` beyond the 52nd."""
        return tuple(_LETTERS[index] if index < len(_LETTERS) else "+" for index in range(len(self.rows)))

    @property
    def heading(self) -> str:
        """Task and protocol."""
        return f"{self.rows[0].task} · {self.rows[0].protocol}"

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Data, model, decoding and machine, and windows where some were flagged: name and text of each."""
        row = self.rows[0]
        weights = (
            "random weights (accuracy columns mean nothing)" if row.weights == "random" else f"{row.weights} weights"
        )
        windows = windows_of(self.rows)
        flagged = any(row.flagged for row in self.rows)
        beside = f"; windows {windows}" if windows and not flagged else ""
        return (
            ("data", f"{row.source} ({row.language}), {self.size}"),
            ("model", f"{row.model}, {weights}, exit head {row.exit_head}"),
            ("decoding", f"{self.numbers}, kv {self.policies}, batch {row.batch_size}{beside}"),
            ("machine", self.machine),
            *([("windows", windows)] if flagged else []),
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


def draft_families(rows: Sequence[SummaryRow]) -> dict[str, list[int]]:
    """Return the rows that differ in the longest draft alone: their places, shortest first, by a name for them."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if row.draft_max is not None:
            options = json.dumps(row.options, sort_keys=True, default=str)
            key = (row.strategy, options, row.decode, row.kv, row.weights_format, row.stop)
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
    return (*_LEGEND, *[_LOSSLESS] * any(row.lossless for row in rows), *[_STOP] * any(row.stop for row in rows))


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}–{high}"
