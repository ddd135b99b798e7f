"""Writes the site: pages, assets, and one data file per run and per operating point.

Pages carry no data of a run, and a policy in each forbids everything that does not lie beside it. Data are scripts,
which ``file://`` pages may load while they may not fetch a file: one call, ``leaderboardData("KIND", {…});``, in ASCII,
in which ``<``, ``>`` and ``&`` are escaped, so that it would be safe inside a page, too.

``data/runs/ID.js`` is the site's memory: with ``merge`` these files are read again and everything else is made from
them and the new runs. They are written before the front page's data, and what no run refers to any more is deleted
after it, so that a site is usable at any moment of its making. ``site.json`` says until the end that a new site is
unfinished: one whose making failed can be made again in the same folder. A finished site never loses a run: without
``merge`` all that it holds must be given again. The same runs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import Field

from harness.appearance.pages import TOKEN_CSS, templates
from harness.appearance.visible_text import escape_json
from harness.errors import StoreError
from harness.host.files import LARGEST_LOG_BYTES, parse_json, read_json, read_text, refusing, unfinished
from harness.host.libraries import require
from harness.records import SCHEMA_VERSION
from harness.records.conditions import HARDWARE_RULE, REPLAY, group_id
from harness.records.record import Record
from harness.store.record_files import check_version
from reports.files import replace_file
from reports.leaderboard.checks import CANNOT_BE_CHECKED, COMPUTED_AGAIN, Check, Rescore, publication_checks
from reports.leaderboard.data import (
    SAMPLES_SHOWN,
    SITE_SCHEMA,
    RunEntry,
    describe_columns,
    describe_point,
    entry_of,
    index_of,
)
from reports.leaderboard.ranking import MARGIN
from reports.leaderboard.redaction import redact_run
from reports.published.numbers import Reference, references
from reports.recorded import RecordedRun

MARK = "site.json"
FOLDERS = ("assets", "data", "data/runs", "data/points")
PAGES = ("index.html", "point.html", "compare.html")
_PLOTLY = "plotly.min.js"
_HEAD, _TAIL = "leaderboardData(", ");\n"
_REMEDY = "Make the site again with another --out."


class Mark(Record):
    """``site.json``, which tells a site from any other folder."""

    site_schema: int  # of the site's data files
    schema_version: int  # of the run directories it was made from
    samples: int = Field(ge=0)  # completions per operating point, at most
    unfinished: bool = False  # the first making of this site has not come to its end


class Site:
    """A site being made in a folder that is new, empty or a site; ``merge`` keeps what it holds."""

    def __init__(self, folder: Path, *, merge: bool = False, shown: int = SAMPLES_SHOWN) -> None:
        self.folder, self.shown, self._most = folder, shown, shown
        self.runs: dict[str, RunEntry] = {}
        self._held: set[str] = set()
        self._new: list[Path] = []
        self._assets = list(assets())  # before anything is written: what they need may not be installed
        try:
            mark = _read_mark(folder)
            if mark is None and folder.exists() and not _is_blank(folder):
                raise StoreError(f"{folder} is not empty and no leaderboard. Use another --out.")
            there = sorted((folder / "data" / "runs").glob("*.js"))
            if merge:
                self._most = max(shown, mark.samples if mark else 0)
                self.runs = {run.id: run for run in map(_read_entry, there)}
            elif mark and not mark.unfinished:
                self._held = {file.stem for file in there}
            self._is_new = not folder.exists()
            for name in FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror}. Use another --out.") from None
        if mark is None:
            self._write_mark(unfinished=True)

    def add(self, run: RecordedRun, rescore: Rescore | None = None) -> tuple[Check, ...] | None:
        """Add a run; return the conditions that hold it from ranking.

        ``None`` when the site holds it already, or a later state of it, or another completion of the same begun run.
        """
        redacted = redact_run(run)
        if redacted.merged:
            raise StoreError(
                f"{run.directory} has names that are equal without their private paths ({redacted.merged[0]}). "
                "Give files short names relative to the working folder and run again."
            )
        if run.manifest.meter.source == REPLAY:
            raise StoreError(f"{run.directory} has replayed energy, which is never ranked. Run with another --energy.")
        run = redacted.run
        run_id = run.identity
        if run_id in self.runs:
            return None
        checks = publication_checks(run, rescore)
        entry = entry_of(run, run_id, checks)
        if not entry.points:
            raise StoreError(f"{run.directory}: {run.state or 'no finished sample'}; not published. {run.remedy}")
        states = [other for other in self.runs.values() if _is_state(other, entry)]
        if any(_progress(other) >= _progress(entry) for other in states):
            return None
        for other in states:
            del self.runs[other.id]
        for point in entry.points:
            described = describe_point(run, entry, point, self.shown)
            self._write(f"data/points/{point.id}.js", script("point", described).encode())
        self._write(f"data/runs/{run_id}.js", script("run", entry.model_dump(mode="json")).encode())
        self.runs[run_id] = entry
        return tuple(check for check in checks if not check.passed)

    def finish(self) -> None:
        """Write everything that all runs make together, and delete what belongs to none."""
        unseen = (
            _read_entry(self.folder / "data" / "runs" / f"{one}.js") for one in sorted(self._held - self.runs.keys())
        )
        lost = [held.id for held in unseen if not any(_is_state(held, run) for run in self.runs.values())]
        if lost or not self.runs:
            self._undo()
            raise StoreError(
                f"{self.folder} holds {len(lost)} run(s) that were not given again, data/runs/{lost[0]}.js for one. "
                "Add --merge to keep them, or use another --out."
                if lost
                else f"there is no run to publish in {self.folder}. Give finished run directories."
            )
        runs = sorted(self.runs.values(), key=lambda run: run.id)
        for name, content in self._assets:
            self._write(f"assets/{name}", content)
        self._write("data/columns.js", script("columns", describe_columns(runs)).encode())
        self._write("data/index.js", script("index", index_of(runs)).encode())
        for name, text in pages(runs, self._most).items():
            self._write(name, text.encode())
        self._write_mark(unfinished=False)
        for folder, known in (
            ("runs", {run.id for run in runs}),
            ("points", {one.id for run in runs for one in run.points}),
        ):
            for file in (self.folder / "data" / folder).glob("*.js"):
                if file.stem not in known:
                    file.unlink(missing_ok=True)

    def _write_mark(self, *, unfinished: bool) -> None:
        mark = Mark(
            site_schema=SITE_SCHEMA, schema_version=SCHEMA_VERSION, samples=self._most, unfinished=unfinished
        ).model_dump(exclude_defaults=True)
        self._write(MARK, (json.dumps(mark) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        self._new += [] if path.exists() else [path]
        replace_file(path, content)

    def _undo(self) -> None:
        """Take back what was added, so that a refused site is what it was, or not there at all."""
        with suppress(OSError):
            for path in self._new:
                path.unlink(missing_ok=True)
        for name in (*reversed(FOLDERS), *([""] if self._is_new else [])):
            with suppress(OSError):  # a folder that holds something stays
                (self.folder / name).rmdir()


def _is_state(entry: RunEntry, other: RunEntry) -> bool:
    """Whether two entries are of one begun run: states of it, or completions of copies, of which one is shown."""
    return entry.id != other.id and entry.manifest == other.manifest


def _progress(entry: RunEntry) -> tuple[bool, int, str]:
    return not entry.unfinished, sum(point.row.n for point in entry.points), entry.id


def _is_blank(folder: Path) -> bool:
    """Whether a folder holds nothing, or no more than what a making that was killed at its start leaves."""
    return folder.is_dir() and all(
        path.relative_to(folder).as_posix() in FOLDERS if path.is_dir() else path == unfinished(folder / MARK)
        for path in folder.rglob("*")
    )


def _read_mark(folder: Path) -> Mark | None:
    """Return what ``site.json`` says; ``None`` when there is none."""
    path = folder / MARK
    if not path.exists():
        return None
    with refusing(path, StoreError, "Use another --out.", "mark of a leaderboard"):
        found = read_json(path)
        _check_versions(found, f"the site {folder}")
        return Mark.model_validate(found)


def _read_entry(path: Path) -> RunEntry:
    with refusing(path, StoreError, _REMEDY, "data file of a leaderboard"):
        found = read_script(path, "run")
        _check_versions(found, str(path))
        return RunEntry.model_validate(found)


def _check_versions(found: object, what: str) -> None:
    for name, ours in (("site_schema", SITE_SCHEMA), ("schema_version", SCHEMA_VERSION)):
        check_version(found, what, ours, name, "Use another --out.")


def pages(runs: Sequence[RunEntry], shown: int = SAMPLES_SHOWN) -> dict[str, str]:
    """Return file name → HTML."""
    by_source: dict[str, list[Reference]] = {}  # the tables of one source share its caveats
    for one in references():
        by_source.setdefault(one.key, []).append(one)
    environment = templates("reports.leaderboard")
    facts = {
        "points": sum(len(run.points) for run in runs),
        "runs": len(runs),
        "groups": len({group_id(run.group(point)) for run in runs for point in run.points}),
        "newest": max((run.manifest.created[:10] for run in runs), default="–"),
        "margin": f"{MARGIN:.2f}",
        "hardware_rule": HARDWARE_RULE,
        "shown": shown,
        "computed_again": COMPUTED_AGAIN,
        "cannot_be_checked": CANNOT_BE_CHECKED,
        "published": [
            {
                "titles": ", ".join(one.title for one in alike),
                "tables": [(one, list(zip(*(column.texts for column in one.columns), strict=True))) for one in alike],
                "caveats": list(dict.fromkeys(caveat for one in alike for caveat in one.caveats)),
            }
            for alike in by_source.values()
        ],
    }
    return {name: environment.get_template(name).render(**facts) for name in PAGES}


def assets() -> Iterator[tuple[str, bytes]]:
    """Yield (file name, content) of what every page loads."""
    folder = resources.files("reports.leaderboard") / "static"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith((".css", ".js")):
            yield file.name, file.read_bytes()
    yield "tokens.css", TOKEN_CSS.encode()
    require("leaderboard", "plotly")
    spec = find_spec("plotly")  # the library's one file, found without importing the package
    assert spec is not None
    assert spec.origin is not None
    yield _PLOTLY, (Path(spec.origin).with_name("package_data") / _PLOTLY).read_bytes()


def script(kind: str, value: Any) -> str:
    """Return a JSON value as a script that hands it to the page."""
    text = escape_json(json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'{_HEAD}"{kind}",{text}{_TAIL}'


def read_script(path: Path, kind: str) -> Any:
    """Return the value of a data file."""
    with refusing(path, StoreError, _REMEDY, "data file of a leaderboard"):
        text, head = read_text(path, LARGEST_LOG_BYTES), f'{_HEAD}"{kind}",'
        if not text.startswith(head) or not text.endswith(_TAIL):
            raise ValueError(f"it does not hold a {kind}")
        return parse_json(text[len(head) : -len(_TAIL)])
