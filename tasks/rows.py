"""Input of a protocol: numbered rows, read one at a time.

A source knows how many rows it has and reads any one of them, so that drawing twenty samples costs
twenty rows and not the whole dataset. A row that cannot be read is a :class:`~harness.contracts.BadRow`, never
an exception: one broken line must not end a run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from harness.contracts import LONGEST_ID, BadRow, Document

LARGEST_ROW = 16 << 20
"""Bytes of a line, and characters of a text in it, at most: no file of code is as large."""


LONGEST_TRACE = 10_000
"""Requests of a recorded session, at most."""
LONGEST_PAUSE_S = 86_400
"""Seconds between two of them, at most: a day."""


@dataclass(frozen=True, slots=True)
class LineRow:
    """A code context, never empty, and the rest of the line it breaks off in, empty where a dataset withholds it."""

    number: int
    sample_id: str
    prompt: str
    answer: str
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Fragment:
    """A piece of another file of the same repository."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class GapRow:
    """A file with a gap, and what is known beside it.

    Attributes:
        before, after: the file's code before the gap and after it; ``after`` is empty where a dataset has none.
        answer: what belongs into the gap.
        fragments: pieces of other files, the most useful first.
        facts: what else its protocol reads, by the name of the dataset's column.
        project: the repository, or the problem that gaps are cut from.
    """

    number: int
    sample_id: str
    before: str
    answer: str
    after: str = ""
    fragments: tuple[Fragment, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    project: str | None = None


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """A request of an editor.

    Attributes:
        prompt: text before the cursor, never empty.
        reference: what was written there, at least the line; empty where typing overtook it.
        after_s: seconds until the next key, which cancelled it; ``None`` where it was waited for.
        typing_s: seconds of typing since the request before was answered or cancelled.
    """

    prompt: str
    reference: str
    after_s: float | None
    typing_s: float


@dataclass(frozen=True, slots=True)
class TraceRow:
    """An editor session as it was recorded, at least one of its requests waited for."""

    number: int
    sample_id: str
    requests: tuple[TracedRequest, ...]
    project: str | None = None


def whole(row: Document | LineRow | GapRow | TraceRow) -> str:
    """Return the code of a row as one document.

    A context and its line are joined again, a gap is filled; of a session it is what stood there in the end.
    """
    if isinstance(row, Document):
        return row.text
    if isinstance(row, TraceRow):
        last = next(asked for asked in reversed(row.requests) if asked.after_s is None)
        return last.prompt + last.reference
    if isinstance(row, GapRow):
        return f"{row.before}{row.answer}{row.after}"
    return f"{row.prompt.removeprefix('<s>').strip()} {row.answer.strip()}".strip()


Row: TypeAlias = Document | LineRow | GapRow | TraceRow | BadRow


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
        parse: turns a 1-based number and its record into a row; ``None`` for :func:`parse_record`.
    """

    kind: Literal["path", "hub", "embedded"]
    label: str
    size: int
    record: Callable[[int], Mapping[str, object]]
    detail: Mapping[str, str] = field(default_factory=dict)
    parse: Callable[[int, object], Row] | None = None

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> Row:
        """Return one row; see :class:`Rows`."""
        return (self.parse or parse_record)(index + 1, self.record(index))


def parse_record(number: int, record: object) -> Row:
    """Turn a record ``{id, code}``, ``{id, input, gt}`` or ``{id, requests}`` into a row.

    ``code`` is a string, or a list of tokens as in the token-level dataset; the list's outer ``<s>`` and ``</s>``
    are dropped, the rest is joined with single spaces. ``id`` is an integer or a string and may be missing
    (early CodeXGLUE files carry none), and so may ``project``, a string. Other fields are ignored. ``gt`` may be empty
    here: which rows need an answer is the protocol's business.
    """
    sample_id = f"row-{number}"
    try:
        if not isinstance(record, Mapping):
            raise FieldError(f"is {_kind(record)}, not an object")
        if "id" in record:
            sample_id = _identity(record["id"])
        project = field_text("project", record["project"], LONGEST_ID) if record.get("project") is not None else None
        if "code" in record:
            return Document(number, sample_id, _code(record["code"]), project)
        if record.get("requests") is not None:
            return TraceRow(number, sample_id, _trace(record["requests"]), project)
        for name in ("input", "gt"):
            if name not in record:
                raise FieldError(f"has no field '{name}' (fields: {', '.join(map(str, record)) or 'none'})")
        prompt, answer = field_text("input", record["input"]), field_text("gt", record["gt"])
        if not prompt.strip():
            raise FieldError("'input' is empty")
        return LineRow(number, sample_id, prompt, answer, project)
    except FieldError as error:
        return BadRow(sample_id, f"row {number}: {error}")


class FieldError(Exception):
    """One field of a record is not what it must be."""


def _identity(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not value or not isinstance(value, str):
        raise FieldError(f"'id' is {_kind(value)}, not an integer or a string")
    return field_text("id", value, LONGEST_ID)


def _code(value: object) -> str:
    if isinstance(value, list):
        tokens = [field_text(f"code[{index}]", token) for index, token in enumerate(value)]
        wrapped = len(tokens) >= 2 and (tokens[0], tokens[-1]) == ("<s>", "</s>")
        value = " ".join(tokens[1:-1] if wrapped else tokens)
    text = field_text("code", value)
    if not text.strip():
        raise FieldError("'code' is empty")
    return text


def _trace(value: object) -> tuple[TracedRequest, ...]:
    if not isinstance(value, list):
        raise FieldError(f"'requests' is {_kind(value)}, not a list")
    if len(value) > LONGEST_TRACE:
        raise FieldError(f"'requests' has {len(value)} items; {LONGEST_TRACE} are the most")
    requests = tuple(_traced(f"requests[{index}]", item) for index, item in enumerate(value))
    if all(asked.after_s is not None for asked in requests):
        raise FieldError("'requests' has none that is waited for, without 'after_s'")
    return requests


def _traced(name: str, value: object) -> TracedRequest:
    if not isinstance(value, Mapping):
        raise FieldError(f"'{name}' is {_kind(value)}, not an object")
    prompt = field_text(f"{name}.prompt", value.get("prompt"))
    if not prompt.strip():
        raise FieldError(f"'{name}.prompt' is empty")
    after_s = _seconds(f"{name}.after_s", value.get("after_s"))
    reference = "" if after_s is not None else field_text(f"{name}.reference", value.get("reference"))
    return TracedRequest(prompt, reference, after_s, _seconds(f"{name}.typing_s", value.get("typing_s")) or 0.0)


def _seconds(name: str, value: object) -> float | None:
    """Return a field of seconds; a table has null where a row leaves it out."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FieldError(f"'{name}' is {_kind(value)}, not a number")
    if not 0 <= value <= LONGEST_PAUSE_S:
        raise FieldError(f"'{name}' is {value}; it lies between 0 and {LONGEST_PAUSE_S} seconds")
    return float(value)


def field_text(name: str, value: object, longest: int = LARGEST_ROW) -> str:
    """Return a field that tokenizers take and records can hold, or raise a ``FieldError``: every field passes here."""
    if not isinstance(value, str):
        raise FieldError(f"'{name}' is {_kind(value)}, not a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # JSON can spell half of a surrogate pair, which no tokenizer accepts
        raise FieldError(f"'{name}' holds a lone surrogate, which is not text") from None
    if len(value) > longest:
        raise FieldError(f"'{name}' has {len(value)} characters; {longest} are the most")
    return value


def _kind(value: object) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", list: "a list"}
    names |= {dict: "an object", str: "a string" if value else "an empty string"}
    return names.get(type(value), type(value).__name__)
