"""CSV that spreadsheets show and never run: Excel and others take a cell that begins like a formula for one."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence

from harness.appearance.visible_text import visible

__all__ = ["csv_text", "inert"]

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # the wide ones are read alike in East Asia


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows under a header; a column that a row lacks is empty, no text is a formula and nothing is hidden."""
    buffer = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(buffer, columns, lineterminator="\n")
    for row in ({name: name for name in columns}, *rows):
        writer.writerow({name: inert(value) for name, value in row.items()})
    return buffer.getvalue()


def inert(value: object) -> object:
    """Return a value that no spreadsheet runs: text that begins like a formula gets a ``'``, numbers stay numbers."""
    if not isinstance(value, str):
        return value
    text = visible(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
