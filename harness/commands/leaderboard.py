"""``harness leaderboard``: runs of many machines as one static site."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from os.path import exists, isdir, isfile  # of pathlib they fail where one may not look
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated

import typer

from harness.appearance.visible_text import one_line
from harness.commands.console import escape, stderr, stdout, tell_refused
from harness.errors import HarnessError, StoreError

if TYPE_CHECKING:
    from reports.leaderboard.site import Site

Refused = list[tuple[Path, str]]


def leaderboard(
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Run directories, archives of `harness submit`, or folders of them.", metavar="RUN", readable=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the site.", metavar="SITE", readable=False)],
    merge: Annotated[
        bool, typer.Option("--merge", help="Keep the runs that the site holds; else all of them must be given.")
    ] = False,
    stored: Annotated[
        bool, typer.Option("--stored", help="Trust each summary.json and all scores, instead of computing them again.")
    ] = False,
    samples: Annotated[
        int, typer.Option(help="Completions to show per operating point.", min=0, max=1000, metavar="N")
    ] = 8,
) -> None:
    """Merge run directories into a leaderboard: a static site that needs no server and no network.

    What is not comparable (hardware class, energy source, data, weights …) is never ranked together; what `harness
    submit` would refuse (unfinished, contaminated, contradicting itself …) is marked and not ranked.
    index.html#decoding=lossless ranks lossless operating points and full depth among themselves.
    """
    from reports.leaderboard.site import Site

    site = Site(out, merge=merge, shown=samples)
    kept = len(site.runs)
    refused, marked, double = _add_all(site, _sources(paths), stored=stored)
    tell_refused(refused, stderr())
    tell_refused(marked, stderr(), "not ranked")
    site.finish()
    points = sum(len(run.points) for run in site.runs.values())
    parts = [
        f"{len(site.runs)} run(s) with {points} operating points",
        f"{len(site.runs) - kept} new" if merge else "",
        f"{len(marked)} marked and not ranked" if marked else "",
        f"{double} given twice or there already" if double else "",
        f"{len(refused)} left out" if refused else "",
    ]
    text = f"{', '.join(filter(None, parts))}. Open {out / 'index.html'} in a browser, or publish the folder as it is."
    stdout().print(escape(one_line(text)), highlight=False, soft_wrap=True)


def _sources(paths: Iterable[Path]) -> list[Path]:
    """Run directories and archives that paths name: themselves, or all below a folder."""
    from harness.running.reading import find_runs
    from harness.store.committed import MANIFEST
    from harness.store.packed_run import ARCHIVE

    found: list[Path] = []
    for path in paths:
        is_folder = isdir(path) and not exists(path / MANIFEST)
        archives = sorted(path.rglob(f"*{ARCHIVE}")) if is_folder else []
        runs = [path] if isfile(path) else find_runs([path])
        if archives and runs == [path]:  # a folder of archives alone
            runs = []
        found += [*runs, *archives]
    return list(dict.fromkeys(found))


def _add_all(site: Site, sources: list[Path], *, stored: bool) -> tuple[Refused, Refused, int]:
    """Add what can be read, one run in memory at a time.

    Returns:
        What was left out, and what was added without a rank, both with reasons; and the number of doubles.
    """
    from harness.commands.progress import TrainingProgress
    from harness.registry import plugin_at_fault
    from harness.running.reading import DAMAGE, read_ahead

    refused: Refused = []
    marked: Refused = []
    double = 0
    with ExitStack() as open_ones:
        progress = open_ones.enter_context(TrainingProgress(stderr()))
        progress.begin("reading runs", len(sources))
        wait = open_ones.enter_context(read_ahead(() if stored else sources))
        for done, source in enumerate(sources, 1):
            wait(source)
            try:
                reasons = _add(site, source, stored=stored)
                double += reasons is None
                if reasons:
                    marked.append((source, reasons))
            except HarnessError as error:
                refused.append((source, one_line(str(error))))
            except DAMAGE as error:  # met by one run of many: the others are published, and it is named
                what = shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
                whose = f" of {at}" if (at := plugin_at_fault(error)) else ""
                reason = f"{source} cannot be understood ({what}); leave it out, and report it as a defect{whose}"
                refused.append((source, reason))
            progress.step(done)
    return refused, marked, double


def _add(site: Site, source: Path, *, stored: bool) -> str | None:
    """Add a run; return why it does not rank, empty where it does, ``None`` where it is there already."""
    from harness.store.packed_run import unpacked

    if not isfile(source):
        return _publish(site, source, source, stored=stored)
    with unpacked(source) as directory:
        return _publish(site, directory, source, stored=stored)


def _publish(site: Site, directory: Path, source: Path, *, stored: bool) -> str | None:
    from harness.running.reading import read_run
    from harness.running.rescore import rescored

    try:
        run = read_run(directory, stored=stored, keep=True)
        failed = site.add(run, None if stored else rescored)
        if failed is None:
            return None
        return " ".join(check.detail for check in failed).replace(str(directory), str(source))
    except StoreError as error:  # of an archive: name it, not the temporary folder
        raise StoreError(str(error).replace(str(directory), str(source))) from None
