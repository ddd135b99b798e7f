"""Exit modules: what they begin as, what training does to them, and that runs read them as they were written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from harness.contracts import LinearFit, ModelRequest
from harness.contracts.recipes import TrainingRun
from harness.decoding import packing
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.mlp import LowRankMLP
from harness.errors import ArtefactError, ConfigError, OptionError, UnknownNameError
from harness.models.artefacts import Artefact, read_artefact, write_artefact
from harness.models.exit_modules import chosen, module_from, read_tensors
from harness.models.model import ResolvedModel, resolve
from harness.training.recipes import Shortcut
from harness.training.traces.reading import held_out_rows
from harness.training.traces.store import Traces
from strategies.fixed import Fixed
from strategies.full import Full
from tests.training.lite.conftest import QUICK, tune  # noqa: F401  # the latter is a fixture

POINTS, WIDTH = (4, 6, 10), 32
PROMPT = [[5, 6, 7, 8]]


def fit(llama: Path, traces: Path, out: Path, **changes: Any) -> Artefact:
    options = Shortcut(model=str(llama), traces=traces, out=out, **changes)
    options.train(TrainingRun("shortcut", "harness train shortcut"))  # type: ignore[attr-defined]
    return read_artefact(out / "shortcut.json", "shortcut")


def found(llama: Path, folder: Path, head: Any = "shortcut", **changes: Any) -> ResolvedModel:
    request = ModelRequest(str(llama), weights="pretrained", exit_head=head, artefacts=str(folder), **changes)
    return resolve(request)


@pytest.fixture(scope="module")
def traced(
    make_trace: Callable[..., Traces], tiny_llama: Path, corpus_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("traces") / "t"
    make_trace(tiny_llama, corpus_file, out, documents=20)
    return out


@pytest.fixture(scope="module")
def made(traced: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained perceptron for each exit."""
    out = tmp_path_factory.mktemp("made") / "a"
    fit(tiny_llama, traced, out, exit_module="mlp/8", steps=5, batch=16, learning_rate=0.01)
    return out


def test_a_perceptron_begins_as_the_best_map_of_its_rank() -> None:
    chance = torch.Generator().manual_seed(0)
    states = torch.randn(4000, 6, generator=chance)
    states = 3 * states / states.square().mean(1, keepdim=True).sqrt()  # of one size, so that their norm is a factor
    weight = torch.eye(6) + torch.randn(6, 6, generator=chance)
    spread = (states.t() @ states).double() / len(states)
    given = LinearFit(weight, torch.randn(6, generator=chance), spread)
    target = states @ weight.t() + given.bias
    errors = []
    for size in (2, 6, 12):
        begun = module_from(f"mlp/{size}", LowRankMLP.begin(given, size))
        errors.append((begun(states) - target).square().sum().item())
    beside = torch.linalg.svdvals(states @ (weight - torch.eye(6)).t()).square()
    assert errors[:2] == pytest.approx([beside[1:].sum().item(), beside[3:].sum().item()], rel=1e-3)
    assert errors[2] < 1e-6 * errors[0]  # of full rank: the map itself


def surprise(llama: Path, traced: Path, made: Artefact, text: str, distill: float) -> float:
    """The loss of learned tokens, by F.cross_entropy from transformers-free parts: mean over exits."""
    traces = Traces.open(traced)
    columns = traces.columns("hidden", "last", "input", "document")
    rows = ~held_out_rows(traces, columns["document"], seed=0)
    rows[:-1] &= columns["document"][1:] == columns["document"][:-1]
    rows[-1] = False
    labels = columns["input"].roll(-1)[rows].long()
    backbone = resolve(ModelRequest(str(llama), weights="pretrained", exit_head="shared")).load("cpu").backbone
    teacher = backbone.logits(columns["last"][rows].float()).softmax(-1)
    total = 0.0
    for e, (_, own) in enumerate(read_tensors(made, POINTS, WIDTH).items()):
        module = module_from(text, {name: part.float() for name, part in own.items()})
        logits = backbone.logits(module(columns["hidden"][rows, e].float()))
        hard, soft = F.cross_entropy(logits, labels), F.cross_entropy(logits, teacher)
        total += ((1 - distill) * hard + distill * soft).item()
    return total / len(POINTS)


@pytest.mark.parametrize(("text", "distill"), [("linear", 1.0), ("mlp/16", 0.0), ("mlp/16", 1.0)])
def test_training_lowers_the_loss_that_was_asked_for(
    tiny_llama: Path, traced: Path, tmp_path: Path, text: str, distill: float
) -> None:
    more: dict[str, Any] = {"batch": 128, "learning_rate": 0.01, "distill": distill}
    begun = fit(tiny_llama, traced, tmp_path / "begun", exit_module=text)
    trained = fit(tiny_llama, traced, tmp_path / "trained", exit_module=text, steps=60, **more)
    before, after = (surprise(tiny_llama, traced, one, text, distill) for one in (begun, trained))
    assert after < before - 0.01
    assert trained.facts["exit_module"] == text
    assert trained.facts["recipe"] == {"exit_module": text, "ridge": 1e-4, "steps": 60, **more}
    again = fit(tiny_llama, traced, tmp_path / "again", exit_module=text, steps=60, **more)
    assert again.sha256 == trained.sha256


