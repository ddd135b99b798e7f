"""Checks a run directory for publication, and packs it.

Private paths are taken out of the packed copy (:mod:`reports.leaderboard.redaction`); the run directory is never
changed. Everything a run claims is computed again from its records.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import StoreError
from harness.metering.contamination import CONTAMINATED
from harness.running.reading import read_run
from harness.store.packed_run import write_archive
from harness.store.run_directory import RunDirectory
from reports.leaderboard.redaction import Redacted, private_paths, redact_run
from reports.recorded import RecordedRun

__all__ = ["Check", "Submission", "examine_submission", "pack"]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_FLOAT_TOLERANCE = 1e-9  # sums of two machines may differ in the last digits


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of publication.

    Attributes:
        name: what was looked at. passed: whether it holds.
        detail: what was found; where it does not hold, with the remedy.
    """

    name: str
    passed: bool
    detail: str


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
    """Check a run directory; everything is computed again from the records.

    Raises:
        StoreError: it cannot be read at all.
    """
    run = read_run(directory)
    redacted = redact_run(run)
    checks = (
        _finished(run),
        _failures(run),
        _summary(run, directory),
        _weights(run),
        _artefacts(run),
        _data(run),
        _windows(run),
        _private(redacted),
    )
    return Submission(redacted, checks)


def pack(submission: Submission, file: Path) -> Path:
    """Write the archive, replaced whole; return its path.

    Raises:
        StoreError: a condition does not hold, or the file cannot be written.
    """
    if not submission.publishable:
        raise StoreError("the run is not publishable; see the checklist.")
    run = submission.redacted.run
    files = {
        "manifest.json": _document(run.manifest.model_dump_json(indent=2)),
        "windows.jsonl": b"".join(_document(window.model_dump_json()) for window in run.windows),
        "samples.jsonl": b"".join(_document(sample.model_dump_json()) for sample in run.samples),
        "summary.json": _document(run.summary.model_dump_json(indent=2)),
    }
    write_archive(file, run.name, files, {"redacted": submission.redacted.places})
    return file


# ---------------------------------------------------------------------------------------- checks


def _finished(run: RecordedRun) -> Check:
    state = run.state
    remedy = f"{state}. {run.remedy}"
    return Check("finished", not state, remedy if state else f"all {run.windows_expected} windows")


def _failures(run: RecordedRun) -> Check:
    empty = [f"{row.operating_point} on {row.task}" for row in run.summary.rows if not row.n]
    failed = sum(row.errors for row in run.summary.rows)
    if empty:
        return Check("samples", False, f"no sample of {empty[0]} was finished. Run again without it.")
    return Check("samples", True, f"{failed} failed, which the results say" if failed else "none failed")


def _summary(run: RecordedRun, directory: Path) -> Check:
    remedy = f"Write it again with `harness report {directory}`."
    try:
        with RunDirectory.read(directory) as store:
            stored = store.read_summary()
    except StoreError as error:
        return Check("summary", False, f"{error} {remedy}")
    if stored is None:
        return Check("summary", False, f"there is no summary.json. {remedy}")
    difference = _difference(stored.model_dump(mode="json"), run.summary.model_dump(mode="json"), "")
    if difference:
        return Check("summary", False, f"summary.json is not what the records give: {difference}. {remedy}")
    return Check("summary", True, "summary.json is what the records give")


def _weights(run: RecordedRun) -> Check:
    model = run.manifest.model
    if model.weights == "random" and "seed" in run.manifest.config:
        return Check("weights", True, f"random, seed {run.manifest.config['seed']}")
    if _SHA256.fullmatch(model.weights_sha256 or ""):
        return Check("weights", True, f"SHA-256 {str(model.weights_sha256)[:12]}…")
    return Check("weights", False, "the manifest has no SHA-256 of the weights. Run again with this version.")


def _artefacts(run: RecordedRun) -> Check:
    hashes = {name: digest for point in run.manifest.operating_points for name, digest in point.artefacts.items()}
    wrong = [name for name, digest in hashes.items() if not _SHA256.fullmatch(digest)]
    if wrong:
        return Check("artefacts", False, f"{wrong[0]} has no SHA-256. Train it again with `harness train`.")
    return Check("artefacts", True, f"{len(hashes)} with SHA-256" if hashes else "none used")


def _data(run: RecordedRun) -> Check:
    wrong = [task.name for task in run.manifest.tasks if not _SHA256.fullmatch(task.fingerprint)]
    if wrong:
        return Check("data", False, f"{wrong[0]} has no fingerprint of its rows. Run again with this version.")
    return Check("data", True, ", ".join(f"{task.name} {task.fingerprint[:12]}…" for task in run.manifest.tasks))


def _windows(run: RecordedRun) -> Check:
    counted = [window for cell in run.cells.values() for window in cell.windows.values()]
    flagged = [window for window in counted if CONTAMINATED & set(window.flags)]
    if flagged:
        causes = ", ".join(sorted({flag for window in flagged for flag in window.flags} & CONTAMINATED))
        return Check(
            "windows",
            False,
            f"{len(flagged)} of {len(counted)} that count are contaminated ({causes}). Free the machine and run again "
            "with --strict.",
        )
    observed = any(window.foreign_cpu_s is not None for window in counted)
    unknown = "" if observed else "; what else ran could not be observed on this machine"
    return Check("windows", True, f"none of {len(counted)} is flagged as contaminated{unknown}")


def _private(redacted: Redacted) -> Check:
    if redacted.merged:
        remedy = "Use file names relative to the working folder and run again."
        return Check("privacy", False, f"{redacted.merged[0]} is not unique without its private path. {remedy}")
    left = [place for place, _ in private_paths(redacted.run.manifest.model_dump(mode="json"))]
    if left:
        return Check("privacy", False, f"{left[0]} holds a private path. Use a relative one and run again.")
    if not redacted.places:
        return Check("privacy", True, "no private paths")
    where = ", ".join(redacted.places[:3]) + (" …" if len(redacted.places) > 3 else "")
    return Check("privacy", True, f"private paths shortened in the packed copy: {where}")


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


def _document(text: str) -> bytes:
    return text.encode() + b"\n"
