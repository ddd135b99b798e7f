"""A study that is copied while it runs: the copy keeps every window that is whole in it, and goes on from there."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from harness.study.grid import expand, read_study
from harness.study.ledger import StudyDirectory

from .made_up import damage

GRID = {"seed": [0, 1], "strategies": [["fixed:layer=4", "random:probability=0.4"]]}


def whole_windows(run: Path) -> Iterator[str]:
    """Iterate the windows whose samples, and those of all before them, are there."""
    samples = iter(_lines(run / "samples.jsonl"))
    for line in _lines(run / "windows.jsonl"):
        try:
            window = json.loads(line)
        except ValueError:
            return
        own = [json.loads(sample)["window"] for sample in islice(samples, window["samples"])]
        if own != [window["window"]] * window["samples"]:
            return
        yield line


def _runs(folder: Path) -> list[Path]:
    return sorted((folder / "runs").glob("*"))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if file.exists() else []


def decoded(folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Return what every point came to, by its folder; a sample is there once."""
    names = ("operating_point", "sample_id", "repeat", "token_ids", "exit_layers", "full_depth_ids")
    found = {}
    for run in _runs(folder):
        samples = [json.loads(line) for line in _lines(run / "samples.jsonl")]
        found[run.name] = sorted(tuple(str(sample[name]) for name in names) for sample in samples)
        assert len({one[:3] for one in found[run.name]}) == len(samples)
    return found


@pytest.mark.usefixtures("inline")
def test_a_copy_of_several_moments_keeps_every_whole_window_and_goes_on(
    cli: Callable[..., Any], declare: Callable[..., Path], tmp_path: Path
) -> None:
    """Copied while it ran, one file after the other: each log is a beginning of what it came to."""
    file, chance = declare(**GRID), random.Random(7)
    assert cli("study", file, "--out", "s").code == 0
    expected, windows = decoded(tmp_path / "s"), {run.name: list(whole_windows(run)) for run in _runs(tmp_path / "s")}
    grid, found = read_study(str(file)), 0
    for number in range(10):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(tmp_path / "s", copy)
        logs = sorted(copy.rglob("*.jsonl"))  # in each fourth one the study's says that all is finished
        for log in logs[0 if number % 4 else 1 :]:
            content = log.read_bytes()
            log.write_bytes(content[: chance.choice([len(content), chance.randint(0, len(content))])])
        for summary in copy.rglob("summary.json") if number % 2 else ():
            summary.unlink()
        if number == 1:  # what no copy leaves: a line in the middle that is damaged
            damage(_runs(copy)[0] / "windows.jsonl", 1)
        whole = {run.name: list(whole_windows(run)) for run in _runs(copy)}
        found += sum(map(len, whole.values()))
        with StudyDirectory(copy, grid, expand(grid)) as study:
            done = {study.directory(point).name: study.settle(point) for point in study.points}
        for run in _runs(copy):
            assert _lines(run / "windows.jsonl") == whole[run.name], run  # nothing else stays
            assert done[run.name] == (whole[run.name] == windows[run.name] and not number % 2)
        assert (copy / "aside").exists() or number != 1
        if number < 2:
            assert cli("study", file, "--out", copy).code == 0
            assert decoded(copy) == expected
            for name, kept in whole.items():
                assert _lines(copy / "runs" / name / "windows.jsonl")[: len(kept)] == kept
    assert found  # or nothing was looked at
