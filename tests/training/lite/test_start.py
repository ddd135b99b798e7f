"""Tuning that goes on from an earlier one's adapter and maps (`harness train lite --start-from`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from harness.contracts import document_key
from harness.contracts.recipes import Trained
from harness.errors import ArtefactError, ConfigError, DataError, TrainingError
from harness.models.artefacts import read_artefact
from harness.models.ngrams import read_index
from tests.training.lite.conftest import QUICK
from tests.training.lite.test_fit import exits_of, log_of

STILL = QUICK.replace(steps=2, learning_rate=1e-30, shortcut_learning_rate=1e-30)


@pytest.fixture(scope="module")
def first(tuned: Path) -> Path:
    return tuned


def facts_of(out: Path) -> dict[str, Any]:
    return dict(read_artefact(out / "adapter.json", "adapter").facts)


def test_it_begins_with_the_weights_that_are_there(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    """At a learning rate of nothing, what comes out is what went in, and so are its exits."""
    gpt2 = make_model("gpt2")
    tune(tiny_llama, tmp_path / "again", STILL, start_from=str(first))
    tune(gpt2, tmp_path / "a", QUICK.replace(exit_head="shared", steps=2))
    tune(gpt2, tmp_path / "b", STILL.replace(exit_head="shared"), start_from=str(tmp_path / "a"))
    for was, now, names in (
        (first, tmp_path / "again", ("adapter", "shortcut")),
        (tmp_path / "a", tmp_path / "b", ("adapter",)),
    ):
        for name in names:
            theirs, ours = (load_file(side / f"{name}.safetensors") for side in (was, now))
            assert theirs.keys() == ours.keys()
            # a step of nothing is 1e-30 where a weight was zero, with torch 2.6
            assert all(torch.allclose(theirs[key], ours[key], rtol=0, atol=1e-20) for key in theirs), name
        (base, made), (again, _) = exits_of(was), exits_of(now)
        for one, other in zip(made, again, strict=True):
            assert other["layer"] == one["layer"]
            assert other["agreement"] == pytest.approx(one["agreement"], abs=0.04)  # bfloat16 in between
        assert again != base


def test_it_says_what_it_went_on_from(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, tmp_path: Path
) -> None:
    tune(tiny_llama, tmp_path / "second", QUICK.replace(steps=3), start_from=str(first))
    tune(tiny_llama, tmp_path / "third", QUICK.replace(steps=1), start_from=str(tmp_path / "second"))
    one, two, three = (facts_of(out) for out in (first, tmp_path / "second", tmp_path / "third"))
    assert "start" not in one
    assert two["start"]["adapter_sha256"] == read_artefact(first / "adapter.json", "adapter").sha256
    assert (two["start"]["steps"], two["start"]["tokens"]) == (4, 256)
    assert (three["start"]["steps"], three["start"]["tokens"]) == (7, 448)
    assert three["start"]["start"] == two["start"]
    for key in ("recipe", "data", "seed", "exits", "made"):
        assert two["start"][key] == one[key]
    shortcut = read_artefact(tmp_path / "third" / "shortcut.json", "shortcut").facts
    assert shortcut["start"] == three["start"]
    assert two["documents"] == one["documents"]
    assert [facts["packs_read"] for facts in (one, two, three)] == [8, 14, 16]  # it reads on where the first stopped
    assert one["held_out"] == two["held_out"] == three["held_out"]
    lines = log_of(tmp_path / "third")
    assert lines[:4] == log_of(first)
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["tokens"] for line in lines] == [64 * step for step in range(1, 9)]


def test_a_damaged_index_is_refused_before_anything_is_tuned(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, tmp_path: Path
) -> None:
    shutil.copytree(first, tmp_path / "damaged")
    (tmp_path / "damaged" / facts_of(first)["ngrams"]["file"]).unlink()
    with pytest.raises(ArtefactError, match=r"cannot read .*ngrams-.* Restore it, or train again"):
        tune(tiny_llama, tmp_path / "out", STILL, start_from=str(tmp_path / "damaged"))
    assert not (tmp_path / "out").exists()


def test_other_documents_hold_out_none_that_were_learned_from(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, corpus_file: Path, tmp_path: Path
) -> None:
    told = facts_of(first)
    known = set(told["documents"])
    rows = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    seen = [row for row in rows if document_key(row["code"]) in known]
    new = [row for row in rows if document_key(row["code"]) not in known]
    assert (len(seen), len(new)) == (30, 70)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(
        "".join(json.dumps(row) + "\n" for row in (*seen, *({**row, "project": "acme"} for row in new[:10])))
    )
    tune(tiny_llama, tmp_path / "out", STILL, mixed, documents=None, start_from=str(first))
    assert set(facts_of(tmp_path / "out")["documents"]) == known | {document_key(row["code"]) for row in new[:10]}
    assert (told["projects"], facts_of(tmp_path / "out")["projects"]) == ([], ["acme"])

    before, now = (read_index(folder, facts_of(folder)["ngrams"]) for folder in (first, tmp_path / "out"))
    assert set(before.hashes.tolist()) < set(now.hashes.tolist())  # what the start read is in the index, too
    assert facts_of(tmp_path / "out")["ngrams"]["complete"]

    learned = [row for row in seen if document_key(row["code"]) not in told["held_out"]]
    mixed.write_text("".join(json.dumps(row) + "\n" for row in learned))
    with pytest.raises(DataError, match=r"holds only documents that the model has learned from"):
        tune(tiny_llama, tmp_path / "none", STILL, mixed, documents=None, start_from=str(first))
    assert not (tmp_path / "none").exists()


def test_resuming_is_as_if_nothing_had_happened_and_wants_the_start_it_had(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    expected = tune(tiny_llama, out, start_from=str(first))
    whole = {name: load_file(out / f"{name}.safetensors") for name in ("adapter", "shortcut")}
    shutil.rmtree(out / "checkpoints" / "checkpoint-4")  # killed after its step 3
    for file in out.glob("*.safetensors"):
        file.unlink()
    assert tune(tiny_llama, out, start_from=str(first), resume=True).report == expected.report
    for name, tensors in whole.items():
        again = load_file(out / f"{name}.safetensors")
        assert all(torch.equal(again[key], tensor) for key, tensor in tensors.items())
    assert [line["step"] for line in log_of(out)] == list(range(1, 9))
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    sha = read_artefact(first / "adapter.json", "adapter").sha256
    with pytest.raises(TrainingError, match=rf"began with --start-from {sha}, and now it is None\. Resume with the fl"):
        tune(tiny_llama, out, resume=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept


def test_a_model_that_was_tuned_whole_reads_on_and_knows_what_it_has_read(
    tune: Callable[..., Trained], tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    whole = QUICK.replace(method="full", exit_head="shared", learning_rate=1e-5, steps=2)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[-20:]))
    tune(tiny_llama, tmp_path / "first", whole)
    tune(tmp_path / "first" / "model", tmp_path / "second", whole)
    tune(tmp_path / "first" / "model", tmp_path / "other", whole, other)
    tune(tiny_llama, tmp_path / "both", whole.replace(steps=4))
    first, second, elsewhere, both = (
        json.loads((tmp_path / name / "tuning.json").read_text()) for name in ("first", "second", "other", "both")
    )
    assert [facts["packs_read"] for facts in (first, second, both)] == [4, 8, 8]
    assert [facts["steps"] for facts in (first, second, elsewhere, both)] == [2, 4, 4, 4]
    assert second["held_out"] == first["held_out"]
    assert second["ngrams"]["file"] == both["ngrams"]["file"]  # it is named by what is in it
    assert "start" not in first
    assert second["start"]["steps"] == 2
    assert set(elsewhere["documents"]) > set(first["documents"])
    indices = [read_index(tmp_path / name, facts["ngrams"]) for name, facts in (("first", first), ("other", elsewhere))]
    assert set(indices[0].hashes.tolist()) < set(indices[1].hashes.tolist())
    assert elsewhere["ngrams"]["complete"]
    (tmp_path / "first" / "model" / "early_exit" / first["ngrams"]["file"]).unlink()
    with pytest.raises(ArtefactError, match=r"cannot read .*ngrams-.* Restore it, or train again"):
        tune(tmp_path / "first" / "model", tmp_path / "out", whole)
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------- refusals


def test_another_recipe_model_and_other_exits_are_refused(
    tune: Callable[..., Trained], tiny_llama: Path, tiny_opt: Path, first: Path, tmp_path: Path
) -> None:
    for changes, kind, words in (
        ({"method": "full"}, ConfigError, r"goes on with a LoRA adapter: use --method lora\. To go on with whole wei"),
        ({"exit_head": "shared"}, ConfigError, r"was tuned with --exit-head shortcut\. Give that one"),
        ({"rank": 8}, ConfigError, r"was tuned with --rank 4\. Give that one"),
        ({"exit_points": "4,8"}, ConfigError, r"was tuned with --exit-points 4,6,10\. Give that one"),
    ):
        with pytest.raises(kind, match=words):
            tune(tiny_llama, tmp_path / "out", start_from=str(first), **changes)
    with pytest.raises(ArtefactError, match=r"adapter\.json was trained on weights .*, these are "):
        tune(tiny_opt, tmp_path / "out", start_from=str(first))
    assert not (tmp_path / "out").exists()


def test_factors_that_do_not_fit_are_refused(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, tmp_path: Path
) -> None:
    from harness.models.artefacts import write_artefact

    odd = tmp_path / "odd"
    shutil.copytree(first, odd)
    adapter = read_artefact(first / "adapter.json", "adapter")
    tensors = adapter.tensors()
    gone = sorted(tensors)[0]
    del tensors[gone]
    changed = write_artefact(odd / "adapter.json", "adapter", tensors, adapter.facts)
    shortcut = read_artefact(first / "shortcut.json", "shortcut")
    write_artefact(
        odd / "shortcut.json", "shortcut", shortcut.tensors(), {**shortcut.facts, "adapter_sha256": changed.sha256}
    )
    with pytest.raises(ArtefactError, match=rf"adapter of another model or recipe: {gone} does not fit"):
        tune(tiny_llama, tmp_path / "out", start_from=str(odd))


def test_a_folder_that_is_not_there_is_refused_in_one_line(
    cli: Any, tiny_llama: Path, corpus_file: Path, tmp_path: Path
) -> None:
    data = ("--task", "py150", "--source", corpus_file)
    ran = cli("train", "lite", "--model", tiny_llama, *data, "--start-from", "nowhere")
    assert ran.code == 2
    assert ran.err.strip().count("\n") == 0
    assert "--start-from nowhere is no folder. Shipped sets: smollm2-135m" in ran.err


def test_a_start_that_does_not_say_what_it_was_made_from_is_refused(
    tune: Callable[..., Trained], tiny_llama: Path, first: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(first, tmp_path / "changed"))
    facts = json.loads((changed / "adapter.json").read_text())
    for gone in ("documents", "exits", "packs_read"):
        wrong = {name: value for name, value in facts.items() if name != gone}
        (changed / "adapter.json").write_text(json.dumps(wrong))
        with pytest.raises(ArtefactError, match=rf"adapter\.json does not say what it was made from \({gone}\)"):
            tune(tiny_llama, tmp_path / "out", start_from=str(changed))
    (changed / "adapter.json").write_text(json.dumps(facts))
    (changed / "shortcut.json").unlink()
    with pytest.raises(ArtefactError, match=r"changed holds no shortcuts of its adapter .*Restore them, or begin at t"):
        tune(tiny_llama, tmp_path / "out", start_from=str(changed))
