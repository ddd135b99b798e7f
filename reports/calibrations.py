"""Reads the ``calibration.json`` of sweeps."""

from __future__ import annotations

from collections.abc import Iterable
from os.path import isdir, isfile  # of pathlib they fail where one may not look
from pathlib import Path

from pydantic import ValidationError

from harness.errors import StoreError
from harness.host.files import DocumentError, read_json, real_path
from harness.records.calibration import CALIBRATION, Calibration
from reports.statistics.plausible import LARGEST, all_plausible, numbers_of

_KNOWN = 1


def find_calibrations(paths: Iterable[Path]) -> list[Path]:
    """Return the sweep folders with a calibration among paths, or right below one without, each once."""
    found: dict[Path, Path] = {}
    for path in paths:
        here = path / CALIBRATION
        for file in [here] if isfile(here) else sorted(path.glob(f"*/{CALIBRATION}")) if isdir(path) else []:
            found.setdefault(real_path(file.parent), file.parent)
    return list(found.values())


def read_calibration(folder: Path) -> Calibration:
    """Read what `harness sweep --out FOLDER` wrote.

    Raises:
        StoreError: nothing there, or it is damaged or of a later version.
    """
    path = folder / CALIBRATION
    again = "Make it again: `harness sweep --replay TRACE --strategy NAME --out DIR`."
    try:
        found = Calibration.model_validate(read_json(path))
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}. {again}") from None
    except DocumentError as error:
        raise StoreError(f"{path} is no calibration: {error}. {again}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise StoreError(f"{path} is no calibration: {where}: {first['msg']}. {again}") from None
    if found.schema_version > _KNOWN:
        raise StoreError(f"{path} has version {found.schema_version}, this harness reads up to {_KNOWN}. Update it.")
    if not all_plausible(numbers_of(found.model_dump(include={"tokens", "documents", "scores", "seconds"}))):
        raise StoreError(f"{path} holds a number that cannot be true (beyond {LARGEST:g}): it is damaged. {again}")
    return found
