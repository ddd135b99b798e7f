"""What a study's file declares, and the points that follow from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.config import RunConfig
from harness.contracts import ModelRequest
from harness.errors import HarnessError
from harness.models.model import resolve
from harness.running.operating_points import build_all
from harness.study import grid
from harness.study.grid import MOST, StudyConfig, expand, presets, read_study
from reports.published.numbers import LAYERS, THRESHOLDS, green_code
from strategies.fixed import Fixed
from strategies.rl import ReinforcementLearning


def settings(**tables: Any) -> list[dict[str, Any]]:
    return [dict(point.settings) for point in expand(StudyConfig.build(tables))]


def test_every_combination_is_a_point_in_the_order_of_the_grid() -> None:
    found = settings(run={"limit": 3}, grid={"tasks": ["py150", "javacorpus"], "seed": [0, 1]})
    assert found == [{"limit": 3, "tasks": [task], "seed": seed} for task in ("py150", "javacorpus") for seed in (0, 1)]
    assert settings(run={"limit": 2}) == [{"limit": 2}]
    assert settings(run={"limit": 2}, include=[{"seed": 7}]) == [{"limit": 2, "seed": 7}]
    together, alone = settings(grid={"strategies": [["full", "classifier"], "oracle"]})  # a list stays in one run
    assert (together["strategies"], alone["strategies"]) == (["full", "classifier"], ["oracle"])


def test_prompt_exits_are_a_dimension_of_a_grid_and_of_a_run() -> None:
    rules = ["none", "layer=18:tail=64", "importance:layer=18:keep=.2"]
    points = expand(StudyConfig.build({"grid": {"prompt_exit": rules}, "run": {"strategies": ["full"]}}))
    assert [point.config().prompt_exits for point in points] == [
        ("none",), ("tail:layer=18:tail=64",), ("importance:layer=18:keep=.2",),
    ]  # fmt: skip
    (together,) = expand(StudyConfig.build({"run": {"prompt_exit": rules}}))
    assert len(together.config().prompt_exits) == 3


def test_exclude_include_override() -> None:
    found = settings(
        run={"limit": 10},
        grid={"model": ["a", "b"], "seed": [0, 1]},
        exclude=[{"model": "b", "seed": 1}],
        include=[{"model": "c"}],
        override=[{"where": {"model": ["b", "c"]}, "limit": 2}, {"where": {"seed": 1}, "tasks": "javacorpus"}],
    )
    assert found == [
        {"limit": 10, "model": "a", "seed": 0},
        {"limit": 10, "model": "a", "seed": 1, "tasks": ["javacorpus"]},
        {"limit": 2, "model": "b", "seed": 0},
        {"limit": 2, "model": "c"},
    ]
    found = settings(  # what is left at its default can be matched
        grid={"limit": [1, 2]}, include=[{"tasks": "javacorpus"}], override=[{"where": {"tasks": "py150"}, "seed": 3}]
    )
    assert [each.get("seed") for each in found] == [3, 3, None]


def test_a_point_is_known_by_its_settings_not_by_its_place() -> None:
    before = expand(StudyConfig.build({"grid": {"seed": [0, 1]}}))
    after = expand(StudyConfig.build({"grid": {"seed": [2, 1, 0]}}))
    assert {point.identity for point in before} < {point.identity for point in after}
    assert len({point.name for point in after}) == 3
    assert before[0].name == f"seed=0-{before[0].short}"
    points = expand(StudyConfig.build({"grid": {"source": ["../data/my rows.jsonl", "hub"], "kv": [["none", "skip"]]}}))
    assert [point.name.rpartition("-")[0] for point in points] == ["my-rows", "hub"]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"grid": {"sede": [0]}}, "[grid] has an unknown setting 'sede'. Did you mean 'seed'?"),
        ({"runs": {}}, "unknown configuration key 'runs'. Did you mean 'run'?"),
        ({"run": {"out": "x"}}, "[run] sets out: every run has a folder of its own. Omit it."),
        ({"grid": {"seed": []}}, "[grid] seed has no values."),
        ({"grid": {"seed": [0]}, "exclude": [{"seed": 4}]}, "[[exclude]] 1 takes no point away: none has seed = 4."),
        ({"grid": {"seed": [0]}, "exclude": [{"seed": 0}]}, "the study has no points"),
        ({"override": [{"where": {"seed": 4}, "limit": 1}]}, "[[override]] 1 changes nothing: no point has seed = 4."),
        ({"override": [{"limit": 1}]}, "[[override]] 1 needs `where"),
        (
            {
                "grid": {"seed": [0]},
                "override": [{"where": {"seed": 0}, "limit": 1}, {"where": {"tasks": "py150"}, "limit": 2}],
            },
            "[[override]] 1 and 2 contradict each other: limit = 1 and 2 for the same point (seed = 0)",
        ),
    ],
)  # fmt: skip
def test_refusals(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(HarnessError) as refused:
        settings(**tables)
    assert said in str(refused.value)


def test_presets_expand_to_runs_that_are_allowed() -> None:
    assert set(presets()) == {"all-strategies", "green-code", "quick"}
    for preset in presets().values():
        assert all(isinstance(point.config(), RunConfig) for point in expand(preset))


def test_the_papers_grid_can_be_run_on_every_model_it_names() -> None:
    """Layers are exit points, thresholds the paper's and one never reached, and no cache is compared with one."""
    points = expand(presets()["green-code"])
    assert len(points) == 12
    for point in points:
        config = point.config()
        assert (config.limit, config.max_new_tokens, config.protocol) == (1000, 15, "green-code")
        info = resolve(ModelRequest(config.model, weights="random")).info
        strategies = build_all(config.specs())
        fixed = [strategy.layer for _, strategy in strategies if isinstance(strategy, Fixed)]
        assert set(fixed) <= set(info.exit_points)
        if config.weights == "pretrained":
            assert (list(map(str, config.specs())), config.kv_policies) == (["full"], ("propagate",))
            continue
        agents = [strategy for _, strategy in strategies if isinstance(strategy, ReinforcementLearning)]
        assert [agent.threshold for agent in agents] == [None, *THRESHOLDS, 1.0]
        assert {agent.agent for agent in agents} == {{"py150": "rl-python", "javacorpus": "rl-java"}[config.tasks[0]]}
        assert config.kv_policies == ("propagate", "none", "recompute")
        for threshold, layer in zip((0.6, 0.9, 0.92), fixed, strict=True):  # as deep as the paper's agent
            deep = [run.exit_layer_mean / LAYERS[run.model] for run in green_code() if run.threshold == threshold]
            share = sum(deep) / len(deep) * info.num_layers
            assert min(abs(one - share) for one in info.exit_points) >= abs(layer - share) - 2


