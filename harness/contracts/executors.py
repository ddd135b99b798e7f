"""The contract of an executor: it runs the parts of a study in processes somewhere, and says how each one ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

How = Literal["progress", "done", "refused", "out-of-memory", "wrong-machine", "died", "stopped"]
"""``refused``: it cannot be measured, here or elsewhere; ``out-of-memory``: it may fit where nothing else was before;
``wrong-machine``: it was begun on another machine or with other packages, and numbers of two are not mixed in one run;
``died``: the process or its machine; ``stopped``: nothing can be written any more, so that the study ends."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command of the harness that makes a folder."""

    # as one types it, without harness and without --out; {NAME} stands for the folder of an input
    words: tuple[str, ...]
    identity: str  # hash over the words, with the identities of the inputs in their place
    begin_with: str = ""  # the input whose files the folder begins with; empty for none
    threads: int | None = None  # of its numerical libraries; None for as many as they choose


@dataclass(frozen=True, slots=True)
class Job:
    """One point that is to be measured, or one step whose folder is to be made.

    Attributes:
        name: of the point, or of the step.
        directory: its run directory, which may hold the beginning of the run; or the folder of the step.
        settings: of its run, as JSON holds them, without ``out``; ``{NAME}`` stands for the folder of an input.
        model: what a process loads for it; jobs that share it can follow one another in one process.
        shares: nothing of it is timed, so that it may run beside others that share.
        command: of a step; ``None`` for a point.
        inputs: name → folder of each step that it reads.
    """

    name: str
    directory: Path
    settings: Mapping[str, Any]
    model: tuple[str, ...]
    shares: bool = False
    command: Command | None = None
    inputs: Mapping[str, Path] = field(default_factory=dict)

    @property
    def threads(self) -> int | None:
        """CPU threads that it uses; ``None`` where nothing says how many."""
        return self.settings.get("threads") if self.command is None else self.command.threads


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

    A job owns the device that it measures on, or a set of processor cores, while it runs. What may run beside what is
    decided before :meth:`has_room` is asked, and so is whether a job is tried again: an executor tries each once.
    Points are measured by :func:`harness.study.point_run.run_job`, which goes on with what a run directory holds, and
    leaves every window that was finished in it whatever dies.
    """

    options: ClassVar[tuple[str, ...]] = ()
    """Of ``harness study`` that it understands, beside ``--executor``."""

    @classmethod
    @abstractmethod
    def open(cls, options: Mapping[str, str]) -> Self:
        """Start it, with the options that were given, by name.

        Raises:
            ConfigError: it cannot be had; says what is missing and the remedy.
        """

    @abstractmethod
    def has_room(self, job: Job) -> bool:
        """Whether this job could begin beside those that run; one always can where nothing runs."""

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
