"""Protocols: how a row becomes a prompt and a reference, when a completion is over, and what of it is scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from harness.contracts import BadRow, Document, Sample, SessionRequest, StopRule, TaskRequest, Tokenizer
from harness.errors import ConfigError
from tasks.languages import Language
from tasks.rows import GapRow, LineRow, TraceRow

__all__ = ["AnyProtocol", "Protocol", "Skipped", "never", "too_long"]

R = TypeVar("R", bound=Document | LineRow | GapRow)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A sound row that the protocol does not use, for instance a document that is too short.

    Attributes:
        reason: the same words for every row skipped for it, since they are counted.
    """

    reason: str


class Protocol(ABC, Generic[R]):
    """One way to make and judge completions, for one language; subclass it, one class per protocol.

    A registered protocol is a class that takes the language; ``--protocol`` names its entry point.

    Attributes:
        new_tokens: limit of a completion, tokens, unless the request overrides it.
        wants: what it reads: ``documents``, ``lines``, or the rows of one benchmark by its name; a task that offers
            this can be drawn under it.
        origins: row type → in words, how this protocol makes a sample of it.
        language: of the code.
    """

    new_tokens: ClassVar[int]
    wants: ClassVar[str]
    origins: ClassVar[Mapping[type, str]]

    def __init__(self, language: Language) -> None:
        self.language = language

    @abstractmethod
    def sample(self, row: R, tokenizer: Tokenizer, request: TaskRequest) -> Sample | BadRow | Skipped:
        """Return the sample of one row, or why there is none. Depends on nothing but its arguments."""

    def session(
        self, row: R | TraceRow, tokenizer: Tokenizer, request: TaskRequest, session: SessionRequest
    ) -> tuple[Sample, ...] | BadRow | Skipped:
        """Return the requests of an editor session in which a document is typed, in order, or why there are none.

        Each sample names the session that it is of. A protocol that completes no lines has none and refuses.
        """
        raise ConfigError(
            f"the protocol '{request.protocol}' has no editor sessions: in these the line is completed. Use --protocol "
            "codexglue-line with --task py150 or javacorpus, or --scenario requests."
        )

    @abstractmethod
    def stop_rule(self, tokenizer: Tokenizer) -> StopRule:
        """Return a predicate on the tokens generated so far: true when the completion is over."""

    @abstractmethod
    def completion(self, text: str) -> str:
        """Return the part of generated text that is scored."""

    def completion_between(self, before: str, text: str, after: str) -> str:
        """Return the part of generated text that is scored, where that depends on the code around it.

        Args:
            before: code of the file before the gap, as the sample has it (``Sample.around``).
            text: what was generated.
            after: code behind the gap.
        """
        return self.completion(text)

    def limit(self, request: TaskRequest) -> int:
        """Return the limit of a completion, tokens: what was asked for, or the protocol's own."""
        return self.new_tokens if request.max_new_tokens is None else request.max_new_tokens


AnyProtocol = Protocol[Any]
"""One whose rows do not matter here."""


def never(token_ids: Sequence[int]) -> bool:
    """Stop at nothing: the length limit does."""
    return False


def too_long(row: Document | LineRow | GapRow | TraceRow, prompt: int, new: int, request: TaskRequest) -> BadRow | None:
    """Return a bad row when a prompt and its completion do not fit the model's positions.

    Args:
        row: where the prompt came from.
        prompt: prompt length, tokens.
        new: completion limit, tokens.
        request: carries the model's positions; without them everything fits.
    """
    if request.max_positions is None or prompt + new <= request.max_positions:
        return None
    return BadRow(
        row.sample_id,
        f"row {row.number}: the prompt has {prompt} tokens, the model's {request.max_positions} positions leave "
        f"{max(0, request.max_positions - new)} beside {new} new tokens",
    )
