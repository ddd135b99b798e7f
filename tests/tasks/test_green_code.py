from __future__ import annotations

from typing import Any

import pytest

from harness.contracts import BadRow, Document, Sample, TaskRequest
from tasks.languages import PYTHON
from tasks.protocols import Skipped
from tasks.protocols.green_code import GreenCode
from tasks.rows import LineRow

PROTOCOL = GreenCode(PYTHON)
REQUEST = TaskRequest("green-code", "embedded")


def numbered(size: int) -> Document:
    return Document(1, "a", "".join(f" w{index}" for index in range(size)))


@pytest.mark.parametrize(
    ("size", "context"), [(75, 15), (76, 15), (99, 19), (100, 20), (2559, 511), (2565, 512), (9000, 512)]
)
def test_context_is_a_fifth_rounded_down_and_at_most_512(words: Any, size: int, context: int) -> None:
    sample = PROTOCOL.sample(numbered(size), words, REQUEST)
    assert isinstance(sample, Sample)
    whole = words.encode(numbered(size).text)
    assert list(sample.prompt_ids) == whole[:context]
    assert list(sample.reference_ids) == whole[context : context + 15]
    assert sample.max_new_tokens == 15


def test_prompt_and_reference_are_the_document_itself(tokenizer: Any) -> None:
    document = numbered(200)
    sample = PROTOCOL.sample(document, tokenizer, REQUEST)
    assert isinstance(sample, Sample)
    assert document.text.startswith(tokenizer.decode(sample.prompt_ids) + sample.reference)
    assert tokenizer.decode(sample.reference_ids) == sample.reference


def test_a_reference_keeps_the_space_that_a_tokenizer_leaves_out(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spelled = words.decode
    monkeypatch.setattr(words, "decode", lambda token_ids: spelled(token_ids).removeprefix(" "))
    sample = PROTOCOL.sample(numbered(100), words, REQUEST)
    assert isinstance(sample, Sample)
    assert sample.reference == "".join(f" w{index}" for index in range(20, 35))


@pytest.mark.parametrize("size", [0, 1, 4, 15, 17])
def test_documents_too_short_are_skipped(words: Any, size: int) -> None:
    assert isinstance(PROTOCOL.sample(numbered(size), words, REQUEST), Skipped)


def test_max_new_tokens_sets_reference_and_limit(words: Any) -> None:
    sample = PROTOCOL.sample(numbered(100), words, TaskRequest("green-code", "x", max_new_tokens=3))
    assert isinstance(sample, Sample)
    assert (len(sample.reference_ids), sample.max_new_tokens) == (3, 3)


def test_prompt_longer_than_the_positions_is_bad_with_both_numbers(words: Any) -> None:
    fits = TaskRequest("green-code", "x", max_positions=35)
    assert isinstance(PROTOCOL.sample(numbered(100), words, fits), Sample)
    bad = PROTOCOL.sample(numbered(100), words, TaskRequest("green-code", "x", max_positions=34))
    assert isinstance(bad, BadRow)
    assert "row 1" in bad.reason
    assert "20 tokens" in bad.reason
    assert "leave 19" in bad.reason


def test_a_line_row_is_put_together_again(words: Any) -> None:
    row = LineRow(1, "a", "<s> " + " ".join(f"w{index}" for index in range(99)), "w99 end")
    whole = Document(1, "a", " ".join([*(f"w{index}" for index in range(100)), "end"]))
    assert PROTOCOL.sample(row, words, REQUEST) == PROTOCOL.sample(whole, words, REQUEST)


def test_nothing_stops_it_and_all_text_is_scored(words: Any) -> None:
    text = " a ;\n } { <EOL> "
    assert not PROTOCOL.stop_rule(words)(words.encode(text))
    assert PROTOCOL.completion(text) == text
