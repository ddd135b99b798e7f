"""An exported folder: stock transformers decodes with it, and the harness knows it again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.contracts import ModelRequest, document_key
from harness.errors import ConfigError, ModelError
from harness.models.artefacts import write_artefact
from harness.models.facts import FILE, MERGED, PARTS
from harness.models.model import ResolvedModel, resolve
from harness.models.ngrams import NgramIndex, write_index
from harness.models.trained import SCALE, tuned_fingerprint
from tests.conftest import Ran

POINTS = [4, 6, 10]
PROMPT = "def load_path(items):\n"


@pytest.fixture(scope="module")
def artefacts(tiny_llama: Path, documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that read the first document, and shortcuts and heads of the tuned weights; heads of the base, too."""
    folder = tmp_path_factory.mktemp("artefacts")
    base = resolve(ModelRequest(str(tiny_llama), weights="pretrained"))
    chance = torch.Generator().manual_seed(1)
    factors: dict[str, torch.Tensor] = {}
    for layer in range(12):
        for name in ("self_attn.q_proj", "mlp.up_proj"):
            rows = 32 if name.endswith("q_proj") else 64
            factors[f"model.layers.{layer}.{name}.lora_A"] = torch.randn(2, 32, generator=chance)
            factors[f"model.layers.{layer}.{name}.lora_B"] = torch.randn(rows, 2, generator=chance)
    facts: dict[str, Any] = {
        "model_fingerprint": base.info.fingerprint,
        "base_fingerprint": base.info.fingerprint,
        "documents": [document_key(documents[0])],
        "data": [{"stream": "py150, made up", "split": "train", "documents": 1, "tokens": 99}],
        "ngrams": write_index(folder, NgramIndex.of([base.tokenizer.encode(documents[0])])),
    }
    adapter = write_artefact(folder / "adapter.json", "adapter", factors, {**facts, "scale": SCALE})
    maps = {f"{point}.weight": torch.eye(32) for point in POINTS} | {
        f"{point}.bias": torch.ones(32) for point in POINTS
    }
    known = {"adapter_sha256": adapter.sha256, "exit_points": POINTS}
    write_artefact(folder / "shortcut.json", "shortcut", maps, {**facts, **known})
    tuned = tuned_fingerprint(base.info.fingerprint, adapter.sha256)
    write_artefact(folder / "lte.json", "lte", {"w": torch.ones(1)}, {**facts, "model_fingerprint": tuned})
    write_artefact(folder / "sec.json", "sec", {"w": torch.ones(1)}, facts)  # of the base weights
    return folder


@pytest.fixture(scope="module")
def tuned(tiny_llama: Path, artefacts: Path) -> ResolvedModel:
    return resolve(ModelRequest(str(tiny_llama), artefacts=str(artefacts)))


@pytest.fixture(scope="module")
def exported(tuned: ResolvedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from harness.models.export import export

    folder = tmp_path_factory.mktemp("there") / "tuned"
    export(tuned, folder, lambda facts, read: f"{facts.made_of}: {len(read['documents'])} document")
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "copy")


def test_stock_transformers_says_what_the_merged_weights_say(tuned: ResolvedModel, exported: Path) -> None:
    ids = torch.tensor([AutoTokenizer.from_pretrained(exported).encode(PROMPT, add_special_tokens=False)])
    theirs, ours = AutoModelForCausalLM.from_pretrained(exported, use_safetensors=True), tuned.module()[0]
    base = AutoModelForCausalLM.from_pretrained(tuned.spec.location)
    said = [
        model.eval().generate(ids, max_new_tokens=24, do_sample=False, eos_token_id=None)[0, ids.shape[1] :].tolist()
        for model in (theirs, ours, base)
    ]
    assert len(said[0]) == 24
    assert said[0] == said[1] != said[2]


def test_the_folder_is_known_again(tuned: ResolvedModel, exported: Path) -> None:
    found = resolve(ModelRequest(str(exported)))
    assert found.info.weights == "tuned"
    assert (found.info.fingerprint, found.info.base_fingerprint, found.info.exit_head) == (
        tuned.info.fingerprint, tuned.info.base_fingerprint, tuned.info.exit_head,
    )  # fmt: skip
    assert found.info.exit_head.startswith("shortcut:")
    assert found.adapter is None  # merged, not once more
    assert found.seen.documents == tuned.seen.documents == found.tuned_on
    assert not found.seen.unindexed
    ours, theirs = tuned.seen.ngrams(), found.seen.ngrams()
    assert ours is not None
    assert theirs is not None
    assert theirs.hashes.tolist() == ours.hashes.tolist()
    assert sorted(path.name for path in (exported / PARTS).glob("*.json")) == [
        "lte.json",
        "merged.json",
        "shortcut.json",
    ]
    assert "tuned with" not in found.module()[1]
    assert f"exported from {tuned.info.name} with the LITE adapter" in found.module()[1]
    with pytest.raises(ConfigError, match=rf"holds tuned weights.*--model {tuned.info.name}\.$"):
        resolve(ModelRequest(str(exported), weights="pretrained"))
    for file in [*exported.glob("*.json"), exported / "README.md"]:  # no path of this machine
        assert tuned.spec.location not in file.read_text(), file.name


