"""Protocols of lines and documents: how a row becomes a prompt, when a completion is over, and what is scored."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import BadRow, Document, Sample, TaskRequest
from tasks.languages import JAVA, PYTHON, Language
from tasks.protocols import Skipped
from tasks.protocols.codexglue_line import CodexglueLine
from tasks.protocols.green_code import GreenCode
from tasks.rows import LineRow

REQUEST = TaskRequest("codexglue-line", "x")
STREAMS = {
    "python": [" a", " > b", " <", " <EO", "<EOL>", "<EOL> x", "\n", " = ", "é", ">", "EOL"],
    "java": [" a", " ;", ");", " {", "{\n", " }", '"', "'", ' "x;"', "\\", "\n", " = ", "é", "<CHAR_LIT:;>"],
}


@pytest.mark.parametrize("language", [PYTHON, JAVA])
def test_stop_rule_agrees_with_the_line_however_text_is_tokenised(tokenizer: Any, language: Language) -> None:
    """At every length: stopped ⇔ the line has ended; and what is scored is final from then on."""
    protocol = CodexglueLine(language)
    chance = random.Random(3)
    stops = 0
    for _ in range(150):
        text = "".join(chance.choice(STREAMS[language.name]) for _ in range(12))
        token_ids = tokenizer.encode(text)
        is_over = protocol.stop_rule(tokenizer)
        for size in range(1, len(token_ids) + 1):
            so_far = tokenizer.decode(token_ids[:size])
            assert is_over(token_ids[:size]) == (language.line_end(so_far) is not None)
            if is_over(token_ids[:size]):
                stops += 1
                assert protocol.completion(so_far) == protocol.completion(text)
                break
    assert stops > 50


def test_one_stop_rule_serves_several_rows_of_a_batch(words: Any) -> None:
    is_over = CodexglueLine(PYTHON).stop_rule(words)
    first, second = words.encode(" a > b"), words.encode(" c\n")
    assert [is_over(first[:1]), is_over(second), is_over(first)] == [False, True, False]


def test_official_prompt_is_the_input_as_it_stands(tokenizer: Any) -> None:
    sample = CodexglueLine(PYTHON).sample(LineRow(4, "a", "<s> x = <EOL> y", "= z"), tokenizer, REQUEST)
    assert isinstance(sample, Sample)
    assert tokenizer.decode(sample.prompt_ids) == "<s> x = <EOL> y"
    assert sample.reference == "= z"
    assert tokenizer.decode(sample.reference_ids) == " = z"
    assert sample.max_new_tokens == 100


def test_long_prompts_keep_their_last_924_tokens(words: Any) -> None:
    text = "".join(f" w{index}" for index in range(1000))
    sample = CodexglueLine(PYTHON).sample(LineRow(1, "a", text, "end"), words, REQUEST)
    assert isinstance(sample, Sample)
    assert list(sample.prompt_ids) == words.encode(text)[-924:]


def test_a_document_is_cut_and_the_pieces_fit(tokenizer: Any) -> None:
    text = "import os\n\ndef first(a, b):\n    value = a + b\n    return value * 2\n"
    for seed in range(20):
        request = TaskRequest("codexglue-line", "x", seed=seed)
        sample = CodexglueLine(PYTHON).sample(Document(1, "a", text), tokenizer, request)
        assert isinstance(sample, Sample)
        joined = tokenizer.decode(sample.prompt_ids) + tokenizer.decode(sample.reference_ids)
        assert text.startswith(joined + "\n")
        assert CodexglueLine(PYTHON).completion(text[len(tokenizer.decode(sample.prompt_ids)) :]) == sample.reference


@pytest.mark.parametrize("language", [PYTHON, JAVA])
def test_every_official_row_is_completed_by_its_own_answer(data: Path, byte_tokenizer: Any, language: Language) -> None:
    """Generating the answer and then a mark stops at the mark, not before, and scores the whole answer."""
    protocol = CodexglueLine(language)
    is_over = protocol.stop_rule(byte_tokenizer)
    mark = " <EOL>" if language is PYTHON else ""
    with (data / "codexglue_line" / f"{language.name}.jsonl").open(encoding="utf-8") as file:
        answers = [json.loads(row)["gt"] for row in file][:300]
    for answer in answers:
        token_ids = byte_tokenizer.encode(" " + answer + mark)
        assert not is_over(token_ids[:-1])
        assert is_over(token_ids) == (language is PYTHON or answer[-1] in ";}")
        assert protocol.completion(byte_tokenizer.decode(token_ids)) == answer


GREEN = GreenCode(PYTHON)
EMBEDDED = TaskRequest("green-code", "embedded")


def numbered(size: int) -> Document:
    return Document(1, "a", "".join(f" w{index}" for index in range(size)))


def test_documents_too_short_are_skipped(words: Any) -> None:
    for size in (0, 1, 4, 15, 17):
        assert isinstance(GREEN.sample(numbered(size), words, EMBEDDED), Skipped)


@pytest.mark.parametrize(
    ("size", "context"), [(18, 3), (75, 15), (76, 15), (99, 19), (100, 20), (2559, 511), (2565, 512), (9000, 512)]
)
def test_context_is_a_fifth_rounded_down_and_at_most_512(words: Any, size: int, context: int) -> None:
    sample = GREEN.sample(numbered(size), words, EMBEDDED)
    assert isinstance(sample, Sample)
    whole = words.encode(numbered(size).text)
    assert list(sample.prompt_ids) == whole[:context]
    assert list(sample.reference_ids) == whole[context : context + 15]
    assert sample.max_new_tokens == 15


def test_a_reference_keeps_the_space_that_a_tokenizer_leaves_out(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = words.decode
    monkeypatch.setattr(words, "decode", lambda token_ids: spelled(token_ids).removeprefix(" "))
    sample = GREEN.sample(numbered(100), words, EMBEDDED)
    assert isinstance(sample, Sample)
    assert sample.reference == "".join(f" w{index}" for index in range(20, 35))


def test_prompt_longer_than_the_positions_is_bad_with_both_numbers(words: Any) -> None:
    fits = TaskRequest("green-code", "x", max_positions=35)
    assert isinstance(GREEN.sample(numbered(100), words, fits), Sample)
    bad = GREEN.sample(numbered(100), words, TaskRequest("green-code", "x", max_positions=34))
    assert isinstance(bad, BadRow)
    assert "row 1" in bad.reason
    assert "20 tokens" in bad.reason
    assert "leave 19" in bad.reason


def test_a_line_row_is_put_together_again(words: Any) -> None:
    row = LineRow(1, "a", "<s> " + " ".join(f"w{index}" for index in range(99)), "w99 end")
    whole = Document(1, "a", " ".join([*(f"w{index}" for index in range(100)), "end"]))
    assert GREEN.sample(row, words, EMBEDDED) == GREEN.sample(whole, words, EMBEDDED)
    assert isinstance(GREEN.sample(LineRow(1, "a", " w" * 100, ""), words, EMBEDDED), Sample)  # a withheld answer
