"""Checks a run directory for publication, and packs it.

Private paths are taken out of the packed copy (:mod:`reports.leaderboard.redaction`); the run directory is never
changed. What of a run is computed again, and what has to be believed, :mod:`reports.leaderboard.checks` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import shell_word
from harness.errors import StoreError
from harness.running.reading import read_run
from harness.running.rescore import rescored
from harness.store.committed import sealed_records
from harness.store.packed_run import write_archive
from harness.store.run_directory import RunDirectory
from reports.leaderboard.checks import Check, publication_checks
from reports.leaderboard.redaction import Redacted, private_paths, redact_run
from reports.recorded import RecordedRun
from reports.tables.report import to_json

__all__ = ["Submission", "examine_submission", "pack"]

_FLOAT_TOLERANCE = 1e-9  # sums of two machines may differ in the last digits


@dataclass(frozen=True, slots=True)
class Submission:
    """A run as it would be published.

    Attributes:
        redacted: the run without private paths. checks: every condition, in order.
    """

    redacted: Redacted
    checks: tuple[Check, ...]

    @property
    def publishable(self) -> bool:
        """Whether every condition holds."""
        return all(check.passed for check in self.checks)


def examine_submission(directory: Path) -> Submission:
    """Check a run directory: what of it can be computed again is.

    Raises:
        StoreError: it cannot be read at all.
    """
    run = read_run(directory)
    redacted = redact_run(run)
    return Submission(redacted, (*publication_checks(run, rescored), _summary(run, directory), _private(redacted)))


def pack(submission: Submission, file: Path) -> Path:
    """Write the archive, replaced whole; return its path.

    Raises:
        StoreError: a condition does not hold, or the file cannot be written.
    """
    if not submission.publishable:
        raise StoreError("the run is not publishable; see the checklist.")
    run = submission.redacted.run
    records = sealed_records(run.manifest, run.windows, run.samples)
    summary = run.summary.model_copy(update={"records": records.seal})
    files = {**records.files, "summary.json": to_json(summary).encode()}
    write_archive(file, run.name, files, {"redacted": submission.redacted.places})
    return file


# ---------------------------------------------------------------------------------------- checks


def _summary(run: RecordedRun, directory: Path) -> Check:
    remedy = f"Write it again with `harness report {shell_word(directory)}`."
    try:
        with RunDirectory.read(directory) as store:
            stored = store.read_summary()
    except StoreError as error:
        return Check("summary", str(error).partition(". ")[0], remedy)  # not the reader's remedy: this one is nearer
    if stored is None:
        return Check("summary", "there is no summary.json", remedy)
    difference = _difference(stored.model_dump(mode="json"), run.summary.model_dump(mode="json"), "")
    if difference:
        return Check("summary", f"summary.json is not what the records give: {difference}", remedy)
    return Check("summary", "summary.json is what the records give")


def _private(redacted: Redacted) -> Check:
    if redacted.merged:
        remedy = "Use file names relative to the working folder and run again."
        return Check("privacy", f"{redacted.merged[0]} is not unique without its private path", remedy)
    left = [place for place, _ in private_paths(redacted.run.manifest.model_dump(mode="json"))]
    if left:
        return Check("privacy", f"{left[0]} holds a private path", "Use a relative one and run again.")
    if not redacted.places:
        return Check("privacy", "no private paths")
    where = ", ".join(redacted.places[:3]) + (" …" if len(redacted.places) > 3 else "")
    return Check("privacy", f"private paths shortened in the packed copy: {where}")


def _difference(stored: Any, computed: Any, place: str) -> str:
    """Say where two JSON values differ first, with both; empty when they do not."""
    if isinstance(stored, dict) and isinstance(computed, dict):
        pairs = [(f"{place}.{key}".lstrip("."), stored.get(key), computed.get(key)) for key in {**computed, **stored}]
    elif isinstance(stored, list) and isinstance(computed, list) and len(stored) == len(computed):
        pairs = [(f"{place}[{index}]", *both) for index, both in enumerate(zip(stored, computed, strict=True))]
    elif isinstance(stored, list) and isinstance(computed, list):
        return f"{place} has {len(stored)} entries there and {len(computed)} here"
    elif isinstance(stored, float) and isinstance(computed, float):
        close = math.isclose(stored, computed, rel_tol=_FLOAT_TOLERANCE, abs_tol=_FLOAT_TOLERANCE)
        return "" if close else f"{place} is {stored!r} there and {computed!r} here"
    else:
        return "" if stored == computed else f"{place} is {str(stored)[:60]!r} there and {str(computed)[:60]!r} here"
    return next((found for where, old, new in pairs if (found := _difference(old, new, where))), "")
