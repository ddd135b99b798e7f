"""Every figure and page that a report can have. A new one is one line here.

A module of figures offers ``figures(run)`` (or ``figures(runs)`` where runs stand together), which returns nothing
where there is nothing to show, and ``absence``, which says why in a few words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from reports.figures import exit_layers, fixed_exit, fronts, overhead, thresholds
from reports.figures.figure import Figure
from reports.recorded import RecordedRun

__all__ = ["OF_ALL_RUNS", "OF_ONE_RUN", "PAGES", "Catalogue", "Page", "catalogue", "figures_of"]


@dataclass(frozen=True, slots=True)
class Page:
    """A further file of a report, linked from it.

    Attributes:
        name: of the file, unique in a report, with its suffix.
        title: what it shows, a few words.
        content: makes the text.
    """

    name: str
    title: str
    content: Callable[[], str]


OfOne = tuple[Callable[[RecordedRun], list[Figure]], Callable[[RecordedRun], str]]
OfAll = tuple[Callable[[Sequence[RecordedRun]], list[Figure]], Callable[[Sequence[RecordedRun]], str]]

OF_ONE_RUN: tuple[OfOne, ...] = (
    (fronts.figures, fronts.absence),
    (thresholds.figures, thresholds.absence),
    (exit_layers.figures, exit_layers.absence),
    (overhead.figures, overhead.absence),
)
OF_ALL_RUNS: tuple[OfAll, ...] = ((fixed_exit.figures, fixed_exit.absence),)
PAGES: tuple[Callable[[Sequence[RecordedRun]], Iterable[Page]], ...] = ()
"""Makers of further pages, given all runs of the report."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The figures of a report, none drawn yet, no two of one name.

    Attributes:
        of_one: per run, in the runs' order.
        of_all: those that runs share.
        absent_of_one: per run, what it has no figure of, and why.
        absent_of_all: the same of all runs together.
    """

    of_one: tuple[tuple[Figure, ...], ...]
    of_all: tuple[Figure, ...]
    absent_of_one: tuple[tuple[str, ...], ...]
    absent_of_all: tuple[str, ...]

    @property
    def figures(self) -> list[Figure]:
        """All of them, in reading order."""
        return [figure for figures in (*self.of_one, self.of_all) for figure in figures]


def catalogue(runs: Sequence[RecordedRun], *, each: bool = True) -> Catalogue:
    """Gather the figures of runs.

    Args:
        runs: of the report.
        each: also those of every single run; without, only what runs share.
    """
    taken: set[str] = set()
    of_one = tuple(
        tuple(_renamed((figure for make, _ in OF_ONE_RUN for figure in make(run)), taken)) if each else ()
        for run in runs
    )
    absent = tuple(_said(why(run) for _, why in OF_ONE_RUN) if each else () for run in runs)
    of_all = tuple(_renamed((figure for make, _ in OF_ALL_RUNS for figure in make(runs)), taken))
    return Catalogue(of_one, of_all, absent, _said(why(runs) for _, why in OF_ALL_RUNS))


def figures_of(runs: Sequence[RecordedRun]) -> list[Figure]:
    """Return every figure that runs have, none drawn yet, no two of one name."""
    return catalogue(runs).figures


def _renamed(figures: Iterable[Figure], taken: set[str]) -> Iterable[Figure]:
    """Give a number to a name that is taken: runs in different folders may be called the same."""
    for figure in figures:
        name, number = figure.name, 2
        while name in taken:
            name, number = f"{figure.name}-{number}", number + 1
        taken.add(name)
        yield figure if name == figure.name else replace(figure, name=name)


def _said(sentences: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, sentences)))
