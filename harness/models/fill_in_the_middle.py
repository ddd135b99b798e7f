"""Prompts for models that were trained to fill in the middle: text before the cursor, text after it, then the gap.

A model family is recognised by its marker tokens, which must be whole tokens that were added to the vocabulary: a name
that the tokenizer would have to spell from pieces means nothing to the model. Having them is no proof of training: a
chat model may have inherited its family's tokenizer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from harness.contracts import Tokenizer

_JOINS_NOTHING = "☺"
"""A character that becomes no token together with others, as the authors of CodeLlama and Codestral use it."""


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of models marks prefix, suffix and middle."""

    name: str
    prefix: str
    suffix: str
    middle: str | None
    start: tuple[str, ...] = ()
    ends: tuple[str, ...] = ()
    spelled: bool = True

    @property
    def texts(self) -> tuple[str, str, str] | None:
        """Markers of prefix, suffix and middle for editors that write them into the prompt, in this order."""
        return (self.prefix, self.suffix, self.middle) if self.spelled and self.middle is not None else None


FAMILIES: tuple[Family, ...] = (
    Family(
        "starcoder", "<fim_prefix>", "<fim_suffix>", "<fim_middle>",
        ends=("<fim_pad>", "<|endoftext|>", "<file_sep>", "<repo_name>"),
    ),
    Family(
        "santacoder", "<fim-prefix>", "<fim-suffix>", "<fim-middle>",
        ends=("<fim-pad>", "<|endoftext|>"),
    ),
    Family(  # before qwen, whose markers it shares
        "codegemma", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
        start=("<bos>",), ends=("<|file_separator|>", "<eos>"),
    ),
    Family(
        "qwen", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>",
        ends=("<|fim_pad|>", "<|endoftext|>", "<|im_end|>", "<|file_sep|>", "<|repo_name|>"),
    ),
    Family(
        "deepseek", "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>",
        start=("<｜begin▁of▁sentence｜>",), ends=("<｜end▁of▁sentence｜>", "<|EOT|>"),
    ),
    Family(
        "codellama", "▁<PRE>", "▁<SUF>", "▁<MID>",
        start=("<s>",), ends=("▁<EOT>", "</s>"), spelled=False,
    ),
    Family("codestral", "[PREFIX]", "[SUFFIX]", None, start=("<s>",), ends=("</s>",)),
)  # fmt: skip
"""Known families; the first whose markers and start a vocabulary has is the one."""


@dataclass(frozen=True, slots=True)
class FillInTheMiddle:
    """One tokenizer's way to fill in the middle."""

    family: Family
    start: tuple[int, ...]
    prefix: int
    suffix: int
    middle: int | None
    end_token_ids: frozenset[int]

    @property
    def markers(self) -> int:
        """How many tokens a prompt has beside the text."""
        return len(self.start) + (2 if self.middle is None else 3)

    def token_ids(self, prefix_ids: Sequence[int], suffix_ids: Sequence[int]) -> list[int]:
        """Return the prompt for the gap between two texts, encoded without special tokens; either may be empty."""
        if self.middle is None:
            return [*self.start, self.suffix, *suffix_ids, self.prefix, *prefix_ids]
        return [*self.start, self.prefix, *prefix_ids, self.suffix, *suffix_ids, self.middle]

    def before_gap(self, token_ids: Sequence[int]) -> tuple[int, ...] | None:
        """Return the text before the gap of a prompt that somebody has marked himself; ``None`` where it has none."""
        marks = (self.prefix, self.suffix) if self.middle is None else (self.prefix, self.suffix, self.middle)
        if any(token_ids.count(mark) != 1 for mark in marks):
            return None
        begin, suffix = token_ids.index(self.prefix) + 1, token_ids.index(self.suffix)
        return tuple(token_ids[begin : suffix if suffix >= begin else len(token_ids)])

    def fit(self, prefix_ids: Sequence[int], suffix_ids: Sequence[int], budget: int) -> tuple[list[int], list[int]]:
        """Trim both texts until their prompt has at most ``budget`` tokens, markers included.

        The prefix loses its beginning, the suffix its end: what is near the cursor stays. Three quarters of the room
        belong to the prefix and one to the suffix, as in llama.cpp; what one does not need goes to the other.
        """
        room = budget - self.markers
        if room < 0:
            raise ValueError(f"a prompt with {self.markers} marker tokens does not fit in {budget}")
        after = min(len(suffix_ids), max(room // 4, room - len(prefix_ids)))
        before = min(len(prefix_ids), room - after)
        return list(prefix_ids[len(prefix_ids) - before :]), list(suffix_ids[:after])


def encode_inside(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of text within other text: without the space that some tokenizers begin every text with."""
    alone = tokenizer.encode("x")
    if tokenizer.decode([*alone, *alone]) == "xx":
        return tokenizer.encode(text)
    return tokenizer.encode(_JOINS_NOTHING + text)[len(tokenizer.encode(_JOINS_NOTHING)) :]


def detect(vocabulary: Mapping[str, int], added: Collection[int]) -> FillInTheMiddle | None:
    """Return how a vocabulary marks the middle, or ``None`` when it cannot."""
    whole = {token: number for token, number in vocabulary.items() if number in added}
    for family in FAMILIES:
        needed = [family.prefix, family.suffix, *family.start, *([] if family.middle is None else [family.middle])]
        if all(token in whole for token in needed):
            return FillInTheMiddle(
                family=family,
                start=tuple(whole[token] for token in family.start),
                prefix=whole[family.prefix],
                suffix=whole[family.suffix],
                middle=None if family.middle is None else whole[family.middle],
                end_token_ids=frozenset(whole[token] for token in family.ends if token in whole),
            )
    return None


def fill_in_the_middle(tokenizer: Tokenizer) -> FillInTheMiddle | None:
    """Return how a model's tokenizer marks the middle, or ``None`` when it cannot; looked for once."""
    given: Any = tokenizer  # may have neither vocabulary nor hash
    return None if getattr(given, "vocabulary", None) is None else _found(given)


@lru_cache(maxsize=4)
def _found(tokenizer: Any) -> FillInTheMiddle | None:
    return detect(tokenizer.vocabulary, tokenizer.whole_ids)
