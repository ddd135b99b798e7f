"""What an executor promises: it runs the points of a study in processes somewhere, and says how each one ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

__all__ = ["Executor", "Happened", "How", "Job"]

How = Literal["progress", "done", "refused", "out-of-memory", "elsewhere", "unfit", "stopped", "lost"]
"""``refused``: it cannot be measured, here or elsewhere; ``out-of-memory``: it may fit where nothing else was before;
``elsewhere``: it was begun on another machine or with other packages, and numbers of two are not mixed in one run;
``unfit``: its machine lacks something and takes no more of its kind, and another one is left;
``stopped``: nothing can be written any more, so that the study ends; ``lost``: the process or its machine died."""


@dataclass(frozen=True, slots=True)
class Job:
    """One point that is to be measured.

    Attributes:
        name: of the point.
        directory: its run directory, which may hold the beginning of the run.
        settings: of its run, as JSON holds them, without ``out``.
        model: what a process loads for it; jobs that share it can follow one another in one process.
        shares: nothing of it is timed, so that it may run beside others that share.
    """

    name: str
    directory: Path
    settings: Mapping[str, Any]
    model: tuple[str, ...]
    shares: bool = False


@dataclass(frozen=True, slots=True)
class Happened:
    """Something that an executor tells of a job.

    Attributes:
        job: which.
        how: it goes on, or how it ended.
        text: what it is doing, or why it ended so.
        place: where it runs: host and process.
        windows: finished and expected, once that is known.
        memory_bytes: the most that its process held so far, where it is known.
    """

    job: Job
    how: How
    text: str = ""
    place: str = ""
    windows: tuple[int, int] | None = None
    memory_bytes: int | None = None

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self.how != "progress"


class Executor(ABC):
    """Runs jobs in processes somewhere; a context manager, whose end stops what runs.

    A job owns the device that it measures on, or a set of processor cores, while it runs; jobs that share may run
    beside each other, and never on a machine where one is measured. A job resumes what its
    directory holds and leaves an ordinary run directory there; every window that was finished is in the directory,
    whatever dies.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """Of ``harness study`` that it understands, beside ``--executor``."""

    @classmethod
    @abstractmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Start it.

        Args:
            options: those that were given, by name.

        Raises:
            ConfigError: it cannot be had; says what is missing and the remedy.
        """

    @abstractmethod
    def has_room(self, job: Job) -> bool:
        """Whether this job could begin now; one always can where nothing runs."""

    @abstractmethod
    def start(self, job: Job) -> None:
        """Begin a job; there is room."""

    @abstractmethod
    def wait(self) -> Happened:
        """Wait until something happens to one of the jobs that run; there is one."""

    @abstractmethod
    def close(self) -> None:
        """Stop everything that runs; finished windows are kept."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
