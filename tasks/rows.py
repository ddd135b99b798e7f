"""What a source hands to a protocol: numbered rows, read one at a time.

A source knows how many rows it has and reads any one of them, so that drawing twenty samples costs
twenty rows and not the whole dataset. A row that cannot be read is a :class:`~harness.contracts.BadRow`, never
an exception: one broken line must not end a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from harness.contracts import BadRow, Document

__all__ = ["Document", "LineRow", "RecordRows", "Row", "Rows", "parse_record", "whole"]


@dataclass(frozen=True, slots=True)
class LineRow:
    """A code context and the rest of the line it breaks off in.

    Attributes:
        number, sample_id: as a :class:`~harness.contracts.Document`'s.
        prompt: the context, never empty.
        answer: the rest of the line; empty where a dataset withholds it.
    """

    number: int
    sample_id: str
    prompt: str
    answer: str


def whole(row: Document | LineRow) -> str:
    """Return the code of a row as one document; a context and its line are joined again."""
    if isinstance(row, Document):
        return row.text
    return f"{row.prompt.removeprefix('<s>').strip()} {row.answer.strip()}".strip()


Row: TypeAlias = Document | LineRow | BadRow


class Rows(ABC):
    """The rows of one source.

    Attributes:
        kind: ``path``, ``hub`` or ``embedded``.
        label: short human name for tables; never an absolute path.
        detail: further facts.
    """

    kind: Literal["path", "hub", "embedded"]
    label: str
    detail: Mapping[str, str]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows, readable or not."""

    @abstractmethod
    def read(self, index: int) -> Row:
        """Return one row; ``index`` counts from 0. What cannot be read is a ``BadRow``."""

    def close(self) -> None:  # noqa: B027  # most sources keep nothing open
        """Release files that were kept open."""


@dataclass(frozen=True)
class RecordRows(Rows):
    """Rows of a table in memory or on a memory map.

    Attributes:
        kind, label, detail: see :class:`Rows`.
        size: number of records.
        record: returns the record at a 0-based index as a mapping of column to value.
    """

    kind: Literal["path", "hub", "embedded"]
    label: str
    size: int
    record: Callable[[int], Mapping[str, object]]
    detail: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> Row:
        """Return one row; see :class:`Rows`."""
        return parse_record(index + 1, self.record(index))


def parse_record(number: int, record: object) -> Row:
    """Turn a record ``{id, code}`` or ``{id, input, gt}`` into a row.

    ``code`` is a string, or a list of tokens as in the token-level dataset; the list's outer ``<s>`` and ``</s>``
    are dropped, the rest is joined with single spaces. ``id`` is an integer or a string and may be missing
    (early CodeXGLUE files carry none). Other fields are ignored. ``gt`` may be empty here: which rows need an
    answer is the protocol's business.
    """
    if not isinstance(record, Mapping):
        return BadRow(f"row-{number}", f"row {number}: is {_kind(record)}, not an object")
    identity = record.get("id", f"row-{number}")
    if isinstance(identity, bool) or not isinstance(identity, int | str) or identity == "":
        return BadRow(f"row-{number}", f"row {number}: 'id' is {_kind(identity)}, not an integer or a string")
    sample_id = str(identity)
    try:
        if "code" in record:
            return Document(number, sample_id, _code(record["code"]))
        for name in ("input", "gt"):
            if name not in record:
                raise _FieldError(f"has no field '{name}' (fields: {', '.join(map(str, record)) or 'none'})")
        prompt, answer = _text("input", record["input"]), _text("gt", record["gt"])
        if not prompt.strip():
            raise _FieldError("'input' is empty")
        return LineRow(number, sample_id, prompt, answer)
    except _FieldError as error:
        return BadRow(sample_id, f"row {number}: {error}")


class _FieldError(Exception):
    """One field of a record is not what it must be."""


def _code(value: object) -> str:
    if not isinstance(value, list):
        text = _text("code", value)
    else:
        tokens = [_text(f"code[{index}]", token) for index, token in enumerate(value)]
        wrapped = len(tokens) >= 2 and (tokens[0], tokens[-1]) == ("<s>", "</s>")
        text = " ".join(tokens[1:-1] if wrapped else tokens)
    if not text.strip():
        raise _FieldError("'code' is empty")
    return text


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _FieldError(f"'{name}' is {_kind(value)}, not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer accepts
        raise _FieldError(f"'{name}' holds a lone surrogate, which is not text") from None
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return "an empty string" if value == "" else names.get(type(value), type(value).__name__)
