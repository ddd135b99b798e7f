"""Rows of Parquet files, as the hub stores a dataset's split.

Read directly rather than through ``datasets``, which would copy every file into its cache before the first row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError
from harness.host.foreign_files import open_regular
from tasks.rows import RecordRows, Row

__all__ = ["parquet_rows"]

_COLUMNS = ("id", "project", "code", "input", "gt")


def parquet_rows(
    files: Sequence[Path],
    label: str,
    detail: Mapping[str, str],
    needed: Sequence[str] = (),
    parse: Callable[[int, object], Row] | None = None,
) -> RecordRows:
    """Return the rows of files that make up one split, in the order of the files.

    Only the columns a task can use are loaded, in Arrow's compact form; a row becomes Python objects when it is
    drawn.

    Args:
        files: in order.
        label: see :class:`~tasks.rows.Rows`.
        detail: likewise.
        needed: columns that every file must have, the ones to load; without them, those of the rows that
            :func:`~tasks.rows.parse_record` reads, as far as they are there.
        parse: see :class:`~tasks.rows.RecordRows`.

    Raises:
        DataError: a file is damaged or cannot be read, the files do not fit together, or there is no row.
    """
    import pyarrow as arrow  # type: ignore[import-untyped]  # late: a tenth of a second
    from pyarrow import parquet

    tables: list[Any] = []
    for file in files:
        try:
            with open_regular(file) as stream, parquet.ParquetFile(stream) as content:
                names = content.schema_arrow.names
                columns = [name for name in names if name in (needed or _COLUMNS)]
                if missing := [name for name in needed if name not in columns]:
                    raise DataError(f"{file} has no column {_listed(missing)}; it has {_listed(names)}.")
                if not columns:
                    raise DataError(f"{file} has none of the columns {', '.join(_COLUMNS)}; it has {_listed(names)}.")
                tables.append(content.read(columns=columns))
        except (OSError, ValueError, arrow.ArrowException) as error:  # ValueError: the name of a column is no text
            raise DataError(f"cannot read {file} as Parquet: {_first_line(error)}. Fetch it again.") from None
    try:
        table = arrow.concat_tables(tables)
    except arrow.ArrowException as error:
        raise DataError(f"the files of {files[0].parent} have different columns: {_first_line(error)}.") from None
    if not table.num_rows:
        raise DataError(f"{files[0]} has no rows.")

    def record(index: int) -> Mapping[str, object]:
        return {name: _cell(column[index]) for name, column in zip(table.column_names, table.columns, strict=True)}

    return RecordRows("path", label, table.num_rows, record, detail, parse)


def _cell(scalar: Any) -> object:
    """Return a cell as Python has it. Arrow does not look into what a file calls text: what is none stays bytes."""
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        if hasattr(scalar, "as_buffer"):
            return scalar.as_buffer().to_pybytes()
        return [_cell(item) for item in scalar.values]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:8]) + (", …" if len(names) > 8 else "")


def _first_line(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (said.splitlines() or [type(error).__name__])[0].rstrip(".")
