"""What each token added to a completion, what its stop rule reads, and scores of a plug-in that fail."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import Completion, Cursor, Sample, Score
from harness.registry import SCORES
from harness.running import scoring
from harness.running.completions import EngineRunner, token_texts
from harness.running.scoring import CorpusScores, score_sample
from reports.summary.measured import Corpus

CORPUS = Corpus("python", ("x = 1", "return y"), ("x = 1", "return x"))


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
        name="p",
        kv="",
        lossless=None,
        strategy=None,
        stop=SimpleNamespace(name="r", rule=SimpleNamespace(start=asked.append)),
        keep=None,
        prompt=None,
        weights_format="own",
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


class Fails(Score):
    """A score that fails."""

    title = "fails"

    def sample(self, completion: Completion) -> float:
        return 1 / 0

    def corpus(self, pairs: object, language: str) -> float:
        raise KeyError("x")


def test_a_plug_in_s_score_that_fails_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "registered_scores", lambda: {"fails": Fails()})
    with monkeypatch.context() as plugged:
        plugged.setitem(SCORES._points, "fails", EntryPoint("fails", "outside:Fails", SCORES.group))
        scores = CorpusScores([CORPUS])
        said = "the score 'fails' of unknown distribution fails: "
        assert scores("python", CORPUS.texts, CORPUS.references) == {"fails": None}
        assert scores.failures == {"fails": f"{said}KeyError: 'x'"}
        found = score_sample(Completion("a", "a", (), (), "python"))
        assert found == {"fails": f"{said}ZeroDivisionError: division by zero"}
    monkeypatch.setitem(SCORES._points, "fails", next(iter(SCORES._points.values())))  # one of ours is a defect
    with pytest.raises(KeyError):
        CorpusScores([CORPUS])
