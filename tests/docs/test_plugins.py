"""The plug-ins that README and the tutorials show do what these say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import Completion, Draft, Lossless, TaskRequest
from harness.contracts.meters import is_measured
from harness.metering import metered
from harness.models.tokenizer import TransformersTokenizer
from harness.records import SampleRecord
from strategies.full import Full
from tests.docs.pages import NAMES, blocks
from tests.training.tracing import trace_of


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """What the tutorial's block defines."""
    return defined("tutorials/task.md")


def defined(page: str) -> dict[str, Any]:
    """What the first block of Python on a page defines."""
    names: dict[str, Any] = {"__name__": "shown"}
    exec(blocks(f"docs/{page}", "python")[0], names)
    return names


def test_the_task_is_drawn_under_every_protocol(shown: dict[str, Any], tiny_tokenizer: Any) -> None:
    tokenizer = TransformersTokenizer(tiny_tokenizer, frozenset())
    for protocol in ("codexglue-line", "green-code"):
        data = shown["Recipes"]().load(TaskRequest(protocol, "embedded"), tokenizer)
        assert len(data.samples) == 2
        assert data.source.label == "embedded: recipes"


def test_the_score_and_the_metric_read_a_sample(shown: dict[str, Any]) -> None:
    assert shown["Length"]().sample(Completion("a b", "a b c d", (), (), "python")) == 0.5
    sample = SampleRecord(window=0, operating_point="full", task="recipes", sample_id="rye", text="abcd")
    assert shown["CHARACTERS"].of_sample(sample) == 4


def test_the_meter_measures_a_window(shown: dict[str, Any]) -> None:
    meter = shown["WallPlug"](device="cpu", tdp_w=None)
    assert is_measured(meter)
    with metered(meter) as window:
        pass
    assert window.reading is not None
    assert window.reading.energy_j == pytest.approx(40 * window.reading.duration_s)


def file_of(name: str, folder: Path) -> dict[str, Any]:
    """What the file that defines a class defines."""
    (block,) = (block for page in NAMES for block in blocks(page, "python") if f"class {name}(" in block)
    (folder / "shown.py").write_text(block, encoding="utf-8")
    return runpy.run_path(str(folder / "shown.py"))


@pytest.mark.parametrize("name", ["EveryNth", "NormGrowth", "MeanDifferenceRecipe", "MeanDifference", "Zeros", "Habit"])
def test_every_file_is_whole(tmp_path: Path, name: str) -> None:
    assert name in file_of(name, tmp_path)


def test_the_draft_source_proposes_what_followed_and_full_depth_s_tokens_come_out(
    tmp_path: Path, tiny_llama: Path
) -> None:
    import harness

    source = file_of("Habit", tmp_path)["Habit"](3)
    rule = source.start(None, None)
    assert rule.propose(Draft(0, [5, 1, 2, 9, 1], [2]), 16) == [9, 1, 2]
    assert rule.propose(Draft(0, [5, 1, 2, 9, 1], [2]), 2) == [9, 1]
    assert rule.propose(Draft(0, [5, 1, 2], [7]), 16) == []
    engine = harness.load(tiny_llama, weights_format="float32")._engine
    limit: dict[str, Any] = {"kv": "recompute", "max_new_tokens": [40]}
    (full,) = engine.decode([[5, 6, 7, 5, 6]], Full(), **limit)
    (drafted,) = engine.decode([[5, 6, 7, 5, 6]], Full(), **limit, lossless=Lossless(sources=(source,)))
    assert drafted.token_ids == full.token_ids
    assert drafted.drafts > 0


def test_the_exit_module_is_fitted_and_read(
    tiny_llama: Path, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness
    from harness.contracts.recipes import TrainingRun
    from harness.registry import EXIT_MODULES, Registry
    from harness.training.recipes import Shortcut

    made, load, known = file_of("Bottleneck", tmp_path)["Bottleneck"], Registry.load, Registry.__contains__

    def mine(registry: Registry[Any], name: object) -> bool:
        return (registry.group, name) == (EXIT_MODULES.group, "bottleneck")

    monkeypatch.setattr(Registry, "load", lambda registry, name: made if mine(registry, name) else load(registry, name))
    monkeypatch.setattr(Registry, "__contains__", lambda registry, name: mine(registry, name) or known(registry, name))
    trace_of(tiny_llama, rows_file, tmp_path / "t", documents=None, length=72)
    options = Shortcut(
        model=str(tiny_llama), traces=tmp_path / "t", out=tmp_path / "a", exit_module="bottleneck/8", steps=2, batch=8
    )
    options.train(TrainingRun("shortcut", "harness train shortcut"))  # type: ignore[attr-defined]
    model = harness.load(str(tiny_llama), artefacts=str(tmp_path / "a"), weights="pretrained", weights_format="fp16")
    assert model.info.exit_module == "bottleneck/8"
    assert model.loaded.backbone.shortcuts[4].maps["in_"].shape == (8, 32)
    assert len(model.generate("def f(x):", "fixed:layer=4", max_new_tokens=6).steps) == 6


def test_the_weights_format_and_the_head_decode(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness
    from harness.registry import HEADS, WEIGHTS_FORMATS, Registry

    made = defined("tutorials/weights.md")
    load = Registry.load
    mine = {(WEIGHTS_FORMATS.group, "ternary"): "Ternary", (HEADS.group, "first"): "FirstTokens"}

    def found(registry: Registry[Any], name: str) -> Any:
        return made[mine[registry.group, name]] if (registry.group, name) in mine else load(registry, name)

    monkeypatch.setattr(Registry, "load", found)
    known = Registry.__contains__
    monkeypatch.setattr(
        Registry, "__contains__", lambda registry, name: (registry.group, name) in mine or known(registry, name)
    )
    model = harness.load(str(tiny_llama), weights_format="ternary")
    assert model.info.weights_format == "ternary"
    assert all(len(row.unique()) <= 3 for row in model.loaded.backbone.lm_head.weight)
    answer = model.generate("def f(x):", "confidence:threshold=0.1:head=first/100", max_new_tokens=6)
    assert len(answer.steps) == 6
