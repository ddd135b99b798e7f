"""What is learned from is never drawn: splits of every source, and documents that a model has seen."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import pytest

from harness.contracts import ModelRequest, Split, TaskRequest, document_key
from harness.errors import DataError
from harness.models.model import resolve
from harness.records import Manifest
from reports.summary.notes import notes
from tasks.draw import collect, draw
from tasks.javacorpus import JavaCorpus
from tasks.languages import PYTHON
from tasks.protocols.codexglue_line import CodexglueLine
from tasks.protocols.green_code import GreenCode
from tasks.py150 import Py150
from tasks.rows import LineRow, Rows, parse_record, whole
from tasks.sources.embedded import SourceFiles

SPLITS: tuple[Split, ...] = get_args(Split)
DOCUMENTS, LINES = GreenCode(PYTHON), CodexglueLine(PYTHON)


def names_of(rows: Rows) -> list[str]:
    return [row.sample_id for row in (rows.read(index) for index in range(len(rows)))]


def in_memory(names: Iterable[str]) -> SourceFiles:
    return SourceFiles("embedded: toy", PYTHON, list(names), content=lambda name: f"x = '{name}'".encode(), detail={})


# ------------------------------------------------------------------------------------ embedded files


def test_every_project_is_in_one_split() -> None:
    rows = in_memory([f"folder{number % 2000}/module_{number}.py" for number in range(4000)] + ["module.py"])
    parts = {split: names_of(rows.part(split)) for split in SPLITS}
    assert sorted(name for names in parts.values() for name in names) == names_of(rows)
    shares = {split: len(names) / 4000 for split, names in parts.items()}
    assert shares == pytest.approx({"train": 0.60, "validation": 0.05, "test": 0.35}, abs=0.03)
    projects = [{name.partition("/")[0] for name in names} for names in parts.values()]
    assert sum(map(len, projects)) == len(set.union(*projects)) == 2001


# --------------------------------------------------------------------------------------- hub and paths


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A dataset folder in hub layout, each split with rows of its own."""
    import pandas

    (tmp_path / "set" / "python").mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"id": f"{split}-{number}", "code": "w " * 90 + f"{split} {number}"} for number in range(5)]
        pandas.DataFrame(rows).to_parquet(tmp_path / "set" / "python" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "set"


def test_a_folder_in_hub_layout_has_its_splits(hub_folder: Path, words: Any, green: Any) -> None:
    learned = {document.sample_id for document in Py150().corpus(str(hub_folder), "train").documents}
    drawn = {sample.sample_id for sample in Py150().load(green(hub_folder), words).samples}
    assert learned == {f"train-{number}" for number in range(5)}
    assert drawn == {f"test-{number}" for number in range(5)}


def test_rows_of_no_split_do_not_stand_in_for_one(hub_folder: Path, words: Any, green: Any, line: Any) -> None:
    """A folder of folders, as the official rows come: all rows of a language lie beside its splits."""
    data = hub_folder.parent
    hub_folder.rename(data / Py150.documents.folder)
    (data / "codexglue_line").mkdir()
    rows = [{"id": number, "input": "w " * 90, "gt": "x"} for number in range(9)]
    (data / "codexglue_line" / "python.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"no 'python' rows, split 'validation'.*it has .*python/test-.*python/train-"):
        Py150().corpus(str(data), "validation")
    with pytest.raises(DataError, match="split 'validation'"):
        Py150().load(green(data, split="validation"), words)
    assert len(Py150().corpus(str(data), "train").documents) == 5
    assert len(Py150().load(line(data), words).samples) == 9  # the lines have no splits


def test_a_folder_of_rows_without_splits_has_no_validation_split(tmp_path: Path) -> None:
    (tmp_path / "python.jsonl").write_text(json.dumps({"id": 1, "code": "x = 1"}) + "\n")
    with pytest.raises(DataError, match=r"split 'validation': python\.jsonl holds the rows of all\..*--source"):
        Py150().corpus(str(tmp_path), "validation")
    for split in ("train", "test"):
        assert len(Py150().corpus(str(tmp_path), split).documents) == 1


# -------------------------------------------------------------------------------------- what was seen


def text_of(number: int) -> str:
    return "\n".join(f"def function_{number}_{line}(argument):\n    return argument + {line}" for line in range(20))


def test_a_document_has_one_key_however_it_is_written() -> None:
    text = text_of(1)
    tokens = text.split()
    for same in (
        " ".join(tokens),
        f"<s> {' '.join(tokens)}",
        "\r\n".join(text.splitlines()),
        f"\n\n{text}\n",
        text[:700],  # broken off in the middle
        text + text_of(2),
    ):
        assert document_key(same) == document_key(text)
    assert len(document_key(text)) == 16
    assert document_key(text_of(2)) != document_key(text)
    assert document_key(text.replace("1_0", "1_x")) != document_key(text)


def record(number: int, form: str) -> dict[str, object]:
    """One document as a source may hold it."""
    text = text_of(number)
    if form == "text":
        return {"id": number, "code": text}
    tokens = text.split()
    if form == "tokens":
        return {"id": number, "code": ["<s>", *tokens, "</s>"]}
    return {"id": number, "input": f"<s> {' '.join(tokens[:-20])}", "gt": " ".join(tokens[-20:-15])}


@pytest.mark.parametrize(("form", "learned_as"), [("text", "tokens"), ("tokens", "line"), ("line", "text")])
def test_what_was_learned_from_is_not_drawn_in_any_form(
    make_rows: Callable[..., Any], words: Any, form: str, learned_as: str
) -> None:
    corpus = collect(make_rows([record(number, learned_as) for number in range(6)]), PYTHON, limit=None, seed=0)
    seen = frozenset(document_key(document.text) for document in corpus.documents)
    rows = make_rows([record(number, form) for number in range(10)])
    protocol = LINES if form == "line" else DOCUMENTS
    data = draw(rows, protocol, words, TaskRequest("any", "x", seen=seen))
    assert {sample.sample_id for sample in data.samples} == {"6", "7", "8", "9"}
    assert not data.bad_rows
    assert data.source.detail["skipped"] == "6 × document the model was tuned on"


def test_a_project_of_which_something_was_learned_is_not_drawn(make_rows: Callable[..., Any], words: Any) -> None:
    projects = ["known", None, "new"]
    rows = make_rows([record(number, "text") | {"project": projects[number % 3]} for number in range(9)])
    data = draw(rows, DOCUMENTS, words, TaskRequest("any", "x", seen_projects=frozenset({"known"})))
    assert {sample.project for sample in data.samples} == {None, "new"}
    assert data.source.detail["skipped"] == "3 × of a project the model was tuned on"
    rows = make_rows([record(number, "text") | {"project": "known"} for number in range(9)])
    with pytest.raises(DataError, match=r"none of its 9 rows .*--allow-overlap draws other files"):
        draw(rows, DOCUMENTS, words, TaskRequest("any", "x", seen_projects=frozenset({"known"})))


@pytest.mark.parametrize(("task", "language"), [(Py150(), "python"), (JavaCorpus(), "java")])
def test_official_lines_and_documents_of_one_file_have_one_key(task: Any, language: str, data: Path) -> None:
    """A model that learned from the documents is not measured on their lines."""
    file = data / "codexglue_line" / f"{language}.jsonl"
    lines = [parse_record(number, json.loads(row)) for number, row in enumerate(file.read_text().splitlines(), start=1)]
    keys = {row.sample_id: document_key(whole(row)) for row in lines if isinstance(row, LineRow)}
    documents = task.corpus(str(data / "code_x_glue_cc_code_completion_token"), "test").documents
    shared = [document for document in documents if document.sample_id in keys]
    assert len(shared) > 50
    assert all(document_key(document.text) == keys[document.sample_id] for document in shared)
    assert len(set(keys.values())) > 0.9 * len(keys)


# -------------------------------------------------------------------------------------------- real runs


def drawn_by(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    return [row["sample_id"] for row in rows if not row["error"]]


def test_a_run_passes_over_what_anything_trained_for_its_model_has_seen(
    tiny_run: Callable[..., Any], tiny_llama: Path, tiny_opt: Path, documents: list[str], tmp_path: Path
) -> None:
    for model, texts in (
        (tiny_llama, documents[:5]),
        (tiny_opt, documents[5:]),
    ):  # the latter's are nobody else's
        info = resolve(ModelRequest(str(model), weights="pretrained", exit_head="shared")).info
        folder = tmp_path / "artefacts" / model.name
        folder.mkdir(parents=True)  # what training leaves beside its tensors, as far as a run asks
        facts = {"model_fingerprint": info.fingerprint, "documents": [document_key(text) for text in texts]}
        (folder / "tuning.json").write_text(json.dumps(facts))
    ran = tiny_run("--limit", 0, "--out", "out")
    assert ran.code == 0, ran.err
    assert sorted(drawn_by(tmp_path / "out")) == ["doc-5", "doc-6", "doc-7"]
    (task,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["tasks"]
    assert task["detail"]["skipped"] == "5 × document the model was tuned on"
    tuning = tmp_path / "artefacts" / tiny_llama.name / "tuning.json"
    tuning.write_text(json.dumps(json.loads(tuning.read_text()) | {"projects": ["toy"]}))
    rows = [
        {"id": place, "code": text, "project": {6: None, 7: "new"}.get(place, "toy")}
        for place, text in enumerate(documents)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for more, drawn, overlapping in ((), ["6", "7"], 0), (("--allow-overlap",), ["5", "6", "7"], 1):
        out = f"overlap-{overlapping}"
        ran = tiny_run("--limit", 0, "--source", "rows.jsonl", *more, "--out", out)
        assert (ran.code, sorted(drawn_by(tmp_path / out))) == (0, drawn), ran.err
        (task,) = json.loads((tmp_path / out / "manifest.json").read_text())["tasks"]
        assert (task["overlapping"], task["unknown_projects"]) == (overlapping, 1)
        manifest = Manifest.model_validate_json((tmp_path / out / "manifest.json").read_text())
        tuned = manifest.model.model_copy(update={"weights": "tuned"})
        told = [note for note in notes(manifest.model_copy(update={"model": tuned}), (), ()) if "do not say" in note]
        assert [re.findall(r"\d+", note.partition(": ")[2]) for note in told] == [[str(len(drawn)), "1", "1"]]
    (tmp_path / "empty").mkdir()  # the remedy that is named where nothing unseen is left
    ran = tiny_run("--limit", 0, "--artefacts", "empty", "--max-new-tokens", 1, "--out", "again")
    assert (ran.code, len(drawn_by(tmp_path / "again"))) == (0, 8), ran.err
