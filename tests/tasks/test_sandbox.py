"""What a program may not do ends it, and only its own end is a pass."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tasks.sandbox import isolation, passes

pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits of processes are those of Linux and macOS")


@pytest.mark.parametrize(
    "program",
    [
        "x = 1",
        "import collections, hashlib, math, random, re, string, typing",
        "import os\nassert os.listdir() == []",  # an empty folder
        "import os\nassert not {'HOME', 'PATH', 'SECRET'} & set(os.environ)",
        "print('x' * 1000)",
        "assert __name__ == 'builtins'",  # as in the official evaluator: no main program
    ],
)
def test_sound_programs_pass(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "1")
    assert passes(program)


@pytest.mark.parametrize(
    "program",
    [
        "assert False",
        "def f(:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",  # ends well, and proves nothing
        "input()",
        "import numpy",  # what is installed here is not there
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true')",
        "import os\nos.fork()",
        "import multiprocessing",
        "import ctypes",
        "import socket\nsocket.create_connection(('127.0.0.1', 9))",
        "open('file', 'w')",
        "import os\nos.open('file', os.O_CREAT | os.O_WRONLY)",
        "import os\nos.mkdir('folder')",
        "import os\nos.kill(os.getppid(), 9)",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    ],
)
def test_what_a_program_may_not_do_ends_it(program: str) -> None:
    assert not passes(program)


def test_nothing_is_removed(tmp_path: Path) -> None:
    file = tmp_path / "mine"
    file.write_text("x")
    assert not passes(f"import os\nos.remove({str(file)!r})")
    assert not passes(f"import shutil\nshutil.rmtree({str(tmp_path)!r})")
    assert file.read_text() == "x"


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_time_is_limited(program: str) -> None:
    assert not passes(program, seconds=0.3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS has no limit of address space")
def test_memory_is_limited() -> None:
    program = "x = bytearray(300 << 20)"
    assert passes(program)
    assert not passes(program, memory_bytes=200 << 20)


def test_what_isolates_is_said() -> None:
    assert isolation() in {
        "no network, no other processes (namespaces)",
        "no network (namespaces)",
        "network and processes refused by the interpreter alone",
    }