def test_an_exported_folder_can_be_exported_again(exported: Path, tmp_path: Path) -> None:
    from harness.models.export import export

    again = export(resolve(ModelRequest(str(exported))), tmp_path / "again", lambda facts, read: "")
    assert json.loads((exported / FILE).read_text()) == json.loads(again.model_dump_json())
    assert {path.name for path in (tmp_path / "again" / PARTS).iterdir()} == {
        path.name for path in (exported / PARTS).iterdir()
    }


def test_weights_that_were_changed_are_not_what_was_exported(copy: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(copy)
    model.model.norm.weight.data += 1
    model.save_pretrained(copy)
    with pytest.raises(ModelError, match=r"early_exit\.json was written with other files .* or remove that file"):
        resolve(ModelRequest(str(copy)))
    (copy / FILE).unlink()
    found = resolve(ModelRequest(str(copy)))
    assert found.info.weights == "pretrained"
    assert found.info.fingerprint == found.info.base_fingerprint


@pytest.mark.parametrize(("name", "value"), [("format", 1), ("fingerprint", "../.."), ("exit_points", "all")])
def test_a_file_that_says_what_cannot_be_is_refused(copy: Path, name: str, value: object) -> None:
    facts = json.loads((copy / FILE).read_text())
    (copy / FILE).write_text(json.dumps(facts | {name: value}))
    with pytest.raises(ModelError, match=rf"early_exit\.json: {name}.*Export the model again"):
        resolve(ModelRequest(str(copy)))


def test_the_command_s_card_has_what_a_run_found(
    tiny_run: Callable[..., Ran], cli: Callable[..., Ran], tiny_llama: Path, artefacts: Path, tmp_path: Path
) -> None:
    ran = tiny_run("--artefacts", artefacts, "--strategy", "fixed:layer=6", "--limit", 8, "--out", "run")
    assert ran.code == 0, ran.err
    given = ("export", "made", "--model", tiny_llama, "--artefacts", artefacts)
    done = cli(*given, "--run", "run", "--base-model", "owner/base")
    assert done.code == 0, done.err
    card = ModelCard.load(tmp_path / "made" / "README.md")
    assert card.data.base_model == "owner/base"
    results = {(one.dataset_type, one.metric_type, one.metric_name): one.metric_value for one in card.data.eval_results}
    rows = json.loads((tmp_path / "run" / "summary.json").read_text())["rows"]
    for row in rows:
        value = row["metrics"]["edit_similarity"]["value"]
        assert any(key[:2] == (row["task"], "edit_similarity") and row["operating_point"] in key[2] for key in results)
        assert value in results.values()
    assert "py150, made up" in card.text

    again = tiny_run("--model", "made", "--strategy", "fixed:layer=6", "--limit", 8, "--out", "again")
    assert again.code == 0, again.err
    said = [
        [json.loads(line)["token_ids"] for line in (tmp_path / run / "samples.jsonl").read_text().splitlines()]
        for run in ("run", "again")
    ]
    assert said[0] == said[1]
    documents = (tmp_path / "again" / "samples.jsonl").read_text()
    assert "doc-0" not in documents  # the adapter has read it
    assert "doc-1" in documents

    assert cli(*given).error.startswith("error: made is not empty")
    other = cli("export", "other", "--model", tiny_llama, "--weights", "pretrained", "--run", "run")
    assert "--run run has other weights" in other.error
    assert not Path("other").exists()


def test_exit_points_are_the_folder_s(tiny_llama: Path, tmp_path: Path) -> None:
    from harness.models.export import export

    export(resolve(ModelRequest(str(tiny_llama), exit_points="2,7")), tmp_path / "own", lambda facts, read: "")
    found = resolve(ModelRequest(str(tmp_path / "own"), weights="pretrained"))
    assert found.info.exit_points == (2, 7)
    assert found.info.asked.exit_points == "2,7"
    assert resolve(ModelRequest(str(tmp_path / "own"), exit_points="4")).info.exit_points == (4,)


def test_weights_whose_reading_nobody_knows_are_refused(copy: Path) -> None:
    (copy / PARTS / f"{MERGED}.json").unlink()
    with pytest.raises(ModelError, match="no sample could be trusted to be new"):
        resolve(ModelRequest(str(copy)))
