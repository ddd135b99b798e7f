"""Writes the site: pages, assets, and one data file per run and per operating point.

Pages carry no data of a run; they are the same for every site but for the counts and the published numbers, which
jinja2 escapes. A policy in each page forbids everything that does not lie beside it. Data are scripts, which
``file://`` pages may load while they may not fetch a file: one call, ``leaderboardData("KIND", {…});``, in ASCII, in
which ``<``, ``>`` and ``&`` are escaped, so that it would be safe inside a page, too.

``data/runs/ID.js`` is the site's memory: with ``merge`` these files are read again and everything else is made from
them and the new runs. They are written before the front page's data, and what no run refers to any more is deleted
after it, so that a site is usable at any moment of its making. ``site.json`` comes first and says until the end that
the site is unfinished: one whose making failed can be made again in the same folder. A finished site never loses a run:
without ``merge`` all that it holds must be given again. Nothing in it depends on when, where or in which order it was
made: the same runs give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from harness.appearance.pages import TOKEN_CSS, templates
from harness.appearance.visible_text import escape_json
from harness.errors import StoreError
from harness.host.files import (
    LARGEST_LOG_BYTES,
    DocumentError,
    parse_json,
    read_bytes,
    read_json,
    read_text,
    unfinished,
)
from harness.host.libraries import require
from harness.records import SCHEMA_VERSION
from harness.records.conditions import HARDWARE_RULE, REPLAY, group_id
from harness.records.record import Record
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

R = TypeVar("R", bound=Record)

MARK = "site.json"
FOLDERS = ("assets", "data", "data/runs", "data/points")
PAGES = ("index.html", "point.html", "compare.html")
_PLOTLY = "plotly.min.js"
_HEAD, _TAIL = "leaderboardData(", ");\n"


class Mark(Record):
    """``site.json``, which tells a site from any other folder."""

    site_schema: int
    schema_version: int
    samples: int = Field(ge=0)
    unfinished: bool = False


class Site:
    """A site being made."""

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
        lost = []
        for run_id in sorted(self._held - self.runs.keys()):
            held = _read_entry(self.folder / "data" / "runs" / f"{run_id}.js")
            if not any(_is_state(held, run) for run in self.runs.values()):
                lost.append(run_id)
        if lost or not self.runs:
            self._undo()
        if not self.runs:
            raise StoreError(f"there is no run to publish in {self.folder}. Give finished run directories.")
        if lost:
            raise StoreError(
                f"{self.folder} holds {len(lost)} run(s) that were not given again, data/runs/{lost[0]}.js for one. "
                "Add --merge to keep them, or use another --out."
            )
        runs = sorted(self.runs.values(), key=lambda run: run.id)
        for name, content in self._assets:
            self._write(f"assets/{name}", content)
        self._write("data/columns.js", script("columns", describe_columns(runs)).encode())
        self._write("data/index.js", script("index", index_of(runs)).encode())
        for name, text in pages(runs, self._most).items():
            self._write(name, text.encode())
        self._write_mark(unfinished=False)
        self._sweep("data/runs", {run.id for run in runs})
        self._sweep("data/points", {point.id for run in runs for point in run.points})

    def _write_mark(self, *, unfinished: bool) -> None:
        mark = Mark(
            site_schema=SITE_SCHEMA, schema_version=SCHEMA_VERSION, samples=self._most, unfinished=unfinished
        ).model_dump(exclude_defaults=True)
        self._write(MARK, (json.dumps(mark) + "\n").encode())

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file whole, unless it holds that already."""
        path = self.folder / name
        try:
            if not path.exists():
                self._new.append(path)
            elif path.stat().st_size == len(content) and read_bytes(path, len(content)) == content:
                return
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}. Use another --out.") from None
        replace_file(path, content)

    def _undo(self) -> None:
        """Take back what was added, so that a refused site is what it was, or not there at all."""
        with suppress(OSError):
            for path in self._new:
                path.unlink(missing_ok=True)
        for name in (*reversed(FOLDERS), *([""] if self._is_new else [])):
            with suppress(OSError):  # a folder that holds something stays
                (self.folder / name).rmdir()

    def _sweep(self, folder: str, known: set[str]) -> None:
        for file in (self.folder / folder).glob("*.js"):
            if file.stem not in known:
                try:
                    file.unlink(missing_ok=True)
                except OSError as error:
                    raise StoreError(f"cannot delete {file}: {error.strerror}.") from None


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
    try:
        found = read_json(path)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}. Use another --out.") from None
    except DocumentError as error:
        raise StoreError(f"{path} is damaged: {error}. Use another --out.") from None
    return _checked(Mark, found, path, f"the site {folder}", "Use another --out.")


def _read_entry(path: Path) -> RunEntry:
    remedy = "Make the site again with another --out."
    return _checked(RunEntry, read_script(path, "run"), path, str(path), remedy)


def _checked(kind: type[R], found: object, path: Path, what: str, remedy: str) -> R:
    for name, ours in (("site_schema", SITE_SCHEMA), ("schema_version", SCHEMA_VERSION)):
        theirs = found.get(name) if isinstance(found, dict) else None
        if theirs != ours:
            raise StoreError(
                f"{what} has {name} {theirs!r} and this harness writes {ours}. Use the version of "
                "early-exit-harness that made it, or another --out."
            )
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(f"{path} is damaged: {where}: {first['msg']}. {remedy}") from None


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
                "tables": [
                    {
                        "title": one.title,
                        "source": one.source,
                        "difference": one.difference,
                        "header": [column.term for column in one.columns],
                        "rows": list(zip(*(column.texts for column in one.columns), strict=True)),
                    }
                    for one in alike
                ],
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
    try:
        text = read_text(path, LARGEST_LOG_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot read {path}: {reason}. Make the site again with another --out.") from None
    head = f'{_HEAD}"{kind}",'
    if not text.startswith(head) or not text.endswith(_TAIL):
        raise StoreError(f"{path} is no data file of a leaderboard. Make the site again with another --out.")
    try:
        return parse_json(text[len(head) : -len(_TAIL)])
    except DocumentError as error:
        raise StoreError(f"{path} is damaged: {error}. Make the site again with another --out.") from None
