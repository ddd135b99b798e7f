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


def names() -> list[str]:
    return [point["name"] for point in json.loads(Path("out/manifest.json").read_text())["operating_points"]]


def samples(folder: str) -> dict[tuple[str, str], dict[str, Any]]:
    lines = map(json.loads, Path(folder, "samples.jsonl").read_text().splitlines())
    return {(line["operating_point"], line["sample_id"]): line for line in lines}


WHAT = ("token_ids", "exit_layers", "text", "scores", "layers_executed", "kv_fill_layers", "lm_head_evaluations")


@pytest.mark.slow
def test_formats_run_side_by_side_and_each_as_it_does_alone(run: Callable[..., Any]) -> None:
    ran = run("--untimed", "--weights-format", "float32,int8")
    assert ran.code == 0, ran.err
    stored = ("float32", "int8")
    assert names() == [f"{name}@{one}" for name in ("full", "fixed:layer=6") for one in stored]
    together, model = samples("out"), recorded()
    assert (model["weights_format"], model["weights_accuracy"]) == ("float32", "exact")
    assert [(one["weights_format"], one["weights_accuracy"]) for one in model["other_formats"]] == [("int8", "lossy")]
    for one, described in zip(stored, [model, *model["other_formats"]], strict=True):
        ran = run("--untimed", "--weights-format", one, "--out", one)
        for (name, sample_id), alone in samples(one).items():
            here = together[f"{name}@{one}", sample_id]
            assert {what: here[what] for what in WHAT} == {what: alone[what] for what in WHAT}
        single = json.loads(Path(one, "manifest.json").read_text())["model"]
        assert (single["other_formats"], single["format_choice"]) == ([], None)  # it was asked for
        assert (single["weights_format"], single["weights_accuracy"]) == (one, "exact" if one == "float32" else "lossy")
        assert json.loads(Path(one, "summary.json").read_text())["rows"][0]["weights_format"] == one
        sizes = ("layer_bytes", "lm_head_bytes", "kv_projection_bytes", "shortcut_bytes")
        assert [described[size] for size in sizes] == [single[size] for size in sizes]
    assert "int8 weights, float32 activations, kv" in " ".join(ran.out.split())
    bits = WEIGHTS_FORMATS.load("int8").facts.bits
    assert single["layer_bytes"] < 4 * 32 * (4 * 32 + 3 * 64) * bits / 8 + 4 * 64 + 1e4


def test_own_text_is_asked_of_the_first_format(run: Callable[..., Any]) -> None:
    """Along a lossy full depth's completion the first format's chooses, which is not always what was generated."""
    assert run("--untimed", "--weights-format", "float32,int4", "--max-new-tokens", 12, "--limit", 6).code == 0
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
