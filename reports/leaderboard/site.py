"""Writes the site: pages, assets, and one data file per run and per operating point.

``data/runs/ID.js`` is the site's memory: with ``merge`` these files are read again and everything else is made from
them and the new runs. They are written before the front page's data, and what no run refers to any more is deleted
after it, so that a site is usable at any moment of its making. Nothing in it depends on when, where or in which order
it was made: the same runs give the same bytes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.errors import StoreError
from harness.records import SCHEMA_VERSION
from reports.leaderboard.details import SAMPLES_SHOWN, describe_columns, describe_point
from reports.leaderboard.entries import SITE_SCHEMA, RunEntry, entry_of, identity
from reports.leaderboard.index import index_of
from reports.leaderboard.pages import assets, pages
from reports.leaderboard.redaction import redact_run
from reports.leaderboard.scripts import read_script, script
from reports.recorded import RecordedRun

__all__ = ["Site"]

MARK = "site.json"


class Site:
    """A site being made.

    Args:
        folder: new, empty, or a site.
        merge: keep what the site holds.
        shown: completions per operating point.

    Raises:
        StoreError: the folder holds something else, is not writable, or holds a site of another version.
    """

    def __init__(self, folder: Path, *, merge: bool = False, shown: int = SAMPLES_SHOWN) -> None:
        self.folder, self.shown, self._most = folder, shown, shown
        self.runs: dict[str, RunEntry] = {}
        there = folder / MARK
        if there.exists():
            found = _parsed(there)
            if merge:
                _check_version(folder, found)
                self._most = max(shown, int(found.get("samples") or 0))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise StoreError(f"{folder} is not empty and no leaderboard. Use another --out.")
        if merge:
            self.runs = {run.id: run for run in map(_read_entry, sorted((folder / "data" / "runs").glob("*.js")))}
        try:
            for name in ("assets", "data/runs", "data/points"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror}. Use another --out.") from None

    def add(self, run: RecordedRun) -> bool:
        """Add a finished run; ``False`` when the site holds it already.

        Raises:
            StoreError: it cannot be published, or the site cannot be written.
        """
        redacted = redact_run(run)
        if redacted.merged:
            raise StoreError(
                f"{run.directory} has names that are equal without their private paths ({redacted.merged[0]}). "
                "Give files short names relative to the working folder and run again."
            )
        if run.manifest.meter.source == "replay":
            raise StoreError(f"{run.directory} has replayed energy, which is never ranked. Run with another --energy.")
        run = redacted.run
        run_id = identity(run)
        if run_id in self.runs:
            return False
        entry = entry_of(run, run_id)
        if not entry.points:
            raise StoreError(f"{run.directory} has no finished sample. Run it again.")
        for point in entry.points:
            described = describe_point(run, entry, point, self.shown)
            self._write(f"data/points/{point.id}.js", script("point", described).encode())
        self._write(f"data/runs/{run_id}.js", script("run", entry.model_dump(mode="json")).encode())
        self.runs[run_id] = entry
        return True

    def finish(self) -> None:
        """Write everything that all runs make together, and delete what belongs to none.

        Raises:
            StoreError: there is no run, or the site cannot be written.
        """
        if not self.runs:
            raise StoreError(f"there is no run to publish in {self.folder}. Give finished run directories.")
        runs = sorted(self.runs.values(), key=lambda run: run.id)
        for name, content in assets():
            self._write(f"assets/{name}", content)
        self._write("data/columns.js", script("columns", describe_columns(runs[0])).encode())
        self._write("data/index.js", script("index", index_of(runs)).encode())
        for name, text in pages(runs, self._most).items():
            self._write(name, text.encode())
        mark = {"site_schema": SITE_SCHEMA, "schema_version": SCHEMA_VERSION, "samples": self._most}
        self._write(MARK, (json.dumps(mark) + "\n").encode())
        self._sweep("data/runs", {run.id for run in runs})
        self._sweep("data/points", {point.id for run in runs for point in run.points})

    def _write(self, name: str, content: bytes) -> None:
        """Replace a file whole, unless it holds that already."""
        path = self.folder / name
        unfinished = path.with_name(f".{path.name}.part")
        try:
            with suppress(FileNotFoundError):
                if path.stat().st_size == len(content) and path.read_bytes() == content:
                    return
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}.") from None

    def _sweep(self, folder: str, known: set[str]) -> None:
        for file in (self.folder / folder).glob("*.js"):
            if file.stem not in known:
                file.unlink(missing_ok=True)


def _check_version(folder: Path, found: Any) -> None:
    for name, ours in (("site_schema", SITE_SCHEMA), ("schema_version", SCHEMA_VERSION)):
        theirs = found.get(name) if isinstance(found, dict) else None
        if theirs != ours:
            raise StoreError(
                f"the site {folder} has {name} {theirs!r} and this harness writes {ours}. Merge with the version of "
                "early-exit-harness that made it, or make it again without --merge."
            )


def _parsed(mark: Path) -> Any:
    try:
        return json.loads(mark.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot read {mark}: {error}. Use another --out.") from None


def _read_entry(path: Path) -> RunEntry:
    value = read_script(path, "run")
    for name, ours in (("site_schema", SITE_SCHEMA), ("schema_version", SCHEMA_VERSION)):
        theirs = value.get(name) if isinstance(value, dict) else None
        if theirs != ours:
            raise StoreError(
                f"{path} has {name} {theirs!r} and this harness reads {ours}. Merge with the "
                "version of early-exit-harness that made it, or make the site again without --merge."
            )
    try:
        return RunEntry.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(f"{path} is damaged: {first['loc']}: {first['msg']}. Make the site again.") from None
