"""Rows of a JSON-lines file, parsed only when they are drawn."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

from harness.contracts import BadRow
from harness.errors import DataError
from harness.host.foreign_files import open_regular
from tasks.rows import LARGEST_ROW, Row, Rows, parse_record

__all__ = ["JsonLines"]

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
