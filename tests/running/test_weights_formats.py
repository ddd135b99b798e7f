"""A run in a weights format: what it records, and that it goes on in the format it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.decoding.packing import FormatChoice
from harness.models import model
from harness.registry import WEIGHTS_FORMATS
from tests.run_files import cut

Command = Callable[..., Any]


@pytest.fixture
def run(cli: Command, tiny_llama: Path, rows_file: Path) -> Callable[..., Any]:
    """``run(*flags)`` measures two samples of a small model into ``out``."""

    def ran(*flags: Any) -> Any:
        return cli(
            *("run", "--model", tiny_llama, "--source", rows_file, "--limit", 2, "--max-new-tokens", 3, "--energy"),
            *("none", "--threads", 1, "--strategy", "fixed:layer=6", "--out", "out", *flags),
        )

    return ran


def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/manifest.json").read_text())["model"]
    return found


def test_a_run_says_what_its_matrices_were(run: Callable[..., Any]) -> None:
    ran = run("--weights-format", "int8")
    assert ran.code == 0, ran.err
    facts = WEIGHTS_FORMATS.load("int8").facts
    found = recorded()
    assert (found["weights_format"], found["weights_accuracy"]) == ("int8", facts.accuracy)
    assert found["format_choice"] is None  # it was asked for
    assert found["layer_bytes"] < 4 * 32 * (4 * 32 + 3 * 64) * facts.bits / 8 + 4 * 64 + 1e4
    assert json.loads(Path("out/summary.json").read_text())["rows"][0]["weights_format"] == "int8"
    assert "int8 weights, float32 activations, kv" in " ".join(ran.out.split())


def test_a_run_goes_on_in_the_format_it_began_with(
    run: Callable[..., Any], cli: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = FormatChoice("fp16", {"float32": (1.0, 1.0, 1.0), "fp16": (0.5, 0.5, 0.5)})
    monkeypatch.setattr(model, "fastest", lambda backbone, device: chosen)
    assert run().code == 0
    before = recorded()
    assert before["weights_format"] == "fp16"
    assert before["format_choice"]["seconds_per_byte"] == {"float32": [1, 1, 1], "fp16": [0.5, 0.5, 0.5]}
    cut(Path("out"), 3)
    monkeypatch.setattr(model, "fastest", lambda backbone, device: FormatChoice("float32"))
    ran = cli("run", "--resume", "out")
    assert ran.code == 0, ran.err
    assert recorded() == before
    alone = run("--out", "again")
    assert alone.code == 0
    assert json.loads(Path("again/manifest.json").read_text())["model"]["weights_format"] == "float32"


def names() -> list[str]:
    return [point["name"] for point in json.loads(Path("out/manifest.json").read_text())["operating_points"]]


def samples(folder: str) -> dict[tuple[str, str], dict[str, Any]]:
    lines = map(json.loads, Path(folder, "samples.jsonl").read_text().splitlines())
    return {(line["operating_point"], line["sample_id"]): line for line in lines}


WHAT = ("token_ids", "exit_layers", "text", "scores", "layers_executed", "kv_fill_layers", "lm_head_evaluations")


@pytest.mark.slow
def test_formats_run_side_by_side_and_each_as_it_does_alone(run: Callable[..., Any]) -> None:
    ran = run("--weights-format", "float32,int4,int8", "--strategy", "confidence:threshold=0.5")
    assert ran.code == 0, ran.err
    stored = ("float32", "int4", "int8")
    strategies = ("full", "fixed:layer=6", "confidence:threshold=0.5")
    assert names() == [f"{name}@{one}" for name in strategies for one in stored]
    together, model = samples("out"), recorded()
    assert (model["weights_format"], model["weights_accuracy"]) == ("float32", "exact")
    assert [(one["weights_format"], one["weights_accuracy"]) for one in model["other_formats"]] == [
        ("int4", "lossy"), ("int8", "lossy"),
    ]  # fmt: skip
    for one, described in zip(stored, [model, *model["other_formats"]], strict=True):
        assert run("--weights-format", one, "--strategy", "confidence:threshold=0.5", "--out", one).code == 0
        for (name, sample_id), alone in samples(one).items():
            here = together[f"{name}@{one}", sample_id]
            assert {what: here[what] for what in WHAT} == {what: alone[what] for what in WHAT}
        single = json.loads(Path(one, "manifest.json").read_text())["model"]
        assert single["other_formats"] == []
        sizes = ("layer_bytes", "lm_head_bytes", "kv_projection_bytes", "shortcut_bytes")
        assert [described[size] for size in sizes] == [single[size] for size in sizes]


def test_own_text_is_asked_of_the_first_format(run: Callable[..., Any]) -> None:
    """Along a lossy full depth's completion the first format's chooses, which is not always what was generated."""
    assert run("--weights-format", "float32,int4", "--max-new-tokens", 12, "--limit", 6).code == 0
    found = {stored: [one for (name, _), one in samples("out").items() if name == f"full@{stored}"]
             for stored in ("float32", "int4")}  # fmt: skip
    assert all(one["full_depth_ids"] == one["token_ids"] for one in found["float32"])
    assert all(len(one["full_depth_ids"]) == len(one["token_ids"]) for one in found["int4"])
    assert any(one["full_depth_ids"] != one["token_ids"] for one in found["int4"])


def test_a_list_with_what_is_no_format_is_refused(run: Callable[..., Any], cli: Command, tiny_llama: Path) -> None:
    assert "unknown weights format 'int9'. Did you mean 'int8'?" in run("--weights-format", "fp16,int9").error
    served = cli("serve", "--model", tiny_llama, "--weights-format", "fp16,int4")  # a server has one
    assert "unknown weights format 'fp16,int4'" in served.error


def test_what_this_machine_cannot_run_is_refused_before_weights_are_read_and_memory_says_what_to_leave_out(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(model, "pack_all", full)
    ran = run("--weights-format", "fp16,int4")
    assert "out of memory loading" in ran.error
    assert "in fp16 and int4. Use fewer names in --weights-format or a smaller --model." in ran.error
    monkeypatch.setattr(WEIGHTS_FORMATS.load("int4"), "obstacle", lambda self, device: "its product is missing")
    monkeypatch.setattr(model.ResolvedModel, "load_all", lambda *_: pytest.fail("weights were read"))
    ran = run("--weights-format", "fp16,int4")
    assert "--weights-format int4 cannot be used here: its product is missing. Use one of " in ran.error
