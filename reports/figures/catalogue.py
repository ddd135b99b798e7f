"""Every figure and page that a report can have. A new one is one line here.

A figure is a function ``RecordedRun → list[Figure]`` (or of runs, where they stand together), which returns nothing
where there is nothing to show, and another that says why in a few words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from harness.records.calibration import Calibration
from reports.completions.page import completion_page
from reports.figures import exit_layers, fixed_exit, fronts, overhead, settings
from reports.figures.calibration import calibration_figures
from reports.figures.drawing import Figure, slug
from reports.figures.training import training_figures
from reports.recorded import RecordedRun
from reports.training_logs import TrainingLogs

OfOne = tuple[Callable[[RecordedRun], list[Figure]], Callable[[RecordedRun], str]]
OfAll = tuple[Callable[[Sequence[RecordedRun]], list[Figure]], Callable[[Sequence[RecordedRun]], str]]

OF_ONE_RUN: tuple[OfOne, ...] = (
    (fronts.figures, fronts.absence),
    (settings.thresholds, settings.without_thresholds),
    (exit_layers.figures, exit_layers.absence),
    (settings.draft_lengths, settings.without_draft_lengths),
    (overhead.figures, overhead.absence),
)
OF_ALL_RUNS: tuple[OfAll, ...] = ((fixed_exit.figures, fixed_exit.absence),)


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The figures of a report, none drawn yet, no two of one name."""

    of_one: tuple[tuple[Figure, ...], ...] = ()
    of_all: tuple[Figure, ...] = ()
    of_sweeps: tuple[Figure, ...] = ()
    of_trainings: tuple[Figure, ...] = ()
    absent_of_one: tuple[tuple[str, ...], ...] = ()
    absent_of_all: tuple[str, ...] = ()

    @property
    def figures(self) -> list[Figure]:
        """All of them, in reading order."""
        return [
            figure for figures in (*self.of_one, self.of_all, self.of_sweeps, self.of_trainings) for figure in figures
        ]


def catalogue(
    runs: Sequence[RecordedRun],
    calibrations: Sequence[Calibration] = (),
    trainings: Sequence[TrainingLogs] = (),
    *,
    each: bool = True,
) -> Catalogue:
    """Gather the figures of a report."""
    taken: set[str] = set()

    def renamed(figures: Iterable[Figure]) -> tuple[Figure, ...]:
        """Number the names that are taken: runs in different folders may be called the same."""
        found = []
        for figure in figures:
            name, number = figure.name, 2
            while name in taken:
                name, number = f"{figure.name}-{number}", number + 1
            taken.add(name)
            found.append(replace(figure, name=name))
        return tuple(found)

    def sentences(of: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, of)))

    singly = OF_ONE_RUN if each else ()
    return Catalogue(
        tuple(renamed(figure for make, _ in singly for figure in make(run)) for run in runs),
        renamed(figure for make, _ in OF_ALL_RUNS for figure in make(runs)),
        renamed(calibration_figures(calibrations)),
        renamed(training_figures(trainings)),
        tuple(sentences(why(run) for _, why in singly) for run in runs),
        sentences(why(runs) for _, why in OF_ALL_RUNS) if runs else (),
    )


@dataclass(frozen=True, slots=True)
class Page:
    """A further file of a report, linked from it."""

    name: str
    title: str
    content: Callable[[], str]


def pages(named: Iterable[tuple[str, RecordedRun]]) -> list[Page]:
    """Return the further pages of runs, no two of one name: completions, where the run says which token is which text."""
    found: list[Page] = []
    for name, run in named:
        if any(sample.token_texts for sample in run.samples):
            stem = f"completions-{slug(name)}"
            taken = {page.name for page in found}
            file = next(f for n in range(1, len(found) + 2) if (f := f"{stem}{f'-{n}' * (n > 1)}.html") not in taken)
            found.append(Page(file, f"Completions of {name}, token by token", partial(completion_page, run)))
    return found
