"""The script that makes the runs behind the documentation's tables makes those that it names, with the same options."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import NAMES
from tests.docs.pages import commands as shown

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


def options(words: list[str]) -> list[tuple[str, ...]]:
    """Return the words of a command, each option with its value, in no order."""
    marked = [f"\n{word}" if word.startswith("--") else word for word in words]
    return sorted(tuple(part.split()) for part in " ".join(marked).split("\n"))


def test_every_run_that_the_documentation_names_is_made_as_it_says(checkout: Path) -> None:
    made = [shlex.split(command) for command in commands(checkout)]
    by_out = {words[words.index("--out") + 1]: options(words) for words in made if "--out" in words}
    named = [words for name in NAMES for words in shown(name) if words[1] in ("run", "reproduce") and "--out" in words]
    found = [words for words in named if words[words.index("--out") + 1] in by_out]
    assert len(found) >= 9
    for words in found:
        assert by_out[words[words.index("--out") + 1]] == options(words)


def test_what_is_finished_is_left_alone_and_what_is_not_goes_on(checkout: Path) -> None:
    for folder, file in (("demo", "summary.json"), ("grid", "grid.json"), ("kv", "manifest.json")):
        (checkout / "runs" / folder).mkdir(parents=True)
        (checkout / "runs" / folder / file).touch()
    ran = commands(checkout)
    assert "runs/demo is there" in ran
    assert "runs/grid is there" in ran
    assert "harness reproduce --resume runs/kv" in ran
    assert not any("runs/demo" in command for command in ran if command.startswith("harness"))
