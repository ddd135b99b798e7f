"""Every bad input ends as one clear line: a bad row when the run can go on, a DataError when it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import BadRow, TaskRequest
from harness.errors import DataError, UnknownNameError
from tasks.javacorpus import JavaCorpus
from tasks.languages import PYTHON
from tasks.py150 import Py150
from tasks.sources.embedded import SourceFiles

GOOD = b'{"id": "good", "input": "<s> x =", "gt": "y + 1"}'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"id": 1, "input": ', "not JSON"),
        (b"not json", "not JSON"),
        (b'"text"', "a string, not an object"),
        (b"[1, 2]", "a list, not an object"),
        (b"null", "null, not an object"),
        (b'{"id": 1, "input": "x"}', "no field 'gt'"),
        (b'{"id": 1, "gt": "x"}', "no field 'input'"),
        (b"{}", "no field 'input'"),
        (b'{"id": 1, "input": 5, "gt": "x"}', "'input' is a number"),
        (b'{"id": 1, "input": "x", "gt": null}', "'gt' is null"),
        (b'{"id": 1, "input": " ", "gt": "x"}', "'input' is empty"),
        (b'{"id": 1, "input": "x", "gt": ""}', "'gt' is empty"),
        (b'{"id": 1.5, "input": "x", "gt": "y"}', "'id' is a number"),
        (b'{"id": true, "input": "x", "gt": "y"}', "'id' is a boolean"),
        (b'{"id": "", "input": "x", "gt": "y"}', "'id' is an empty string"),
        (b'{"id": 1, "code": ""}', "'code' is empty"),
        (b'{"id": 1, "code": []}', "'code' is empty"),
        (b'{"id": 1, "code": ["<s>", "</s>"]}', "'code' is empty"),
        (b'{"id": 1, "code": ["a", 2]}', "'code[1]' is a number"),
        (b'{"id": 1, "code": {"a": 1}}', "'code' is an object"),
        (b'{"id": 1, "input": "caf\xe9", "gt": "y"}', "not UTF-8"),
        (b'{"id": 1, "input": "\\ud800", "gt": "y"}', "lone surrogate"),
        (b'{"id": ' + b"9" * 5000 + b', "input": "x", "gt": "y"}', "not usable JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
def test_a_malformed_row_is_counted_and_the_rest_goes_on(
    tmp_path: Path, words: Any, line: Any, row: bytes, reason: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"\n" + row + b"\n")
    data = Py150().load(line(file), words)
    assert [sample.sample_id for sample in data.samples] == ["good"]
    assert len(data.bad_rows) == 1
    assert data.bad_rows[0].reason.startswith("row 2: ")
    assert reason in data.bad_rows[0].reason
    assert "\n" not in data.bad_rows[0].reason


def test_a_row_that_only_one_protocol_can_use(tmp_path: Path, words: Any, green: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": 1, "input": " w" * 100, "gt": ""}) + "\n")
    assert len(Py150().load(green(file), words).samples) == 1


def test_prompts_beyond_the_positions_are_counted(tmp_path: Path, words: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(GOOD + b"\n" + json.dumps({"id": "long", "input": " w" * 300, "gt": "y"}).encode())
    data = Py150().load(TaskRequest("codexglue-line", str(file), max_positions=200), words)
    assert [sample.sample_id for sample in data.samples] == ["good"]
    assert [row.sample_id for row in data.bad_rows] == ["long"]
    assert "300 tokens" in data.bad_rows[0].reason


def refused(source: object, words: Any, protocol: str = "codexglue-line", task: Any = None) -> str:
    with pytest.raises(DataError) as refusal:
        (task or Py150()).load(TaskRequest(protocol, str(source)), words)
    message = str(refusal.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def test_missing_path(tmp_path: Path, words: Any) -> None:
    assert "does not exist" in refused(tmp_path / "nowhere.jsonl", words)
    assert "Did you mean 'embedded'?" in refused("embeded", words)
    assert "is empty" in refused("", words)
    assert "no such user" in refused("~nobody-of-this-name/rows.jsonl", words)
    assert "cannot read" in refused("x" * 400, words)


def test_path_that_is_neither_file_nor_folder(words: Any) -> None:
    assert "neither a file nor a folder" in refused("/dev/null", words)


@pytest.mark.parametrize("content", [b"", b"\n\n  \n", b"\xef\xbb\xbf\n"])
def test_empty_file(tmp_path: Path, words: Any, content: bytes) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    assert "is empty" in refused(tmp_path / "rows.jsonl", words)


def test_file_in_utf_16(tmp_path: Path, words: Any) -> None:
    (tmp_path / "rows.jsonl").write_text(GOOD.decode(), encoding="utf-16")
    assert "iconv" in refused(tmp_path / "rows.jsonl", words)


def test_file_of_bad_rows_only(tmp_path: Path, words: Any) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\x89PNG\r\n\x1a\n rubbish\n")
    message = refused(tmp_path / "rows.jsonl", words)
    assert "none of its 3 rows" in message
    assert "row " in message


def test_withheld_answers(tmp_path: Path, words: Any) -> None:
    (tmp_path / "test.json").write_text("".join(json.dumps({"id": n, "input": "x", "gt": ""}) + "\n" for n in range(3)))
    message = refused(tmp_path / "test.json", words)
    assert "withheld" in message
    assert "test.json" in message


def test_folder_of_nothing_known(tmp_path: Path, words: Any) -> None:
    (tmp_path / "notes.jsonl").write_text("{}")
    message = refused(tmp_path, words)
    assert "codexglue_line/python.jsonl" in message
    assert "notes.jsonl" in message


def test_folder_without_the_language_or_split(tmp_path: Path, words: Any) -> None:
    for config, split in [("java", "test"), ("python", "train")]:
        (tmp_path / config).mkdir()
        (tmp_path / config / f"{split}-00000-of-00001.parquet").write_bytes(b"")
    message = refused(tmp_path, words, "green-code")
    assert "python/test-*.parquet" in message
    assert "python/train-00000-of-00001.parquet" in message


def test_damaged_parquet(tmp_path: Path, words: Any) -> None:
    file = tmp_path / "python" / "test-00000-of-00001.parquet"
    file.parent.mkdir()
    file.write_bytes(b"PAR1 but not really PAR1")
    assert "as Parquet" in refused(tmp_path, words, "green-code")
    assert "as Parquet" in refused(file, words, "green-code")


@pytest.mark.parametrize("shards", [[{"id": [1], "code": ["x"]}, {"id": [1], "code": [["x"]]}]])
def test_parquet_shards_that_do_not_fit(tmp_path: Path, words: Any, shards: list[dict[str, Any]]) -> None:
    import pandas

    (tmp_path / "python").mkdir()
    for index, shard in enumerate(shards):
        pandas.DataFrame(shard).to_parquet(tmp_path / "python" / f"test-{index}.parquet")
    assert "different columns" in refused(tmp_path, words, "green-code")


def test_parquet_without_rows_or_usable_columns(tmp_path: Path, words: Any) -> None:
    import pandas

    file = tmp_path / "rows.parquet"
    pandas.DataFrame({"id": [], "code": []}).to_parquet(file)
    assert "no rows" in refused(file, words)
    pandas.DataFrame({"text": ["a", "b"]}).to_parquet(file)
    assert "it has text" in refused(file, words)
    pandas.DataFrame({"id": [1, 2]}).to_parquet(file)
    assert "no field 'input'" in refused(file, words)


def test_embedded_files_that_cannot_be_read_are_bad_rows() -> None:
    def content(name: str) -> bytes:
        if name == "gone.py":
            raise FileNotFoundError(2, "No such file")
        return b"caf\xe9"

    rows = SourceFiles("x", PYTHON, ["latin.py", "gone.py"], content=content, detail={})
    gone, latin = rows.read(0), rows.read(1)
    assert isinstance(gone, BadRow)
    assert isinstance(latin, BadRow)
    assert "row 1: gone.py cannot be read" in gone.reason
    assert "row 2: latin.py is not UTF-8" in latin.reason


def test_unknown_protocol(words: Any) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'green-code'"):
        JavaCorpus().load(TaskRequest("greencode", "embedded"), words)
    with pytest.raises(UnknownNameError):
        JavaCorpus().stop_rule("nonsense", words)
