"""The exception tree: all that is refused on purpose is a :class:`HarnessError`; anything else is a defect."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

DEFECT = 70
"""Exit code of a defect, of the harness or of a plug-in, also of one that a run went on without."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Numbers of errors after which nothing can be written any more."""
_LONGEST_REASON = 300


class HarnessError(Exception):
    """Root of every refusal. The message says what failed, the value, and the remedy.

    As text it is one line, the commands in backticks. The command line prints each on a line of its own, to be pasted.

    Attributes:
        message: without the commands.
        commands: shell commands that cure it, in order; empty where the message says it all.
        exit_code: what the ``harness`` command returns for it.
    """

    exit_code = 2

    def __init__(self, message: str, commands: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message, self.commands = message, tuple(commands)

    def __str__(self) -> str:
        listed = " ; ".join(f"`{command}`" for command in self.commands)
        return f"{self.message} {listed}" if listed else self.message


class ConfigError(HarnessError):
    """A run configuration, a flag or a configuration file that cannot be used."""


class RegistryError(HarnessError):
    """An entry point that cannot be loaded, or two that claim one name."""


class UnknownNameError(HarnessError):
    """A strategy, task, model or meter that is not registered."""

    def __init__(self, noun: str, name: str, known: Iterable[str], remedy: str = "") -> None:
        names = sorted(known)
        hint = did_you_mean(name, names)
        listing = "" if hint else f" Known: {', '.join(names)}." if names else ""
        super().__init__(f"unknown {noun} '{name}'.{hint}{listing}{' ' + remedy if remedy else ''}")


class OptionError(HarnessError):
    """A strategy option that does not exist, is out of range, or does not fit the model."""


class ModelError(HarnessError):
    """Weights, tokenizer or architecture that cannot be had or are not supported."""


class OutOfReachError(ModelError):
    """A model that is neither a folder here nor cached, while the hub does not answer or does not have it.

    Attributes:
        fact: the message without its remedy, as a sentence.
    """

    def __init__(self, fact: str, remedy: str = "") -> None:
        super().__init__(f"{fact} {remedy}".rstrip())
        self.fact = fact


class DataError(HarnessError):
    """A data source that cannot be read, or that cannot be scored honestly."""


class EndpointError(HarnessError):
    """A server that is measured as a black box and is down, fails, or answers what is no completion."""


class MeterError(HarnessError):
    """An energy sensor that was asked for and is not there, or that failed."""


class StoreError(HarnessError):
    """A run directory that is damaged, foreign, or belongs to another configuration."""


class OutdatedError(StoreError):
    """A file of another version of the harness, or of records that have changed since."""


class OtherMachineError(StoreError):
    """A run that was begun on another machine, or with other packages or code, and cannot go on here."""


class ArtefactError(HarnessError):
    """A trained artefact (adapter, shortcuts, heads, agent, traces) that is missing, damaged or of something else."""


class TrainingError(HarnessError):
    """Training that cannot begin or go on; the last good checkpoint is kept."""


class ResumeError(ArtefactError, TrainingError):
    """What lies in ``--out`` is of another training or trace, or damaged: it can be begun anew, not gone on with."""


class OutOfMemoryError(HarnessError):
    """Memory ran out while decoding; every finished record is on disk."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{close[0]}'?" if close else ""


def reason(error: BaseException) -> str:
    """Return what an error says first, as a phrase in one line that any file can hold.

    The class is named where it says as much as the words, so not of refusals of ours, an ``OSError`` or ``ValueError``.
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    said = ""
    for line in str(error).splitlines():
        said = " ".join([said, *line.split()]).strip()
        if said.endswith("."):  # what follows is advice
            break
    if not said or not isinstance(error, (HarnessError, OSError, ValueError)):
        said = f"{type(error).__name__}: {said}".removesuffix(": ")
    said = said if len(said) <= _LONGEST_REASON else f"{said[: _LONGEST_REASON - 1]}…"
    return said.rstrip(".: ").encode("utf-8", "backslashreplace").decode()


def complaint(error: ValidationError) -> str:
    """Return the first thing that pydantic complains of, as a phrase without its period."""
    message = error.errors(include_url=False, include_input=False, include_context=False)[0]["msg"]
    message = message.removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the CPU or on a GPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that it was raised for, ``from None`` or not."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def is_full(error: BaseException) -> bool:
    """Whether an error came of a disk that takes nothing any more; a library may keep the system's words alone."""
    words = tuple(map(os.strerror, FULL))
    return any(
        one.errno in FULL
        if isinstance(one, OSError)
        else not isinstance(one, HarnessError) and any(said in str(one) for said in words)
        for one in chain(error)
    )
