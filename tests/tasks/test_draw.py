from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from harness.contracts import TaskRequest
from harness.errors import DataError
from tasks.draw import draw
from tasks.languages import PYTHON
from tasks.protocols.codexglue_line import CodexglueLine
from tasks.protocols.green_code import GreenCode

LINES = CodexglueLine(PYTHON)
DOCUMENTS = GreenCode(PYTHON)


def records(count: int) -> list[dict[str, object]]:
    return [{"id": index, "input": f"<s> value_{index} =", "gt": f"call_{index} ( )"} for index in range(count)]


def request(limit: int | None = None, seed: int = 0) -> TaskRequest:
    return TaskRequest("codexglue-line", "x", limit=limit, seed=seed)


def test_same_seed_same_samples_other_seed_others(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows(records(100))
    first, again, other = (draw(rows, LINES, words, request(10, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.samples != other.samples
    assert first.source.fingerprint != other.source.fingerprint


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_a_smaller_limit_gives_the_first_of_a_larger_one(make_rows: Callable[..., Any], words: Any, seed: int) -> None:
    broken = records(60)
    for index in (3, 14, 15, 40):
        broken[index] = {"id": index, "input": "x", "gt": ""}
    rows = make_rows(broken)
    everything = draw(rows, LINES, words, request(None, seed))
    assert len(everything.samples) == 56
    assert len(everything.bad_rows) == 4
    for limit in (1, 2, 7, 30, 56, 500):
        some = draw(rows, LINES, words, request(limit, seed))
        assert some.samples == everything.samples[:limit]
        assert some.bad_rows == everything.bad_rows[: len(some.bad_rows)]


def test_only_the_rows_that_are_needed_are_read_and_tokenised(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows(records(20_000))
    reads: list[int] = []
    counting = type(rows)(rows.kind, rows.label, rows.size, lambda index: reads.append(index) or rows.record(index))
    data = draw(counting, LINES, words, request(20))
    assert len(reads) == 20
    assert len(words.encoded) == 40  # a prompt and a reference each
    assert data.source.detail["rows"] == "20000"
    assert data.source.detail["rows_visited"] == "20"


def test_skipped_documents_are_counted_and_are_no_error(make_rows: Callable[..., Any], words: Any) -> None:
    documents = [{"id": index, "code": " w" * (10 if index % 2 else 100)} for index in range(10)]
    data = draw(make_rows(documents), DOCUMENTS, words, TaskRequest("green-code", "x"))
    assert len(data.samples) == 5
    assert not data.bad_rows
    assert data.source.detail["skipped"].startswith("5 × document too short")


def test_an_id_used_twice_is_a_bad_row(make_rows: Callable[..., Any], words: Any) -> None:
    data = draw(make_rows(records(5) + records(1)), LINES, words, request())
    assert len(data.samples) == 5
    assert [row.reason.split(": ", 1)[1] for row in data.bad_rows] == ["id '0' was used before"]


def test_fingerprint_follows_what_is_scored(make_rows: Callable[..., Any], words: Any) -> None:
    changed = records(5)
    changed[2]["gt"] = "other"
    prints = {
        draw(make_rows(rows), LINES, words, request()).source.fingerprint for rows in (records(5), records(5), changed)
    }
    assert len(prints) == 2
    assert all(len(value) == 64 for value in prints)


@pytest.mark.parametrize("kind", ["path", "hub"])
def test_withheld_answers_are_refused_with_the_reason(make_rows: Callable[..., Any], words: Any, kind: str) -> None:
    rows = make_rows([{"id": index, "input": "x", "gt": ""} for index in range(5)], kind)
    with pytest.raises(DataError, match="withheld") as refusal:
        draw(rows, LINES, words, request(2))
    message = str(refusal.value)
    assert "--source" in message
    assert "\n" not in message


def test_one_answer_among_withheld_ones_is_enough(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows([{"id": index, "input": "x", "gt": "y" if index == 3 else ""} for index in range(5)])
    data = draw(rows, LINES, words, request())
    assert [sample.sample_id for sample in data.samples] == ["3"]
    assert len(data.bad_rows) == 4


def test_nothing_usable_is_refused_and_says_why(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows([{"id": 0, "code": "too short"}, {"id": 1}])
    with pytest.raises(DataError, match=r"none of its 2 rows .*1 bad.*too short"):
        draw(rows, DOCUMENTS, words, TaskRequest("green-code", "x"))
