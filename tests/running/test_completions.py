"""What each token added to a completion."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.running.completions import token_texts


class Bytes:
    """A tokenizer of one byte a token; half a character decodes to a replacement character, as real tokenizers' do."""

    eos_token_ids: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


@pytest.mark.parametrize("text", ["", "x", "return x\n", "naïve", "日本", "🙂 = '🙂'"])
def test_the_pieces_are_the_text(text: str) -> None:
    tokenizer = Bytes()
    ids = tokenizer.encode(text)
    pieces = token_texts(tokenizer, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_a_character_belongs_to_the_token_that_completes_it() -> None:
    assert token_texts(Bytes(), Bytes().encode("aïb")) == ("a", "", "ï", "b")


def test_a_text_that_never_becomes_whole_is_kept() -> None:
    assert "".join(token_texts(Bytes(), [0x61, 0xF0, 0x9F])) == bytes([0x61, 0xF0, 0x9F]).decode(errors="replace")
