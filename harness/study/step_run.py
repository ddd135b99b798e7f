"""The folder of a step: made here by its command, and ``step.json``, written last, which says that it is whole.

The command is a process of its own: ``python -m harness.study.step_run WORDS…`` is ``harness WORDS…`` as long as its
standard input stays open. What starts it holds the other end, and the kernel closes that however it dies. The command
holds the folder's lock as long as it lives, so that one at a time writes there. Loads no torch.
"""

from __future__ import annotations

import errno
import hashlib
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import field_validator

from harness.contracts.executors import Command, How
from harness.errors import (
    DEFECT,
    HarnessError,
    OutdatedError,
    ResumeError,
    StoreError,
    chain,
    is_full,
    is_out_of_memory,
    reason,
)
from harness.host.files import open_regular, real_path, sync
from harness.host.interpreter import fresh_interpreter
from harness.records import SCHEMA_VERSION
from harness.records.record import Count, Record
from harness.registry import RECIPES
from harness.store.record_files import read_document, write_document
from harness.study.steps import filled

if sys.platform != "win32":
    import fcntl

STEP = "step.json"
LOG = "step.log"
"""Output of the command: nothing is made of it, and it may be deleted."""
ASIDE = "aside"
"""Folder in a study's of what was set aside."""
BUSY_S, LOOK_S = 30.0, 0.2
"""Seconds in which the command of an attempt that was given up ends, and between two looks."""

_LAST_LINES = 100
_INTERRUPTED = 130
_ANEW, _FULL, _NO_MEMORY = 101, 102, 103
"""Exit codes of this module's process alone: the folder cannot be gone on with, the disk takes nothing, no memory."""
_ERROR = "error: "


class StepFile(Record):
    """One file of a step.

    Attributes:
        bytes: its size.
        sha256: of its content, 64 hexadecimal digits.
    """

    bytes: Count
    sha256: str


class StepRecord(Record):
    """The inputs of a step and the files it left.

    Attributes:
        schema_version: of the files of a study.
        created: UTC time, ISO 8601.
        command: as declared, in words; ``{NAME}`` is the folder of another step.
        identity: hash over the command, and over those of the steps that it names.
        files: path below the folder → what it holds. Checkpoints, which going on needs and nothing else, are left out.
    """

    schema_version: int
    created: str
    command: tuple[str, ...]
    identity: str
    files: dict[str, StepFile]

    @field_validator("files")
    @classmethod
    def _below(cls, value: dict[str, StepFile]) -> dict[str, StepFile]:
        for name in value:
            path = PurePosixPath(name)
            if not name or "\\" in name or path.is_absolute() or ".." in path.parts:
                raise ValueError(f"{name!r} is no path below a folder")
        return value

    @property
    def made(self) -> dict[str, StepFile]:
        """The files that others read: all but the log."""
        return {name: file for name, file in self.files.items() if name != LOG}


def read_step(folder: Path, identity: str | None = None, *, verify: bool = False) -> StepRecord | None:
    """Return what says that a folder is whole; ``None`` where nothing does, or a file is missing or has another size.

    ``verify`` compares contents as well. What cannot be read now, or by this version, is refused: it may be whole.
    """
    try:
        try:
            record, _ = read_document(StepRecord, folder / STEP)
        except StoreError as error:
            cause = error.__context__
            if isinstance(cause, OSError):
                raise cause from None
            if isinstance(error, OutdatedError):
                raise
            return None
        if identity not in (None, record.identity):
            return None
        for name, made in record.made.items():
            if (folder / name).stat().st_size != made.bytes or (verify and _hash(folder / name) != made.sha256):
                return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(
            f"cannot read {error.filename or folder}: {error.strerror}. Make it readable, or delete {folder}: what "
            "needs it has it made again."
        ) from None
    return record


def finish_step(folder: Path, command: Command) -> None:
    """Flush what a command made to the disk, and say that it is whole."""
    files = {name: _flushed(folder / name) for name in _files(folder)}
    if not files.keys() - {LOG}:
        raise StoreError(
            "its command ended well and left no file. Give it by itself, with --out DIR, to see what it does."
        )
    for inside in {folder.parent, folder, *((folder / name).parent for name in files)}:
        sync(inside)
    record = StepRecord(
        schema_version=SCHEMA_VERSION,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command.words,
        identity=command.identity,
        files=files,
    )
    write_document(folder / STEP, record)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy files of a folder into another one, and flush them to the disk; none that lies behind a link."""
    target.mkdir(parents=True, exist_ok=True)
    folders = {target}
    for name in names:
        if real_path(source / name) != real_path(source) / name:
            raise OSError(errno.ELOOP, "it lies behind a link", str(source / name))
        folders.add((target / name).parent)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        with open_regular(source / name) as read, (target / name).open("xb") as written:
            shutil.copyfileobj(read, written)
            written.flush()
            os.fsync(written.fileno())
    for folder in folders:
        sync(folder)


def _files(folder: Path) -> Iterator[str]:
    """Yield the files of a result; what is hidden, and checkpoints, are none."""
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder)
        unfinished = any(part.startswith(".") or part.endswith(("checkpoint", "checkpoints")) for part in below.parts)
        if path.is_file() and not unfinished and below.as_posix() != STEP:
            yield below.as_posix()


def _flushed(file: Path) -> StepFile:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        os.fsync(stream.fileno())
        return StepFile(bytes=stream.tell(), sha256=digest)


def _hash(file: Path) -> str:
    with open_regular(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_step(
    folder: Path, command: Command, inputs: Mapping[str, Path], tell: Callable[[str], None]
) -> tuple[How, str]:
    """Make the folder of a step, or what is left of it; return how that ended, and why so where it did not end well.

    A command that knows ``--resume`` goes on with what the folder holds. Where it says that it cannot, the folder is
    set aside, and begun anew; where it does not know it, the folder is begun anew. ``tell`` hears what it prints.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f".{folder.name}.lock").open("ab") as lock:
            if not _locked(lock):
                return "died", f"the command of another attempt still writes {folder}. Stop it or wait for it."
            return _made(folder, command, inputs, tell, lock)
    except (HarnessError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EAGAIN):  # no process can be started now
            return "died", reason(error)
        text = str(error) if isinstance(error, HarnessError) else f"{reason(error)}."
        return ("stopped" if is_full(error) else "refused"), text


