"""Rows of a JSON-lines file, parsed only when they are drawn.

Rows of Parquet files, as the hub stores a dataset's split.

Read directly rather than through ``datasets``, which would copy every file into its cache before the first row.

Rows from an explicit path: a file, a dataset folder in hub layout, or a folder that holds those.

Where a folder holds several, the first of these is taken, ``CONFIG`` and ``SPLIT`` being those of the task:

1. ``CONFIG/SPLIT-*.parquet`` or ``CONFIG/SPLIT.parquet`` — the folder is a dataset in hub layout;
2. the same below a folder with the dataset's name;
3. ``codexglue_line/CONFIG.jsonl``, then ``CONFIG.jsonl``, which have no splits: not where ``validation`` is asked for,
   and not where the dataset lies there with other splits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal

from harness.contracts import BadRow
from harness.errors import DataError, did_you_mean
from harness.host.files import open_regular, read_bytes
from tasks.rows import LARGEST_ROW, RecordRows, Row, Rows, parse_record
from tasks.sources import HubDataset, content_of

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_ENDLESS = 1 << 30
"""Bytes of a line behind which no further one is looked for."""


class JsonLines(Rows):
    """One JSON object a line, UTF-8. Blank lines are no rows; a row's number is its line's.

    Opening reads the file once to find its lines; a row is read and parsed when it is asked for, unless its line is too
    long to be one.

    Raises:
        DataError: the file cannot be read, is empty, UTF-16/32, or no file of lines.
    """

    kind: Literal["path", "hub", "embedded"] = "path"

    def __init__(
        self,
        path: Path,
        label: str,
        detail: Mapping[str, str],
        parse: Callable[[int, object], Row] = parse_record,
    ) -> None:
        self.path = path
        self.label = label
        self.detail = detail
        self.parse = parse
        self._lines: list[tuple[int, int, int]] = []  # line number, offset, length
        try:
            with open_regular(path) as file:
                self._index(file)
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}.") from None
        if not self._lines:
            forms = " of {id, input, gt} or {id, code} rows" if parse is parse_record else ""
            raise DataError(f"{path} is empty. Give a JSONL file{forms}.")

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> Row:
        """Return one row; see :class:`~tasks.rows.Rows`."""
        number, offset, length = self._lines[index]
        if length > LARGEST_ROW:
            return BadRow(f"row-{number}", f"row {number}: has {length} bytes; {LARGEST_ROW} are the most")
        try:
            with open_regular(self.path) as file:
                file.seek(offset)
                line = file.read(length)
        except OSError as error:
            return BadRow(f"row-{number}", f"row {number}: cannot be read ({error.strerror or error})")
        try:
            return self.parse(number, json.loads(line.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")))
        except UnicodeDecodeError as error:
            return BadRow(f"row-{number}", f"row {number}: is not UTF-8 (byte {error.start + 1} of the line)")
        except json.JSONDecodeError as error:
            return BadRow(f"row-{number}", f"row {number}: is not JSON ({error.msg}, column {error.colno})")
        except (ValueError, RecursionError) as error:  # a number of too many digits, arrays nested too deep
            return BadRow(f"row-{number}", f"row {number}: is not usable JSON ({str(error).splitlines()[0]})")

    def _index(self, file: BinaryIO) -> None:
        number = offset = 0
        while line := file.readline(LARGEST_ROW + 1):
            number += 1
            if number == 1 and line.startswith(_WIDE_MARKS):
                raise DataError(f"{self.path} is UTF-16 or UTF-32. Convert it: iconv -t UTF-8.")
            length = len(line)
            while length > LARGEST_ROW and not line.endswith(b"\n") and (line := file.readline(LARGEST_ROW)):
                length += len(line)
                if length > _ENDLESS:
                    raise DataError(f"{self.path} is no file of lines: line {number} has more than {_ENDLESS} bytes.")
            if length > LARGEST_ROW or line.removeprefix(_BYTE_ORDER_MARK).strip():
                self._lines.append((number, offset, length))
            offset += length


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


_LINE_FOLDER = "codexglue_line"
_OFFICIAL = re.compile(r"\bofficial\b(?:\s+\S+){0,2}\s+dev\s+rows\b", re.IGNORECASE)
_LARGEST_README = 1 << 20
FORMS = "a JSONL file of {id, input, gt} or {id, code} rows, a dataset folder in hub layout, or a folder of those"


def open_path(source: str, dataset: HubDataset) -> Rows:
    """Return the rows a path holds for one dataset.

    Args:
        source: what the user gave as ``--source``.
        dataset: names the folder, the configuration and the split to look for.

    Raises:
        DataError: nothing there, nothing usable there, or the file cannot be read.
    """
    if not source:
        raise DataError(f"--source is empty. Give {FORMS}; or --source embedded.")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return _open_folder(path, dataset)
        if path.is_file():
            return _open_files([path], dataset)
        exists, leads_nowhere = path.exists(), path.is_symlink()
    except OSError as error:
        raise DataError(f"cannot read --source '{source}': {error.strerror or error}.") from None
    except RuntimeError:  # what pathlib says of ~nobody
        raise DataError(f"--source '{source}': there is no such user. Give {FORMS}; or --source embedded.") from None
    if exists:
        raise DataError(f"--source '{source}' is neither a file nor a folder. Give {FORMS}.")
    if leads_nowhere:
        raise DataError(f"--source '{source}' is a link to itself, or to what does not exist. Give {FORMS}.")
    hint = did_you_mean(source, ("embedded", "hub"))
    raise DataError(f"--source '{source}' does not exist.{hint} Give {FORMS}; or --source embedded.")


def _open_folder(folder: Path, dataset: HubDataset) -> Rows:
    for root in (folder, folder / dataset.folder):
        if files := _split_files(root / dataset.config, dataset.split):
            return _open_files(files, dataset)
    if not dataset.single_split and _has_splits(folder, dataset):  # rows of no split would be those of another one
        raise DataError(_not_found(folder, dataset))
    for parent in (folder / _LINE_FOLDER, folder):
        if (file := parent / f"{dataset.config}.jsonl").is_file():
            if dataset.split == "validation":
                raise DataError(
                    f"{folder} has no split '{dataset.split}': {file.name} holds the rows of all. Give another "
                    f"--split, or --source {file} to take them whole."
                )
            return _open_files([file], dataset)
    raise DataError(_not_found(folder, dataset))


def _open_files(files: Sequence[Path], dataset: HubDataset) -> Rows:
    first, content = files[0], {"content": content_of(files)}
    if first.suffix == ".parquet":
        in_layout = first.parent.name == dataset.config
        home = first.parent.parent if in_layout else first.parent
        label = _label(home.name if in_layout else first.name, home, in_layout)
        detail = {"path": str(home if in_layout else first), "config": dataset.config, "split": dataset.split}
        return parquet_rows(files, label, (detail if in_layout else {"path": str(first)}) | content)
    label = _label(first.name, first.parent, first.stem == dataset.config)
    return JsonLines(first, label, {"path": str(first), **content})


def _split_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}-*.parquet")) or [
        file for file in [folder / f"{split}.parquet"] if file.is_file()
    ]


def _has_splits(folder: Path, dataset: HubDataset) -> bool:
    return any(any((root / dataset.config).glob("*.parquet")) for root in (folder, folder / dataset.folder))


def _label(name: str, home: Path, is_listed: bool) -> str:
    official = is_listed and any(_OFFICIAL.search(text.replace("*", "")) for text in _descriptions(home.absolute()))
    return f"official CodeXGLUE dev rows (path: {name})" if official else f"path: {name}"


def _descriptions(home: Path) -> Iterator[str]:
    """Yield the README of a data folder, and the parent's when it speaks of that folder by name."""
    for folder, needle in ((home, ""), (home.parent, f"{home.name}/")):
        with suppress(OSError):  # a folder need not have one
            text = read_bytes(folder / "README.md", _LARGEST_README).decode("utf-8", "replace")
            if needle in text:
                yield text


def _not_found(folder: Path, dataset: HubDataset) -> str:
    wanted = f"'{dataset.config}' rows, split '{dataset.split}'"
    for root in (folder, folder / dataset.folder):
        if found := sorted(file.relative_to(root).as_posix() for file in root.glob("*/*.parquet")):
            listing = ", ".join(found[:6]) + (", …" if len(found) > 6 else "")
            return f"{root} has no {wanted} ({dataset.config}/{dataset.split}-*.parquet); it has {listing}."
    found = sorted(file.name for folder in (folder, folder / _LINE_FOLDER) for file in folder.glob("*.jsonl"))
    listing = f" It has {', '.join(found[:6])}." if found else ""
    return (
        f"{folder} holds no {wanted}: neither {dataset.folder}/{dataset.config}/{dataset.split}-*.parquet nor "
        f"{_LINE_FOLDER}/{dataset.config}.jsonl.{listing} Give {FORMS}; or --source embedded."
    )
