"""A run in a weights format: what it records, and that it goes on in the format it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.decoding.packing import FormatChoice
from harness.errors import ConfigError
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


@pytest.mark.parametrize("name", ["float32", "fp16", "int8"])
def test_a_run_says_what_its_matrices_were(run: Callable[..., Any], name: str) -> None:
    ran = run("--weights-format", name)
    assert ran.code == 0, ran.err
    facts = WEIGHTS_FORMATS.load(name).facts
    found = recorded()
    assert (found["weights_format"], found["weights_accuracy"]) == (name, facts.accuracy)
    assert found["format_choice"] is None  # it was asked for
    assert found["layer_bytes"] < 4 * 32 * (4 * 32 + 3 * 64) * facts.bits / 8 + 4 * 64 + 1e4
    row = json.loads(Path("out/summary.json").read_text())["rows"][0]
    assert row["weights_format"] == name
    heading = "float32, kv" if name == "float32" else f"{name} weights, float32 activations, kv"
    assert heading in " ".join(ran.out.split())


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


def test_another_format_is_another_run(run: Callable[..., Any], cli: Command) -> None:
    assert run("--weights-format", "fp16").code == 0
    ran = run("--weights-format", "int8", "--resume", "out")
    assert ran.code == 2
    assert "weights_format" in ran.error or "weights-format" in ran.error
    assert run("--weights-format", "float32", "--out", "other").code == 0
    compared = cli("compare", "out", "other")
    assert compared.code == 0, compared.err
    assert "fp16 weights, float32 activations" in " ".join(compared.out.split())


def test_a_format_that_is_none_is_refused_with_the_closest(run: Callable[..., Any]) -> None:
    ran = run("--weights-format", "fp61")
    assert ran.code == 2
    assert "unknown weights format 'fp61'. Did you mean 'fp16'?" in ran.error
    assert "Known: auto, bfloat16, float32, fp16, int4, int8" in ran.error


def test_a_configuration_knows_the_formats() -> None:
    from harness import RunConfig

    assert RunConfig().weights_format == "auto"
    with pytest.raises(ConfigError, match="unknown weights format"):
        RunConfig(weights_format="fp8")
