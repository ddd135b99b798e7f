"""Makes the folder of one step, here: what every executor's processes call.

The command is a process of its own, so that what it loads, and what it leaves in libraries and devices, ends with it.
One command at a time writes a folder: it holds the folder's lock as long as it lives, whatever became of the process
that started it. Loads no torch.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.contracts.executors import Command, How
from harness.errors import HarnessError, StoreError, is_out_of_memory, reason
from harness.host.interpreter import fresh_interpreter
from harness.registry import RECIPES
from harness.study.kept_run import free_aside, says_full
from harness.study.step_folder import LOG, copy_files, finish_step, lock_of, read_step, wait_for_lock
from harness.study.steps import filled

BUSY_S = 30.0
"""Seconds in which the command of an attempt that was given up ends."""

_LINES = 10_000
_REFUSED, _DEFECT, _INTERRUPTED = 2, 70, 130
_ERROR = "error: "
_ANEW = "Omit --resume to begin"
_ELSEWHERE = "another --out"
"""Advice in refusals of ``--resume`` where a folder cannot be gone on with, and of other folders as well."""


def make_step(
    folder: Path, command: Command, inputs: Mapping[str, Path], tell: Callable[[str], None]
) -> tuple[How, str]:
    """Make the folder of a step, or what is left of it; one that is whole is left alone.

    A command that knows ``--resume`` goes on with what the folder holds. Where it says that it cannot, the folder is
    set aside, and begun anew; where it does not know it, the folder is begun anew.

    Args:
        folder: of the step.
        command: what makes it.
        inputs: name → folder of each step that it names.
        tell: is told what the command prints, a line at a time.

    Returns:
        How it ended, and why so where it did not end well.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder) as lock:
            return _made(folder, command, inputs, tell, lock)
    except _BusyError as error:
        return "lost", str(error)
    except HarnessError as error:
        return ("stopped" if says_full(str(error)) else "refused"), str(error)
    except OSError as error:
        if error.errno in (errno.ENOMEM, errno.EAGAIN):  # no process can be started now
            return "lost", reason(error)
        return ("stopped" if says_full(str(error)) else "refused"), f"{reason(error)}."


class _BusyError(StoreError):
    """The command of another attempt still writes."""


def _alone(folder: Path) -> IO[bytes]:
    """Return the lock of a folder, once nobody else has it."""
    try:
        return wait_for_lock(lock_of(folder), BUSY_S)
    except StoreError as error:
        raise _BusyError(f"the command of another attempt still writes: {error}") from None


def _made(
    folder: Path, command: Command, inputs: Mapping[str, Path], tell: Callable[[str], None], lock: IO[bytes]
) -> tuple[How, str]:
    words = [filled(word, inputs) for word in command.words]
    if read_step(folder, command.identity) is not None:
        return "done", ""
    goes_on = _knows_resume(command) and _holds_something(folder)
    if not goes_on:
        _begin(folder, inputs.get(command.begin_with))
    code, said = _logged(folder, words, command, tell, lock, resume=goes_on)
    if goes_on and _cannot_go_on(folder, code, said):
        os.replace(folder, free_aside(folder))
        _begin(folder, inputs.get(command.begin_with))
        code, said = _logged(folder, words, command, tell, lock, resume=False)
    if code:
        return _ended(code, said)
    finish_step(folder, command)
    return "done", ""


def _knows_resume(command: Command) -> bool:
    first, *rest = command.words
    return first == "trace" or (first == "train" and "resume" in RECIPES.load(rest[0]).model_fields)


def _holds_something(folder: Path) -> bool:
    return folder.is_dir() and any(entry.name != LOG and not entry.name.startswith(".") for entry in folder.iterdir())


def _cannot_go_on(folder: Path, code: int, said: Sequence[str]) -> bool:
    """Whether a command was refused for what a folder holds: not for what may be otherwise next time."""
    how, text = _ended(code, said)
    of_the_system = any(os.strerror(number) in text for number in errno.errorcode)
    return (
        code == _REFUSED
        and how == "refused"
        and not of_the_system
        and (_ANEW in text or (str(folder) in text and _ELSEWHERE in text))
    )


def _begin(folder: Path, begin_with: Path | None) -> None:
    """Empty a folder, and put there what it begins with.

    Raises:
        StoreError: what it begins with is not whole.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if begin_with is not None:
        record = read_step(begin_with)
        if record is None:
            raise StoreError(
                f"{begin_with} is not whole any more. Delete it, and give the same command with --retry-failed."
            )
        copy_files(begin_with, folder, record.made)


def _logged(
    folder: Path,
    words: Sequence[str],
    command: Command,
    tell: Callable[[str], None],
    lock: IO[bytes],
    *,
    resume: bool,
) -> tuple[int, deque[str]]:
    """Run the command, and leave what it printed in its folder; return its exit code and the last lines of that.

    So far it lies beside the folder, which some commands want to be empty.
    """
    called = [*words, "--out", str(folder), *(["--resume"] if resume else [])]
    first = f"$ {shlex.join(['harness', *called])}"
    so_far = folder.with_name(f".{folder.name}.log")
    with so_far.open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        log.write(f"{first}\n")

        def note(line: str) -> None:
            log.write(f"{line}\n")
            tell(line)

        code, said = _run(called, command.threads, note, lock)
    folder.mkdir(exist_ok=True)
    text = "\n".join([first, *said, ""])
    (folder / LOG).write_text(text, encoding="utf-8", errors="backslashreplace")
    so_far.unlink()
    return code, said


def _run(
    words: Sequence[str], threads: int | None, tell: Callable[[str], None], lock: IO[bytes]
) -> tuple[int, deque[str]]:
    """Run a command of the harness, which holds a lock meanwhile; return its exit code, and what it printed last."""
    said: deque[str] = deque(maxlen=_LINES)
    process = fresh_interpreter(
        "harness.study.step_process", *words,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, threads=threads,
        inherited=() if sys.platform == "win32" else (lock.fileno(),),
    )  # fmt: skip
    with process:  # whose end closes its standard input, and so ends it where telling failed
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.decode(errors="backslashreplace").strip():
                said.append(text)
                tell(text)
    return process.returncode, said


def _ended(code: int, said: Sequence[str]) -> tuple[How, str]:
    """Return how a command ended, by its exit code and the last line that says why."""
    if code < 0 or code == _INTERRUPTED:
        return "lost", f"its command ended with {f'signal {-code}' if code < 0 else 'an interrupt'}"
    lines = [f"exit code {code}", *said]
    errors = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    text = lines[-1]
    commands: list[str] = []
    if code == _DEFECT and errors:  # what was raised stands in the line before
        text = f"a defect: {lines[errors[-1] - 1]}"
    elif errors:
        text, *commands = lines[errors[-1] :]
    text = str(HarnessError(text.removeprefix(_ERROR), commands))
    if is_out_of_memory(HarnessError(text)):
        return "out-of-memory", text
    return ("stopped" if says_full(text) else "refused"), text
