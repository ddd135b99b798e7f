"""What each token added to a completion."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from harness.running.completions import token_texts


class Bytes:
    """A tokenizer of one byte a token; half a character decodes to a replacement character, as real tokenizers' do."""

    eos_token_ids: frozenset[int] = frozenset()
    start_ids: tuple[int, ...] = ()

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


class Spaced(Bytes):
    """One that leaves out the first space of what it spells, as SentencePiece's do."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return super().decode(token_ids).removeprefix(" ")


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


@pytest.mark.parametrize("before", ["x =", "    ", "def f():\n        "])
def test_a_space_that_a_tokenizer_leaves_out_at_the_beginning_is_kept(before: str) -> None:
    tokenizer = Spaced()
    assert token_texts(tokenizer, tokenizer.encode("  1"), tokenizer.encode(before)) == (" ", " ", "1")


def test_a_character_that_the_prompt_begins_is_none_of_the_completion() -> None:
    accent = "é".encode()
    pieces = token_texts(Bytes(), [*accent[1:], 0x62], [0x61, *accent[:1]])
    assert "".join(pieces) == "\ufffdb" == Bytes().decode([*accent[1:], 0x62])
