"""Every figure and page that a report can have. A new one is one line here.

A figure is a function of a run, or of runs where they stand together, that returns figures, and beside it stands why
there are none where it returns none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from harness.records.calibration import Calibration
from reports.completions.page import completion_page
from reports.figures import exit_layers, fixed_exit, fronts, overhead, settings, waiting
from reports.figures.calibration import calibration_figures
from reports.figures.drawing import Figure, slug, unused
from reports.figures.training import training_figures
from reports.recorded import RecordedRun
from reports.training_logs import TrainingLogs

OF_ONE_RUN: tuple[tuple[Callable[[RecordedRun], list[Figure]], str], ...] = (
    (
        fronts.figures,
        "no Pareto fronts: they take several operating points, weights that are not random and, of energy, one sensor",
    ),
    (settings.thresholds, "no figure of thresholds: no strategy was run at two thresholds or more"),
    (exit_layers.figures, "no figure of exit layers: every operating point leaves after one and the same layer"),
    (
        settings.draft_lengths,
        "no figure of draft lengths: no drafts had different limits (compare with --draft-max 2,4,8,16)",
    ),
    (
        overhead.figures,
        "no figure of overhead: nothing was attributed (run with --attribute, batch 1 and a KV cache)",
    ),
    (waiting.figures, "no figure of what a user waits for: no editor sessions (run with --scenario session)"),
)
OF_ALL_RUNS: tuple[tuple[Callable[[Sequence[RecordedRun]], list[Figure]], str], ...] = (
    (
        fixed_exit.figures,
        "no curve of quality against a fixed exit's layer: no run with real weights has the strategy fixed",
    ),
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The figures of a report, none drawn yet, no two of one name; and what there is no figure of, and why."""

    of_one: tuple[tuple[Figure, ...], ...] = ()  # per run, in the runs' order
    of_all: tuple[Figure, ...] = ()
    of_sweeps: tuple[Figure, ...] = ()
    of_trainings: tuple[Figure, ...] = ()
    absent_of_one: tuple[tuple[str, ...], ...] = ()  # per run
    absent_of_all: tuple[str, ...] = ()

    @property
    def figures(self) -> list[Figure]:
        """All of them, in reading order."""
        return [figure for each in (*self.of_one, self.of_all, self.of_sweeps, self.of_trainings) for figure in each]


def catalogue(
    runs: Sequence[RecordedRun],
    calibrations: Sequence[Calibration] = (),
    trainings: Sequence[TrainingLogs] = (),
    *,
    each: bool = True,
) -> Catalogue:
    """Gather the figures of a report; without ``each`` only those that runs share."""
    taken: set[str] = set()

    def renamed(figures: Iterable[Figure]) -> tuple[Figure, ...]:
        """Number the names that are taken: runs in different folders may be called the same."""
        return tuple(replace(figure, name=unused(figure.name, taken)) for figure in figures)

    def made(of: Iterable[tuple[Callable[[T], list[Figure]], str]], source: T) -> tuple[list[Figure], tuple[str, ...]]:
        """Return figures, and why there are no others."""
        found = [(make(source), why) for make, why in of]
        return [one for figures, _ in found for one in figures], tuple(why for figures, why in found if not figures)

    singly = [made(OF_ONE_RUN, run) if each else ([], ()) for run in runs]
    shared, absent = made(OF_ALL_RUNS, runs) if runs else ([], ())
    return Catalogue(
        tuple(renamed(figures) for figures, _ in singly),
        renamed(shared),
        renamed(calibration_figures(calibrations)),
        renamed(training_figures(trainings)),
        tuple(why for _, why in singly),
        absent,
    )


@dataclass(frozen=True, slots=True)
class Page:
    """A further file of a report, linked from it."""

    name: str  # of the file, unique in a report
    title: str
    content: Callable[[], str]


def pages(named: Iterable[tuple[str, RecordedRun]]) -> list[Page]:
    """Return the completions of named runs, where a run says which token is which text."""
    taken: set[str] = set()
    return [
        Page(
            f"{unused(f'completions-{slug(name)}', taken)}.html",
            f"Completions of {name}, token by token",
            partial(completion_page, run),
        )
        for name, run in named
        if any(sample.token_texts for sample in run.samples)
    ]
