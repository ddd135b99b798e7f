"""The contract of a recipe of ``harness train NAME``: its options, what it is handed, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Progress", "Recipe", "Silent", "Trained", "TrainingRun"]


class Progress(Protocol):
    """Is told how long work goes on; the command line draws a progress bar from it."""

    def stage(self, text: str) -> None:
        """Something slow begins that has no steps to count."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """So many steps are to be done, so many of them were before."""

    def step(self, done: int, note: str = "") -> None:
        """So many steps are done now."""


class Silent:
    """Progress that is not shown."""

    def stage(self, text: str) -> None:
        """Say nothing."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Say nothing."""

    def step(self, done: int, note: str = "") -> None:
        """Say nothing."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """Arguments of a recipe besides its options.

    Attributes:
        recipe: the name it is registered by: the kind of its artefact, which a strategy of that name looks for.
        command: as it was typed; goes into the artefact.
        progress: is told how it goes on.
    """

    recipe: str
    command: str
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True, slots=True)
class Trained:
    """Description of a training by its command.

    Attributes:
        report: printed on stdout, Markdown; empty for nothing.
        note: printed on stderr: where the artefact is, and what is worth knowing of it.
        finished: false when Ctrl-C stopped it at a checkpoint, from which ``--resume`` goes on.
    """

    report: str = ""
    note: str = ""
    finished: bool = True


class Recipe(Protocol):
    """A pydantic model whose fields are its options, and the training they decide.

    Subclass :class:`harness.training.options.TrainingOptions`, or ``TraceOptions`` to learn from a trace, and register
    the class in the entry-point group ``harness.recipes``. The docstring is the command's help and every field a flag:
    ``epochs: Annotated[int, Field(ge=1, description="Passes over the trace.")] = 20`` is ``--epochs``. Import what is
    heavy inside :meth:`train`, so that ``--help`` stays instant.

    A trace is opened, split and answered with an artefact by
    :class:`harness.training.traces.training_set.TrainingSet`; :class:`harness.training.checkpoints.Checkpoints` keeps
    the state that ``--resume`` goes on from, and :func:`harness.training.interrupt.stop_on_interrupt` makes Ctrl-C a
    request to stop.
    """

    def train(self, run: TrainingRun) -> Trained:
        """Train, and write the artefact.

        Raises:
            HarnessError: it cannot be done; in one line, with the remedy.
        """
