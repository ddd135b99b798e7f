"""A study that is copied while it runs: the copy keeps every window that is whole in it, and goes on from there."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory

Command = Callable[..., Any]
Declare = Callable[..., Path]

GRID = {"seed": [0, 1], "strategies": [["fixed:layer=4", "random:probability=0.4"]]}
LEAST, MOST = 5, 60
"""Copies: on a fast machine there is time for few."""


def copy_slowly(source: Path, target: Path, chance: random.Random, over: threading.Event) -> None:
    """Copy a folder as no tool does, one file after the other in any order: each is of another moment."""
    target.mkdir()
    files = [file for file in source.rglob("*") if file.is_file()]
    for file in chance.sample(files, len(files)):
        with suppress(FileNotFoundError):  # it was written under another name for a moment
            content = file.read_bytes()
            (target / file.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(source)).write_bytes(content)
        over.wait(chance.uniform(0, 0.02))


def whole_windows(run: Path) -> Iterator[str]:
    """Iterate the windows whose samples, and those of all before them, are there."""
    samples = iter(_lines(run / "samples.jsonl"))
    for line in _lines(run / "windows.jsonl"):
        own = [json.loads(sample)["window"] for sample in islice(samples, json.loads(line)["samples"])]
        if own != [json.loads(line)["window"]] * json.loads(line)["samples"]:
            return
        yield line


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*"))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []


def decoded(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return what every point came to, by its folder; a sample is there once."""
    names = ("operating_point", "sample_id", "repeat", "token_ids", "exit_layers", "full_depth_ids")
    found = {}
    for run in _runs(folder):
        samples = [json.loads(line) for line in _lines(run / "samples.jsonl")]
        found[run.name] = sorted(tuple(str(sample[name]) for name in names) for sample in samples)
        assert len({one[:3] for one in found[run.name]}) == len(samples)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
def test_a_copy_made_while_it_runs_keeps_every_finished_sample(cli: Command, declare: Declare, tmp_path: Path) -> None:
    file, chance = declare(**GRID, run={"limit": 6}), random.Random(7)
    over = threading.Event()
    copies: list[Path] = []

    def copy_on() -> None:
        while not over.is_set() and len(copies) < MOST:
            if (tmp_path / "s" / "study.json").exists():
                copies.append(tmp_path / f"copy-{len(copies)}")
                copy_slowly(tmp_path / "s", copies[-1], chance, over)

    copier = threading.Thread(target=copy_on)
    copier.start()
    try:
        assert cli("study", file, "--out", "s").code == 0
    finally:
        over.set()
        copier.join()
    expected = decoded(tmp_path / "s")
    assert len(expected) == 2

    grid = read_study(str(file))
    finished = 0
    for number, copy in enumerate(copies):
        whole = {run.name: list(whole_windows(run)) for run in _runs(copy)}
        with StudyDirectory(copy, grid, expand(grid)) as study:
            done = [study.settle(point) for point in study.points]
        finished += sum(map(len, whole.values()))
        for run in _runs(copy):
            assert _lines(run / "windows.jsonl") == whole[run.name], run  # nothing else stays
        if not all(done) and number % 12 == 0:
            assert cli("study", file, "--out", copy).code == 0
            assert decoded(copy) == expected
            for run, kept in whole.items():
                assert _lines(copy / "runs" / run / "windows.jsonl")[: len(kept)] == kept
    assert len(copies) >= LEAST
    assert finished


@pytest.mark.usefixtures("inline")
def test_what_was_said_to_be_finished_after_its_records_were_copied_is_not(
    cli: Command, declare: Declare, tmp_path: Path
) -> None:
    file = declare(seed=[0])
    assert cli("study", file, "--out", "s").code == 0
    (run,) = (tmp_path / "s" / "runs").iterdir()
    before, windows = decoded(tmp_path / "s"), _lines(run / "windows.jsonl")
    samples = (run / "samples.jsonl").read_bytes()
    (run / "samples.jsonl").write_bytes(samples[: samples.rindex(b"\n", 0, -1) - 5])  # of an earlier moment
    again = cli("study", file, "--out", "s")
    assert (again.code, again.out.splitlines()[0]) == (0, "1 points are measured.")
    assert decoded(tmp_path / "s") == before
    assert _lines(run / "windows.jsonl")[: len(windows) - 2] == windows[: len(windows) - 2]
    reasons = [json.loads(line)["reason"] for line in _lines(tmp_path / "s" / "events.jsonl")]
    assert [reason for reason in reasons if "windows are kept" in reason]
