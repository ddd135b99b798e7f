"""CSV that spreadsheets show and never run: Excel and others take a cell that begins like a formula for one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["csv_text", "inert"]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows under a header; a column that a row lacks is empty, and no text is a formula."""
    buffer = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: inert(value) for name, value in row.items()} for row in rows)
    return buffer.getvalue()


def inert(value: object) -> object:
    """Return a value that no spreadsheet runs: text that begins like a formula gets a ``'``, numbers stay numbers."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
