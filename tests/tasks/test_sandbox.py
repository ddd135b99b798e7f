"""What a program may not do ends it, and only its own end is a pass."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import TaskRequest
from harness.errors import ConfigError
from tasks.humaneval_infilling import SingleLineInfilling
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
        "from os import *",  # although some of it is removed
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


@pytest.mark.parametrize(
    "program",
    [
        "import __main__\n__main__.REFUSED, __main__.WRITES = (), 0\nopen('file', 'w')",
        "import builtins\nbuiltins.isinstance = lambda *_: False\nopen('file', 'w')",
        """
try:
    open('file', 'w')
except PermissionError as error:
    frame = error.__traceback__.tb_next.tb_frame
    frame.f_globals.update(WRITES=0)
    frame.f_locals.update(writes=0, modes=frozenset())
open('file', 'w')
""",
        """
import gc, types
for hook in gc.get_objects():
    if isinstance(hook, types.FunctionType) and hook.__name__ == 'refuse':
        hook.__code__ = (lambda *_: None).__code__
open('file', 'w')
""",
        """
class Name(str):
    __hash__ = lambda self: 0
    __eq__ = lambda self, other: False
__import__(Name('_posixsubprocess'))
""",
        """
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreters.create()
""",
        "import os\nos._exit = print\nassert False",
    ],
    ids=["names", "builtins", "traceback", "collector", "text", "interpreter", "end"],
)
def test_the_guard_is_not_taken_away(program: str) -> None:
    assert not passes(program)


@pytest.mark.parametrize(
    "program",
    [
        "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getpid()), 0)",
        "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))",
        "import os\nos.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))",
        "import os\nos.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))",
        "import os\nos.nice(0)",
        "import sys\ndel sys.modules['posix']\nimport posix",
        "import sys\ndel sys.modules['_signal']\nimport _signal",
        "import _posixshmem",
    ],
)
def test_other_processes_are_out_of_reach(program: str) -> None:
    assert not passes(program)


def test_nothing_is_removed_and_no_other_process_seen(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    assert not passes(f"import os\nos.remove({str(tmp_path / 'mine')!r})")
    assert not passes(f"import shutil\nshutil.rmtree({str(tmp_path)!r})")
    assert (tmp_path / "mine").read_text() == "x"
    alone = passes("import os\nassert [name for name in os.listdir('/proc') if name.isdigit()] == ['1']")
    assert alone == ("no other processes" in isolation())


@pytest.mark.parametrize(
    "program",
    [
        "import sqlite3\nsqlite3.connect(file).execute('create table t (x)')",
        "import readline\nreadline.write_history_file(file)",
        "import ssl\nssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).keylog_filename = file",
        "import os\nos.mkfifo(file)",
        "import os\nos.mknod(file)",
        "import os\nnext(make for make in os.supports_dir_fd if make.__name__ == 'mkfifo')(file)",
    ],
)
def test_nothing_is_written_by_other_means_than_open(program: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert not passes(f"file = {str(file)!r}\n{program}")
    assert not file.exists()


def executable(file: Path, script: str) -> str:
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    return str(file)


ROW = {
    "task_id": "made-up/0",
    "prompt": "def one():\n",
    "suffix": "1",
    "canonical_solution": "    return ",
    "test": "def check(candidate):\n    assert candidate() == 1",
    "entry_point": "one",
}


def test_where_nothing_can_pass_nothing_is_scored(tmp_path: Path, words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script, why = "printf 'ImportError: no zlib\\n  <no frame>\\n' >&2; exit 1", r"\(ImportError: no zlib\)"
    source = tmp_path / "HumanEval-SingleLineInfilling.jsonl"
    source.write_text(json.dumps(ROW))
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", script))
    task = SingleLineInfilling()
    assert task.load(TaskRequest("infilling-left", str(tmp_path)), words).samples
    with pytest.raises(ConfigError, match=rf"^--allow-code-execution: .*{why}.*omit the option"):
        task.load(TaskRequest("infilling-left", str(tmp_path), allow_code_execution=True), words)


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_time_is_limited(program: str) -> None:
    assert not passes(program, seconds=0.3)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="macOS has no limit of address space")
def test_memory_is_limited() -> None:
    program = "x = bytearray(300 << 20)"
    assert passes(program)
    assert not passes(program, memory_bytes=200 << 20)
