"""Rows of Parquet files, as the hub stores a dataset's split.

Read directly rather than through ``datasets``, which would copy every file into its cache before the first row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import DataError
from tasks.rows import RecordRows

__all__ = ["parquet_rows"]

_COLUMNS = ("id", "code", "input", "gt")


def parquet_rows(files: Sequence[Path], label: str, detail: Mapping[str, str]) -> RecordRows:
    """Return the rows of files that make up one split, in the order of the files.

    Only the columns a task can use are loaded, in Arrow's compact form; a row becomes Python objects when it is
    drawn.

    Raises:
        DataError: a file is damaged or cannot be read, the files do not fit together, or there is no row.
    """
    import pyarrow as arrow  # type: ignore[import-untyped]  # late: a tenth of a second
    from pyarrow import parquet

    tables: list[Any] = []
    for file in files:
        try:
            with parquet.ParquetFile(file) as content:
                names = content.schema_arrow.names
                columns = [name for name in names if name in _COLUMNS]
                if not columns:
                    raise DataError(f"{file} has none of the columns {', '.join(_COLUMNS)}; it has {', '.join(names)}.")
                tables.append(content.read(columns=columns))
        except (OSError, arrow.ArrowException) as error:
            raise DataError(f"cannot read {file} as Parquet: {_first_line(error)}. Fetch it again.") from None
    try:
        table = arrow.concat_tables(tables)
    except arrow.ArrowException as error:
        raise DataError(f"the files of {files[0].parent} have different columns: {_first_line(error)}.") from None
    if not table.num_rows:
        raise DataError(f"{files[0]} has no rows.")

    def record(index: int) -> Mapping[str, object]:
        found: dict[str, object] = table.slice(index, 1).to_pylist()[0]
        return found

    return RecordRows("path", label, table.num_rows, record, detail)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
