"""A study that is killed again and again loses no finished window, repeats none, and ends as if left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fuzz.cases import Warm
from tests.run_files import lines

from .conftest import MINUTES, RUN

Fresh = Callable[[], AbstractContextManager[Path]]

STRATEGIES = '["random:probability=0.4", "oracle"]'
COMMAND = [sys.executable, "-P", "-m", "harness.cli", "study", "tiny.toml", "--out", "out"]
MANY = int(os.environ.get("FUZZ_KILLS") or (1000 if MINUTES else 0))
"""In all (``make kills``, ``make fuzz``); 0 for the few."""
KILLS = MANY or 4
CONTENT = ("token_ids", "exit_layers", "text", "reference", "scores", "finish_reason", "prompt_ids", "error",
           "full_depth_ids", "exit_checks", "lm_head_evaluations", "layers_executed", "kv_fill_layers")  # fmt: skip
"""Of a sample: what was decoded, and how much work that was; times differ."""


@pytest.mark.slow
def test_a_study_that_is_killed_comes_to_what_it_would_have_come_to(
    warm: Warm, fresh: Fresh, model: Path, rows_file: Path, record_property: Callable[[str, str], None]
) -> None:
    chance = random.Random(None if MANY else KILLS)
    with fresh() as place:
        declare(place, model, rows_file, "seed = [0, 1]")
        began = time.monotonic()
        whole = warm.run("study", "tiny.toml", "--out", "whole", cwd=place, door="study")
        seconds = time.monotonic() - began
        assert whole.judge() == 0, whole
        expected = runs(place / "whole")
        assert len(expected) == 2
        done = ends = 0
        try:
            while done < KILLS:
                more = _run_through(warm, place, seconds, chance, KILLS - done)
                assert runs(place / "out") == expected
                assert warm.run("watch", "out", "--json", cwd=place).judge() == 0
                assert warm.run("report", *sorted(map(str, (place / "out" / "runs").iterdir())), cwd=place).judge() == 0
                shutil.rmtree(place / "out")
                done, ends = done + more, ends + 1
        finally:
            record_property("fuzz", json.dumps({"kills of a study": {"killed": done, "come to an end": ends}}))


@pytest.mark.slow
@pytest.mark.matrix
def test_a_driver_that_is_killed_takes_its_processes_along_and_loses_nothing(
    warm: Warm, fresh: Fresh, model: Path, rows_file: Path
) -> None:
    """Processes of their own, as a user has them; a point of two repeats has a third. Many kills are workers', too."""
    chance = random.Random(None if MANY else KILLS)
    with fresh() as place:
        declare(place, model, rows_file, "repeats = [2, 1]")
        assert warm.run("study", "tiny.toml", "--out", "whole", cwd=place, door="study").judge() == 0
        expected = runs(place / "whole")
        for number in range(max(1, MANY // 20)):
            before = _committed(place)
            driver = psutil.Popen(COMMAND, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while driver.poll() is None and _size(_committed(place)) <= _size(before):
                time.sleep(0.02)
            time.sleep(chance.uniform(0, 0.5))
            started = driver.children(recursive=True) if driver.poll() is None else []
            (started[0] if number % 2 and started else driver).kill()
            assert driver.wait() in (0, -signal.SIGKILL)
            assert psutil.wait_procs(started, timeout=10)[1] == [], "goes on without its driver"
            _assert_kept(before, place, driver)
            if driver.returncode == 0:
                assert runs(place / "out") == expected
                shutil.rmtree(place / "out")
        before = _committed(place)
        assert subprocess.run(COMMAND, cwd=place, capture_output=True, check=False).returncode == 0
        _assert_kept(before, place, "")
        assert runs(place / "out") == expected


def committed(folder: Path) -> tuple[bytes, bytes]:
    """Return the committed bytes of windows and samples."""
    windows = b"".join(line + b"\n" for line in _bytes(folder / "windows.jsonl").split(b"\n")[:-1])
    count = sum(json.loads(line)["samples"] for line in windows.splitlines())
    samples = _bytes(folder / "samples.jsonl").split(b"\n")[:count]
    return windows, b"".join(line + b"\n" for line in samples)


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def outcomes(folder: Path) -> dict[tuple[Any, ...], tuple[str, ...]]:
    """Return what was decoded for each sample; fails when one is there twice."""
    found: dict[tuple[Any, ...], tuple[str, ...]] = {}
    for record in lines(folder, "samples"):
        key = tuple(record[name] for name in ("task", "operating_point", "repeat", "sample_id"))
        assert key not in found, f"{key} is there twice"
        found[key] = tuple(json.dumps(record[name]) for name in CONTENT)
    return found


def measured(folder: Path) -> list[tuple[Any, ...]]:
    """Return the windows that count, in their order, with what they hold."""
    names = ("task", "block", "repeat", "operating_point", "samples", "failed", "tokens")
    windows = lines(folder, "windows")
    assert [window["window"] for window in windows] == list(range(len(windows)))
    return [tuple(one[name] for name in names) for one in windows if not (one["warmup"] or one["idle"])]


def declare(place: Path, model: Path, rows_file: Path, grid: str) -> None:
    """Write the file of a small study."""
    settings = dict(zip((name.removeprefix("--").replace("-", "_") for name in RUN[::2]), RUN[1::2], strict=True))
    settings |= {"model": str(model), "source": str(rows_file), "limit": 3, "exit_points": "all"}
    shared = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (place / "tiny.toml").write_text(f"[run]\n{shared}\nstrategies = {STRATEGIES}\n[grid]\n{grid}\n")


def _committed(place: Path) -> dict[Path, tuple[bytes, bytes]]:
    return {run: committed(run) for run in sorted((place / "out" / "runs").glob("*"))}


def _size(files: dict[Path, tuple[bytes, bytes]]) -> int:
    return sum(len(windows) for windows, _ in files.values())


def _assert_kept(before: dict[Path, tuple[bytes, bytes]], place: Path, ran: object) -> None:
    after = _committed(place)
    for run, files in before.items():
        for old, new in zip(files, after[run], strict=True):
            assert new.startswith(old), f"loses or changes what was finished\n{ran}"


def runs(folder: Path) -> dict[str, Any]:
    """Return what every point of a study decoded and which windows it measured, by its folder."""
    return {run.name: (outcomes(run), measured(run)) for run in sorted((folder / "runs").iterdir())}


def _run_through(warm: Warm, place: Path, seconds: float, chance: random.Random, most: int) -> int:
    """Run to the end, however often it is killed; return how often it was."""
    done = 0
    while True:
        before = _committed(place)
        kill_after_s = chance.uniform(0, 1.1 * seconds) if done < most else None
        ran = warm.run("study", "tiny.toml", "--out", "out", cwd=place, door="study", kill_after_s=kill_after_s)
        _assert_kept(before, place, ran)
        if ran.code >= 0:
            assert ran.judge() == 0, ran
            return done
        done += 1
