"""What each token added to a completion, and what its stop rule reads."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from harness.contracts import Cursor, Sample
from harness.running.completions import EngineRunner, token_texts


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


def test_the_pieces_are_the_text_and_a_character_belongs_to_the_token_that_completes_it() -> None:
    tokenizer = Bytes()
    for text in ("", "return x\n", "naïve", "日本", "🙂 = '🙂'"):
        pieces = token_texts(tokenizer, tokenizer.encode(text))
        assert len(pieces) == len(tokenizer.encode(text))
        assert "".join(pieces) == text
    assert token_texts(tokenizer, tokenizer.encode("aïb")) == ("a", "", "ï", "b")
    broken = [0x61, 0xF0, 0x9F]  # a text that never becomes whole is kept
    assert "".join(token_texts(tokenizer, broken)) == bytes(broken).decode(errors="replace")


def test_a_space_that_a_tokenizer_leaves_out_at_the_beginning_is_kept() -> None:
    tokenizer = Spaced()
    for before in ("x =", "    "):
        assert token_texts(tokenizer, tokenizer.encode("  1"), tokenizer.encode(before)) == (" ", " ", "1")


def test_a_character_that_the_prompt_begins_is_none_of_the_completion() -> None:
    accent = "é".encode()
    pieces = token_texts(Bytes(), [*accent[1:], 0x62], [0x61, *accent[:1]])
    assert "".join(pieces) == "\ufffdb" == Bytes().decode([*accent[1:], 0x62])


def test_a_rule_reads_the_code_before_a_gap_and_not_the_marks_of_the_prompt() -> None:
    asked: list[Cursor] = []
    tokenizer = SimpleNamespace(
        start_ids=(), eos_token_ids=frozenset(), decode=lambda token_ids: "".join(map(chr, token_ids))
    )
    model = SimpleNamespace(tokenizer=tokenizer, info=None)
    plan: Any = SimpleNamespace(model=model, config=SimpleNamespace(seed=0))
    engine: Any = SimpleNamespace(backbone=SimpleNamespace(device="cpu"), decode=lambda *_, **__: [])
    planned: Any = SimpleNamespace(task=SimpleNamespace(language="python"), record=SimpleNamespace(name="t"), stop=None)
    point: Any = SimpleNamespace(
        name="p", kv="", lossless=None, strategy=None, stop=SimpleNamespace(start=asked.append), weights_format="own"
    )
    batch = [
        Sample("a", tuple(map(ord, prompt)), "1", (49,), 4, around=around)
        for prompt, around in [
            ("<pre>x = <suf>\n<mid>", ("x = ", "\n")),
            ("<pre><suf> = 1<mid>", ("", " = 1")),
            ("x = ", ("", "")),
        ]
    ]
    EngineRunner(plan, {"own": engine}).complete(planned, point, batch)
    assert [cursor.before for cursor in asked] == ["x = ", "", "x = "]
