"""The script that makes the README's runs makes those that the README names, with the same options."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAKE = """#!/bin/sh
printf 'harness %s\\n' "$*"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The script in a tree of its own."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path / "reports" / "gallery"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "reports" / "gallery" / "results.sh", folder)
    (tmp_path / "bin").mkdir()
    (tmp_path / "some" / "where" / "DATA_FOLDER").mkdir(parents=True)
    (tmp_path / "bin" / "harness").write_text(FAKE)
    (tmp_path / "bin" / "harness").chmod(0o755)
    return tmp_path


def commands(checkout: Path) -> list[str]:
    """What the script runs, with a command that only prints what it was asked for."""
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "../../reports/gallery/results.sh", "DATA_FOLDER"], cwd=checkout / "some" / "where",
        env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return ran.stdout.replace(str(checkout / "some" / "where" / "DATA_FOLDER"), "DATA_FOLDER").splitlines()


def options(command: str) -> list[tuple[str, ...]]:
    """Return a command as its words, each option with its value, in no order."""
    words = [f"\n{word}" if word.startswith("--") else word for word in shlex.split(command)]
    return sorted(tuple(part.split()) for part in " ".join(words).split("\n"))


def test_every_run_that_the_readme_names_is_made_as_it_says(checkout: Path) -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    named = re.findall(r"`(harness (?:run|reproduce) [^`]*--out runs/[\w-]+)`", readme)
    by_out = {
        re.findall(r"--out (\S+)", command)[-1]: options(command)
        for command in commands(checkout)
        if "--out" in command
    }
    assert len(named) >= 5
    for command in named:
        out = re.findall(r"--out (\S+)", command)[-1]
        assert by_out[out] == options(command), out


def test_what_is_finished_is_left_alone_and_what_is_not_goes_on(checkout: Path) -> None:
    for folder, file in (("demo", "summary.json"), ("grid", "grid.json"), ("kv", "manifest.json")):
        (checkout / "runs" / folder).mkdir(parents=True)
        (checkout / "runs" / folder / file).touch()
    ran = commands(checkout)
    assert "runs/demo is there" in ran
    assert "runs/grid is there" in ran
    assert "harness reproduce --resume runs/kv" in ran
    assert not any("runs/demo" in command for command in ran if command.startswith("harness"))
