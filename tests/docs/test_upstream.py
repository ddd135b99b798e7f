"""Patches for other projects apply to what is installed, and their own tests need them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

FOLDER = ROOT / "docs" / "upstream"
AGAINST = dict(re.findall(r"^\| \[`([\w.-]+)`\]\(\1\) \| (\w+ [\d.]+) \|", (FOLDER / "README.md").read_text(), re.M))


def test_every_patch_is_told_of() -> None:
    assert set(AGAINST) == {path.name for path in FOLDER.glob("*.patch")}


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAINST)
def test_its_own_tests_pass_with_it_alone(name: str, tmp_path: Path) -> None:
    package, wanted = AGAINST[name].split()
    if version(package) != wanted:
        pytest.skip(f"{package} {version(package)} is installed, and the patch is for {wanted}")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / "src" / package, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "apply", str(FOLDER / name)]
    subprocess.run([*git, "--include", "tests/*"], cwd=tmp_path, check=True)
    tests = [str(path) for path in (tmp_path / "tests").rglob("test_*.py")]
    env = os.environ | {"PYTHONPATH": str(tmp_path / "src")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    for expected in (1, 0):
        ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ran.returncode == expected, ran.stdout
        subprocess.run([*git, "--include", "src/*"], cwd=tmp_path, check=bool(expected))
