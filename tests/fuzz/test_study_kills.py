"""A study that is killed again and again loses no finished window, repeats none, and ends as if left alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from harness.host.files import replace_files

from .cases import Warm
from .conftest import FOUND, MINUTES, RUN, few_and_many
from .test_kills import committed, measured, outcomes
from .warm import PACKAGES

Fresh = Callable[[], AbstractContextManager[Path]]

STRATEGIES = '["random:probability=0.4", "fixed:layer=4"]'
KILLS = int(os.environ.get("FUZZ_KILLS") or (1000 if MINUTES else 0))
"""In all (``make kills``, ``make fuzz``), those of interrupted calls with the same code included; 0 for the few."""
ROOT = Path(__file__).parents[2]
PROGRESS = ROOT / FOUND.with_name("study-kills.json")


@pytest.mark.slow
@pytest.mark.parametrize("kills", [KILLS] if KILLS else few_and_many(5, 25))
def test_a_study_that_is_killed_comes_to_what_it_would_have_come_to(
    warm: Warm, fresh: Fresh, model: Path, rows_file: Path, kills: int, record_property: Callable[[str, str], None]
) -> None:
    chance = random.Random(None if KILLS else kills)
    with fresh() as place:
        declare(place, model, rows_file, "seed = [0, 1, 2]")
        began = time.monotonic()
        whole = warm.run("study", "tiny.toml", "--out", "whole", cwd=place, door="study")
        seconds = time.monotonic() - began
        assert whole.judge() == 0, whole
        expected = runs(place / "whole")
        assert len(expected) == 3
        code = _code()
        done, ends = _progress(code, kills) if KILLS else (0, 0)
        try:
            while done < kills:
                more = _run_through(warm, place, seconds, chance, kills - done)
                assert runs(place / "out") == expected
                assert warm.run("watch", "out", "--json", cwd=place).judge() == 0
                shutil.rmtree(place / "out")
                done, ends = done + more, ends + 1
                if KILLS:
                    PROGRESS.parent.mkdir(parents=True, exist_ok=True)
                    replace_files({PROGRESS: json.dumps({"code": code, "killed": done, "ended": ends}).encode()})
        finally:
            record_property("fuzz", json.dumps({"kills of a study": {"killed": done, "come to an end": ends}}))


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize("kills", [max(2, KILLS // 20)])
def test_a_driver_and_a_worker_that_are_killed_lose_nothing(
    fresh: Fresh, model: Path, rows_file: Path, kills: int
) -> None:
    """Processes of their own, as a user has them, one of which is killed; a point of two repeats has a third."""
    chance = random.Random(None if KILLS else kills)
    with fresh() as place:
        declare(place, model, rows_file, "repeats = [1, 2]")
        began = time.monotonic()
        assert _command(place, "whole").wait() == 0
        seconds = time.monotonic() - began
        expected = runs(place / "whole")
        done = Counter[str]()
        while done.total() < kills:
            before = {run: committed(run) for run in sorted((place / "out" / "runs").glob("*"))}
            driver = _command(place, "out")
            victim = "driver" if done["driver"] <= done["worker"] else "worker"
            with suppress(subprocess.TimeoutExpired):
                driver.wait(timeout=chance.uniform(0, seconds))
            if driver.poll() is None:
                done[victim] += 1
                _kill(driver.pid if victim == "driver" else _child(driver.pid))
            assert driver.wait() in (0, -signal.SIGKILL)
            for run, files in before.items():
                for old, new in zip(files, committed(run), strict=True):
                    assert new.startswith(old), "loses or changes what was finished"
            if driver.returncode == 0:
                assert runs(place / "out") == expected
                shutil.rmtree(place / "out")
        assert _command(place, "out").wait() == 0
        assert runs(place / "out") == expected


def declare(place: Path, model: Path, rows_file: Path, grid: str) -> None:
    """Write the file of a small study."""
    settings = dict(zip((name.removeprefix("--").replace("-", "_") for name in RUN[::2]), RUN[1::2], strict=True))
    settings |= {"model": str(model), "source": str(rows_file), "limit": 3, "exit_points": "all"}
    shared = "\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items())
    (place / "tiny.toml").write_text(f"[run]\n{shared}\nstrategies = {STRATEGIES}\n[grid]\n{grid}\n")


def _command(place: Path, out: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "harness.cli", "study", "tiny.toml", "--out", out]
    return subprocess.Popen(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _child(pid: int) -> int | None:
    """Return the one process that another has started; ``None`` when it has none (yet)."""
    with suppress(OSError):
        return next(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()), None)
    return None


def _kill(pid: int | None) -> None:
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def runs(folder: Path) -> dict[str, Any]:
    """Return what every point of a study decoded and which windows it measured, by its folder."""
    return {run.name: (outcomes(run), measured(run)) for run in sorted((folder / "runs").iterdir())}


def _code() -> str:
    """Return a hash over the code that is killed: kills of other code prove nothing of it."""
    total = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            content = file.read_bytes()
            total.update(f"{file.relative_to(ROOT).as_posix()} {len(content)} ".encode() + content)
    return total.hexdigest()


def _progress(code: str, kills: int) -> tuple[int, int]:
    """Return how many kills, and studies that came to an end, an interrupted call with this code has behind it."""
    found = json.loads(PROGRESS.read_bytes()) if PROGRESS.exists() else {}
    again = found.get("code") == code and found["killed"] < kills
    return (found["killed"], found["ended"]) if again else (0, 0)


def _run_through(warm: Warm, place: Path, seconds: float, chance: random.Random, most: int) -> int:
    """Run to the end, however often it is killed; return how often it was."""
    done = 0
    while True:
        before = {run: committed(run) for run in sorted((place / "out" / "runs").glob("*"))}
        kill_after_s = chance.uniform(0, 1.1 * seconds) if done < most else None
        ran = warm.run("study", "tiny.toml", "--out", "out", cwd=place, door="study", kill_after_s=kill_after_s)
        for run, files in before.items():
            for old, new in zip(files, committed(run), strict=True):
                assert new.startswith(old), f"loses or changes what was finished\n{ran}"
        if ran.code >= 0:
            assert ran.judge() == 0, ran
            return done
        done += 1
