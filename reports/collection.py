"""One report of many runs in a folder of its own: tables, LaTeX, figures; the run directories are only read.

Runs that could not be read stand in it with the reason, and those that are not finished say so wherever their numbers
do. ``report.md`` and ``index.html`` are written last, so that no link of theirs is dead; ``tables.tex`` is first, and
tells an unfinished report from somebody else's files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from os.path import isdir, isfile  # of pathlib they fail where one may not look
from pathlib import Path
from typing import Any

from harness.appearance.pages import templates
from harness.appearance.visible_text import json_text
from harness.errors import ConfigError, StoreError
from harness.host.files import open_regular, read_model, real_path, require_writable
from harness.records.calibration import CALIBRATION, Calibration
from reports.figures.catalogue import Catalogue, Page, catalogue, pages
from reports.figures.drawing import INCHES, Figure, Width, save_figures
from reports.files import write_files
from reports.published.numbers import published
from reports.recorded import RecordedRun
from reports.statistics.plausible import LARGEST, all_plausible, numbers_of
from reports.tables.conclusion import conclusion
from reports.tables.frame import ACCEPTANCE_FILE, acceptance_csv, runs_to_csv
from reports.tables.latex import FIRST_LINE, to_latex
from reports.tables.report import HEADING, detailed, how_to_read, notes_of, task_tables
from reports.tables.result import split_tables
from reports.tables.run_tables import parts_of
from reports.tables.table import Column, Line, Table
from reports.tables.writers import escape_markdown, to_markdown
from reports.training_logs import TrainingLogs

FIGURES = "figures"
DETAILS = "tables-details.tex"
_FILES = {
    "report.md": "everything in one text",
    "tables.tex": "LaTeX tables",
    DETAILS: "LaTeX, details",
    "summary.csv": "CSV",
    ACCEPTANCE_FILE: "CSV of drafts",
    "summary.json": "JSON",
}
MOST_RUNS_DRAWN = 20  # with more, figures of each are drawn only when asked for: they take seconds a run
_KNOWN_CALIBRATIONS = 1  # schema version of calibration.json up to which it is read
HEAD = "<!doctype html>\n<!-- A report of `harness report`. -->"
_HEADS = {"report.md": HEADING, "index.html": HEAD, "tables.tex": FIRST_LINE}
"""How the files begin that tell a report, finished or not, from other files."""


@dataclass(frozen=True)
class Collection:
    """Runs that are reported together."""

    runs: tuple[RecordedRun, ...]
    refused: tuple[tuple[str, str], ...] = ()
    calibrations: tuple[Calibration, ...] = ()
    trainings: tuple[TrainingLogs, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether there is nothing to report but what could not be read."""
        return not (self.runs or self.calibrations or any(logs.lite or logs.agents for logs in self.trainings))

    @property
    def named(self) -> list[tuple[str, RecordedRun]]:
        """Each run with a name, no two alike: of its folder, or the whole path where folders are called the same."""
        taken = Counter(run.name for run in self.runs)
        return [(run.name if taken[run.name] == 1 else str(run.directory), run) for run in self.runs]

    @cached_property
    def copies(self) -> dict[str, str]:
        """Which names are of runs that share windows with an earlier one, and in words how many."""
        first: dict[bytes, str] = {}
        found = {}
        for name, run in self.named:
            shared = Counter(first[one] for one in run.measurements if one in first)
            for original, count in shared.most_common(1):
                windows = len(run.measurements)
                some = f"{count} of its {windows} windows are {original}'s"
                found[name] = f"{f'a copy of {original}' if count == windows else some}, not a run of its own"
            first.update((one, first.get(one, name)) for one in run.measurements)
        return found

    def as_json(self) -> Iterator[str]:
        """Yield a JSON array in parts, one entry per run: those that could not be read last, with the reason."""
        entries: Iterator[dict[str, Any]] = chain(
            (
                {
                    "run": name,
                    "directory": str(run.directory),
                    "state": run.state,
                    "summary": run.summary.model_dump(mode="json"),
                }
                for name, run in self.named
            ),
            ({"run": path, "directory": path, "refused": why, "summary": None} for path, why in self.refused),
        )
        yield "["
        for number, entry in enumerate(entries):
            text = json_text(entry).replace("\n", "\n  ")  # as the array's own indentation would
            yield f"{',' * bool(number)}\n  {text}"
        yield "\n]"


