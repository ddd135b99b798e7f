"""The contract of a recipe of ``harness train NAME``, and the weight of each exit in LITE's loss, without tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias


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
    the state that ``--resume`` goes on from, and :func:`harness.training.checkpoints.stop_on_interrupt` makes Ctrl-C a
    request to stop.
    """

    def train(self, run: TrainingRun) -> Trained:
        """Train, and write the artefact; raise a :class:`HarnessError` of one line where that cannot be."""


WeightsRule: TypeAlias = Literal["green-code", "uniform", "layerskip", "last"]

_BUDGETS, _LAST_BUDGET, _RATIO = (0.7, 0.2), 0.1, 0.9
_EXIT_SCALE = 0.2


def loss_weights(exit_points: Sequence[int], num_layers: int, rule: WeightsRule) -> tuple[float, ...]:
    """Return one loss weight per exit point and one for the last layer; they sum to 1.

    ``green-code`` (section III-D): budgets 0.7 for exits in the first half of the layers and 0.2 for the second,
    geometric with ratio 0.9 inside a half; 0.1 for the last layer. A half without exits leaves its budget to the
    other one. ``uniform``: all alike. ``layerskip`` (Elhoushi 2024, arXiv 2404.16710, section 4.1.2, with the
    e_scale 0.2 of its models from scratch): quadratic in depth. ``last``: the last layer alone, without exits.
    """
    if rule == "uniform":
        return (1 / (len(exit_points) + 1),) * (len(exit_points) + 1)
    if rule == "last":
        return (*(0.0 for _ in exit_points), 1.0)
    if rule == "layerskip":
        scales = [_EXIT_SCALE * point * (point - 1) / 2 for point in exit_points]
        scales.append((num_layers - 1) * (1 + _EXIT_SCALE * (num_layers - 2) / 2))
        return tuple(scale / sum(scales) for scale in scales)
    halves = [[p for p in exit_points if p <= num_layers // 2], [p for p in exit_points if p > num_layers // 2]]
    budgets = [budget if half else 0.0 for budget, half in zip(_BUDGETS, halves, strict=True)]
    share = (1 - _LAST_BUDGET) / sum(budgets) if sum(budgets) else 0.0
    weights: list[float] = []
    for half, budget in zip(halves, budgets, strict=True):
        ratios = [_RATIO**place for place in range(len(half))]
        weights += [share * budget * ratio / sum(ratios) for ratio in ratios]
    return (*weights, 1 - sum(weights))