def test_some_points_of_a_study_on_fewer_samples() -> None:
    study = StudyConfig.build(
        {"run": {"limit": 9}, "grid": {"model": ["a", "b", "c"], "tasks": ["py150", "javacorpus"], "seed": [0, 1]},
         "override": [{"where": {"model": "c"}, "limit": 8}]}
    )  # fmt: skip
    chosen = expand(study, {"model": ["a", "c"], "tasks": ["py150"], "seed": ["1"]}, limit=2)
    assert [(point.settings["model"], point.settings["seed"], point.settings["limit"]) for point in chosen] == [
        ("a", 1, 2), ("c", 1, 2)
    ]  # fmt: skip
    whole = {point.identity for point in expand(study)}
    assert {point.identity for point in expand(study, {"model": ["a"]})} < whole  # points stay what they are
    with pytest.raises(HarnessError, match="--only model=d leaves no point"):
        expand(study, {"model": ["d"]})
    with pytest.raises(HarnessError, match=r"--only has an unknown setting 'modell'\. Did you mean 'model'"):
        expand(study, {"modell": ["a"]})


def test_a_file_lies_over_its_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('preset = "quick"\n[run]\nlimit = 1\n[grid]\nseed = [0, 1]\n')
    points = expand(read_study(str(file)))
    assert [(point.settings["limit"], point.settings["tasks"], point.settings["seed"]) for point in points] == [
        (1, [task], seed) for task in ("py150", "javacorpus") for seed in (0, 1)
    ]
    file.write_text('preset = "quik"\n')
    with pytest.raises(HarnessError, match=r"unknown preset 'quik'. Did you mean 'quick'\?"):
        read_study(str(file))
    with pytest.raises(HarnessError, match="unknown preset 'qick'"):
        read_study("qick")


def test_ten_billion_points_are_refused_at_once(
    cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid, "combinations", None)  # which would take all memory
    file = tmp_path / "huge.toml"
    axes = ["seed", "limit", "skip", "max_new_tokens", "batch_size"]
    axes += ["repeats", "block_size", "idle_s", "threads", "draft_max"]
    file.write_text("\n".join(["[grid]", *(f"{name} = {list(range(1, 11))}" for name in axes)]) + "\n")
    for more in ([], ["--dry-run"]):
        said = cli("study", file, "--out", "s", *more).error
        assert "the study has 10000000000 points, more than 1000. Say --yes if it is meant to." in said
    said = cli("study", file, "--out", "s", "--yes").error
    assert f"the study has 10000000000 points, and one has {MOST} at most. Make several of it." in said
    assert not (tmp_path / "s").exists()
    file.write_text("[grid]\nseed = [0, -1]\n")
    monkeypatch.undo()
    assert "seed = -1: input should be greater than or equal to 0" in cli("study", file, "--out", "s").error
    assert not (tmp_path / "s").exists()
