"""Which runs make the grid, what each measures, and what is said before they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError, StoreError
from harness.green_code.grid import PAPER_MODELS, GridSettings, fixed_layers, plan, read_scale
from harness.green_code.measure import PLAN, open_grid, read_settings
from harness.green_code.needs import check, needs
from reports.green_code.published_runs import LAYERS, THRESHOLDS, green_code


def settings(**given: Any) -> GridSettings:
    return GridSettings(
        **{
            "scale": "full",
            "samples": 1000,
            "models": tuple(PAPER_MODELS),
            "tasks": ("javacorpus", "py150"),
            "thresholds": THRESHOLDS,
            "agents": {"javacorpus": "rl-java", "py150": "rl-python"},
            "weights": "tuned",
            "source": "hub",
            **given,
        }
    )


def test_the_full_grid_is_the_paper_s() -> None:
    runs = plan(settings())
    assert [run.folder for run in runs][:3] == [
        "llama-3.2-3b-javacorpus-tuned", "llama-3.2-3b-javacorpus-base", "llama-3.2-3b-py150-tuned"
    ]  # fmt: skip
    assert len({run.folder for run in runs}) == len(runs) == 8
    tuned = runs[0]
    assert tuned.stands_for == ("Llama-3.2-3B",)
    assert [str(spec) for spec in tuned.config.specs()] == [
        "full", *(f"rl:agent=rl-java:threshold={threshold}" for threshold in ("0.6", "0.8", "0.9", "0.91", "0.92", "1"))
    ]  # fmt: skip
    assert tuned.config.kv_policies == ("propagate", "none")
    assert (tuned.config.limit, tuned.config.max_new_tokens, tuned.config.protocol) == (1000, 15, "green-code")
    assert (tuned.points, tuned.requests) == (14, 14_000)
    untuned = runs[1].config
    assert (untuned.weights, untuned.exit_head, untuned.strategies) == ("pretrained", "shared", ("full",))
    assert {run.config.artefacts for run in runs} == {None}
    assert {run.config.seed for run in runs} == {0}  # the same samples in every run of a task


def test_a_small_model_stands_in_for_both_with_fixed_exits_beside() -> None:
    runs = plan(settings(models=("smollm2-135m",), samples=6, fixed_layers={"smollm2-135m": (8, 14, 18)}))
    assert {run.stands_for for run in runs} == {("Llama-3.2-3B", "OPT-2.7B")}
    assert [str(spec) for spec in runs[0].config.specs()][-3:] == ["fixed:layer=8", "fixed:layer=14", "fixed:layer=18"]
    assert sum(run.requests for run in runs) == 2 * (6 * 20 + 6)


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_without_tuning_there_is_no_untuned_run_beside(weights: str) -> None:
    assert {run.kind for run in plan(settings(weights=weights))} == {"tuned"}


def test_fixed_exits_are_as_deep_as_the_paper_s_agent() -> None:
    assert fixed_layers((4, 6, 8, 10, 12, 14, 18, 22, 26), 30) == (8, 14, 18)
    assert fixed_layers((4, 6, 10), 12) == (4, 6)
    assert fixed_layers((), 4) == ()
    for threshold, share in ((0.6, 0.3), (0.9, 0.5), (0.92, 0.6)):
        deep = [run.exit_layer_mean / LAYERS[run.model] for run in green_code() if run.threshold == threshold]
        assert sum(deep) / len(deep) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("text", "samples", "papers_own"),
    [("small", 6, False), ("full", 1000, True), ("0.05", 50, False), ("1", 1000, False)],
)
def test_scales(text: str, samples: int, papers_own: bool) -> None:
    assert read_scale(text) == (samples, papers_own)


@pytest.mark.parametrize("text", ["", "big", "0", "-1", "1.5", "nan", "inf", "0.0001"])
def test_no_scale_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a scale. Use small, full, or a fraction"):
        read_scale(text)


def test_needs_name_requests_memory_artefacts_and_hours() -> None:
    lines = needs(settings(), plan(settings()))
    assert lines[0] == "8 runs, 1,000 samples a task, 60,000 completions of 15 tokens"
    assert "llama-3.2-3b: weights 6.4 GB" in lines[1]
    assert "rl-java and rl-python in artefacts/opt-2.7b" in lines[2]
    # by hand, Llama on Java: uncached 1.703 + .715 + .891 + 1.157 + 1.226 + 1.319 + 1.703, cached 8 × .489: 12.6 s
    java = plan(settings(models=("llama-3.2-3b",), tasks=("javacorpus",)))
    (line,) = (line for line in needs(settings(models=("llama-3.2-3b",)), java) if "hours" in line)
    assert line.startswith("about 4 hours")  # 12,600 s for 1,000 samples is 3.5 h


def test_what_is_missing_is_one_line_with_the_commands_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError) as refused:
        check(settings(models=("llama-3.2-3b",)))
    text = str(refused.value)
    assert "\n" not in text
    commands = [
        "`hf download meta-llama/Llama-3.2-3B`",
        "`harness train lite --model llama-3.2-3b",
        "`harness trace --model llama-3.2-3b",
        "--task javacorpus --name rl-java`",
        "--task py150 --name rl-python`",
    ]
    places = [text.index(command) for command in commands]
    assert places == sorted(places)


def test_a_grid_knows_its_settings(tmp_path: Path) -> None:
    chosen = settings(samples=7, fixed_layers={"m": (4, 6)})
    open_grid(tmp_path / "g", chosen)
    assert read_settings(tmp_path / "g") == chosen
    with pytest.raises(StoreError, match=r"is not empty. Continue it with `harness reproduce green-code --resume"):
        open_grid(tmp_path / "g", chosen)
    (tmp_path / "g" / PLAN).write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        read_settings(tmp_path / "g")
    with pytest.raises(StoreError, match="is not a grid"):
        read_settings(tmp_path)
