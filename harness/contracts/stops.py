"""The contract of a stop rule: that a completion is over before the model, the protocol or the limit ends it.

A rule is asked about each completion after each of its tokens. Where full depth verifies drafts it says of verified
tokens only, so that a rule ends a lossless completion where it would end full depth's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from harness.contracts.models import ModelInfo, Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

CONTEXT = 5
"""Tokens of the prompt that a completion's first ones are spelled with."""


def spelled_behind(tokenizer: Tokenizer, before: Sequence[int], token_ids: Sequence[int]) -> str:
    """Return what tokens add to the text of those before them.

    By themselves some tokenizers (SentencePiece's) spell them without the space that they begin with. Where they
    complete a character that those before them begin, they are spelled by themselves.
    """
    context = before[-CONTEXT:]
    known, whole = tokenizer.decode(context), tokenizer.decode([*context, *token_ids])
    return whole[len(known) :] if whole.startswith(known) else tokenizer.decode(token_ids)


def spelled_prompt(tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> str:
    """Return the text of a prompt, without what a tokenizer puts before every text."""
    start = tokenizer.start_ids
    return tokenizer.decode(prompt_ids[len(start) :] if tuple(prompt_ids[: len(start)]) == start else prompt_ids)


@dataclass(frozen=True)
class Cursor:
    """Where a completion begins.

    Attributes:
        prompt_ids: tokens before it.
        tokenizer: spells them.
        language: of the code, as the task names it; empty where nobody knows.
        model: its facts.
        device: torch device of its states.
        code: code before it, where the prompt shows more than that (what comes after a gap, other files).
    """

    prompt_ids: Sequence[int]
    tokenizer: Tokenizer
    language: str
    model: ModelInfo
    device: str = "cpu"
    code: str | None = None

    @cached_property
    def before(self) -> str:
        """Text before it."""
        return spelled_prompt(self.tokenizer, self.prompt_ids) if self.code is None else self.code

    def text(self, token_ids: Sequence[int]) -> str:
        """Return what the tokens of a completion add to the text before it."""
        return spelled_behind(self.tokenizer, self.prompt_ids, token_ids)


class RowStop:
    """Tells whether one completion is over; made anew for each. Subclass it.

    Attributes:
        reads_states: whether it wants to :meth:`see` hidden states. One that does not decides by the tokens alone, the
            same whenever it is asked about them: drafts that it would end are verified at once.
    """

    reads_states: ClassVar[bool] = False

    def over(self, token_ids: Sequence[int]) -> bool:
        """Return whether a completion ends with the last of its tokens, at least one."""
        raise NotImplementedError

    def see(self, layer: int, state: Tensor) -> None:
        """See the state that the next token comes from; :meth:`over` is asked about that token right after.

        It is the residual stream after so many layers, before the final norm and any shortcut, ``[hidden_size]``.
        """


class NamedStop(NamedTuple):
    """The rule of one completion, with the name it is registered by."""

    name: str
    rule: RowStop


class Stop:
    """A stop rule: a frozen dataclass whose fields are its options. Subclass and register it in ``harness.stops``."""

    def check(self, model: ModelInfo, language: str) -> None:
        """Raise a :class:`HarnessError` where nothing can be decided here; reads no weights.

        The language is that of the code; empty where nobody knows.
        """

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """Return what trained parts it runs on: name → SHA-256."""
        return {}

    def start(self, cursor: Cursor) -> RowStop:
        """Return the rule of one completion."""
        raise NotImplementedError
