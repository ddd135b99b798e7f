"""The contract of a task: samples, when a completion is over, and what of it is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, TypeAlias

from pydantic import Field

from harness.contracts.models import Tokenizer

Split: TypeAlias = Literal["train", "validation", "test"]
Duplicates: TypeAlias = Literal["skip", "keep"]
StopRule: TypeAlias = Callable[[Sequence[int]], bool]

LONGEST_ID = 512
"""Characters of a sample's id, at most: it stands in every record, and in tables and links."""
LONGEST_REASON = 500
"""Characters that say what is wrong with a row, at most."""


@dataclass(frozen=True)
class SessionRequest:
    """How editor sessions are drawn; its fields are the options of ``--scenario session``."""

    requests: Annotated[int, Field(ge=2, le=1000, description="of a document that are waited for, at most")] = 8
    window: Annotated[int, Field(ge=16, le=2**20, description="tokens of a prompt, at most")] = 1024
    step: Annotated[int, Field(ge=0, description="tokens by which a window's beginning moves; 0 for a quarter")] = 0

    def __post_init__(self) -> None:
        if self.step > self.window // 2:
            raise ValueError(f"step={self.step} is more than half of window={self.window}")

    def room(self, positions: int | None) -> tuple[int, int]:
        """Return the longest window that fits so many positions, and its step, tokens."""
        window = self.window if positions is None else min(self.window, positions)
        return window, max(1, min(self.step or window // 4, window // 2))


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which samples to draw."""

    protocol: str  # registered name
    source: str  # embedded, hub, or a path
    limit: int | None = None  # at most so many samples, or documents of sessions; None for all
    seed: int = 0  # decides every random choice of the sampling
    by_length: bool = True  # draw as many from each quarter of the source's lengths, as runs of older versions did not
    split: Split = "test"  # part of the dataset, where it has several. A source of one file is taken whole
    seen: frozenset[str] = frozenset()  # keys (document_key) of documents the model was tuned on; they are never drawn
    seen_projects: frozenset[str] = frozenset()  # likewise, what those belong to: of these nothing is drawn
    # tells whether tuning read a run of some tokens word for word; None where that is not known
    was_read: Callable[[Sequence[int]], bool] | None = None
    duplicates: Duplicates = "skip"  # what becomes of a sample whose reference was read so: skip or, marked, keep
    max_new_tokens: int | None = None  # overrides the protocol's own limit
    max_positions: int | None = None  # longest prompt + completion the model covers, tokens
    vocab_size: int | None = None  # tokens the model knows; None where that does not matter
    allow_code_execution: bool = False  # whether completions may be run with the tests that a dataset has for them
    # draw editor sessions, limit being that of documents; None for requests that share nothing
    session: SessionRequest | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of source code, whole or from its beginning."""

    number: int  # 1-based row number in its source
    sample_id: str  # the row's own id, or row-NUMBER when it has none
    text: str  # the code; of a token list, the tokens joined with single spaces
    project: str | None = None  # what its author's code belongs to, as the source says; None where it does not


@dataclass(frozen=True, slots=True)
class Corpus:
    """Whole documents to learn from."""

    documents: tuple[Document, ...]  # in an order that the seed alone decides
    source: SourceInfo  # where they came from; its fingerprint is over ids and texts


def document_key(text: str) -> str:
    """Return what a document is recognised by wherever it turns up: 16 hex digits over its beginning.

    White space is left out and 300 further characters count, so that one file has one key as raw text, as a joined
    token list, or broken off in the middle. Two files that begin alike share a key, which errs on the safe side.
    """
    head = "".join(text[:4096].removeprefix("<s>").split())[:300]
    return hashlib.sha256(head.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Overtaken:
    """A request of an editor that typing overtakes: what it computes is waste."""

    prompt_ids: tuple[int, ...]  # never empty
    after_s: float  # seconds from the request to the next key, which cancels it
    typing_s: float = 0.0  # seconds of typing since the request before was answered or overtaken


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to make."""

    sample_id: str  # stable within a data source
    prompt_ids: tuple[int, ...]  # context tokens, never empty
    reference: str  # ground-truth text
    reference_ids: tuple[int, ...]  # ground-truth tokens
    max_new_tokens: int  # the protocol's limit for this sample
    duplicate: bool = False  # tuning read the reference, and the context just before it, word for word
    # code of the file before and after the completion, where its end depends on them
    around: tuple[str, str] = ("", "")
    # code that fails behind a wrong completion, around being put around it; empty where there is none, or where it must
    # not run (TaskRequest.allow_code_execution)
    tests: str = ""
    # hash of the whole text that it is cut from, the same wherever that lies; empty where the task does not say
    document: str = ""
    project: str | None = None  # that the text belongs to; None where nothing says it
    # id of the editor session that it is a request of; those of one session come one after another. Empty: of none
    session: str = ""
    overtaken_requests: tuple[Overtaken, ...] = ()  # of the session, since the sample before
    # seconds of typing since the sample before, in which nobody waits; those of requests that it overtook included
    typing_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a sample; becomes a counted error record.

    Both texts are made fit for a record: what no file can hold is spelled out, and what is too long is cut.
    """

    sample_id: str  # as a sample's
    reason: str  # one line with the row number

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_id", _recordable(self.sample_id, LONGEST_ID))
        object.__setattr__(self, "reason", _recordable(" ".join(self.reason.split()), LONGEST_REASON))


def _recordable(text: str, longest: int) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is in no encoding
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where samples came from; named in every result."""

    kind: Literal["path", "hub", "embedded"]  # path, hub or embedded
    label: str  # short human name for tables, for example embedded: Python 3.11 standard library
    fingerprint: str  # SHA-256 over the selected rows (ids, prompts, references), hex
    detail: Mapping[str, str] = field(default_factory=dict)  # further facts (path, split, versions)


@dataclass(frozen=True, slots=True)
class TaskData:
    """The samples of one task under one protocol and source."""

    samples: tuple[Sample, ...]  # in a fixed order
    bad_rows: tuple[BadRow, ...]  # rows that could not become samples
    source: SourceInfo  # where they came from
    # samples kept or skipped because tuning has read them (TaskRequest); None where that was not looked for
    duplicates: int | None = None


class Task(Protocol):
    """A dataset that can be drawn under the protocols."""

    @property
    def name(self) -> str:
        """Registered name."""

    @property
    def language(self) -> str:
        """Programming language, for example ``python``."""

    @property
    def default_protocol(self) -> str:
        """The registered protocol of a run that names none."""

    @property
    def session_protocol(self) -> str:
        """The registered protocol of editor sessions, where a run names none."""

    def load(self, request: TaskRequest, tokenizer: Tokenizer) -> TaskData:
        """Draw the samples; raise :class:`DataError` where the source cannot be read or scored."""

    def corpus(self, source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> Corpus:
        """Return whole documents, at most ``limit``; raise :class:`DataError` where the source has none to read."""

    def stop_rule(self, protocol: str, tokenizer: Tokenizer) -> StopRule:
        """Return a predicate on the tokens generated so far: true when the completion is over."""

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return the part of generated text that is scored (the line, cut at its end); ``around`` is the sample's."""
