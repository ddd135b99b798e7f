"""What a newcomer types wrong: one line that names what was typed and the remedy."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("rnu",), "No such command 'rnu'. Did you mean 'run'? See `harness --help`."),
        (("run", "--limt", 3), "No such option: --limt. Did you mean --limit? See `harness run --help`."),
        (("run", "--limit", "three"), "'--limit': give a whole number. See `harness run --help`."),
        (("run", "--idle-s", "long"), "'--idle-s': give a number. See `harness run --help`."),
        (("run", "--limit", -1), "error: --limit -1: input should be greater than or equal to 0."),
        (("run", "--dtype", "float"), "error: --dtype 'float': input should be 'float32', 'bfloat16' or 'float16'."),
        (("serve", "--port", 99999), "error: --port 99999: input should be less than or equal to 65535."),
        (("run", "--strategy"), "'--strategy' requires an argument. See `harness run --help`."),
        (("run", "--out", ""), "error: --out is empty. Name a file or folder"),
        (("run", "--resume="), "error: --resume is empty. Name a file or folder"),
        (("report", ""), "error: RUN_DIR is empty. Name a file or folder"),
        (("report", "x", "--width", "colum"), "'--width': 'colum' is not one of 'column', 'text'."),
        (("watch", "x", "--every", 0.1), "'--every': it should be greater than or equal to 0.5."),
    ],
)
def test_a_mistake_is_named_as_it_was_typed(
    cli: Command, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], says: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["harness", *map(str, arguments)])
    assert says in cli(*arguments).error


def test_a_value_of_a_file_is_named_as_the_file_names_it(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("limit = -1\n")
    assert "limit = -1: input should be greater than or equal to 0." in cli("run", "--config", "run.toml").error


INTERRUPTED = """
import os, runpy, signal, sys


class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer.main":
            os.kill(os.getpid(), signal.SIGINT)


signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it, and so do its children
sys.meta_path.insert(0, Interrupting())
sys.argv = ["harness", "--help"]
runpy.run_module("harness.cli", run_name="__main__", alter_sys=True)
"""


def test_an_interrupt_while_modules_are_imported_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode in (-signal.SIGINT, 130)  # a shell says 130 of either
