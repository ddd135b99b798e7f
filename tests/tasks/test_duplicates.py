"""Samples that tuning has read elsewhere: told by their next tokens, skipped or marked, and counted."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import ModelRequest, TaskData, TaskRequest, common_prefix, document_key
from harness.models.model import resolve
from harness.models.ngrams import NgramIndex, write_index
from tasks.draw import draw
from tasks.languages import PYTHON
from tasks.protocols.codexglue_line import CodexglueLine
from tasks.protocols.green_code import GreenCode
from tasks.protocols.infilling import Infilling, InfillingLeft
from tasks.rows import GapRow, RecordRows, whole

LINES = CodexglueLine(PYTHON)
DOCUMENTS = GreenCode(PYTHON)


def function(number: int, count: int = 9) -> str:
    """Code like no other: its names and numbers are drawn."""
    chance = random.Random(number)
    names = ["".join(chance.choices("abcdefgh", k=6)) for _ in range(60)]
    return "".join(
        f"def {chance.choice(names)}({chance.choice(names)}):\n    {chance.choice(names)} = "
        f"{chance.choice(names)}[{chance.randrange(1000)}] + {chance.choice(names)}.{chance.choice(names)}\n"
        for _ in range(count)
    )


def drawn(rows: Any, tokenizer: Any, read: Sequence[str], protocol: Any = DOCUMENTS, **asked: Any) -> TaskData:
    index = NgramIndex.of([tokenizer.encode(text) for text in read])
    return draw(rows, protocol, tokenizer, TaskRequest("any", "x", was_read=index.has_run_of, **asked))


def ids(data: TaskData) -> set[str]:
    return {sample.sample_id for sample in data.samples}


MIDDLE = function(1)
COPIES = {
    "the same": lambda text: text,
    "another beginning": lambda text: f"import {function(8, 1)[4:10]}\n" + text.partition("\n")[2],
    "moved down": lambda text: function(9, 1) + text,
    "commented elsewhere": lambda text: "# what it does\n\n\n" + text + "\n\n# the end\n",
    "indented elsewhere": lambda text: "\n\n\n" + text.replace("def", "   def", 1) + "\n\n",
}


def test_near_duplicates_are_skipped_and_counted(make_rows: Callable[..., Any], words: Any) -> None:
    copies = [{"id": how, "code": copied(MIDDLE)} for how, copied in COPIES.items()]
    rows = make_rows([*copies, *({"id": n, "code": function(100 + n)} for n in range(5))])
    read = [function(2), function(3) + MIDDLE + function(4)]
    data = drawn(rows, words, read)
    assert ids(data) == {"0", "1", "2", "3", "4"}
    assert data.duplicates == len(COPIES)
    assert data.source.detail["skipped"] == f"{len(COPIES)} × near-duplicate of what tuning has read"
    assert not data.bad_rows
    assert not any(sample.duplicate for sample in data.samples)


def test_a_change_among_the_compared_tokens_makes_another_text(make_rows: Callable[..., Any], words: Any) -> None:
    others = {"( ": MIDDLE.replace("(", "( "), "new": MIDDLE.replace("):", ", new):")}
    rows = make_rows([{"id": "same", "code": MIDDLE}, *({"id": name, "code": text} for name, text in others.items())])
    assert ids(drawn(rows, words, [MIDDLE])) == set(others)


@pytest.mark.parametrize("length", [1, 14, 15, 16, 40])
def test_twenty_tokens_are_compared_fifteen_of_the_reference_at_most(
    make_rows: Callable[..., Any], words: Any, length: int
) -> None:
    line, asked = " + ".join(f"name{number}" for number in range(length)), list[Sequence[int]]()
    rows = make_rows([{"id": 0, "input": MIDDLE + "\nx = ", "gt": line}])
    request = TaskRequest("any", "x", was_read=lambda token_ids: bool(asked.append(token_ids)))
    (sample,) = draw(rows, LINES, words, request).samples
    after = min(15, len(sample.reference_ids))
    assert [*map(list, asked)] == [[*sample.prompt_ids[after - 20 :], *sample.reference_ids[:after]]]
    assert (after == 15) is (length >= 14)  # so both kinds are tried


def test_of_a_short_line_more_context_is_compared(make_rows: Callable[..., Any], words: Any) -> None:
    head, _, tail = MIDDLE.rpartition(" + ")
    rows = make_rows([{"id": 0, "input": head + " +", "gt": tail.strip()}, {"id": 1, "input": "x =", "gt": "y"}])
    assert ids(drawn(rows, words, [MIDDLE], LINES)) == {"1"}  # the other one has nothing to compare


@pytest.mark.parametrize("protocol", [Infilling(PYTHON), InfillingLeft(PYTHON)])
def test_a_gap_is_compared_within_its_file(marked: Any, protocol: Any) -> None:
    """The prompt may end with the code after it, and a token of the file may lie on its edge."""
    gaps = []
    for name, text in {"copy": MIDDLE, **{str(number): function(100 + number) for number in range(4)}}.items():
        lines = text.splitlines(keepends=True)
        gaps.append(GapRow(1, name, "".join(lines[:5]), lines[5], "".join(lines[6:])))
    rows = RecordRows("path", "gaps", len(gaps), lambda index: {}, {}, lambda number, record: gaps[number - 1])
    data = drawn(rows, marked, [function(2), function(3) + MIDDLE + function(4)], protocol)
    assert ids(data) == {"0", "1", "2", "3"}
    assert data.duplicates == 1
    asked = list[Sequence[int]]()
    request = TaskRequest("any", "x", was_read=lambda token_ids: bool(asked.append(token_ids)))
    samples = draw(rows, protocol, marked, request).samples
    by_name = {gap.sample_id: gap for gap in gaps}
    for sample, compared in zip(samples, asked, strict=True):
        gap = by_name[sample.sample_id]
        token_ids, before = marked.encode(whole(gap)), marked.encode(gap.before)
        begin = common_prefix(before, token_ids)
        assert list(compared) == list(token_ids[begin - 5 : begin + 15])


def test_kept_they_are_marked_and_nothing_else_changes(make_rows: Callable[..., Any], words: Any) -> None:
    rows = make_rows([{"id": n, "code": function(n)} for n in range(12)])
    read = [function(n) for n in (2, 3, 7)]
    plain = draw(rows, DOCUMENTS, words, TaskRequest("any", "x", limit=8))
    kept = drawn(rows, words, read, limit=8, duplicates="keep")
    assert [sample.sample_id for sample in kept.samples] == [sample.sample_id for sample in plain.samples]
    assert kept.source.fingerprint == plain.source.fingerprint
    marked = {sample.sample_id for sample in kept.samples if sample.duplicate}
    assert marked == {"2", "3", "7"} & ids(kept)
    assert kept.duplicates == len(marked) > 0
    assert plain.duplicates is None
    skipped = drawn(rows, words, read, limit=8)
    assert ids(skipped).isdisjoint({"2", "3", "7"})
    assert len(skipped.samples) == 8


# -------------------------------------------------------------------------------------------- runs


@pytest.fixture
def learned(tiny_llama: Path, rows_file: Path, tmp_path: Path) -> Path:
    """What training leaves beside its tensors that read one row of the small documents under another beginning."""
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()]
    resolved = resolve(ModelRequest(str(tiny_llama), weights="pretrained", exit_head="shared"))
    folder = tmp_path / "artefacts" / tiny_llama.name
    folder.mkdir(parents=True)
    text = f"import nothing_like_it\n{rows[3]['code']}"
    facts = {
        "model_fingerprint": resolved.info.fingerprint, "documents": [document_key(text)],
        "ngrams": write_index(folder, NgramIndex.of([resolved.tokenizer.encode(text)])),
    }  # fmt: skip
    (folder / "tuning.json").write_text(json.dumps(facts))
    return folder


def task_of(run: Path) -> dict[str, Any]:
    (task,) = json.loads((run / "manifest.json").read_text())["tasks"]
    return dict(task)


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_a_run_skips_them_or_keeps_them_and_its_report_leaves_them_out(
    tiny_run: Callable[..., Any], cli: Callable[..., Any], learned: Path, tmp_path: Path
) -> None:
    ran = tiny_run("--limit", 0, "--max-new-tokens", 15, "--verbose", "--out", "skipped")
    assert ran.code == 0, ran.err
    assert task_of(tmp_path / "skipped")["duplicates"] == 1
    assert {row["sample_id"] for row in rows_of(tmp_path / "skipped")} == {f"doc-{n}" for n in range(8) if n != 3}
    assert "py150: 1 sample(s) were skipped as near-duplicates" in " ".join(ran.out.split())
    assert "marks no sample as a duplicate" in cli("report", "skipped", "--without-duplicates").error
    ran = tiny_run("--limit", 0, "--max-new-tokens", 15, "--duplicates", "keep", "--verbose", "--out", "out")
    assert ran.code == 0, ran.err
    assert {row["sample_id"] for row in rows_of(tmp_path / "out") if row["duplicate"]} == {"doc-3"}
    assert "py150: 1 of 8 samples are near-duplicates" in " ".join(ran.out.split())
    files = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    without = cli("report", "out", "--without-duplicates", "--json")
    assert without.code == 0, without.err
    summary = json.loads(without.out)
    assert [row["n"] for row in summary["rows"]] == [7]
    assert not any("near-duplicates" in note for note in summary["notes"])
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files
    assert [row["n"] for row in json.loads(cli("report", "out", "--json").out)["rows"]] == [8]
    assert "Omit --out" in cli("report", "out", "--without-duplicates", "--out", "r").error
