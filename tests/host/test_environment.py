"""The environment is complete, JSON-able and anonymous; code is told by what it says; how threads wait."""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.cli import SPINS, spin_briefly
from harness.host import environment
from harness.host import environment as code
from harness.host.environment import PACKAGES, describe, hash_of_code, hash_of_package, machine_line


def test_it_survives_json() -> None:
    facts = describe()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert set(facts["packages"]) == set(PACKAGES)
    assert facts["logical_cores"] >= facts["usable_cores"] >= 1
    assert facts["memory_bytes"] is None or facts["memory_bytes"] > 1 << 28


def test_it_names_nobody() -> None:
    text = json.dumps({key: value for key, value in describe().items() if key != "git"})
    for folder in (Path.home(), Path(__file__).parent):
        assert len(folder.parts) < 2 or str(folder) not in text
    for name in (socket.gethostname(), getpass.getuser()):
        assert f'"{name}"' not in text


def test_torch_is_asked_only_when_it_is_there() -> None:
    code = (
        "import json, sys; from harness.host.environment import describe; early = describe();"
        "assert 'torch' not in sys.modules; import torch; torch.set_num_threads(1); late = describe();"
        "print(json.dumps([early, late]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    early, late = json.loads(done.stdout)
    assert (early["torch_threads"], early["gpus"]) == (None, None)
    assert late["torch_threads"] == 1
    assert isinstance(late["gpus"], list)
    assert early["packages"] == late["packages"]
    assert early["packages"]["torch"] is not None


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_checkout_is_named_by_commit_and_dirtiness(tmp_path: Path) -> None:
    assert environment._git(tmp_path) is None
    git(tmp_path, "init", "-q")
    assert environment._git(tmp_path) is None  # no commit yet
    (tmp_path / "harness").mkdir()
    code = tmp_path / "harness" / "code.py"
    code.write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "One")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment._git(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "samples.jsonl").write_text("{}\n")
    assert environment._git(tmp_path) == {"commit": commit, "dirty": False}  # results are not code
    (tmp_path / "harness" / "new.py").write_text("b = 2\n")
    assert environment._git(tmp_path) == {"commit": commit, "dirty": True}


XEON = {
    "cpu": "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz",
    "logical_cores": 2,
    "memory_bytes": 25276502016,
    "os": "Linux 6.8.0-45-generic",
    "python": "3.11.7",
    "torch_threads": 2,
    "gpus": [],
    "packages": {"torch": "2.13.0+cpu"},
}


def test_the_machine_in_one_line() -> None:
    gpus = {"cpu": "AMD EPYC 7B13 64-Core Processor", "gpus": ["NVIDIA L4", "NVIDIA L4", "NVIDIA T4"]}
    for changes, line in (
        ({}, "Intel Xeon E5-2680 v4 (2 cores), 24 GiB, Linux 6.8, Python 3.11, torch 2.13 (2 threads)"),
        (
            {**gpus, "logical_cores": 1, "memory_bytes": None, "torch_threads": 1},
            "AMD EPYC 7B13 (1 core), 2 × NVIDIA L4, NVIDIA T4, Linux 6.8, Python 3.11, torch 2.13 (1 thread)",
        ),
        ({"torch_threads": None, "packages": {}}, "Intel Xeon E5-2680 v4 (2 cores), 24 GiB, Linux 6.8, Python 3.11"),
    ):
        assert machine_line(XEON | changes) == line
    assert machine_line({}) == "unknown processor"


ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_known() -> Iterator[None]:
    forget()
    yield
    forget()


def forget() -> None:
    code._hash_of_folder.cache_clear()
    hash_of_package.cache_clear()


def test_an_inverted_comparison_tells_the_project_s_own_code_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = hash_of_code("strategies")
    shutil.copytree(ROOT / "strategies", tmp_path / "strategies")
    monkeypatch.setattr(code, "_ROOT", tmp_path)
    file = tmp_path / "strategies" / "confidence.py"
    text = file.read_text()
    found = []
    for said in (text, text.replace(">= self.threshold", "<= self.threshold")):
        forget()
        file.write_text(said)
        found.append(hash_of_code("strategies"))
    assert found[0] == here != found[1]


def test_a_package_is_told_by_its_sources_wherever_it_lies(
    plug_in: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that only its distribution knows of among them, and nothing that Python or a run leaves there."""
    site = plug_in("told", "class Outside: ...")
    (module,) = site.glob("*.py")
    (site / "outside_told-1.0.dist-info" / "RECORD").write_text("beside.py,,\nnotes.md,,\n")

    def said(beside: str = "x = 1", notes: str = "") -> str:
        forget()
        (site / "beside.py").write_text(beside)
        (site / "notes.md").write_text(notes)
        return hash_of_package(module.stem, "outside-told")

    first = said()
    assert first
    assert said(notes="new") == first
    assert said(beside="x = 2") != first
    package = tmp_path / "theirs"
    (package / "__pycache__").mkdir(parents=True)
    (package / "inner.py").write_text("y = 1")
    monkeypatch.syspath_prepend(tmp_path)
    forget()
    first = hash_of_package("theirs.inner")
    (package / "__pycache__" / "inner.pyc").write_bytes(b"new")
    (package / "weights.bin").write_bytes(b"new")
    forget()
    assert hash_of_package("theirs.inner") == first
    (package / "inner.py").write_text("y = 2")
    forget()
    assert hash_of_package("theirs.inner") != first
    assert hash_of_package("absent_module") == ""


@pytest.mark.parametrize(
    ("given", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": str(SPINS)}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_what_a_user_has_chosen_stands(given: dict[str, str], after: dict[str, str]) -> None:
    spin_briefly(given)
    assert given == after


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        ("processor : 0\nmodel name : Test Chip @ 2.0GHz\nprocessor : 1\nmodel name : other\n", "Test Chip @ 2.0GHz"),
        ("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n", "Arm implementer 0x41 part 0xd0c"),
    ],
)
def test_a_processor_has_a_name_on_arm_too(
    cpuinfo: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without one, no two runs are of one hardware class."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(environment, "CPUINFO", tmp_path / "cpuinfo")
    assert describe()["cpu"] == name
