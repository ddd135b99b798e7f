"""Trainings behind runs: the folders that hold them, and logs that are damaged, half-written or missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.models.artefacts import SHIPPED, read_artefact
from harness.models.trained import tuned_fingerprint
from reports.recorded import RecordedRun
from reports.training_logs import holds_training, read_training, training_folders


def lite_line(step: int, **losses: float) -> str:
    return json.dumps({"step": step, "tokens": step, "seconds": 1.0, "cross_entropy": losses})


def agent_line(steps: int, **changes: Any) -> str:
    line: dict[str, Any] = {
        "steps": steps, "reward_per_step": 0.5, "reward_per_episode": 7.5, "episodes": 3,
        "exits": {"4": 0.25, "12": 0.75}, "entropy": 0.1, "value_loss": 1.0, "learning_rate": 1e-3,
    }  # fmt: skip
    return json.dumps(line | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training of a 12-layer model that was tuned, and of two agents, the second not finished."""
    made = tmp_path / "tiny"
    made.mkdir()
    (made / "training.jsonl").write_text(f"{lite_line(1, **{'4': 3.0, '12': 2.0})}\n{lite_line(2, **{'6': 2.5})}\n")
    (made / "adapter.json").write_text(
        json.dumps(
            {
                "kind": "adapter", "sha256": "a" * 64, "num_layers": 12, "exit_points": [4, 6],
                "recipe": {"weights_rule": "green-code", "exits_per_step": 1, "exit_head": "shared"},
                "data": [{"stream": "py150, somewhere"}, {"stream": "javacorpus, somewhere"}],
            }
        )
    )  # fmt: skip
    ended = json.dumps({"steps": 20, "optimal_exits": {"4": 6, "6": 1, "12": 3}})
    (made / "rl-training.jsonl").write_text("\n".join([agent_line(10), agent_line(20), ended, ""]))
    (made / "rl.json").write_text(json.dumps({"reward": {"rule": "savings", "penalty": 4.0}}))
    (made / "rl-java-training.jsonl").write_text(agent_line(10, reward_per_episode=None) + "\n")
    return made


def test_everything_that_was_logged_is_read(folder: Path) -> None:
    logs = read_training(folder)
    assert logs.problems == ()
    assert logs.name == "tiny"
    assert logs.lite is not None
    assert [dict(step.cross_entropy) for step in logs.lite.steps] == [{4: 3.0, 12: 2.0}, {6: 2.5}]
    assert (logs.lite.exit_points, logs.lite.num_layers, logs.lite.weights_rule) == ((4, 6), 12, "green-code")
    assert (logs.lite.exits_per_step, logs.lite.text) == (1, "javacorpus + py150")
    first, second = logs.agents
    assert (first.name, second.name) == ("rl", "rl-java")
    assert [step.steps for step in first.steps] == [10, 20]
    assert first.optimal_exits == {4: 6, 6: 1, 12: 3}
    assert first.reward == "savings, penalty 4.0"
    assert second.optimal_exits == {}
    assert second.steps[0].reward_per_episode is None


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ('{"step": 3, "cross_ent', "the last line of {log} is half-written and left out."),
        ("nonsense\n", "1 of 3 lines of {log} are damaged and left out."),
        ('{"step": 3}\n', "1 of 3 lines of {log} are damaged and left out."),
        ('{"step": 3, "cross_entropy": {"4": NaN}}\n', "1 of 3 lines of {log} are damaged and left out."),
        ('[1]\n{"step": 3, "cross_entropy": {"x": 1}}\n', "2 of 4 lines of {log} are damaged and left out."),
    ],
)
def test_what_cannot_be_read_takes_one_line_and_nothing_else_is_lost(folder: Path, tail: str, expected: str) -> None:
    log = folder / "training.jsonl"
    with log.open("a") as file:
        file.write(tail)
    logs = read_training(folder)
    assert logs.problems == (expected.format(log=log),)
    assert logs.lite is not None
    assert len(logs.lite.steps) == 2
    assert len(logs.agents) == 2


@pytest.mark.parametrize("text", ["{", '{"recipe": 3, "data": 4, "exit_points": 5, "num_layers": "x"}'])
def test_a_damaged_artefact_leaves_the_log(folder: Path, text: str) -> None:
    (folder / "adapter.json").write_text(text)
    (folder / "rl.json").write_text(text)
    logs = read_training(folder)
    assert logs.lite is not None
    assert len(logs.lite.steps) == 2
    assert logs.lite.weights_rule is None
    assert logs.agents[0].reward == ""
    assert len(logs.problems) == 1 + ("recipe" not in text)


def test_a_step_that_was_written_again_counts_once(folder: Path) -> None:
    with (folder / "rl-training.jsonl").open("a") as file:
        file.write(agent_line(20, reward_per_step=0.75) + "\n")
    steps = read_training(folder).agents[0].steps
    assert [(step.steps, step.reward_per_step) for step in steps] == [(10, 0.5), (20, 0.75)]


