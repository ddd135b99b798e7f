"""Rows of a published benchmark in a folder as its authors or the hub lay it out.

Nothing is downloaded here: a benchmark is fetched once, by the command that every refusal names, and read where it
lies. What was read is named by its files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

from harness.contracts import BadRow
from harness.errors import DataError
from tasks.rows import FieldError, GapRow, Row, Rows, field_text
from tasks.sources import content_of
from tasks.sources.files import JsonLines, located, parquet_rows, some

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
        firsts = ({Path(each).suffix: each for each in reversed(part.patterns)} for part in self.parts)
        files = ", ".join(" or ".join(reversed(first.values())) for first in firsts)
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
    """Return the rows of the folder, or of one file of it, that ``--source`` names; a refusal says how to get them."""
    if source in ("", "embedded", "hub"):
        raise DataError(f"{benchmark.title} neither ships with the harness nor is fetched by it. {benchmark.remedy}")
    path = located(source, benchmark.remedy)
    if path.is_file():
        if path.suffix not in _ENDINGS:
            raise DataError(f"--source '{path}' is no file of {benchmark.title} (.jsonl, .jsonl.gz or .parquet).")
        names = [part.name for part in benchmark.parts if part.name in path.name]
        found = {names[0] if names else benchmark.parts[0].name: [path]}
    else:
        found = {part.name: _files(path, part) for part in benchmark.parts}
    if missing := [part.patterns[0] for part in benchmark.parts if part.name in found and not found[part.name]]:
        there = some(sorted(file.relative_to(path).as_posix() for file in path.rglob("*") if file.suffix in _ENDINGS))
        raise DataError(
            f"{path} is not laid out as {benchmark.title}: it has no {' and no '.join(missing)}; it has {there}. "
            f"{benchmark.remedy}"
        )
    rows = [_open(files, name, benchmark) for name, files in found.items()]
    files = [file for part in found.values() for file in part]
    label = f"path: {path.name}" if path.is_file() else f"path: {path.absolute().name} ({', '.join(found)})"
    listed = ", ".join(file.name for file in files)
    detail = {"path": str(path), "files": listed, "published": benchmark.origin, "content": content_of(files)}
    return _Chained(rows, label, detail)


_ENDINGS = (".jsonl", ".gz", ".parquet")


def _files(folder: Path, part: Part) -> list[Path]:
    found = (sorted(file for file in folder.glob(pattern) if file.is_file()) for pattern in part.patterns)
    return next(filter(None, found), [])


def _open(files: Sequence[Path], part: str, benchmark: Benchmark) -> Rows:
    parse = partial(_row, benchmark, part)
    try:
        if files[0].suffix == ".parquet":
            return parquet_rows(files, part, {}, benchmark.columns, parse)
        return _Chained([JsonLines(file, part, {}, parse) for file in files], part, {})
    except DataError as error:
        raise DataError(f"{error} {benchmark.remedy}") from None


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
    """Return fields of a record that must be text."""
    return {name: field_text(name, record[name]) for name in names}
