"""Operating points of a run: several KV policies side by side, and probes that ask and never exit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import RunConfig, run
from harness.contracts import ModelRequest
from harness.errors import ConfigError
from harness.models.controllers import Network, Observation, write_controller
from harness.models.model import resolve
from harness.training.identity import identity
from tests.run_files import samples

Command = Callable[..., Any]


@pytest.fixture
def config(config: dict[str, Any]) -> dict[str, Any]:
    return config | {"max_new_tokens": 5, "untimed": True, "weights_format": "float32"}


def test_each_strategy_has_a_policy_of_its_own(config: dict[str, Any], tmp_path: Path) -> None:
    strategies = ("fixed:layer=4", "confidence:threshold=0.5", "oracle")
    frame = run(RunConfig.build(config | {"strategies": strategies}))
    assert list(frame["operating_point"]) == ["full", *strategies]
    assert list(frame["kv"]) == ["recompute", "propagate", "recompute", "recompute"]
    recorded = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [point["kv"] for point in recorded["operating_points"]] == list(frame["kv"])
    exact = dict(zip(frame["operating_point"], frame["agreement"], strict=True))
    assert exact["oracle"] == 1  # knowing the answer costs no token where K,V are exact
    given = run(RunConfig.build(config | {"strategies": strategies, "kv": "skip", "out": tmp_path / "given"}))
    assert list(given["kv"]) == ["skip", "skip", "skip", "recompute"]  # the oracle is exact or nothing


def test_the_oracle_s_share_is_that_of_the_samples(config: dict[str, Any], tmp_path: Path) -> None:
    """Random exits under propagate: many layers skipped, few of them by tokens that agree."""
    strategies = ("random:probability=0.6", "oracle")
    changes = {"kv": "propagate", "strategies": strategies, "exit_points": "all", "limit": 6, "max_new_tokens": 12}
    frame = run(RunConfig.build(config | changes)).set_index("operating_point")
    rushed, possible = 0, 0
    found = samples(tmp_path / "out")
    for sample_id, full in found["full"].items():
        here, best = found[strategies[0]][sample_id], found["oracle"][sample_id]
        for place in range(1, len(full["token_ids"])):
            most = 12 - best["exit_layers"][place]
            possible += most
            if full["token_ids"][place] == here["token_ids"][place]:
                rushed += min(12 - here["exit_layers"][place], most)
    row = frame.loc[strategies[0]]
    assert possible > 0
    assert row["oracle_share"] == pytest.approx(rushed / possible)
    assert row["oracle_share"] < 0.5 * row["layers_skipped"] / frame.loc["oracle"]["layers_skipped"]
    for point in strategies:  # depths mix; prefill's token, which nobody was asked about, counts on neither side
        ran = [layer for sample in found[point].values() for layer in sample["exit_layers"][1:]]
        assert len(set(ran)) > 2
        assert frame.loc[point]["layers_skipped"] == pytest.approx(sum(12 - layer for layer in ran) / (12 * len(ran)))


def test_several_policies_run_side_by_side_on_the_same_samples(config: dict[str, Any], tmp_path: Path) -> None:
    frame = run(RunConfig.build(config | {"kv": "none,propagate,recompute,skip", "strategies": ("fixed:layer=4",)}))
    assert list(frame["operating_point"]) == [
        "full@none", "full@propagate",  # what never exits is the same under every policy with a cache
        *(f"fixed:layer=4@{kv}" for kv in ("none", "propagate", "recompute", "skip")),
    ]  # fmt: skip
    assert list(frame["kv"]) == ["none", "propagate", "none", "propagate", "recompute", "skip"]
    found = samples(tmp_path / "out")
    assert len({frozenset(records) for records in found.values()}) == 1
    for sample_id, record in found["full@none"].items():
        assert found["full@propagate"][sample_id]["token_ids"] == record["token_ids"]
        assert set(found["fixed:layer=4@none"][sample_id]["exit_layers"]) == {4}  # no prefill: the first one exits too
        assert found["fixed:layer=4@propagate"][sample_id]["exit_layers"][0] == 12
        assert found["fixed:layer=4@propagate"][sample_id]["kv_fill_layers"] > 0
        assert found["fixed:layer=4@recompute"][sample_id]["kv_fill_layers"] == 0
    depth = dict(zip(frame["operating_point"], frame["layers_skipped"], strict=True))
    assert depth["full@none"] == depth["full@propagate"] == 0
    assert depth["fixed:layer=4@none"] == pytest.approx(1 - 4 / 12)


def test_a_probe_is_asked_everywhere_and_never_exits(config: dict[str, Any], tmp_path: Path) -> None:
    strategies = ("confidence:threshold=0,0.5", "fixed:layer=4", "oracle")
    frame = run(RunConfig.build(config | {"strategies": strategies, "attribute": True, "untimed": False}))
    assert not [name for name in frame["operating_point"] if "never exits" in name]  # no candidate in any table
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    probes = [point["name"] for point in manifest["operating_points"] if point["never_exits"]]
    assert probes == ["confidence:threshold=0 (never exits)", "fixed:layer=4 (never exits)"]
    found = samples(tmp_path / "out")
    for sample_id, full in found["full"].items():
        probe = found["confidence:threshold=0 (never exits)"][sample_id]
        later = len(full["token_ids"]) - 1
        assert probe["token_ids"] == full["token_ids"]
        assert probe["exit_layers"] == full["exit_layers"]
        assert probe["exit_checks"] == 3 * later  # exit points 4, 6, 10 of 12 layers
        assert probe["lm_head_evaluations"] == 4 * later
        assert found["confidence:threshold=0"][sample_id]["exit_layers"][1:] == [4] * later


def test_an_attribution_that_would_mean_nothing_is_refused(config: dict[str, Any]) -> None:
    for given, said in (
        ({"batch_size": 2}, "--attribute counts what single requests did"),
        ({"arrival_rate": 5.0}, "--attribute counts what single requests did"),
        ({"kv": "none"}, "--attribute needs a KV cache"),
    ):
        with pytest.raises(ConfigError, match=said):
            run(RunConfig.build(config | given | {"strategies": ("confidence",), "attribute": True, "untimed": False}))


def test_what_only_drafts_is_decoded_losslessly(config: dict[str, Any], tmp_path: Path) -> None:
    """Whatever the others are; a rule that only ends drafts makes nothing of what never exits."""
    drafting = ("layerskip:layer=4:length=2", "del", "swift:threshold=0.1", "clasp:threshold=0.1")
    strategies = (*drafting, "fixed:layer=4", "fixed:layer=4@lossless+product:bound=0.5")
    frame = run(RunConfig.build(config | {"strategies": strategies, "max_new_tokens": 12}))
    exact = {*(f"{each}@lossless" for each in drafting), "fixed:layer=4@lossless+product:bound=0.5"}
    assert set(frame["operating_point"]) == {"full", "fixed:layer=4"} | exact
    found = samples(tmp_path / "out")
    for name in exact:
        for sample_id, record in found[name].items():
            assert record["token_ids"] == found["full"][sample_id]["token_ids"]
    for name in ("del@lossless", "swift:threshold=0.1@lossless", "clasp:threshold=0.1@lossless"):
        assert any(record["drafts"] for record in found[name].values())
    rules = {"decode": ("lossless+product", "lossless+lookup"), "out": tmp_path / "rules", "strategies": ("del",)}
    frame = run(RunConfig.build(config | rules))
    assert list(frame["operating_point"]) == [
        *("full", "full@lossless+lookup"),
        *("del@lossless+product", "del@lossless+lookup"),
    ]


# ------------------------------------------------------- a strategy that stops, where it is only asked


@pytest.fixture
def stopping(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a ``sec`` for the tiny model that never exits and always stops, by its own thresholds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    info = resolve(ModelRequest(str(tiny_llama), exit_head="shared")).info
    generator = torch.Generator().manual_seed(0)
    heads = {
        str(point): Network(((torch.randn(3, info.hidden_size, generator=generator), torch.zeros(3)),))
        for point in info.exit_points
    }
    file = tmp_path / "sec.json"
    looks = Observation(normalise=True)
    write_controller(file, "sec", looks, heads, identity(info, "t") | {"threshold": 1.0, "stop": 0.0})
    return file


def test_a_probe_of_one_that_stops_generates_what_full_depth_does(
    tiny_run: Command, stopping: Path, tmp_path: Path
) -> None:
    name = f"sec:heads={stopping}"
    ran = tiny_run("--strategy", name, "--attribute", "--out", "run")
    assert ran.code == 0, ran.err
    found = samples(tmp_path / "run")
    assert {len(one["token_ids"]) for one in found[name].values()} == {1}  # the prompt's token, then it stops
    assert {one["finish_reason"] for one in found[name].values()} == {"strategy"}
    for sample_id, probed in found[f"{name} (never exits)"].items():
        assert probed["token_ids"] == found["full"][sample_id]["token_ids"]
        assert probed["finish_reason"] == "length"


def test_scores_of_one_that_stops_are_observed_on_whole_completions(
    tiny_run: Command, stopping: Path, tmp_path: Path
) -> None:
    """Five documents, four new tokens, three of them decided, three exit points: 45 answers, where it stopped at 5."""
    ran = tiny_run("--strategy", f"sec:heads={stopping}:threshold=q50", "--out", "run")
    assert ran.code == 0, ran.err
    (observed,) = json.loads((tmp_path / "run" / "manifest.json").read_text())["observed_thresholds"]
    share = observed["reached"] / 100
    assert abs(share * 5 - round(share * 5)) > 1e-3
    assert share * 45 == pytest.approx(round(share * 45), abs=1e-3)
