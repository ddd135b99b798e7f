"""The contract of a task: samples, when a completion is over, and what of it is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from harness.contracts.models import Tokenizer

Split: TypeAlias = Literal["train", "validation", "test"]
Duplicates: TypeAlias = Literal["skip", "keep"]
StopRule: TypeAlias = Callable[[Sequence[int]], bool]

LONGEST_ID = 512
"""Characters of a sample's id, at most: it stands in every record, and in tables and links."""
LONGEST_REASON = 500
"""Characters that say what is wrong with a row, at most."""


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which samples to draw.

    Attributes:
        protocol: registered name.
        source: ``embedded``, ``hub``, or a path.
        limit: at most so many samples; ``None`` for all.
        seed: decides every random choice of the sampling.
        split: part of the dataset, where it has several. A source of one file is taken whole.
        seen: keys (:func:`document_key`) of documents the model was tuned on; they are never drawn.
        was_read: tells whether tuning read a run of some tokens word for word; ``None`` where that is not known.
        duplicates: what becomes of a sample whose reference was read so: ``skip`` or, marked, ``keep``.
        max_new_tokens: overrides the protocol's own limit.
        max_positions: longest prompt + completion the model covers, tokens.
        vocab_size: tokens the model knows; ``None`` where that does not matter.
        allow_code_execution: whether completions may be run with the tests that a dataset has for them.
    """

    protocol: str
    source: str
    limit: int | None = None
    seed: int = 0
    split: Split = "test"
    seen: frozenset[str] = frozenset()
    was_read: Callable[[Sequence[int]], bool] | None = None
    duplicates: Duplicates = "skip"
    max_new_tokens: int | None = None
    max_positions: int | None = None
    vocab_size: int | None = None
    allow_code_execution: bool = False


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of source code, whole or from its beginning.

    Attributes:
        number: 1-based row number in its source.
        sample_id: the row's own id, or ``row-NUMBER`` when it has none.
        text: the code; of a token list, the tokens joined with single spaces.
        project: what its author's code belongs to, as the source says; ``None`` where it does not.
    """

    number: int
    sample_id: str
    text: str
    project: str | None = None


@dataclass(frozen=True, slots=True)
class Corpus:
    """Whole documents to learn from.

    Attributes:
        documents: in an order that the seed alone decides.
        source: where they came from; its fingerprint is over ids and texts.
    """

    documents: tuple[Document, ...]
    source: SourceInfo


def document_key(text: str) -> str:
    """Return what a document is recognised by wherever it turns up: 16 hex digits over its beginning.

    White space is left out and 300 further characters count, so that one file has one key as raw text, as a joined
    token list, or broken off in the middle. Two files that begin alike share a key, which errs on the safe side.
    """
    head = "".join(text[:4096].removeprefix("<s>").split())[:300]
    return hashlib.sha256(head.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to make.

    Attributes:
        sample_id: stable within a data source.
        prompt_ids: context tokens, never empty.
        reference: ground-truth text.
        reference_ids: ground-truth tokens.
        max_new_tokens: the protocol's limit for this sample.
        duplicate: tuning read the reference, and the context just before it, word for word.
        around: code of the file before and after the completion, where its end depends on them.
        tests: code that fails behind a wrong completion, ``around`` being put around it; empty where there is none, or
            where it must not run (:attr:`TaskRequest.allow_code_execution`).
        document: hash of the whole text that it is cut from, the same wherever that lies; empty where the task does not
            say.
        project: that the text belongs to; ``None`` where nothing says it.
    """

    sample_id: str
    prompt_ids: tuple[int, ...]
    reference: str
    reference_ids: tuple[int, ...]
    max_new_tokens: int
    duplicate: bool = False
    around: tuple[str, str] = ("", "")
    tests: str = ""
    document: str = ""
    project: str | None = None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a sample; becomes a counted error record.

    What is wrong with a row may be its id or the names of its fields, so both texts are made fit for a record: what no
    file can hold is spelled out, and they are cut where they are too long.

    Attributes:
        sample_id: as a sample's.
        reason: one line with the row number.
    """

    sample_id: str
    reason: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_id", _recordable(self.sample_id, LONGEST_ID))
        object.__setattr__(self, "reason", _recordable(" ".join(self.reason.split()), LONGEST_REASON))


def _recordable(text: str, longest: int) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is in no encoding
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where samples came from; named in every result.

    Attributes:
        kind: ``path``, ``hub`` or ``embedded``.
        label: short human name for tables, for example ``embedded: Python 3.11 standard library``.
        fingerprint: SHA-256 over the selected rows (ids, prompts, references), hex.
        detail: further facts (path, split, versions).
    """

    kind: Literal["path", "hub", "embedded"]
    label: str
    fingerprint: str
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskData:
    """The samples of one task under one protocol and source.

    Attributes:
        samples: in a fixed order.
        bad_rows: rows that could not become samples.
        source: where they came from.
        duplicates: samples kept or skipped because tuning has read them (:class:`TaskRequest`); ``None`` where that
            was not looked for.
    """

    samples: tuple[Sample, ...]
    bad_rows: tuple[BadRow, ...]
    source: SourceInfo
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

    def load(self, request: TaskRequest, tokenizer: Tokenizer) -> TaskData:
        """Draw the samples.

        Raises:
            DataError: the source cannot be read or cannot be scored.
        """

    def corpus(self, source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> Corpus:
        """Return whole documents of a source, at most ``limit``.

        Raises:
            DataError: the source cannot be read, or it holds no document.
        """

    def stop_rule(self, protocol: str, tokenizer: Tokenizer) -> StopRule:
        """Return a predicate on the tokens generated so far: true when the completion is over."""

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return the part of generated text that is scored (the line, cut at its end).

        Args:
            protocol: registered name.
            text: what was generated.
            around: the sample's, where its protocol gave it one.
        """