def find_calibrations(paths: Iterable[Path]) -> list[Path]:
    """Return the sweep folders with a calibration among paths, or right below one without, each once."""
    found: dict[Path, Path] = {}
    for path in paths:
        here = path / CALIBRATION
        for file in [here] if isfile(here) else sorted(path.glob(f"*/{CALIBRATION}")) if isdir(path) else []:
            found.setdefault(real_path(file.parent), file.parent)
    return list(found.values())


def read_calibration(folder: Path) -> Calibration:
    """Read what `harness sweep --out FOLDER` wrote."""
    path = folder / CALIBRATION
    again = "Make it again: `harness sweep --replay TRACE --strategy NAME --out DIR`."
    found = read_model(path, Calibration, StoreError, again, "calibration")
    if found.schema_version > _KNOWN_CALIBRATIONS:
        raise StoreError(
            f"{path} has version {found.schema_version}, this harness reads up to {_KNOWN_CALIBRATIONS}. Update it."
        )
    if not all_plausible(numbers_of(found.model_dump(include={"tokens", "documents", "scores", "seconds"}))):
        raise StoreError(f"{path} holds a number that cannot be true (beyond {LARGEST:g}): it is damaged. {again}")
    return found


def check_folder(out: Path) -> None:
    """Refuse a folder that a report must not be written to, since somebody else's files would be replaced."""
    try:
        if (out / "manifest.json").exists():
            raise ConfigError(f"{out} is a run directory, and its summary.json would be lost. Use another --out.")
        if out.exists() and not out.is_dir():
            raise ConfigError(f"{out} is a file. Use another --out.")
        marked = {name: out / name for name in _HEADS if (out / name).exists()}
        ours = [name for name, path in marked.items() if path.is_file() and _begins(path, _HEADS[name].encode())]
        names = (DETAILS, "summary.csv", "summary.json", ACCEPTANCE_FILE, FIGURES)
        others = [*(out / name for name in names), *sorted(out.glob("completions-*.html"))]
        foreign = [path for name, path in marked.items() if name not in ours]
        foreign += [] if marked else [path for path in others if path.exists()]
    except OSError as error:
        raise ConfigError(f"cannot look into {out}: {error.strerror}. Use another --out.") from None
    require_writable(out, ConfigError)
    if foreign:
        raise ConfigError(f"{foreign[0]} is not of a report of this harness and would be replaced. Use another --out.")


def _begins(path: Path, head: bytes) -> bool:
    with open_regular(path) as file:
        return file.read(len(head)) == head


