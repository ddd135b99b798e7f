"""Processes of this machine: what dies is tried again, and a driver's death ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import psutil
import pytest

from harness.contracts.executors import Command, Happened, Job
from harness.errors import ConfigError
from harness.running.reading import read_run
from harness.study.conduct import conduct
from harness.study.executors.local import Local, part_of
from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory

from .made_up import Watching, read_events

Declare = Callable[..., Path]


def kill(event: Happened) -> None:
    os.kill(int(event.place.rpartition(":")[2]), signal.SIGKILL)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_goes_on_where_it_was(declare: Declare, tmp_path: Path) -> None:
    grid = read_study(str(declare(seed=[0, 1], run={"limit": 4})))
    killed: list[str] = []

    def once(event: Happened) -> None:
        if not killed:
            killed.append(event.job.name)
            kill(event)

    watching = Watching(once)
    with StudyDirectory(tmp_path / "s", grid, expand(grid)) as study, Local.open({}) as executor:
        outcome = conduct(study, executor, watching)
        folder = study.directory(study.points[0])
    assert (outcome.finished, outcome.failed) == (2, {})
    assert watching.ends == ["died", "done", "done"]  # the lost point is tried again when the others are through
    windows = [json.loads(line) for line in (folder / "windows.jsonl").read_text().splitlines()]
    counted = [each["block"] for each in windows if not (each["warmup"] or each["idle"])]
    assert len(counted) == 4 * 2
    said = read_events(tmp_path / "s")
    assert [each.what for each in said] == ["started", "retried", "started", "finished", "started", "finished"]
    assert said[1].reason == "its process ended with signal 9"


@pytest.mark.slow
def test_a_model_is_loaded_once_and_another_one_gets_a_process_of_its_own(
    declare: Declare, tmp_path: Path, tiny_opt: Path
) -> None:
    grid = read_study(
        str(declare(seed=[0, 1], more=f"[[include]]\nmodel = {json.dumps(str(tiny_opt))}\nstrategies = []"))
    )
    places: dict[str, str] = {}
    stages: list[str] = []

    class Noting(Watching):
        def happened(self, event: Happened) -> None:
            super().happened(event)
            places[event.job.name] = event.place
            stages.append(event.text)

    with StudyDirectory(tmp_path / "s", grid, expand(grid)) as study, Local.open({}) as executor:
        assert conduct(study, executor, Noting(lambda event: None)).finished == 3
    first, second, other = places.values()
    assert first == second != other
    assert sum(text.startswith("loading ") for text in stages) == 2


def test_what_shares_takes_a_part_of_what_a_measured_point_has(tmp_path: Path) -> None:
    measured = Job("m", tmp_path / "m", {"threads": 1}, ("m",))
    shared, wide = (Job("s", tmp_path / "s", {"threads": threads}, ("m",), shares=True) for threads in (1, None))
    assert (part_of(measured, 4, None), part_of(shared, 4, None), part_of(wide, 4, None)) == (1, Fraction(1, 4), 1)
    assert (part_of(measured, 4, 3), part_of(shared, 4, 3), part_of(wide, 4, 3)) == (1, Fraction(1, 3), Fraction(1, 3))
    step = Job("s", tmp_path / "s", {}, ("m",), True, Command(("trace",), "", threads=2))
    assert part_of(step, 4, None) == Fraction(1, 2)
    with pytest.raises(ConfigError, match=r"share=0 is no number of points\."):
        Local.open({"share": "0"})


def at_once(folder: Path) -> list[set[str]]:
    """The points that run at the start of each, by the study's log."""
    running: set[str] = set()
    found = []
    for event in read_events(folder):
        if event.what == "started":
            running.add(event.point)
            found.append(set(running))
        else:
            running.remove(event.point)
    return found


def test_the_worker_ends_with_its_driver(declare: Declare, tmp_path: Path) -> None:
    file = declare(run={"limit": 40})
    driver = subprocess.Popen(
        [sys.executable, "-P", "-m", "harness.cli", "study", str(file), "--out", str(tmp_path / "s")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    process = psutil.Process(driver.pid)
    while not (children := process.children()):
        assert driver.poll() is None
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    assert psutil.wait_procs(children, timeout=10)[1] == [], "the worker goes on without its driver"


@pytest.mark.slow
def test_what_is_not_timed_shares_the_machine_and_has_it_to_itself_after_a_death(
    declare: Declare, tmp_path: Path
) -> None:
    grid = read_study(str(declare(seed=[0, 1], run={"limit": 4, "untimed": True})))
    killed: list[str] = []
    tries: list[tuple[str, bool]] = []

    def once(event: Happened) -> None:
        if not killed:
            killed.append(event.job.name)
            kill(event)

    class Noting(Watching):
        def happened(self, event: Happened) -> None:
            super().happened(event)
            if event.ended:
                tries.append((event.how, event.job.shares))

    with StudyDirectory(tmp_path / "s", grid, expand(grid)) as study, Local.open({"share": "2"}) as executor:
        assert conduct(study, executor, Noting(once)).finished == 2
    assert tries[-1] == ("done", False)
    assert sorted(tries[:-1]) == [("died", True), ("done", True)]
    first, second = (point.name for point in study.points)
    assert at_once(tmp_path / "s")[:2] == [{first}, {first, second}]
    assert not any(read_run(study.directory(point)).manifest.timed for point in study.points)
