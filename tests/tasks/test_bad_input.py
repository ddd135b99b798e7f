"""Every bad input ends as one clear line: a bad row when the run can go on, a DataError when it cannot."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import BadRow, TaskRequest
from harness.errors import DataError, UnknownNameError
from tasks.draw import draw
from tasks.javacorpus import JavaCorpus
from tasks.languages import PYTHON
from tasks.protocols.codexglue_line import CodexglueLine
from tasks.py150 import Py150
from tasks.rows import RecordRows
from tasks.sources.embedded import SourceFiles

GOOD = b'{"id": "good", "input": "<s> x =", "gt": "y + 1"}'


MALFORMED = (
    (b'{"id": 1, "input": ', "not JSON"),
    (b"not json", "not JSON"),
    (b"[1, 2]", "a list, not an object"),
    (b"null", "null, not an object"),
    (b'{"id": 1, "input": "x"}', "no field 'gt'"),
    (b"{}", "no field 'input'"),
    (b'{"id": 1, "input": 5, "gt": "x"}', "'input' is a number"),
    (b'{"id": 1, "input": "x", "gt": null}', "'gt' is null"),
    (b'{"id": 1, "input": " ", "gt": "x"}', "'input' is empty"),
    (b'{"id": 1, "input": "x", "gt": ""}', "'gt' is empty"),
    (b'{"id": true, "input": "x", "gt": "y"}', "'id' is a boolean"),
    (b'{"id": "", "input": "x", "gt": "y"}', "'id' is an empty string"),
    (b'{"id": 1, "code": ["<s>", "</s>"]}', "'code' is empty"),
    (b'{"id": 1, "code": ["a", 2]}', "'code[1]' is a number"),
    (b'{"id": 1, "code": {"a": 1}}', "'code' is an object"),
    (b'{"id": 1, "input": "caf\xe9", "gt": "y"}', "not JSON ('utf-8' codec"),
    (b'{"id": 1, "input": "\\ud800", "gt": "y"}', "'input' holds a lone surrogate"),
    (b'{"id": 1, "code": ["a", "\\ud800"]}', "'code[1]' holds a lone surrogate"),
    (b'{"id": "\\ud800", "input": "x", "gt": "y"}', "'id' holds a lone surrogate"),
    (b'{"id": "' + b"x" * 600 + b'", "input": "x", "gt": "y"}', "'id' has 600 characters; 512 are the most"),
    (b'{"id": ' + b"9" * 600 + b', "input": "x", "gt": "y"}', "'id' has 600 characters"),
    (b'{"id": NaN, "input": "x", "gt": "y"}', "'id' is a number"),
    (b'{"id": null, "input": "x", "gt": "y"}', "'id' is null"),
    (b'{"\\ud800": 1, "\\n": 2}', r"(fields: \ud800, )"),
    (b'{"' + b"k" * 10_000 + b'": 1}', "(fields: kkk"),
    (b'{"id": ' + b"9" * 5000 + b', "input": "x", "gt": "y"}', "not JSON"),
    (b"[" * 100_000, "JSON"),
)


def test_a_malformed_row_is_counted_and_the_rest_goes_on(tmp_path: Path, words: Any, line: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"".join(row + b"\n" for row in (GOOD, *(row for row, _ in MALFORMED))))
    data = Py150().load(line(file), words)
    assert [sample.sample_id for sample in data.samples] == ["good"]
    assert len(data.bad_rows) == len(MALFORMED)
    reasons = {bad.reason.partition(": ")[0]: bad.reason for bad in data.bad_rows}
    for number, (row, reason) in enumerate(MALFORMED, start=2):
        assert reason in reasons[f"row {number}"], row[:80]
    for bad in data.bad_rows:
        assert "\n" not in bad.reason
        assert len(bad.reason) <= 500
        (bad.sample_id + bad.reason).encode()  # both stand in a record


def test_a_bad_row_stands_under_no_other_row_s_id(tmp_path: Path, words: Any, line: Any) -> None:
    """Its record would be read in place of the sample's."""
    sound, broken = {"input": "x", "gt": "y"}, {"input": 1, "gt": "y"}
    rows = [
        *({"id": "a", **sound}, {"id": "a", **broken}, {"id": "a", **broken}, {"id": "row-3", **sound}),
        *({"id": "b", **broken}, {"id": "b", **broken}, {"id": "a", **sound}),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = Py150().load(line(file, seed=1), words)
    ids = [one.sample_id for one in (*data.samples, *data.bad_rows)]
    assert len(set(ids)) == len(ids) == len(rows)
    assert {sample.sample_id for sample in data.samples} == {"a", "row-3"}
    assert "b" in ids


def test_what_a_reader_a_protocol_or_a_tokenizer_raises_is_that_row_s(words: Any) -> None:
    def record(index: int) -> Mapping[str, object]:
        if index == 2:
            raise RuntimeError("a page\nis torn \ud800")
        return {"id": f"id-{index}", "input": "torn" if index == 4 else f"x{index}", "gt": "y"}

    class Picky:
        eos_token_ids: frozenset[int] = frozenset()
        start_ids: tuple[int, ...] = ()
        decode = words.decode

        def encode(self, text: str) -> list[int]:
            if text == "torn":
                raise KeyError("\ud800")
            found: list[int] = words.encode(text)
            return [*found, 10**6] if text == "x5" else found

    request = TaskRequest("codexglue-line", "memory", vocab_size=10**6)
    data = draw(RecordRows("path", "rows in memory", 6, record), CodexglueLine(PYTHON), Picky(), request)
    assert {sample.sample_id for sample in data.samples} == {"id-0", "id-1", "id-3"}
    assert {row.sample_id: row.reason for row in data.bad_rows} == {
        "row-3": "row 3: cannot be used (RuntimeError: a page is torn \\ud800)",
        "id-4": "row 5: cannot be used (KeyError: '\\ud800')",
        "id-5": "row 6: the tokenizer makes 1000000 of it, no token of the model",
    }


@pytest.mark.parametrize("error", [MemoryError("out of memory"), DataError("the disk is gone.")])
def test_what_concerns_every_row_stops_the_run(words: Any, error: Exception) -> None:
    def record(index: int) -> Mapping[str, object]:
        raise error

    with pytest.raises(type(error)):
        draw(RecordRows("path", "x", 3, record), CodexglueLine(PYTHON), words, TaskRequest("codexglue-line", "memory"))


def test_a_line_or_a_file_that_is_too_long_is_not_parsed(
    tmp_path: Path, words: Any, line: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.files.LARGEST_ROW", 150)
    monkeypatch.setattr("tasks.rows.field_text.__defaults__", (100,))
    file = tmp_path / "rows.jsonl"
    rows = [{"id": "long", "input": "x" * 350, "gt": "y"}, {"id": 1, "input": "x" * 101, "gt": "y"}]
    file.write_bytes(b"\n".join([*(json.dumps(row).encode() for row in rows), GOOD]))
    data = Py150().load(line(file), words)
    assert [sample.sample_id for sample in data.samples] == ["good"]
    assert {row.reason for row in data.bad_rows} == {
        "row 1: has 389 bytes; 150 are the most",
        "row 2: 'input' has 101 characters; 100 are the most",
    }
    monkeypatch.setattr("tasks.sources.files.LARGEST_FILE", 1000)
    for name, opened in (("endless.jsonl", open), ("bomb.jsonl.gz", gzip.open)):
        with opened(tmp_path / name, "wb") as stream:
            stream.write(GOOD + b"\n" + b"x" * 2000)
        assert "holds more than 1000 bytes" in refused(tmp_path / name, words)


def test_a_parquet_cell_that_is_no_text_costs_its_row(tmp_path: Path, words: Any, green: Any) -> None:
    """Arrow looks at neither what a careless program nor what damage leaves there."""
    import pyarrow
    from pyarrow import parquet

    good = b" ".join(b"w%d" % number for number in range(100))
    cells = {"id": [b"a", b"b\xff", b"c"], "code": [good, good, good[:-3] + b"\xe9"]}
    columns = {name: pyarrow.array(values, pyarrow.binary()).view(pyarrow.string()) for name, values in cells.items()}
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    data = Py150().load(green(tmp_path / "rows.parquet"), words)
    assert [sample.sample_id for sample in data.samples] == ["a"]
    assert sorted(row.reason[:22] for row in data.bad_rows) == ["row 2: cannot be used ", "row 3: cannot be used "]


def refused(source: object, words: Any, protocol: str = "codexglue-line", task: Any = None) -> str:
    with pytest.raises(DataError) as refusal:
        (task or Py150()).load(TaskRequest(protocol, str(source)), words)
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def parquet(path: Path, **columns: Any) -> None:
    import pandas

    path.parent.mkdir(exist_ok=True)
    pandas.DataFrame(columns).to_parquet(path)


def two_splits(path: Path) -> None:
    for config, split in [("java", "test"), ("python", "train")]:
        (path / config).mkdir()
        (path / config / f"{split}-00000-of-00001.parquet").write_bytes(b"")


def two_shards(path: Path) -> None:
    parquet(path / "python" / "test-0.parquet", id=[1], code=["x"])
    parquet(path / "python" / "test-1.parquet", id=[1], code=[["x"]])


SOURCES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "empty": (lambda path: path.write_bytes(b""), ".jsonl", "is empty"),
    "a mark alone": (lambda path: path.write_bytes(b"\xef\xbb\xbf\n"), ".jsonl", "is empty"),
    "UTF-16": (lambda path: path.write_text(GOOD.decode(), encoding="utf-16"), ".jsonl", "iconv"),
    "no rows": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n rubbish\n"), ".jsonl", "none of its 3 rows.*row "),
    "a loop": (lambda path: path.symlink_to(path.name), ".jsonl", "neither a file nor a folder"),
    "a dead link": (lambda path: path.symlink_to("nowhere"), ".jsonl", "neither a file nor a folder"),
    "damaged": (lambda path: path.write_bytes(b"PAR1 but not really PAR1"), ".parquet", "as Parquet"),
    "nothing in it": (lambda path: parquet(path, id=[], code=[]), ".parquet", "no rows"),
    "other columns": (lambda path: parquet(path, text=["a", "b"]), ".parquet", "it has text"),
    "too few columns": (lambda path: parquet(path, id=[1, 2]), ".parquet", "no field 'input'"),
    "a folder of notes": (
        lambda path: (path / "notes.jsonl").write_text("{}"),
        "",
        "codexglue_line/python.*notes.jsonl",
    ),
    "no such split": (two_splits, "", r"python/test-\*\.parquet.*python/train-00000-of-00001\.parquet"),
    "shards apart": (two_shards, "", "different columns"),
}


def test_a_source_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, words: Any) -> None:
    for name, (make, suffix, said) in SOURCES.items():
        path = tmp_path / name / f"rows{suffix}"
        (path.parent if suffix else path).mkdir(parents=True)
        make(path)
        in_files = suffix or name == "a folder of notes"
        assert re.search(said, refused(path, words, "codexglue-line" if in_files else "green-code")), name


def test_what_is_nowhere_is_refused(tmp_path: Path, words: Any) -> None:
    for source, said in (
        (tmp_path / "nowhere.jsonl", "neither a file nor a folder"),
        ("embeded", "Did you mean 'embedded'?"),
        ("", "neither a file nor a folder"),
        ("~nobody-of-this-name/rows.jsonl", "cannot read"),
        ("x" * 400, "cannot read"),
        ("/dev/null", "neither a file nor a folder"),
        ("/dev/zero", "neither a file nor a folder"),
    ):
        assert said in refused(source, words)
    with pytest.raises(UnknownNameError, match="Did you mean 'green-code'"):
        JavaCorpus().load(TaskRequest("greencode", "embedded"), words)


def test_embedded_files_that_cannot_be_read_are_bad_rows(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"caf\xe9")
    rows = SourceFiles(
        "x", PYTHON, ["latin.py", "gone.py"], content=lambda name: (tmp_path / name).read_bytes(), detail={}
    )
    for row, said in (
        (rows.read(0), "row 1: gone.py cannot be read"),
        (rows.read(1), "row 2: latin.py cannot be read"),
    ):
        assert isinstance(row, BadRow)
        assert row.reason.startswith(said)
