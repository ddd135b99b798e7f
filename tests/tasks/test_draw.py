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


def test_nothing_usable_is_refused_and_says_why(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows([{"id": 0, "code": "too short"}, {"id": 1}])
    with pytest.raises(DataError, match=r"none of its 2 rows .*1 bad.*too short"):
        draw(rows, DOCUMENTS, words, TaskRequest("green-code", "x"))
