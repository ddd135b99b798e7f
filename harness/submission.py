"""Checks a run directory for publication, packs it, and reads packed ones without trusting them.

A packed run is a ``.tar.gz`` with one folder that holds ``manifest.json``, ``windows.jsonl``, ``samples.jsonl``,
``summary.json`` and ``submission.json`` (the SHA-256 of the others). Private paths are taken out of the packed copy
(:mod:`reports.redaction`); the run directory is never changed. The same run packs to the same bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

from harness.errors import StoreError
from harness.metering.contamination import CONTAMINATED
from harness.reading import read_run
from harness.records import SCHEMA_VERSION
from reports.recorded import RecordedRun
from reports.redaction import Redacted, private_paths, redact_run

__all__ = ["ARCHIVE", "Check", "Submission", "examine_submission", "pack", "unpacked"]

ARCHIVE = ".tar.gz"
RECORDS = ("manifest.json", "windows.jsonl", "samples.jsonl", "summary.json")
LIST = "submission.json"
LARGEST_BYTES = 1 << 30
"""Of all files of a packed run together, unpacked."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
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
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    facts = {"schema_version": SCHEMA_VERSION, "files": listed, "redacted": submission.redacted.places}
    files[LIST] = _document(json.dumps(facts, indent=2))
    unfinished = file.with_name(f".{file.name}.part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as raw:
            _write_archive(raw, _folder_name(run.name), files)
        unfinished.replace(file)
    except OSError as error:
        raise StoreError(f"cannot write {file}: {error.strerror}. Use another --out.") from None
    return file


@contextmanager
def unpacked(archive: Path) -> Iterator[Path]:
    """Unpack a packed run into a temporary folder, checked file by file, and return the run directory.

    Raises:
        StoreError: it is no packed run: a damaged archive, a member that is no plain file of a run directory, too
            large, or a file that is not the one ``submission.json`` lists.
    """
    with TemporaryDirectory(prefix="harness-") as scratch:
        try:
            with tarfile.open(archive, "r:gz") as tar:
                folder = _extract(tar, archive, Path(scratch))
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            raise StoreError(f"{archive} cannot be unpacked: {error}. Pack it again with `harness submit`.") from None
        _verify(folder, archive)
        yield folder


# ---------------------------------------------------------------------------------------- checks


def _finished(run: RecordedRun) -> Check:
    state = run.state
    remedy = f"{state}. Continue it with `harness run --resume {run.directory}`."
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
        stored = read_run(directory, stored=True).summary if (directory / "summary.json").exists() else None
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


# --------------------------------------------------------------------------------------- archive


def _document(text: str) -> bytes:
    return text.encode() + b"\n"


def _folder_name(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip(".-") or "run"


def _write_archive(raw: IO[bytes], folder: str, files: Mapping[str, bytes]) -> None:
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(files):
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size, member.mode = len(files[name]), 0o644
            tar.addfile(member, io.BytesIO(files[name]))


def _extract(tar: tarfile.TarFile, archive: Path, scratch: Path) -> Path:
    """Write the members that a packed run has, under names of our own; never what the archive says where."""
    room, seen, folders = LARGEST_BYTES, set(), set()
    for member in tar:
        parts = member.name.split("/")
        known = len(parts) == 2 and parts[1] in (*RECORDS, LIST) and parts[0] not in ("", ".", "..")
        if not known or not member.isreg() or member.name in seen:
            raise StoreError(
                f"{archive} holds {member.name[:80]!r}, which a packed run does not. Pack it with `harness submit`."
            )
        seen.add(member.name)
        folders.add(_folder_name(parts[0]))
        target = scratch / _folder_name(parts[0])
        target.mkdir(exist_ok=True)
        source = tar.extractfile(member)
        if source is None or len(folders) > 1:
            raise StoreError(f"{archive} holds more than one folder. Pack it with `harness submit`.")
        with (target / parts[1]).open("wb") as file:
            while chunk := source.read(_CHUNK):
                room -= len(chunk)
                if room < 0:
                    raise StoreError(f"{archive} unpacks to more than {LARGEST_BYTES >> 20} MiB, the limit.")
                file.write(chunk)
    if not folders:
        raise StoreError(f"{archive} is empty. Pack it with `harness submit`.")
    return scratch / folders.pop()


def _verify(folder: Path, archive: Path) -> None:
    try:
        facts = json.loads((folder / LIST).read_bytes())
        version, listed = facts["schema_version"], {name: facts["files"][name]["sha256"] for name in RECORDS}
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(f"{archive} has no usable {LIST}. Pack it with `harness submit`.") from None
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{archive} has schema version {version!r} and this harness reads {SCHEMA_VERSION}. Use the version of "
            "early-exit-harness that packed it."
        )
    for name, digest in listed.items():
        file = folder / name
        if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise StoreError(f"{archive}: {name} is not the file that {LIST} lists. Pack it with `harness submit`.")
