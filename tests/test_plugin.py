"""A strategy of another, separately installed package is listed, shown and run like a built-in one."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party"

Shell = Callable[..., subprocess.CompletedProcess[str]]


def install(project: Path, site: Path) -> None:
    for needed in ("pip", "setuptools"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed in this environment")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--no-index", "--target", str(site), str(project)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder the fixture project is installed into."""
    folder = tmp_path_factory.mktemp("third-party")
    project = shutil.copytree(PROJECT, folder / "project")  # a build leaves files beside its sources
    install(project, folder / "site")
    return folder / "site"


def seeing(*sites: Path) -> dict[str, Any]:
    return {"env": os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sites)), "COLUMNS": "120"}}


def test_it_is_listed_with_its_distribution(site: Path, shell: Shell, tmp_path: Path) -> None:
    ran = shell("list", "strategies", cwd=tmp_path, **seeing(site))
    assert ran.returncode == 0, ran.stderr
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("every-nth ")]
    assert "Exit with every n-th token" in line
    assert line.rstrip().endswith("every-nth-exit")
    assert "every-nth" not in shell("list", "strategies", cwd=tmp_path).stdout


def test_it_shows_its_options_and_ranges(site: Path, shell: Shell, tmp_path: Path) -> None:
    ran = shell("show", "every-nth", cwd=tmp_path, **seeing(site))
    assert ran.returncode == 0, ran.stderr
    assert "every so many tokens one leaves early" in ran.stdout
    assert "≥ 1" in ran.stdout


def test_it_runs(site: Path, shell: Shell, tiny_llama: Path, rows_file: Path, tmp_path: Path) -> None:
    ran = shell(
        *("run", "--strategy", "every-nth:n=2:layer=4,6", "--model", tiny_llama, "--source", rows_file, "--limit", 2),
        *("--max-new-tokens", 6, "--energy", "none", "--threads", 1, "--out", "out", "--json"),
        cwd=tmp_path,
        **seeing(site),
    )
    assert ran.returncode == 0, ran.stderr
    names = [row["operating_point"] for row in json.loads(ran.stdout)["rows"]]
    assert names == ["full", "every-nth:n=2:layer=4", "every-nth:n=2:layer=6"]
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    for sample in samples:
        if sample["operating_point"] != "every-nth:n=2:layer=6":
            continue
        start = len(sample["prompt_ids"]) - 1
        positions = range(start, start + len(sample["token_ids"]))
        expected = [6 if position % 2 == 0 and position > start else 12 for position in positions]
        assert sample["exit_layers"] == expected


def test_its_options_are_checked(site: Path, shell: Shell, tmp_path: Path) -> None:
    ran = shell("run", "--strategy", "every-nth:n=0", cwd=tmp_path, **seeing(site))
    assert ran.returncode == 2
    assert "error: every-nth:n=0 is not allowed" in ran.stderr


@pytest.mark.parametrize("claimed", ["every-nth", "confidence"])
def test_two_packages_that_claim_one_name_are_refused(site: Path, shell: Shell, tmp_path: Path, claimed: str) -> None:
    rival = shutil.copytree(PROJECT, tmp_path / "rival")
    (rival / "every_nth_exit.py").rename(rival / "rival_exit.py")
    text = (rival / "pyproject.toml").read_text()
    text = text.replace("every-nth-exit", "rival-exit").replace("every_nth_exit", "rival_exit")
    (rival / "pyproject.toml").write_text(text.replace("every-nth =", f"{claimed} ="))
    install(rival, tmp_path / "site")
    ran = shell("list", "strategies", cwd=tmp_path, **seeing(site, tmp_path / "site"))
    assert ran.returncode == 2
    assert ran.stdout == ""
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"error: two packages register the strategy '{claimed}': ")
    assert "rival-exit (rival_exit:EveryNth)" in line
    assert ("early-exit-harness" if claimed == "confidence" else "every-nth-exit (every_nth_exit:EveryNth)") in line
    assert "Uninstall one of them" in line
