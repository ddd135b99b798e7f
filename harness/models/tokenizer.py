"""A transformers tokenizer behind the small face tasks and the runner need."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

__all__ = ["TokenizerCodec"]


class TokenizerCodec:
    """Implements :class:`harness.contracts.TextCodec`.

    Args:
        tokenizer: a transformers tokenizer.
        eos_token_ids: ids that end a generation, from the model's configuration.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: frozenset[int]) -> None:
        self.tokenizer = tokenizer
        self._eos = eos_token_ids

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a generation."""
        return self._eos

    @property
    def fingerprint(self) -> str:
        """Hash over the vocabulary, 16 hex digits."""
        words = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr(words).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Return token ids, no special tokens added; text of any length is encoded whole."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text exactly as the tokens spell it."""
        text: str = self.tokenizer.decode(
            list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text