def write_collection(
    collection: Collection,
    out: Path,
    *,
    figures: bool | None = None,
    width: Width = "text",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a report; return the paths of its files, ``index.html`` first.

    ``figures=None`` draws those that runs share, and those of each run unless there are more than ``MOST_RUNS_DRAWN``.
    ``progress`` is told after each figure how many of how many are drawn.
    """
    each = figures if figures is not None else len(collection.runs) <= MOST_RUNS_DRAWN
    drawn = Catalogue()
    if figures is not False:
        drawn = catalogue(collection.runs, collection.calibrations, collection.trainings, each=each)
    undrawn = "" if each else "Figures of single runs are left out of a report of so many. Draw them with --figures."
    if figures is False:
        undrawn = "No figures: left out on request."
    few = each or len(collection.runs) <= MOST_RUNS_DRAWN
    further = pages(collection.named) if few else []
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {out}: {error.strerror}. Use another --out.") from None
    report = "\n".join(_markdown(collection, drawn, further, undrawn)) + "\n"
    tasks = task_tables(collection.named)
    unfinished = [
        Line(f"{name} is not complete: {run.state}")
        for name, run in collection.named
        if run.state and not any(row.n for row in run.summary.rows)
    ]
    texts: dict[str, str | Iterable[str]] = {
        "tables.tex": to_latex([*unfinished, *tasks]),
        DETAILS: to_latex(detailed(collection.named)),
        "summary.csv": runs_to_csv((name, run.summary) for name, run in collection.named),
        **acceptance_csv((name, run.summary) for name, run in collection.named),
        "summary.json": chain(collection.as_json(), "\n"),
    }
    written = list(write_files(out, texts | {page.name: page.content() for page in further}))
    for number, figure in enumerate(drawn.figures, 1):
        written += save_figures([figure], out / FIGURES, width)
        if progress is not None:
            progress(number, len(drawn.figures))
    page = (
        templates("reports")
        .get_template("report.html")
        .render(
            files=[(name, what) for name, what in _FILES.items() if name in texts or name == "report.md"],
            conclusions=_conclusions(collection, every=few),
            overview=_overview(collection),
            refused=collection.refused,
            tables=tasks,
            details=[part for part in detailed(collection.named if few else ()) if isinstance(part, Table)],
            figures=drawn.figures,
            folder=FIGURES,
            undrawn=undrawn,
            pages=further,
            notes=[(name, run.summary.notes) for name, run in collection.named if run.summary.notes],
            inches=INCHES[width],
        )
    )
    last = write_files(out, {"report.md": report, "index.html": page})
    return [*reversed(last), *written]


def _markdown(collection: Collection, drawn: Catalogue, further: Sequence[Page], undrawn: str) -> Iterator[str]:
    yield HEADING
    yield from to_markdown([_overview(collection)])
    if collection.refused:
        yield from ("", f"**Left out, because they could not be read ({len(collection.refused)}):**", "")
        yield from (f"- {escape_markdown(path)}: {escape_markdown(why)}" for path, why in collection.refused)
    if undrawn:
        yield from ("", undrawn)
    if further:
        yield from ("", "## Pages", "", *(f"- [{escape_markdown(page.title)}]({page.name})" for page in further))
    if drawn.of_all or drawn.absent_of_all:
        yield from ("", "## Runs side by side")
        yield from _figures(drawn.of_all, drawn.absent_of_all)
    for place, (name, run) in enumerate(collection.named):
        yield from ("", f"## Run {escape_markdown(name)}")
        if run.state:
            yield from ("", f"**Not complete:** {escape_markdown(run.state)}.")
        yield from to_markdown(parts_of(run), 3)
        if drawn.of_one:
            yield from _figures(drawn.of_one[place], drawn.absent_of_one[place])
        yield from to_markdown(notes_of(run.summary), 3)
    if drawn.of_sweeps:
        yield from ("", "## Scores, replayed")
        yield from _figures(drawn.of_sweeps, ())
    if collection.trainings:
        yield from ("", "## Trainings behind these runs")
        problems = [problem for logs in collection.trainings for problem in logs.problems]
        yield from _figures(drawn.of_trainings, problems)
    if collection.runs:
        languages = {task.language for run in collection.runs for task in run.manifest.tasks}
        yield from to_markdown([*published(languages), *how_to_read(run.summary for run in collection.runs)])


def _conclusions(collection: Collection, *, every: bool) -> list[tuple[str, str]]:
    """Return of each run and task, or of the disturbed ones, where that is, and what to use there."""
    runs = collection.named
    return [
        (f"{name}, {table.heading}" if len(runs) > 1 else table.heading, conclusion(table))
        for name, run in runs
        for table in split_tables(run.summary)
        if every or table.disturbed
    ]


def _overview(collection: Collection) -> Table:
    """Return the table of runs."""
    rows = []
    for name, run in collection.named:
        model, points = run.manifest.model, run.manifest.operating_points
        tasks = ", ".join(f"{task.name} ({task.protocol})" for task in run.manifest.tasks)
        known = "; ".join(filter(None, (collection.copies.get(name), run.state)))
        rows.append((name, model.name, model.weights, tasks, sum(not point.never_exits for point in points), known))
    words = [Column(header=one, kind="text") for one in ("run", "model", "weights", "tasks", "what to know")]
    return Table.of_rows("", [*words[:-1], Column(header="operating points", form=".0f"), words[-1]], rows)


def _figures(figures: Sequence[Figure], absent: Sequence[str]) -> Iterator[str]:
    for figure in figures:
        path, title = f"{FIGURES}/{figure.name}", escape_markdown(figure.title)
        yield from ("", f"![{title.replace(']', '&#93;')}]({path}.svg)", "")
        yield f"**{title}.** {escape_markdown(figure.caption)} [PDF]({path}.pdf) · [PNG]({path}.png)"
    if absent:
        yield from ("", *(f"- {escape_markdown(why[:1].upper() + why[1:].rstrip('.'))}." for why in absent))
