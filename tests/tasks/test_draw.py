from __future__ import annotations

import random
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from harness.config import RunConfig
from harness.contracts import TaskRequest, document_key
from harness.errors import DataError
from harness.models.model import resolve
from harness.records import Manifest
from harness.running.plan import drawn_again, registered_draw
from tasks.draw import LENGTHS_FROM, draw
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


def test_a_smaller_limit_gives_the_first_of_a_larger_one(make_rows: Callable[..., Any], words: Any) -> None:
    broken = records(60)
    for index in (3, 14, 15, 40):
        broken[index] = {"id": index, "input": "x", "gt": ""}
    rows = make_rows(broken)
    everything = draw(rows, LINES, words, request(None, 1))
    assert len(everything.samples) == 56
    assert len(everything.bad_rows) == 4
    for limit in (1, 7, 56, 500):
        some = draw(rows, LINES, words, request(limit, 1))
        assert some.samples == everything.samples[:limit]
        assert some.bad_rows == everything.bad_rows[: len(some.bad_rows)]


def test_what_tuning_has_read_is_replaced_by_rows_as_long(make_rows: Callable[..., Any], byte_tokenizer: Any) -> None:
    """A quarter of the samples comes from each quarter of the source's lengths, whatever was left out."""
    lengths = random.Random(3).sample(range(10, 910), 400)
    texts = {str(row): f"{row}{'x' * size}" for row, size in enumerate(lengths)}
    rows = make_rows([{"id": row, "input": text, "gt": "= 1"} for row, text in texts.items()])
    ends = [sorted(map(len, texts.values()))[100 * part] for part in (1, 2, 3)]
    quarter_of = {row: bisect_right(ends, len(text)) for row, text in texts.items()}
    long = [row for row, quarter in quarter_of.items() if quarter == 3]
    seen = frozenset(document_key(texts[row]) for row in long[10:])
    for limit, expected in ((24, [6, 6, 6, 6]), (80, [20, 20, 30, 10])):  # ten are left of the longest
        data = draw(rows, LINES, byte_tokenizer, replace(request(limit), seen=seen))
        counts = Counter(quarter_of[sample.sample_id] for sample in data.samples)
        assert [counts[quarter] for quarter in range(4)] == expected
        told = data.source.detail["lengths"]
        assert f"shortest first: {', '.join(map(str, expected))};" in told
        assert ("no more may be drawn of quarter 4;" in told) == (limit == 80), "a lack is told"
        of_all = [float(found) for found in re.findall(r"prompts have (\d+) tokens on average, median (\d+)", told)[0]]
        assert of_all == pytest.approx([mean(map(len, texts.values())), median(map(len, texts.values()))], rel=0.05)
    assert "prompts" not in draw(rows, LINES, byte_tokenizer, request(24)).source.detail["lengths"]  # all may be drawn


def test_only_the_rows_that_are_needed_are_read_and_tokenised(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows(records(20_000))
    reads: list[int] = []
    counting = type(rows)(rows.kind, rows.label, rows.size, lambda index: reads.append(index) or rows.record(index))
    data = draw(counting, LINES, words, request(20))
    assert len(reads) == LENGTHS_FROM
    assert len(words.encoded) == 40  # a prompt and a reference each
    assert data.source.detail["rows"] == "20000"
    assert data.source.detail["rows_visited"] == "20"


def test_nothing_usable_is_refused_and_says_why(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows([{"id": 0, "code": "too short"}, {"id": 1}])
    with pytest.raises(DataError, match=r"none of its 2 rows .*1 bad.*too short"):
        draw(rows, DOCUMENTS, words, TaskRequest("green-code", "x"))


def test_a_run_that_was_not_drawn_by_length_is_drawn_again_as_it_was(
    tiny_run: Callable[..., Any], tmp_path: Path
) -> None:
    ran = tiny_run("--limit", 4, "--out", "out")
    assert ran.code == 0, ran.err
    manifest = Manifest.model_validate_json((tmp_path / "out" / "manifest.json").read_text())
    config = RunConfig.build({key: value for key, value in manifest.config.items() if key != "out"})
    (older,) = registered_draw(config, by_length=False)(resolve(config.request(config.seed)))
    assert older.record.fingerprint != manifest.tasks[0].fingerprint
    for record in (older.record.model_copy(update={"prompt_tokens_mean": None}), manifest.tasks[0]):
        (again,) = drawn_again(manifest.model_copy(update={"tasks": (record,)}))
        assert again.record.fingerprint == record.fingerprint
