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
from tasks.sandbox import _NAMESPACES, _unshare, isolation, passes

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
    ],
)
def test_other_processes_are_out_of_reach(program: str) -> None:
    assert not passes(program)


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


ANY_MODULE = """
import sys
from importlib.machinery import ModuleSpec

class Finder:
    find_spec = staticmethod(lambda name, *_: ModuleSpec(name, Finder))
    create_module = staticmethod(lambda spec: None)
    exec_module = staticmethod(lambda module: None)

sys.meta_path.insert(0, Finder)
import {name}
"""
"""Imports a module whether the interpreter has it or not."""


def test_modules_that_write_unseen_are_not_imported() -> None:
    assert passes(ANY_MODULE.format(name="another"))
    for name in ("_dbm", "_gdbm", "_posixshmem", "_posixsubprocess", "_tkinter"):
        assert not passes(ANY_MODULE.format(name=name)), name


def test_no_other_process_is_seen() -> None:
    if "no other processes" not in isolation():
        pytest.skip("no /proc of its own can be mounted here")
    assert passes("import os\nassert [name for name in os.listdir('/proc') if name.isdigit()] == ['1']")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="namespaces are Linux's")
def test_without_a_proc_of_its_own_the_rest_is_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executable(tmp_path / "unshare", 'case "$*" in *--mount-proc*) exit 1 ;; esac')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert _unshare.__wrapped__() == (str(tmp_path / "unshare"), *_NAMESPACES[1])


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


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'error while loading shared libraries: libpython.so: no such file' >&2; exit 127", r"libpython\.so"),
        ("printf 'ImportError: no zlib\\n  <no frame>\\n' >&2; exit 1", r"\(ImportError: no zlib\)"),
        ("exit 3", r"\(exit status 3\)"),
    ],
)
def test_where_nothing_can_pass_nothing_is_scored(
    script: str, why: str, tmp_path: Path, words: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "HumanEval-SingleLineInfilling.jsonl"
    source.write_text(json.dumps(ROW))
    monkeypatch.setattr(sys, "executable", executable(tmp_path / "python", script))
    task = SingleLineInfilling()
    assert task.load(TaskRequest("infilling-left", str(tmp_path)), words).samples
    with pytest.raises(ConfigError, match=rf"^--allow-code-execution: .*{why}.*omit the option"):
        task.load(TaskRequest("infilling-left", str(tmp_path), allow_code_execution=True), words)


def test_an_interpreter_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=rf"{tmp_path}.*omit the option"):
        isolation()


def test_an_interpreter_finds_its_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/nowhere", prepend=os.pathsep)
    assert passes("import os\nassert os.environ['LD_LIBRARY_PATH'].startswith('/nowhere')")


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
        "no network, no signals to other processes (namespaces)",
        "no network (namespaces)",
        "network and processes refused by the interpreter alone",
    }
