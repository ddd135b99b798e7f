"""The trainings behind runs are found by hash, wherever they lie, and once."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.models.artefacts import SHIPPED, read_artefact
from harness.models.trained import tuned_fingerprint
from reports.recorded import RecordedRun
from reports.training.logs import read_training, training_folders

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


def test_each_once_and_those_given_first(run_of: Any, tmp_path: Path) -> None:
    runs = [run_of({"agent": sha(MAPS, "rl", "rl")}), run_of({"agent": sha(SHARED, "rl", "rl")})] * 2
    assert folders(runs) == [MAPS, SHARED]
    assert folders(runs, [tmp_path, SHARED]) == [tmp_path, SHARED, MAPS]


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


def test_the_run_s_own_artefacts_are_looked_at(run_of: Any, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    for name in ("rl.json", "rl-training.jsonl"):
        shutil.copy(SHARED / name, tmp_path / "away")
    agent = {"agent": sha(SHARED, "rl", "rl")}
    assert folders([run_of(agent, folder=str(tmp_path / "away"))]) == [tmp_path / "away"]
    (tmp_path / "away" / "rl-training.jsonl").unlink()  # nothing to draw there
    assert folders([run_of(agent, folder=str(tmp_path / "away"))]) == [SHARED]


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
