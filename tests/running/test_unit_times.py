"""What decoding costs is stated by a run whose strategies ask, and the run goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import RunConfig, run
from tests.run_files import cut, samples, unseal

COUNTS = ("token_ids", "drafted_at", "drafts", "verifications", "layers_read")


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {
        "weights_format": "float32",
        "max_new_tokens": 8,
        "strategies": ("del", "fixed:layer=10@lossless+expected"),
    }


def manifest(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return found


def counts(folder: Path) -> dict[tuple[str, str], list[Any]]:
    found = samples(folder)
    return {(name, key): [one[count] for count in COUNTS] for name in found for key, one in found[name].items()}


@pytest.mark.slow
def test_a_run_states_them_per_format_and_goes_on_with_them(config: dict[str, Any], tmp_path: Path) -> None:
    settings = RunConfig.build(config | {"weights_format": "float32,int8"})
    run(settings)
    model, before = manifest(tmp_path / "out")["model"], counts(tmp_path / "out")
    (other,) = model["other_formats"]
    for stated in (model["unit_times"], other["unit_times"]):
        assert stated["drafts"].keys() == {"DynamicExit, drafts by full", "Fixed, drafts by full"}
        assert min(stated["layer_s"], stated["head_s"]) > 0
    assert model["unit_times"] != other["unit_times"]
    cut(tmp_path / "out", 3)
    run(settings, resume=tmp_path / "out")
    assert manifest(tmp_path / "out")["model"] == model
    assert counts(tmp_path / "out") == before


def test_they_decide_what_is_drafted_when_a_run_goes_on(config: dict[str, Any], tmp_path: Path) -> None:
    """Those that the run states, whatever they were here."""
    settings = RunConfig.build(config)
    run(settings)
    unseal(tmp_path / "out")
    facts = manifest(tmp_path / "out")
    for draft in facts["model"]["unit_times"]["drafts"].values():
        draft["read_s"] = 1000.0
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(facts))
    cut(tmp_path / "out", 0)
    run(settings, resume=tmp_path / "out")
    found = samples(tmp_path / "out")
    assert all(one["drafts"] == 0 for one in found["del@lossless"].values())
    fixed = found["fixed:layer=10@lossless+expected"].values()
    assert all(one["drafts"] == one["verifications"] > 0 for one in fixed)
