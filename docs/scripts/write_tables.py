"""Write the tables of the documentation from run directories, so that they cannot drift from what was measured.

    python docs/scripts/write_tables.py [RUNS] [--check] [--docs DIR]

``docs/results/measure`` makes RUNS (default: studies) and calls this. Between ``<!-- table: NAME -->`` and
``<!-- /table -->`` of a page stands the table of that name, with its command, date and machine in one line under it.
A block whose runs are missing, or not finished, is left as it is and said so. ``--check`` writes nothing, names the
blocks that would change and then ends with code 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from pathlib import Path

import measured
import ranked
from harness.errors import DataError, HarnessError, UnknownNameError
from harness.running.reading import find_runs, read_run
from measured import MissingRunsError, Shown
from reports.recorded import RecordedRun
from reports.tables.writers import to_markdown

STUDIES = {**measured.STUDIES, **ranked.STUDIES}
TABLES = {**measured.TABLES, **ranked.TABLES}
ROOT = Path(__file__).resolve().parents[2]
OPENING = re.compile(r"^<!-- table: (\S+) -->$", re.M)
UNDER = re.compile(r"<br>(?:\\\[95 %[^\]]*\])?(?:, )?([^ |]*)")
"""The line under a header: the level of its intervals, which the line under the table says, and its unit."""
BLOCK = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- /table -->$", re.M | re.S)


class Runs:
    """The runs below a folder of studies, each read once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, list[RecordedRun]] = {}

    def of(self, study: str) -> list[RecordedRun]:
        """Return the finished runs of a study in its order, or all below a folder that is none."""
        if study not in self._read:
            runs = [read_run(path) for path in self._directories(self._folder / study)]
            for run in runs:
                if run.state:
                    raise MissingRunsError(f"{run.directory} is {run.state}")
            self._read[study] = runs
        return self._read[study]

    def _directories(self, folder: Path) -> Iterable[Path]:
        if not folder.is_dir():
            raise MissingRunsError(f"there is no {folder}")
        if not (folder / "study.json").is_file():
            return find_runs([folder]) if any(folder.rglob("manifest.json")) else []
        points = json.loads((folder / "study.json").read_text(encoding="utf-8"))["points"]
        ends = [name.rpartition("-")[2] for name in points]  # of a hash, by which a folder is found whatever its name
        found = [run for end in ends for run in folder.glob(f"runs/*-{end}") if (run / "summary.json").is_file()]
        if len(found) < len(points):
            raise MissingRunsError(f"{len(found)} of {len(points)} points of {folder} are measured")
        return found


def blocks(page: Path) -> list[str]:
    """Return the names of a page's tables."""
    text = page.read_text(encoding="utf-8")
    names = [name for name, _ in BLOCK.findall(text)]
    if names != OPENING.findall(text) or len(names) != text.count("<!-- /table -->"):
        raise DataError(
            f"{page} has a table mark without its other end. Close each <!-- table: NAME --> before the next."
        )
    for name in names:
        if name not in TABLES:
            raise UnknownNameError("table", name, TABLES, f"It stands in {page}.")
    return names


def rendered(table: Shown, runs: Runs, folder: Path) -> str:
    """Return a table in Markdown, and where it comes from."""
    found = {study: runs.of(study) for study in table.studies}
    lines = "\n".join(to_markdown(table.parts(found, folder)))
    lines = UNDER.sub(lambda unit: unit[1] and f", {unit[1]}", lines)
    return "\n".join([lines, "", provenance(table, found), "", ""])  # which says what brackets are


def provenance(table: Shown, found: Mapping[str, Sequence[RecordedRun]]) -> str:
    """Return the line under a table: commands, and of runs days, machines, number formats, documents and protocols."""
    runs = [run for study in found.values() for run in study]
    said = list(dict.fromkeys(f"`{STUDIES[study]}`" for study in table.studies))
    if not runs:  # what was replayed has neither times nor a machine
        return f"*{said[0]}; in brackets 95 % intervals over documents.*"
    said.append(days(datetime.fromisoformat(run.manifest.created).date() for run in runs))
    said += machines(run.summary.machine for run in runs)
    rows = [row for run in runs for row in run.summary.rows]
    said.append(", ".join(dict.fromkeys(row.numbers for row in rows)))
    cuts = []  # how prompts were cut, and how long completions were
    for run in runs:
        tokens = run.manifest.config.get("max_new_tokens")
        protocols = ", ".join(dict.fromkeys(f"`{task.protocol}`" for task in run.manifest.tasks))
        cuts.append(f"prompts of {protocols}" + (f", {tokens} new tokens" if tokens else ""))
    told = ", ".join(dict.fromkeys(cuts))
    if counts := sorted({row.n for row in rows if row.strategy == "full"}):
        span = f"{counts[0]}" if len(counts) < 2 else f"{counts[0]} to {counts[-1]}"
        units = "requests" if any(row.keep for row in rows) else "documents"
        told = f"{span} {units} of each kind; {told}; in brackets 95 % intervals over documents"
    return f"*{'; '.join([*said, told])}.*"


def days(dates: Iterable[date]) -> str:
    """Say from which day to which, a month in common once."""
    known = set(dates)
    first, last = min(known), max(known)
    if first == last:
        return f"{last.day} {last:%B %Y}"
    beginning = f"{first.day}" if (first.year, first.month) == (last.year, last.month) else f"{first.day} {first:%B %Y}"
    return f"{beginning} to {last.day} {last:%B %Y}"


def machines(lines: Iterable[str]) -> list[str]:
    """Say each processor once; Results says what their machines have in common."""
    return list(dict.fromkeys(line.partition(", ")[0] for line in lines))


def update(docs: Path, folder: Path, *, write: bool) -> Iterator[tuple[str, str]]:
    """Yield each block's page and name, and what becomes of it: ``changed``, ``as it was``, or why it is left alone."""
    runs = Runs(folder)
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        made: dict[str, str] = {}
        for name in blocks(page):
            where = f"{page.relative_to(docs).as_posix()}: {name}"
            try:
                made[name] = f"<!-- table: {name} -->\n{rendered(TABLES[name], runs, folder)}<!-- /table -->"
            except MissingRunsError as missing:
                yield where, f"left alone, {missing}"
            else:
                yield where, "as it was" if made[name] in text else "changed"
        if write and made:
            page.write_text(BLOCK.sub(partial(_filled, made), text), encoding="utf-8")


def _filled(made: Mapping[str, str], found: re.Match[str]) -> str:
    return made.get(found[1], found[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="?", type=Path, default=Path("studies"), metavar="RUNS")
    parser.add_argument("--check", action="store_true", help="write nothing; code 1 where a table would change")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", metavar="DIR")
    given = parser.parse_args(arguments)
    stale = False
    try:
        for where, what in update(given.docs, given.runs, write=not given.check):
            stale |= what == "changed"
            print(f"{where}: {'would change' if given.check and what == 'changed' else what}", flush=True)
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 2
    return int(given.check and stale)


if __name__ == "__main__":
    sys.exit(main())
