"""What the points that are left will take: found without changing the study."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.contracts.executors import How, Job
from harness.study.estimate import estimates
from harness.study.grid import expand, read_study
from harness.study.ledger import PROBES, StudyDirectory
from tests.conftest import snapshot

from .inline import Inline
from .made_up import put_runs

Command = Callable[..., Any]
Declare = Callable[..., Path]


class Refusing(Inline):
    """Can measure nothing."""

    def run(self, job: Job) -> tuple[How, str]:
        return "refused", "not here"


def test_what_is_left_is_counted_and_what_cannot_run_says_why(declare: Declare, tmp_path: Path) -> None:
    file = declare(limit=[2, 3], strategies=[["fixed:layer=6", "full"], ["fixed:layer=3"]], repeats=[1, 2])
    grid = read_study(str(file))
    with StudyDirectory(tmp_path / "s", grid, expand(grid), dry=True) as study:
        found = list(estimates(study, study.points, Refusing(), lambda event: None))
    assert len(found) == 2 * 2 * 2
    for one in found:
        settings = one.point.settings
        if settings["strategies"] == ["fixed:layer=3"]:
            assert "fixed:layer=3 is not an exit point" in one.refused
        else:
            assert one.requests == settings["limit"] * 2 * settings["repeats"]  # full depth and one more
            assert one.refused == "not here"


@pytest.mark.usefixtures("inline")
def test_a_dry_run_leaves_a_study_as_it_is_and_says_what_is_left(
    cli: Command, declare: Declare, tmp_path: Path
) -> None:
    grid = read_study(str(declare(seed=[0])))
    with StudyDirectory(tmp_path / "s", grid, expand(grid)) as study:
        put_runs(study, *study.points)  # finished, and not logged
        name = study.directory(study.points[0]).name
    before = snapshot(tmp_path / "s")
    file = declare(seed=[0, 1, 2], more='[[include]]\nmodel = "nowhere/such-model"')
    foreseen = cli("study", file, "--out", "s", "--dry-run")
    assert foreseen.code == 0, foreseen.err
    listed, said, estimated = foreseen.out.partition("3 points are left, 1 measured")
    assert listed.count(": to be measured\n") == 3
    assert f"{name}: ✓ measured\n" in listed
    assert said
    assert "cannot run" in estimated
    assert "host memory" in estimated
    after = snapshot(tmp_path / "s")
    assert {path: after[path] for path in before} == before
    assert all(f"/s/{PROBES}" in path for path in after.keys() - before.keys())
    assert json.loads(cli("watch", "s", "--json").out)["points"] == 1

    (probe,) = (tmp_path / "s" / PROBES).glob("*/windows.jsonl")  # seeds share what a request takes
    measured = probe.read_bytes()
    (probe.parent.parent / f"{probe.parent.name}.memory").write_text("1500000000")  # of the process that measured it
    again = cli("study", file, "--out", "s", "--dry-run")
    assert (again.code, again.out.count("1.50 GB")) == (0, 3)  # each seed, and both together
    assert probe.read_bytes() == measured


@pytest.mark.usefixtures("inline")
def test_a_run_is_estimated_and_nothing_of_it_is_kept(
    cli: Command, declare: Declare, tiny_llama: Path, rows_file: Path, tmp_path: Path
) -> None:
    file = declare()
    file.write_text(file.read_text().replace("[run]", "").replace("[grid]", ""))
    before = snapshot(tmp_path)
    foreseen = cli("run", "--config", file, "--repeats", "2", "--out", "made", "--dry-run")
    assert foreseen.code == 0, foreseen.err
    samples, points, estimated = foreseen.out.split("\n", 2)
    assert samples.startswith("py150: 2 samples of ")
    assert points == "operating points: full, fixed:layer=4"
    assert estimated.split("the run", 1)[1].split()[0] == str(2 * 2 * 2)
    assert snapshot(tmp_path) == before
    for refused, why in (("--task=none", "unknown task 'none'"), ("--json", "Omit --resume, --json and --verbose")):
        assert why in cli("run", "--config", file, "--dry-run", refused).error
