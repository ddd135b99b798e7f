"""Makes the folder of one step, here: what every executor's processes call.

The command is a process of its own, so that what it loads, and what it leaves in libraries and devices, ends with it.
Loads no torch.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.contracts.executors import Command, How
from harness.errors import HarnessError, is_out_of_memory, reason
from harness.host.interpreter import fresh_interpreter
from harness.registry import RECIPES
from harness.study.kept_run import FULL
from harness.study.step_folder import STEP, finish_step, read_step
from harness.study.steps import filled

__all__ = ["LOG", "make_step"]

LOG = "step.log"
"""In the folder: what the command printed."""

_LINES = 10_000
_REFUSED, _DEFECT, _INTERRUPTED = 2, 70, 130
_ERROR = "error: "


def make_step(
    folder: Path, command: Command, inputs: Mapping[str, Path], tell: Callable[[str], None]
) -> tuple[How, str]:
    """Make the folder of a step, or what is left of it; one that is whole is left alone.

    A command that knows ``--resume`` goes on with what the folder holds; where it refuses to, and where it does not
    know it, the folder is begun anew.

    Args:
        folder: of the step.
        command: what makes it.
        inputs: name → folder of each step that it names.
        tell: is told what the command prints, a line at a time.

    Returns:
        How it ended, and why so where it did not end well.
    """
    words = [filled(word, inputs) for word in command.words]
    try:
        if read_step(folder, command.identity) is not None:
            return "done", ""
        goes_on = _knows_resume(command) and folder.is_dir() and any(folder.iterdir())
        for resume in (True, False) if goes_on else (False,):
            if not resume:
                _begin(folder, inputs.get(command.begin_with))
            called = [*words, "--out", str(folder), *(["--resume"] if resume else [])]
            code, said = _run(called, command.threads, tell)
            if code != _REFUSED:
                break
        if folder.is_dir():
            (folder / LOG).write_text("\n".join([f"$ harness {' '.join(called)}", *said, ""]), encoding="utf-8")
        if code:
            return _ended(code, said)
        finish_step(folder, command)
    except HarnessError as error:
        return "refused", str(error)
    except OSError as error:
        return ("stopped" if error.errno in FULL else "refused"), reason(error)
    return "done", ""


def _knows_resume(command: Command) -> bool:
    first, *rest = command.words
    return first == "trace" or (first == "train" and "resume" in RECIPES.load(rest[0]).model_fields)


def _begin(folder: Path, begin_with: Path | None) -> None:
    """Empty a folder, and put there what it begins with."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if begin_with is not None:
        shutil.copytree(begin_with, folder, ignore=shutil.ignore_patterns(STEP, LOG))


def _run(words: list[str], threads: int | None, tell: Callable[[str], None]) -> tuple[int, deque[str]]:
    """Run a command of the harness; return its exit code, and the last lines that it printed."""
    said: deque[str] = deque(maxlen=_LINES)
    process = fresh_interpreter(
        "harness.study.step_process", *words,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, threads=threads,
    )  # fmt: skip
    with process:  # whose end closes its standard input, and so ends it where telling failed
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.decode(errors="replace").strip():
                said.append(text)
                tell(text)
    return process.returncode, said


def _ended(code: int, said: deque[str]) -> tuple[How, str]:
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
    return ("stopped" if any(os.strerror(number) in text for number in FULL) else "refused"), text
