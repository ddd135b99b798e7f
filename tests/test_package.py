"""What is released works where no source tree is: wheel and sdist hold everything, and nothing else."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from harness.errors import ConfigError
from harness.host.libraries import NEEDED_BY, require

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "strategies", "tasks", "reports")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def build(kind: str, source: Path, folder: Path) -> Path:
    """Return what the build backend makes of a source tree, as ``python -m build`` asks it to."""
    code = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv.pop())"
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist of the packages, and the wheel that is made of it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    for name in (*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        here = ROOT / name
        if here.is_dir():
            shutil.copytree(here, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(here, source / name)
    sdist = build("sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return {"sdist": sdist, "wheel": build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)}


def held(file: Path) -> set[str]:
    """Paths in a wheel, or in an sdist without its leading folder."""
    if file.suffix == ".whl":
        with zipfile.ZipFile(file) as archive:
            return set(archive.namelist())
    with tarfile.open(file) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.mark.slow
def test_every_tracked_file_of_the_packages_is_in_both(built: dict[str, Path]) -> None:
    listing = subprocess.run(["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False)
    wanted = {name for name in listing.stdout.splitlines() if (ROOT / name).is_file()}
    if not wanted:
        pytest.skip("this is no git checkout")
    for file in built.values():
        assert wanted - held(file) == set(), file


def imported(package: str) -> set[str]:
    """Third-party modules that a package's files import, at their first name."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / package).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {*PACKAGES}


def brought_by(requirements: Iterable[str]) -> set[str]:
    """Modules of distributions that are asked for, by the names that they are imported under."""
    asked = {canonicalize_name(Requirement(line).name) for line in requirements}
    found = packages_distributions()
    return {module for module, names in found.items() if {canonicalize_name(name) for name in names} & asked}


def test_what_is_imported_is_declared() -> None:
    """What another package happens to bring is gone when that one no longer needs it."""
    declared = brought_by([*PROJECT["dependencies"], *chain(*(EXTRAS[extra] for extra in NEEDED_BY))])
    apart = {"codebleu", "pytest", "evaluate"}  # of make, of who uses the plug-in of pytest, of an lm-eval that has it
    found = set().union(*map(imported, PACKAGES))
    assert {"torch", "numpy", "matplotlib", "starlette"} <= found
    assert found - declared - apart == set()


def test_every_extra_says_what_needs_it() -> None:
    assert EXTRAS.keys() - {"dev", "docs"} == NEEDED_BY.keys()
    assert ",".join(sorted(NEEDED_BY)) in EXTRAS["dev"][0]


def test_a_missing_package_is_one_line_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match="serving needs uvicorn, which is not installed:") as refused:
        require("serve", "fastapi", "uvicorn")
    assert refused.value.commands == ("pip install 'early-exit-harness[serve]'",)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(ConfigError, match=r"needs stable-baselines3 and gymnasium, which are not installed \(so\):"):
        require("train", "stable_baselines3", "gymnasium", otherwise="so")


def test_the_wheel_says_what_the_project_says(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        points = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert f"\nVersion: {PROJECT['version']}\n" in text
    assert "\nDescription-Content-Type: text/markdown\n" in text
    for group, named in PROJECT["entry-points"].items():
        section = points.partition(f"[{group}]\n")[2].partition("\n[")[0]
        assert len(section.split("\n\n")[0].strip().splitlines()) == len(named), group


@pytest.fixture(scope="module")
def elsewhere(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run ``harness`` of the wheel in an environment of its own, which borrows the dependencies and no source tree."""
    folder = tmp_path_factory.mktemp("elsewhere")
    environment, work = folder / "environment", folder / "work"
    work.mkdir()
    venv.create(environment, symlinks=True, with_pip=False)
    paths = {"base": str(environment), "platbase": str(environment)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*install, "--no-index", "--target", str(site), str(built["wheel"])],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # a path alone: the .pth files of the borrowed environment are not read, so that its editable install is not seen
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PYTEST"))}
    plain = clean | {"COLUMNS": "120", "HF_HUB_OFFLINE": "1"}

    # what start-up reads: modules that are as if they were not installed
    (site / "sitecustomize.py").write_text(
        "import os, sys\nsys.modules.update(dict.fromkeys(filter(None, os.environ['ABSENT'].split())))\n"
    )

    def run(*arguments: object, absent: Iterable[str] = ()) -> str:
        environ = plain | {"ABSENT": " ".join(absent)}
        command = [environment / "bin" / "python", "-m", "harness.cli", *map(str, arguments)]
        ran = subprocess.run(command, cwd=work, env=environ, capture_output=True, text=True, check=False, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    where = [environment / "bin" / "python", "-c", "import harness, reports; print(harness.__file__, reports.__file__)"]
    alone = plain | {"ABSENT": ""}
    found = subprocess.run(where, cwd=work, env=alone, capture_output=True, text=True, check=True).stdout
    assert found.split() == [str(site / name / "__init__.py") for name in ("harness", "reports")]
    return run


@pytest.mark.slow
def test_the_wheel_lists_everything(elsewhere: Any) -> None:
    assert elsewhere("--version") == f"early-exit-harness {PROJECT['version']}\n"
    said = elsewhere("list")
    for group, named in PROJECT["entry-points"].items():
        if group.startswith("harness.") and group != "harness.metrics":
            assert all(name in said for name in named), group


@pytest.mark.model
@pytest.mark.matrix
def test_the_wheel_runs_the_main_job_and_configures_an_editor(elsewhere: Any) -> None:
    """With the shipped exits, on a sample of each task, without any extra; and what a page of it is made from."""
    absent = brought_by(chain(*(EXTRAS[extra] for extra in NEEDED_BY))) - brought_by(PROJECT["dependencies"])
    assert {"matplotlib", "datasets", "fastapi", "peft", "plotly"} <= absent
    given = ("--limit", 1, "--max-new-tokens", 4, "--energy", "none", "--threads", 1, "--out", "out")
    assert "classifier" in elsewhere("run", *given, absent=absent)
    elsewhere("report", "out", "--out", "report", "--no-figures", absent=absent)
    assert "http://127.0.0.1:8080" in elsewhere("serve", "--print-config", "llm-vscode")
    elsewhere("leaderboard", "out", "--out", "site")


# ------------------------------------------------------------------------------ what stands beside it


def test_whoever_contributes_finds_every_registry() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [group for group in PROJECT["entry-points"] if group != "pytest11" and f"`{group}`" not in text]
