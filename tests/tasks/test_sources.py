from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import TaskRequest
from harness.errors import DataError
from harness.host.hub import PATIENCE_S
from tasks.javacorpus import JavaCorpus
from tasks.languages import Language
from tasks.py150 import Py150
from tasks.sources import embedded

CLASS = "\n".join(["/* licence */", "class A {", *(f"    int field{index} = {index} ;" for index in range(40)), "}"])
ROWS = [{"id": index, "input": f"<s> a{index} =", "gt": f"b{index} ( )"} for index in range(6)]
TOKENS = ["<s>", *(f"w{index}" for index in range(100)), "</s>"]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pandas

    path.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(path)
    return path


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A dataset folder in hub layout with two shards of one split."""
    for shard in range(2):
        rows = [{"id": 10 * shard + index, "code": TOKENS} for index in range(3)]
        write_parquet(tmp_path / "set" / "python" / f"test-0000{shard}-of-00002.parquet", rows)
    return tmp_path / "set"


# ------------------------------------------------------------------------------------------ path


def test_byte_order_mark_blank_lines_and_missing_ids(tmp_path: Path, words: Any, line: Any) -> None:
    rows = [json.dumps({"input": "a", "gt": "b"}), "", "  ", json.dumps({"input": "c", "gt": "d"})]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(rows).encode())
    data = Py150().load(line(file), words)
    assert {sample.sample_id for sample in data.samples} == {"row-1", "row-4"}
    assert not data.bad_rows


def test_hub_layout_folder_joins_its_shards(hub_folder: Path, words: Any, green: Any) -> None:
    data = Py150().load(green(hub_folder), words)
    assert sorted(int(sample.sample_id) for sample in data.samples) == [0, 1, 2, 10, 11, 12]
    assert data.source.label == "path: set"
    assert data.source.detail["split"] == "test"


def test_official_only_when_a_readme_says_so(tmp_path: Path, words: Any, line: Any) -> None:
    file = write_jsonl(tmp_path / "lines" / "python.jsonl", ROWS)
    other = write_jsonl(tmp_path / "lines" / "mine.jsonl", ROWS)
    (tmp_path / "README.md").write_text("`lines/python.jsonl`: official CodeXGLUE line-completion **dev** rows.")
    assert Py150().load(line(file), words).source.label == "official CodeXGLUE dev rows (path: python.jsonl)"
    assert Py150().load(line(other), words).source.label == "path: mine.jsonl"
    (tmp_path / "README.md").write_text("elsewhere: official CodeXGLUE dev rows.")
    assert Py150().load(line(file), words).source.label == "path: python.jsonl"


@pytest.mark.parametrize(
    ("task", "protocol", "place"),
    [
        (Py150(), "green-code", ""),
        (JavaCorpus(), "green-code", "code_x_glue_cc_code_completion_token"),
        (JavaCorpus(), "codexglue-line", ""),
        (Py150(), "codexglue-line", "code_x_glue_cc_code_completion_line"),
        (Py150(), "codexglue-line", "codexglue_line"),
    ],
)
def test_official_rows_by_every_road(task: Any, protocol: str, place: str, words: Any, data: Path) -> None:
    drawn = task.load(TaskRequest(protocol, str(data / place), limit=5), words)
    assert len(drawn.samples) == 5
    assert not drawn.bad_rows
    assert drawn.source.kind == "path"
    assert drawn.source.label.startswith("official CodeXGLUE dev rows")
    assert str(data) not in drawn.source.label


def test_a_sample_says_what_it_is_cut_from(tmp_path: Path, words: Any, green: Any) -> None:
    """One text has one hash wherever it lies; its project is the source's word, else the language's, else not known."""
    named = Py150().load(green(write_jsonl(tmp_path / "a.jsonl", [{"code": TOKENS, "project": "p"}])), words)
    copied = Py150().load(green(write_parquet(tmp_path / "b.parquet", [{"id": 7, "code": TOKENS}])), words)
    java = [{"code": f"package org.x.y ; {CLASS}"}, {"code": f"package org.x.z ; {CLASS}", "project": "x"}]
    declared = JavaCorpus().load(green(write_jsonl(tmp_path / "c.jsonl", java)), words)
    assert [sample.project for data in (named, copied) for sample in data.samples] == ["p", None]
    assert {sample.project for sample in declared.samples} == {"org.x", "x"}
    assert len({sample.document for data in (named, copied) for sample in data.samples}) == 1
    assert len({sample.document for data in (named, declared) for sample in data.samples}) == 3
    assert named.source.detail["content"] != copied.source.detail["content"]
    for sample in Py150().load(green(limit=4), words).samples:
        assert sample.project == sample.sample_id.split("/")[0].removesuffix(".py")


# ------------------------------------------------------------------------------------------- hub


def test_unreachable_hub_is_one_clear_line_at_once(monkeypatch: pytest.MonkeyPatch, words: Any, green: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = time.monotonic()
    with pytest.raises(DataError) as refusal:
        Py150().load(green("hub"), words)
    assert time.monotonic() - started < PATIENCE_S + 5
    message = str(refusal.value)
    assert all(
        part in message for part in ("code_x_glue_cc_code_completion_token", "--source PATH", "--source embedded")
    )
    assert "\n" not in message
    assert refusal.value.__cause__ is None


def test_hub_rows(monkeypatch: pytest.MonkeyPatch, words: Any, green: Any) -> None:
    import datasets

    calls = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return datasets.Dataset.from_list([{"id": index, "code": TOKENS} for index in range(4)])

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = JavaCorpus().load(green("hub"), words)
    assert len(data.samples) == 4
    assert data.source.label == "hub: google/code_x_glue_cc_code_completion_token (java, test)"
    assert calls == [(("google/code_x_glue_cc_code_completion_token", "java"), {"split": "test"})]  # no remote code


# -------------------------------------------------------------------------------------- embedded


def test_standard_library_is_ordered_and_has_no_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Language, "without_comments", lambda self, text: text)  # which takes seconds
    rows = embedded.standard_library()
    names = [rows.read(index).sample_id for index in range(len(rows))]
    assert names == sorted(names)
    assert {"abc.py", "json/decoder.py", "collections/__init__.py"} <= set(names)
    folders = {part for name in names for part in name.split("/")[:-1]}
    assert not folders & {"test", "tests", "site-packages", "idlelib", "encodings", "__pycache__"}


def make_jdk(home: Path, files: dict[str, str], version: str = "21.0.4") -> Path:
    (home / "lib").mkdir(parents=True)
    (home / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n')
    with zipfile.ZipFile(home / "lib" / "src.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return home


def test_jdk_of_java_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, green: Any) -> None:
    files = {f"{module}/lang/{name}.java": CLASS for module in ("java.base", "java.xml") for name in "GFEDCBA"}
    noise = {"java.xml/module-info.java": CLASS, "jdk.localedata/A.java": CLASS, "java.xml/lang/readme.txt": CLASS}
    monkeypatch.setenv("JAVA_HOME", str(make_jdk(tmp_path / "jdk", {**files, **noise})))
    rows = embedded.jdk_sources()
    assert [rows.read(index).sample_id for index in range(len(rows))] == sorted(files)
    data = JavaCorpus().load(green(), words)
    assert data.source.label == "embedded: JDK 21 sources"
    drawn = {sample.sample_id for sample in data.samples}
    assert drawn == {rows.part("test").read(index).sample_id for index in range(len(rows.part("test")))}
    assert {name.partition("/")[0] for name in drawn} == {"java.xml"}
    assert {sample.project for sample in data.samples} == {"java.xml"}
    assert "licence" not in words.decode(data.samples[0].prompt_ids)


def test_no_jdk_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = make_jdk(tmp_path / "jdk", {})
    (home / "lib" / "src.zip").unlink()
    monkeypatch.setattr(embedded, "jdk_homes", lambda: iter([home]))
    with pytest.raises(DataError, match=r"apt-get install openjdk-21-source.*--source PATH"):
        embedded.jdk_sources()
