"""Rows from an explicit path: a JSON-lines or Parquet file, or a folder that holds some.

Of a folder the first of these is taken, ``CONFIG`` and ``SPLIT`` being those of the task:

1. ``CONFIG/SPLIT-*.parquet`` or ``CONFIG/SPLIT.parquet`` — the folder is a dataset in hub layout;
2. the same below a folder with the dataset's name;
3. ``codexglue_line/CONFIG.jsonl``, then ``CONFIG.jsonl``, which have no splits: not where ``validation`` is asked for,
   and not where the dataset lies there with other splits.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from harness.contracts import BadRow
from harness.errors import DataError, did_you_mean, reason
from harness.host.files import open_regular, read_bytes
from tasks.rows import LARGEST_ROW, RecordRows, Row, Rows, parse_record
from tasks.sources import HubDataset, content_of

FORMS = (
    "a JSONL file of {id, input, gt}, {id, code} or {id, requests} rows, a dataset folder in hub layout, or a folder "
    "of those"
)

LARGEST_FILE = 1 << 30
"""Bytes of a file of lines, uncompressed, at most: they are held in memory while samples are drawn."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")
_LINE_FOLDER = "codexglue_line"
_OFFICIAL = re.compile(r"\bofficial\b(?:\s+\S+){0,2}\s+dev\s+rows\b", re.IGNORECASE)
_LARGEST_README = 1 << 20
_COLUMNS = ("id", "project", "code", "requests", "input", "gt")


class JsonLines(Rows):
    """One JSON object a line, UTF-8, gzipped or not. Blank lines are no rows; a row's number is its line's."""

    kind: Literal["path", "hub", "embedded"] = "path"

    def __init__(
        self, path: Path, label: str, detail: Mapping[str, str], parse: Callable[[int, object], Row] = parse_record
    ) -> None:
        self.label, self.detail, self.parse = label, detail, parse
        self._lines: list[tuple[int, bytes]] = []
        number = size = 0
        try:
            with open_regular(path) as file, gzip.open(file) if path.suffix == ".gz" else file as content:
                while line := content.readline(LARGEST_FILE + 1 - size):
                    number, size = number + 1, size + len(line)
                    if size > LARGEST_FILE:
                        raise DataError(f"{path} holds more than {LARGEST_FILE} bytes. Give a part of it, or Parquet.")
                    if number == 1 and line.startswith(_WIDE_MARKS):
                        raise DataError(f"{path} is UTF-16 or UTF-32. Convert it: iconv -t UTF-8.")
                    line = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                    if line.strip():
                        self._lines.append((number, line))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}.") from None
        if not self._lines:
            raise DataError(f"{path} is empty. Give a file of rows.")

    def __len__(self) -> int:
        return len(self._lines)

    def read(self, index: int) -> Row:
        """Return one row; see :class:`~tasks.rows.Rows`."""
        number, line = self._lines[index]
        if len(line) > LARGEST_ROW:  # parsed, it takes many times as much
            return BadRow(f"row-{number}", f"row {number}: has {len(line)} bytes; {LARGEST_ROW} are the most")
        try:
            return self.parse(number, json.loads(line.decode("utf-8")))
        except (ValueError, RecursionError) as error:  # also a number of too many digits, arrays nested too deep
            return BadRow(f"row-{number}", f"row {number}: is not JSON ({reason(error)})")


def parquet_rows(
    files: Sequence[Path],
    label: str,
    detail: Mapping[str, str],
    needed: Sequence[str] = (),
    parse: Callable[[int, object], Row] | None = None,
) -> RecordRows:
    """Return the rows of files that make up one split, in the order of the files.

    Read directly rather than through ``datasets``, which would copy every file into its cache before the first row.
    Only the columns a task can use are loaded, in Arrow's compact form: all that are ``needed``, else those of the rows
    that :func:`~tasks.rows.parse_record` reads, as far as they are there.
    """
    import pyarrow as arrow  # type: ignore[import-untyped]  # late: a tenth of a second
    from pyarrow import parquet

    tables: list[Any] = []
    for file in files:
        try:
            with open_regular(file) as stream, parquet.ParquetFile(stream) as content:
                names = content.schema_arrow.names
                columns = [name for name in names if name in (needed or _COLUMNS)]
                if len(columns) < max(1, len(needed)):
                    missing = some(name for name in needed or _COLUMNS if name not in columns)
                    raise DataError(f"{file} has no column {missing}; it has {some(names)}.")
                tables.append(content.read(columns=columns))
        except (OSError, ValueError, arrow.ArrowException) as error:  # ValueError: the name of a column is no text
            raise DataError(f"cannot read {file} as Parquet: {reason(error)}. Fetch it again.") from None
    try:
        table = arrow.concat_tables(tables)
    except arrow.ArrowException as error:
        raise DataError(f"the files of {files[0].parent} have different columns: {reason(error)}.") from None
    if not table.num_rows:
        raise DataError(f"{files[0]} has no rows.")
    return RecordRows("path", label, table.num_rows, lambda index: table.slice(index, 1).to_pylist()[0], detail, parse)


