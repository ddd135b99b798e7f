"""Rows of a published benchmark in a folder as its authors or the hub lay it out.

Nothing is downloaded here: a benchmark is fetched once, by the command that every refusal names, and read where it
lies. What was read is named by its files.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from harness.contracts import BadRow
from harness.errors import DataError
from harness.host.files import open_regular
from tasks.rows import FieldError, GapRow, RecordRows, Row, Rows, field_text
from tasks.sources import content_of
from tasks.sources.files import JsonLines, parquet_rows

_LARGEST = 256 << 20
"""Bytes of a compressed file's content, at most."""

Parse: TypeAlias = Callable[[str, int, Mapping[str, object]], GapRow]
"""Makes a row of a part's name, a 1-based number and a record.

Raises ``FieldError`` where it cannot, and ``DataError`` where the record is one of another task.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a benchmark.

    Attributes:
        name: of the part; goes into ids where a benchmark has several.
        patterns: globs below the folder, the first that matches is taken; all files that match make up the part.
    """

    name: str
    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Where a benchmark lies and what its rows are.

    Attributes:
        title: in messages.
        parts: what is drawn from, together.
        columns: those that rows must have.
        parse: makes a row of a record.
        origin: hub id or address that it is published under.
        download: command that makes a folder of it.
    """

    title: str
    parts: tuple[Part, ...]
    columns: tuple[str, ...]
    parse: Parse
    origin: str
    download: str

    @property
    def remedy(self) -> str:
        """How to get the data, in one sentence."""
        return f"Download {self.origin} once (`{self.download}`) and give --source FOLDER."

    @property
    def row_format(self) -> str:
        """Files that ``--source PATH`` may hold, in words; of a part's patterns the first with each ending."""
        files = ", ".join(" or ".join(_by_ending(part.patterns)) for part in self.parts)
        return f"a folder with {files}, or one of these files, of {{{', '.join(self.columns)}}} rows"


class _Chained(Rows):
    """The rows of several sources, one after the other."""

    kind: Literal["path", "hub", "embedded"] = "path"

    def __init__(self, sources: Sequence[Rows], label: str, detail: Mapping[str, str]) -> None:
        self.sources, self.label, self.detail = sources, label, detail

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def read(self, index: int) -> Row:
        for source in self.sources:
            if index < len(source):
                return source.read(index)
            index -= len(source)
        raise IndexError(index)


def open_benchmark(source: str, benchmark: Benchmark) -> Rows:
    """Return the rows a folder, or one file of it, holds.

    Args:
        source: what the user gave as ``--source``.
        benchmark: what is looked for.

    Raises:
        DataError: nothing there, or it cannot be read; says how to get the data.
    """
    if source in ("", "embedded", "hub"):
        raise DataError(f"{benchmark.title} neither ships with the harness nor is fetched by it. {benchmark.remedy}")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            found = {part.name: _files(path, part) for part in benchmark.parts}
        elif path.is_file():
            found = {_part_of(path, benchmark): [path]}
        else:
            raise DataError(f"--source '{source}' is neither a file nor a folder. {benchmark.remedy}")
    except OSError as error:
        raise DataError(f"cannot read --source '{source}': {error.strerror or error}.") from None
    except RuntimeError:  # what pathlib says of ~nobody
        raise DataError(f"--source '{source}': there is no such user. {benchmark.remedy}") from None
    if missing := [part for part in benchmark.parts if part.name in found and not found[part.name]]:
        there = sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in _ENDINGS)
        raise DataError(
            f"{path} is not laid out as {benchmark.title}: it has no {' and no '.join(p.patterns[0] for p in missing)}"
            f"{_has(there)}. {benchmark.remedy}"
        )
    rows = [_open(files, name, benchmark) for name, files in found.items()]
    files = [file for part in found.values() for file in part]
    label = f"path: {path.name}" if path.is_file() else f"path: {path.absolute().name} ({', '.join(found)})"
    names = ", ".join(file.name for file in files)
    detail = {"path": str(path), "files": names, "published": benchmark.origin, "content": content_of(files)}
    return _Chained(rows, label, detail)


_ENDINGS = (".jsonl", ".gz", ".parquet")


def _by_ending(patterns: Sequence[str]) -> Iterable[str]:
    first: dict[str, str] = {}
    for pattern in patterns:
        first.setdefault(Path(pattern).suffix, pattern)
    return first.values()


def _has(files: Sequence[str]) -> str:
    return f"; it has {', '.join(files[:6])}{', …' if len(files) > 6 else ''}" if files else ""


def _files(folder: Path, part: Part) -> list[Path]:
    found = (sorted(file for file in folder.glob(pattern) if file.is_file()) for pattern in part.patterns)
    return next(filter(None, found), [])


def _part_of(file: Path, benchmark: Benchmark) -> str:
    """Return the part that a file belongs to by its name; the first where that says nothing."""
    if file.suffix not in _ENDINGS:
        raise DataError(f"--source '{file}' is no file of {benchmark.title} (.jsonl, .jsonl.gz or .parquet).")
    return next((part.name for part in benchmark.parts if part.name in file.name), benchmark.parts[0].name)


def _open(files: Sequence[Path], part: str, benchmark: Benchmark) -> Rows:
    parse = partial(_row, benchmark, part)
    if files[0].suffix == ".parquet":
        try:
            return parquet_rows(files, part, {}, benchmark.columns, parse)
        except DataError as error:
            raise DataError(f"{error} {benchmark.remedy}") from None
    opened: list[Rows] = [
        _compressed(file, part, parse) if file.suffix == ".gz" else JsonLines(file, part, {}, parse) for file in files
    ]
    return _Chained(opened, part, {})


def _compressed(file: Path, part: str, parse: Callable[[int, object], Row]) -> Rows:
    try:
        with open_regular(file) as stream, gzip.open(stream) as content:
            data = content.read(_LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {file}: {error}. Fetch it again.") from None
    if len(data) > _LARGEST:
        raise DataError(f"{file} holds more than {_LARGEST} bytes, which no file of a benchmark does.")
    lines = [line for line in data.split(b"\n") if line.strip()]
    if not lines:
        raise DataError(f"{file} is empty.")

    def parsed(number: int, record: object) -> Row:
        try:
            return parse(number, json.loads(lines[number - 1]))
        except (ValueError, RecursionError) as error:
            return BadRow(f"row-{number}", f"row {number}: is not usable JSON ({str(error).splitlines()[0]})")

    return RecordRows("path", part, len(lines), lambda index: {}, {}, parsed)


def _row(benchmark: Benchmark, part: str, number: int, record: object) -> Row:
    sample_id = f"row-{number}" if len(benchmark.parts) == 1 else f"{part}-row-{number}"
    try:
        if not isinstance(record, Mapping):
            raise FieldError("is not an object")
        if missing := [name for name in benchmark.columns if name not in record]:
            there = ", ".join(map(str, record)) or "none"
            raise FieldError(f"has no field '{missing[0]}' of {benchmark.title} (fields: {there})")
        return benchmark.parse(part, number, record)
    except FieldError as error:
        return BadRow(sample_id, f"row {number}: {error}")


def texts(record: Mapping[str, object], *names: str) -> dict[str, str]:
    """Return fields of a record that must be text.

    Raises:
        FieldError: one is none.
    """
    return {name: field_text(name, record[name]) for name in names}