def _locked(lock: IO[bytes]) -> bool:
    """Wait for the command of an attempt that was given up, which ends with its process; tell whether it has."""
    deadline = time.monotonic() + BUSY_S
    while sys.platform != "win32":
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(LOOK_S)
    return True


def free_aside(directory: Path) -> Path:
    """Return a free path in the study's folder of what was set aside, where no report looks."""
    (directory.parents[1] / ASIDE).mkdir(exist_ok=True)
    number = 1
    while (aside := directory.parents[1] / ASIDE / f"{directory.name}.{number}").exists():
        number += 1
    return aside


def _made(
    folder: Path, command: Command, inputs: Mapping[str, Path], tell: Callable[[str], None], lock: IO[bytes]
) -> tuple[How, str]:
    if read_step(folder, command.identity) is not None:
        return "done", ""
    first, *rest = command.words
    resumes = first == "trace" or (first == "train" and "resume" in RECIPES.load(rest[0]).model_fields)
    begun = folder.is_dir() and any(entry.name != LOG and not entry.name.startswith(".") for entry in folder.iterdir())
    if not (resumes and begun):
        shutil.rmtree(folder, ignore_errors=True)
        if command.begin_with:
            whole = inputs[command.begin_with]
            if (record := read_step(whole)) is None:
                raise StoreError(
                    f"{whole} is not whole any more. Delete it, and give the same command with --retry-failed."
                )
            copy_files(whole, folder, record.made)
    words = [*(filled(word, inputs) for word in command.words), "--out", str(folder)]
    words += ["--resume"] if resumes and begun else []
    so_far = folder.with_name(f".{folder.name}.log")  # beside the folder, which some commands want to be empty
    with so_far.open("w", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        log.write(f"$ {shlex.join(['harness', *words])}\n")

        def note(line: str) -> None:
            log.write(f"{line}\n")
            tell(line)

        code, said = _run(words, command.threads, note, lock)
    folder.mkdir(exist_ok=True)
    os.replace(so_far, folder / LOG)
    if not code:
        finish_step(folder, command)
        return "done", ""
    if words[-1] == "--resume" and code == _ANEW:
        os.replace(folder, free_aside(folder))
        return _made(folder, command, inputs, tell, lock)
    return _ended(code, said)


def _run(
    words: Sequence[str], threads: int | None, tell: Callable[[str], None], lock: IO[bytes]
) -> tuple[int, Sequence[str]]:
    """Run a command of the harness, which holds a lock meanwhile; return its exit code, and what it printed last."""
    said: deque[str] = deque(maxlen=_LAST_LINES)
    process = fresh_interpreter(
        "harness.study.step_run", *words,
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
    """Return how a command ended, by its exit code, and the last line that says why."""
    if code < 0 or code == _INTERRUPTED:
        return "died", f"its command ended with {f'signal {-code}' if code < 0 else 'an interrupt'}"
    lines = [f"exit code {code}", *said]
    errors = [number for number, line in enumerate(lines) if line.startswith(_ERROR)]
    text, *commands = lines[errors[-1] :] if errors else lines[-1:]
    ends: dict[int, How] = {_FULL: "stopped", _NO_MEMORY: "out-of-memory"}
    return ends.get(code, "refused"), str(HarnessError(text.removeprefix(_ERROR), commands))


def main() -> None:
    """Be the command that is given, and end with the process that started this one."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        runpy.run_module("harness.cli", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        error = left.__context__
        if error is None:
            raise
        if left.code == DEFECT:
            print(f"{_ERROR}a defect: {reason(error)}", file=sys.stderr)
        of_the_system = any(isinstance(one, OSError) for one in chain(error))  # may be otherwise next time
        if is_full(error):
            sys.exit(_FULL)
        if any(map(is_out_of_memory, chain(error))):
            sys.exit(_NO_MEMORY)
        sys.exit(_ANEW if isinstance(error, ResumeError) and not of_the_system else left.code)


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written there
    os._exit(1)


if __name__ == "__main__":
    main()
