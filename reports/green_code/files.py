"""The grid as files: ``grid.md`` to read, ``grid.csv`` (one number a line) and ``grid.json`` to work with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from harness.appearance.visible_text import json_text
from reports.green_code.numbers import Numbers
from reports.green_code.table import QUANTITIES, GridComparison, GridTable
from reports.green_code.words import (
    TextTable,
    absolute_table,
    caveats,
    heading,
    matched_table,
    quantity_tables,
    remarks,
)
from reports.tables.csv_text import csv_text
from reports.tables.markdown import escape_markdown, markdown_row

__all__ = ["grid_csv", "grid_json", "grid_markdown"]

ABSOLUTE = {"time_s": "time_std_s", "energy_j": "energy_std_j", "rouge_l": "", "codebleu": ""}
"""Absolute quantities, and the field of their standard deviation over samples."""

COLUMNS = (
    "model", "task", "language", "setting", "threshold", "side", "paper_model", "kv", "operating_point", "quantity",
    "value", "low", "high", "std", "samples", "energy_source",
)  # fmt: skip


def grid_markdown(comparison: GridComparison) -> str:
    """Return everything as Markdown."""
    lines = ["# GREEN-CODE's grid: published and measured", "", "Two systems, never ranked with each other."]
    for table in comparison.tables:
        lines += ["", f"## {escape_markdown(table.task)} · {escape_markdown(table.model)}", ""]
        lines += [f"- {escape_markdown(line)}" for line in heading(table)]
        for part in (*quantity_tables(table), matched_table(table), absolute_table(table)):
            lines += ["", f"### {escape_markdown(part.title[0].upper() + part.title[1:])}", "", *_pipes(part)]
        lines += ["", *(f"- {escape_markdown(line)}" for line in (*remarks(table), *table.notes))]
    lines += ["", "## How to read it", "", *(f"- {escape_markdown(line)}" for line in caveats(comparison))]
    return "\n".join(lines) + "\n"


def grid_csv(comparison: GridComparison) -> str:
    """Return one line per number that is there; relative ones are fractions."""
    return csv_text(COLUMNS, (row for table in comparison.tables for row in _rows(table)))


def grid_json(comparison: GridComparison) -> str:
    """Return the comparison as it is; missing numbers are ``null``."""
    return json_text(dataclasses.asdict(comparison)) + "\n"


def _rows(table: GridTable) -> Iterator[dict[str, object]]:
    for point in table.points:
        sides: list[tuple[str, str, str, Numbers | None]] = [
            *(("published", name, "none", numbers) for name, numbers in point.published.items()),
            ("measured", "", "none", point.uncached),
            ("measured", "", "propagate", point.cached),
        ]
        for side, name, kv, numbers in sides:
            if numbers is None:
                continue
            shared = {
                "model": table.model,
                "task": table.task,
                "language": table.language,
                "setting": point.key,
                "threshold": "" if point.threshold is None else point.threshold,
                "side": side,
                "paper_model": name,
                "kv": kv,
                "operating_point": "" if side == "published" else numbers.operating_point,
                "samples": numbers.samples,
                "energy_source": numbers.energy_source,
            }
            yield from ({**shared, **number} for number in _numbers(numbers))


def _numbers(numbers: Numbers) -> Iterator[dict[str, object]]:
    for quantity in QUANTITIES:
        estimate = getattr(numbers, quantity)
        if estimate is not None:
            yield {"quantity": quantity, "value": estimate.value, "low": estimate.low, "high": estimate.high}
    for quantity, deviation in ABSOLUTE.items():
        value = getattr(numbers, quantity)
        if value is not None:
            yield {"quantity": quantity, "value": value, "std": getattr(numbers, deviation) if deviation else None}


def _pipes(table: TextTable) -> Iterator[str]:
    yield markdown_row(escape_markdown(cell.replace("-\n", "-")) for cell in table.header)
    yield markdown_row([":--", *("--:" for _ in table.header[1:])])
    for row in table.rows:
        yield markdown_row(map(escape_markdown, row))
