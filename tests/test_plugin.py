"""A strategy of another, separately installed package is listed, shown and run like a built-in one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parent / "fixtures" / "third_party"

Shell = Callable[..., subprocess.CompletedProcess[str]]
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def site(install: Callable[[Path], Path]) -> Path:
    """A folder the fixture project is installed into."""
    return install(PROJECT)


def seeing(*sites: Path) -> dict[str, Any]:
    return {"env": os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sites)), "COLUMNS": "120"}}


def test_it_is_listed_with_its_distribution(site: Path, shell: Shell, tmp_path: Path) -> None:
    ran = shell("list", "strategies", cwd=tmp_path, **seeing(site))
    assert ran.returncode == 0, ran.stderr
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("every-nth ")]
    assert "Exit with every n-th token" in line
    assert line.rstrip().endswith("every-nth-exit")
    assert "every-nth" not in shell("list", "strategies", cwd=tmp_path).stdout


def test_it_shows_its_options_and_ranges(site: Path, see: Callable[[Path], None], cli: Command) -> None:
    see(site)
    ran = cli("show", "every-nth")
    assert ran.code == 0, ran.err
    assert "every so many tokens one leaves early" in ran.out
    assert "≥ 1" in ran.out


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


def test_its_options_are_checked(site: Path, see: Callable[[Path], None], cli: Command) -> None:
    see(site)
    assert cli("run", "--strategy", "every-nth:n=0").error.startswith("error: every-nth:n=0 is not allowed")


@pytest.mark.parametrize("claimed", ["every-nth", "confidence"])
def test_two_packages_that_claim_one_name_are_refused(
    site: Path, see: Callable[[Path], None], install: Callable[[Path], Path], cli: Command, tmp_path: Path, claimed: str
) -> None:
    rival = shutil.copytree(PROJECT, tmp_path / "rival")
    (rival / "every_nth_exit.py").rename(rival / "rival_exit.py")
    text = (rival / "pyproject.toml").read_text()
    text = text.replace("every-nth-exit", "rival-exit").replace("every_nth_exit", "rival_exit")
    (rival / "pyproject.toml").write_text(text.replace("every-nth =", f"{claimed} ="))
    see(site)
    see(install(rival))
    line = cli("list", "strategies").error
    assert line.startswith(f"error: two packages register the strategy '{claimed}': ")
    assert "rival-exit (rival_exit:EveryNth)" in line
    assert ("early-exit-harness" if claimed == "confidence" else "every-nth-exit (every_nth_exit:EveryNth)") in line
    assert "Uninstall one of them" in line
