"""Write the tables of the documentation from run directories, so that they cannot drift from what was measured.

    python docs/scripts/write_tables.py [RUNS] [--check] [--docs DIR]

``docs/results/measure`` makes RUNS (default: studies) and calls this. It writes what is to be kept of each finished
study to ``results/data`` of the documentation, and from these files the tables: between ``<!-- table: NAME -->`` and
``<!-- /table -->`` of a page stands the table of that name, with its command, date and machine in one line under it.
A block whose data are missing is left as it is and said so. ``--check`` needs no RUNS and writes nothing: it names the
blocks that are not what their data say and then ends with code 1.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from functools import partial
from pathlib import Path

import kept
import measured
import ranked
from harness.errors import DataError, HarnessError, UnknownNameError
from kept import Found, MissingRunsError
from measured import Shown
from reports.tables.writers import to_markdown

STUDIES = {**measured.STUDIES, **ranked.STUDIES}
TABLES = {**measured.TABLES, **ranked.TABLES}
DATA = Path("results") / "data"
ROOT = Path(__file__).resolve().parents[2]
OPENING = re.compile(r"^<!-- table: (\S+) -->$", re.M)
UNDER = re.compile(r"<br>(?:\\\[95 %[^\]]*\])?(?:, )?([^ |]*)")
"""The line under a header: the level of its intervals, which the line under the table says, and its unit."""
BLOCK = re.compile(r"^<!-- table: (\S+) -->\n(.*?)^<!-- /table -->$", re.M | re.S)


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


def rendered(table: Shown, found: Found) -> str:
    """Return a table in Markdown, and where it comes from."""
    lines = "\n".join(to_markdown(table.parts(found)))
    lines = UNDER.sub(lambda unit: unit[1] and f", {unit[1]}", lines)
    return "\n".join([lines, "", provenance(found), "", ""])  # which says what brackets are


def provenance(found: Found) -> str:
    """Return the line under a table: commands, and of runs days, machines, number formats, documents and protocols."""
    runs = [run for study in found.values() for run in study.runs]
    said = list(dict.fromkeys(f"`{study.command}`" for study in found.values()))
    if not runs:  # what was replayed has neither times nor a machine
        return f"*{said[0]}; in brackets 95 % intervals over documents.*"
    said.append(days(datetime.fromisoformat(run.created).date() for run in runs))
    said += machines(run.summary.machine for run in runs)
    rows = [row for run in runs for row in run.summary.rows]
    said.append(", ".join(dict.fromkeys(row.numbers for row in rows)))
    told = f"prompts of {', '.join(dict.fromkeys(f'`{name}`' for run in runs for name in run.protocols))}"
    if lengths := sorted(length for run in runs for length in run.prompt_tokens):
        ends = dict.fromkeys(f"{length:.0f}" for length in (lengths[0], lengths[-1]))
        told += f" of {' to '.join(ends)} tokens on average"
    if tokens := ", ".join(dict.fromkeys(str(run.max_new_tokens) for run in runs if run.max_new_tokens)):
        told += f", {tokens} new tokens"
    if counts := sorted({row.n for row in rows if row.strategy == "full"}):
        span = f"{counts[0]}" if len(counts) < 2 else f"{counts[0]} to {counts[-1]}"
        units = "requests" if any(row.keep for row in rows) else "documents"
        over = "over documents"
        if any(row.source.startswith("embedded") for row in rows):
            over += ", which are one code base's where they are Python's library or the JDK"
        told = f"{span} {units} of each kind; {told}; in brackets 95 % intervals {over}"
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


def keep(docs: Path, folder: Path) -> Iterator[tuple[str, str]]:
    """Write what is to be kept of each study that is finished; yield the others, and what they lack."""
    for study, command in STUDIES.items():
        try:
            kept.collect(folder / study, command, measured.TELLS.get(study)).write(docs / DATA / f"{study}.json")
        except MissingRunsError as missing:
            yield study, f"kept as it was, {missing}"


def update(docs: Path, *, write: bool) -> Iterator[tuple[str, str]]:
    """Yield each block's page and name, and what becomes of it: ``changed``, ``as it was``, or why it is left alone."""
    for page in sorted(docs.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        made: dict[str, str] = {}
        for name in blocks(page):
            where, table = f"{page.relative_to(docs).as_posix()}: {name}", TABLES[name]
            try:
                found = {study: kept.read(docs / DATA / f"{study}.json") for study in table.studies}
            except MissingRunsError as missing:
                yield where, f"left alone, {missing}"
                continue
            made[name] = f"<!-- table: {name} -->\n{rendered(table, found)}<!-- /table -->"
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
        for study, why in () if given.check else keep(given.docs, given.runs):
            print(f"{study}: {why}", flush=True)
        for where, what in update(given.docs, write=not given.check):
            stale |= what == "changed"
            print(f"{where}: {'would change' if given.check and what == 'changed' else what}", flush=True)
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 2
    return int(given.check and stale)


if __name__ == "__main__":
    sys.exit(main())
