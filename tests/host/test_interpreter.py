"""Files of the user's own in the working directory are never imported in place of ours or the standard library's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness.host.interpreter import fresh_interpreter

TRAPS = ("tasks", "reports", "strategies", "json", "harness")

COMMAND = "from harness.cli import main; main()"


@pytest.fixture
def trapped(tmp_path: Path) -> Path:
    """A working directory whose modules have the names of ours and raise when they are imported."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the user s own {name}.py was imported')\n")
    return folder


def test_the_module_run_as_a_script_leaves_the_working_directory_out(trapped: Path) -> None:
    (trapped / "harness.py").unlink()  # found by Python itself, before any line of ours can run
    for arguments in (["list", "tasks"], ["show", "py150"]):
        command = [sys.executable, "-m", "harness.cli", *arguments]
        done = subprocess.run(command, cwd=trapped, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "py150" in done.stdout


def test_a_helper_imports_what_its_parent_does_and_nothing_from_the_working_directory(
    trapped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = tmp_path / "added"
    added.mkdir()
    (added / "only_here.py").write_text("import json, sys\nprint(json.dumps([sys.path, sys.argv[1:]]))\n")
    monkeypatch.setattr(sys, "path", ["", str(added), *sys.path])
    monkeypatch.chdir(trapped)
    with fresh_interpreter("only_here", "1", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        path, arguments = json.loads(process.stdout.read())
    assert path[0] == str(added)
    assert not {"", str(trapped)} & set(path)
    assert {entry for entry in sys.path if Path(entry).is_dir() and entry} <= set(path)
    assert arguments == ["1"]