def test_a_folder_without_a_training_says_so(tmp_path: Path) -> None:
    assert not holds_training(tmp_path)
    (line,) = read_training(tmp_path).problems
    assert "holds no log of a training" in line
    (line,) = read_training(tmp_path / "none").problems
    assert "is no folder" in line


def test_a_shipped_training_is_whole() -> None:
    """Every agent's optimal exits are in its log: as many tokens as its JSON counts."""
    name = "smollm2-135m-shared"
    logs = read_training(SHIPPED / name)
    assert logs.problems == ()
    assert logs.lite is not None
    assert len(logs.lite.steps) == 1000
    assert [agent.name for agent in logs.agents] == ["rl", "rl-java", "rl-python"]
    for agent in logs.agents:
        facts = json.loads((SHIPPED / name / f"{agent.name}.json").read_text())
        assert {str(layer): count for layer, count in agent.optimal_exits.items()} == facts["optimal_exits"]
        assert agent.steps[-1].steps == facts["steps"]


MAPS, SHARED = SHIPPED / "smollm2-135m", SHIPPED / "smollm2-135m-shared"


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run_of(build: Any) -> Any:
    """``run_of(artefacts=…, fingerprint=…, exit_head=…, folder=…)``: a run that names these."""

    def make(
        artefacts: dict[str, str] | None = None, fingerprint: str = "", exit_head: str = "shared", folder: Any = None
    ) -> RecordedRun:
        made = build(points=("full", "rl"))
        manifest = made.manifest
        full, rl = manifest.operating_points
        manifest = manifest.model_copy(
            update={
                "operating_points": (full, rl.model_copy(update={"artefacts": artefacts or {}})),
                "model": manifest.model.model_copy(update={"fingerprint": fingerprint, "exit_head": exit_head}),
                "config": {**manifest.config, "artefacts": folder},
            }
        )
        return RecordedRun(Path("run"), manifest, (), (), made.summary())

    return make


def sha(folder: Path, name: str, kind: str) -> str:
    return read_artefact(folder / f"{name}.json", kind).sha256


def folders(runs: list[RecordedRun], given: Sequence[Path] = ()) -> list[Path]:
    return [folder for folder, _ in training_folders(runs, given)]


def test_by_agent_by_weights_and_by_shortcuts(run_of: Any) -> None:
    adapter = read_artefact(SHARED / "adapter.json", "adapter")
    weights = tuned_fingerprint(str(adapter.facts["model_fingerprint"]), adapter.sha256)
    assert folders([run_of({"agent": sha(SHARED, "rl-java", "rl")})]) == [SHARED]
    assert folders([run_of(fingerprint=weights)]) == [SHARED]
    assert folders([run_of(exit_head=f"shortcut:{sha(MAPS, 'shortcut', 'shortcut')[:16]}")]) == [MAPS]
    assert folders([run_of({"agent": "0" * 64}, "feedfacefeedface", "shortcut:0123456789abcdef")]) == []


def test_the_working_directory_comes_before_what_ships_and_a_copy_counts_once(run_of: Any) -> None:
    mine = Path("artefacts") / "mine"
    mine.mkdir(parents=True)
    for name in ("rl.json", "rl-training.jsonl"):
        shutil.copy(MAPS / name, mine)
    agent = {"agent": sha(MAPS, "rl", "rl")}
    assert folders([run_of(agent)]) == [mine]
    maps = f"shortcut:{sha(MAPS, 'shortcut', 'shortcut')[:16]}"
    assert folders([run_of(agent, exit_head=maps)]) == [mine, MAPS], "the maps are only in the shipped one"
    (mine / "broken.json").write_text("{")
    assert folders([run_of(agent)]) == [mine]


def test_agents_that_no_run_had_are_left_out(run_of: Any) -> None:
    maps = f"shortcut:{sha(MAPS, 'shortcut', 'shortcut')[:16]}"

    def agents(runs: list[RecordedRun], given: Sequence[Path] = ()) -> list[str]:
        found = [read_training(*each) for each in training_folders(runs, given)]
        assert not [problem for logs in found for problem in logs.problems]
        return [agent.name for logs in found for agent in logs.agents]

    assert agents([run_of(exit_head=maps)]) == []
    assert agents([run_of({"agent": sha(MAPS, "rl-java", "rl")}, exit_head=maps)]) == ["rl-java"]
    two = [run_of({"agent": sha(MAPS, name, "rl")}) for name in ("rl", "rl-java")]
    assert agents(two) == ["rl", "rl-java"]
    assert agents(two[:1], [MAPS]) == ["rl", "rl-java", "rl-python"]  # the folder was asked for
