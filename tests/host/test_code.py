"""Code is told by what it says: not by its version, nor by where it lies."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.host import environment as code
from harness.host.environment import hash_of_code, hash_of_package

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
