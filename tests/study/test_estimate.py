"""What the points that are left will take: found without changing the study, and with each sample drawn once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import pytest

from harness.contracts.executors import Executor, Happened, Job
from harness.running import plan
from harness.study.estimate import estimates
from harness.study.grid import expand, read_study
from harness.study.ledger import EVENTS, PROBES, STUDY, StudyDirectory
from tests.conftest import snapshot

from .made_up import put_runs

Command = Callable[..., Any]
Declare = Callable[..., Path]


class Refusing(Executor):
    """Can measure nothing."""

    @classmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        return cls()

    def has_room(self, job: Job) -> bool:
        return True

    def start(self, job: Job) -> None:
        self._job = job

    def wait(self) -> Happened:
        return Happened(self._job, "refused", "not here")

    def close(self) -> None:
        pass


def test_samples_are_drawn_once_for_all_that_is_asked_of_them(
    declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = plan._draw

    def noted(task: Any, config: Any, *more: Any) -> Any:
        drawn.append(config.limit)
        return draw(task, config, *more)

    monkeypatch.setattr(plan, "_draw", noted)
    file = declare(
        limit=[2, 3], strategies=[["fixed:layer=4"], ["fixed:layer=6", "full"], ["fixed:layer=3"]],
        kv=["recompute", "propagate"], repeats=[1, 2],
    )  # fmt: skip
    grid = read_study(str(file))
    with StudyDirectory(tmp_path / "s", grid, expand(grid), dry=True) as study:
        found = list(estimates(study, study.points, Refusing(), lambda event: None))
    assert len(found) == 2 * 3 * 2 * 2
    assert sorted(drawn) == [2, 3]
    for one in found:
        settings = one.point.settings
        if settings["strategies"] == ["fixed:layer=3"]:
            assert "fixed:layer=3 is not an exit point" in one.refused
        else:
            assert one.requests == settings["limit"] * 2 * settings["repeats"]  # full depth and one more
            assert one.refused == "not here"


@pytest.mark.usefixtures("inline")
def test_a_dry_run_leaves_a_study_as_it_is_and_names_what_is_measured(
    cli: Command, declare: Declare, tmp_path: Path
) -> None:
    grid = read_study(str(declare(seed=[0])))
    with StudyDirectory(tmp_path / "s", grid, expand(grid)) as study:
        put_runs(study, *study.points)  # finished, and not logged
        name = study.directory(study.points[0]).name
    before = snapshot(tmp_path / "s")
    foreseen = cli("study", declare(seed=[0, 1, 2]), "--out", "s", "--dry-run")
    assert foreseen.code == 0, foreseen.err
    text = " ".join(foreseen.out.split())
    assert "2 points are left, 1 measured" in text
    listed, _, estimated = foreseen.out.partition("2 points are left")
    assert listed.count(": to be measured\n") == 2
    assert f"{name}: ✓ measured\n" in listed
    assert estimated
    assert "host memory" in text
    after = snapshot(tmp_path / "s")
    assert {path for path in after if path not in before} == {
        path for path in after if f"/{PROBES}" in path.removeprefix(str(tmp_path / "s"))
    }
    assert {path: after[path] for path in before} == before
    assert json.loads(cli("watch", "s", "--json").out)["points"] == 1


@pytest.mark.usefixtures("inline")
def test_a_study_can_begin_where_a_dry_run_was(cli: Command, declare: Declare, tmp_path: Path) -> None:
    file = declare(seed=[0])
    assert cli("study", file, "--out", "s", "--dry-run").code == 0
    assert not {STUDY, EVENTS} & {entry.name for entry in (tmp_path / "s").iterdir()}
    assert cli("study", file, "--out", "s").code == 0


def test_a_dry_run_lists_points_before_anything_is_measured(
    cli: Command, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.study.executors.local.Local.open", stopped)
    ran = cli("study", declare(seed=[0, 1]), "--out", "s", "--dry-run")
    assert ran.code == 130
    assert ran.out.count(": to be measured\n") == 2


def test_a_dry_run_takes_nothing_over(cli: Command, declare: Declare, tmp_path: Path) -> None:
    ran = cli("study", declare(seed=[0]), "--out", "s", "--dry-run", "--merge", "other")
    assert "--merge takes points over, and --dry-run changes nothing. Omit one of them." in ran.error
    assert not (tmp_path / "s").exists()