def test_the_card_says_what_was_measured(tiny_llama: Path, traced: Path, made: Path) -> None:
    facts, card = read_artefact(made / "shortcut.json", "shortcut").facts, (made / "shortcut.md").read_text()
    info = found(tiny_llama, made).info
    assert facts["layers"] == pytest.approx((2 * 8 * WIDTH + 8 + WIDTH) * 4 / info.layer_bytes, abs=1e-4)
    assert f"{facts['layers']:.3f} layers to read" in card
    traces = Traces.open(traced)
    columns = traces.columns("hidden", "top", "final", "input", "document")
    held = held_out_rows(traces, columns["document"], seed=0)
    backbone = found(tiny_llama, made).load("cpu").backbone
    depths, right = [], []
    for row in held.nonzero().flatten().tolist():
        state = [backbone.exit_state(columns["hidden"][row, e].float()[None], point) for e, point in enumerate(POINTS)]
        same = [int(backbone.logits(one).argmax()) == int(columns["final"][row]) for one in state]
        depths.append(next((point for point, agrees in zip(POINTS, same, strict=True) if agrees), info.num_layers))
        if row + 1 < len(held) and columns["document"][row] == columns["document"][row + 1]:
            right.append(bool(columns["final"][row] == columns["input"][row + 1]))
    assert facts["held_out"]["oracle_layers"][1] == pytest.approx(sum(depths) / len(depths), abs=1e-3)
    assert facts["held_out"]["accuracy"] == pytest.approx(sum(right) / len(right), abs=1e-4)


@pytest.mark.parametrize("weights_format", ["float32", "fp16", "int8"])
def test_the_engine_reads_what_was_written(
    tiny_llama: Path, made: Path, weights_format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a weights format, from kept weights too; full depth is what it was without exit modules."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packing, "ENOUGH", 0)
    resolved = found(tiny_llama, made, weights_format=weights_format)
    artefact = read_artefact(made / "shortcut.json", "shortcut")
    assert resolved.info.exit_module == "mlp/8"
    assert resolved.info.exit_head == f"shortcut:{artefact.sha256[:16]}"
    first, second = resolved.load("cpu"), resolved.load("cpu")
    states = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    tolerance = {"float32": 1e-5, "fp16": 2e-3, "int8": 0.1}[weights_format]
    for layer, own in read_tensors(artefact, POINTS, WIDTH).items():
        w1, b1, w2, b2 = (own[name].float() for name in ("in_weight", "in_bias", "out_weight", "out_bias"))
        inner = states / (states.square().mean(1, keepdim=True) + 1e-6).sqrt() @ w1.t() + b1
        expected = states + (inner * torch.sigmoid(inner)) @ w2.t() + b2
        module = first.backbone.shortcuts[layer]
        torch.testing.assert_close(module(states), expected, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(second.backbone.shortcuts[layer](states), module(states), rtol=0, atol=0)
        for row in range(len(states)):
            torch.testing.assert_close(module(states[row : row + 1])[0], module(states)[row], rtol=1e-5, atol=1e-6)
    shared = found(tiny_llama, made, "shared", weights_format=weights_format).load("cpu")
    done = [
        Engine(one.backbone, one.info).decode(PROMPT, strategy, kv="recompute", max_new_tokens=[8])[0].token_ids
        for strategy in (Full(), Fixed(layer=4))
        for one in (first, second, shared)
    ]
    assert done[0] == done[1] == done[2]
    assert done[3] == done[4] != done[5]
    if weights_format == "float32":
        assert {module.nbytes for module in first.backbone.shortcuts.values()} == {first.info.shortcut_bytes}


def test_a_module_that_cannot_be_is_refused(tiny_llama: Path, traced: Path, made: Path, tmp_path: Path) -> None:
    for text, said in (("mlp/7", "pairs"), ("mlp/66", "64 for this model at most"), ("linear/4", "has no size")):
        with pytest.raises(OptionError, match=said):
            fit(tiny_llama, traced, tmp_path / "a", exit_module=text)
    with pytest.raises(UnknownNameError, match="unknown exit module 'other'"):
        Shortcut.build({"model": str(tiny_llama), "traces": traced, "exit_module": "other"})
    assert not (tmp_path / "a").exists()
    artefact = read_artefact(made / "shortcut.json", "shortcut")
    write_artefact(
        tmp_path / "b" / "shortcut.json", "shortcut", artefact.tensors(), artefact.facts | {"exit_module": "mlp/10"}
    )
    with pytest.raises(ArtefactError, match=r"4\.in_weight has shape \(8, 32\), and \(10, 32\) is needed"):
        found(tiny_llama, tmp_path / "b").load("cpu")
    assert chosen("mlp")[1] == 128


def test_lite_trains_a_module_along(tune: Any, tiny_llama: Path, tmp_path: Path) -> None:  # noqa: F811
    recipe = QUICK.replace(exit_module="mlp/8")
    assert tune(tiny_llama, tmp_path / "a", recipe).finished
    facts = read_artefact(tmp_path / "a" / "shortcut.json", "shortcut").facts
    assert facts["exit_module"] == facts["recipe"]["exit_module"] == "mlp/8"
    tuned = resolve(ModelRequest(str(tiny_llama), artefacts=str(tmp_path / "a")))
    assert (tuned.info.weights, tuned.info.exit_module) == ("tuned", "mlp/8")
    start = {"start_from": str(tmp_path / "a")}
    assert tune(tiny_llama, tmp_path / "b", recipe, **start).finished
    with pytest.raises(ConfigError, match=r"was tuned with --exit-module mlp/8\. Give that one"):
        tune(tiny_llama, tmp_path / "c", **start)