def some(names: Iterable[str]) -> str:
    """Return the first few of some names, for a message."""
    listed = [name[:100] for name in names]
    return ", ".join(listed[:6]) + (", …" if len(listed) > 6 else "") or "none"


def located(source: str, remedy: str) -> Path:
    """Return the file or folder that ``--source`` names; refuse what is neither with a remedy."""
    try:
        path = Path(source).expanduser()
        if source and (path.is_dir() or path.is_file()):
            return path
    except (OSError, RuntimeError) as error:  # the latter is what pathlib says of ~nobody
        why = getattr(error, "strerror", None) or error
        raise DataError(f"cannot read --source '{source[:200]}': {why}. {remedy}") from None
    hint = did_you_mean(source, ("embedded", "hub"))
    raise DataError(f"--source '{source[:200]}' is neither a file nor a folder.{hint} {remedy}")


def open_path(source: str, dataset: HubDataset) -> Rows:
    """Return the rows a path holds for one dataset, which names folder, configuration and split to look for."""
    path = located(source, f"Give {FORMS}; or --source embedded.")
    try:
        return _open_folder(path, dataset) if path.is_dir() else _open_files([path], dataset)
    except OSError as error:
        raise DataError(f"cannot read --source '{source}': {reason(error)}.") from None


def _open_folder(folder: Path, dataset: HubDataset) -> Rows:
    roots = [root / dataset.config for root in (folder, folder / dataset.folder)]
    for root in roots:
        if files := sorted(root.glob(f"{dataset.split}-*.parquet")) or sorted(root.glob(f"{dataset.split}.parquet")):
            return _open_files(files, dataset)
    wanted, has_splits = f"'{dataset.config}' rows, split '{dataset.split}'", False
    if not dataset.single_split:  # rows of no split would be those of another one
        has_splits = any(any(root.glob("*.parquet")) for root in roots)
    for file in (folder / _LINE_FOLDER / f"{dataset.config}.jsonl", folder / f"{dataset.config}.jsonl"):
        if file.is_file() and not has_splits:
            if dataset.split != "validation":
                return _open_files([file], dataset)
            raise DataError(
                f"{folder} has no {wanted}: {file.name} holds the rows of all. Give another --split, or --source "
                f"{file} to take them whole."
            )
    found = {*folder.glob("*.jsonl"), *folder.glob(f"{_LINE_FOLDER}/*.jsonl"), *folder.glob("*/*.parquet")}
    there = some(sorted(file.relative_to(folder).as_posix() for file in found | {*folder.glob("*/*/*.parquet")}))
    raise DataError(
        f"{folder} holds no {wanted}: neither {dataset.folder}/{dataset.config}/{dataset.split}-*.parquet nor "
        f"{_LINE_FOLDER}/{dataset.config}.jsonl; it has {there}. Give {FORMS}; or --source embedded."
    )


def _open_files(files: Sequence[Path], dataset: HubDataset) -> Rows:
    first, content = files[0], {"content": content_of(files)}
    if first.suffix != ".parquet":
        label = _label(first.name, first.parent, first.stem == dataset.config)
        return JsonLines(first, label, {"path": str(first), **content})
    if first.parent.name != dataset.config:
        return parquet_rows(files, _label(first.name, first.parent, False), {"path": str(first), **content})
    home = first.parent.parent
    detail = {"path": str(home), "config": dataset.config, "split": dataset.split}
    return parquet_rows(files, _label(home.name, home, True), detail | content)


def _label(name: str, home: Path, is_listed: bool) -> str:
    """Call rows official where the README of their folder, or the parent's that speaks of the folder, says so."""
    home = home.absolute()
    for folder, needle in ((home, ""), (home.parent, f"{home.name}/")) if is_listed else ():
        with suppress(OSError):  # a folder need not have one
            text = read_bytes(folder / "README.md", _LARGEST_README).decode("utf-8", "replace")
            if needle in text and _OFFICIAL.search(text.replace("*", "")):
                return f"official CodeXGLUE dev rows (path: {name})"
    return f"path: {name}"
