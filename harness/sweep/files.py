"""The files of a sweep: ``sweep.json``, ``sweep.csv``, ``calibration.json`` for the scores; all marked as replayed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.appearance.visible_text import escape_json
from harness.errors import StoreError
from harness.records.calibration import CALIBRATION, Calibration
from harness.sweep.records import Sweep, SweepRow
from reports.files import write_files
from reports.tables.writers import csv_text

FILES = ("sweep.json", "sweep.csv", CALIBRATION)
_INTERVAL = "agreement_ci"
_JSON = frozenset({"options", "artefacts", "exits", "exit_points"})


def to_csv(sweep: Sweep) -> str:
    """Return one line per row under a header; an interval is two columns, options and exits are JSON text."""
    names: list[str] = []
    for name in SweepRow.model_fields:
        names.extend((f"{name}_low", f"{name}_high") if name == _INTERVAL else (name,))
    return csv_text(["model", "traces", *names], _flat(sweep))


def check_writable(folder: Path) -> None:
    """Make the folder before any slow work.

    Raises:
        StoreError: it cannot be made, or holds other files.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(path.name for path in folder.iterdir() if path.name not in {*FILES, "live"})
    except OSError as error:
        raise StoreError(f"cannot make {folder}: {error.strerror}. Use another --out.") from None
    if others:
        raise StoreError(f"{folder} holds other files ({others[0]}). Use another --out.")


def write_sweep(sweep: Sweep, folder: Path, calibration: Calibration | None = None) -> tuple[Path, ...]:
    """Write the sweep's two files, and that of its scores if there is one, each replaced whole; return their paths.

    Raises:
        StoreError: a file cannot be written.
    """
    texts = [escape_json(sweep.model_dump_json(indent=2)) + "\n", to_csv(sweep)]
    if calibration is not None:
        texts.append(escape_json(calibration.model_dump_json(indent=2)) + "\n")
    return write_files(folder, dict(zip(FILES, texts, strict=False)))


def _flat(sweep: Sweep) -> Iterator[dict[str, Any]]:
    for row in sweep.rows:
        values: dict[str, Any] = {"model": sweep.model, "traces": sweep.traces}
        for name, value in row.model_dump(mode="json").items():
            if name == _INTERVAL:
                values[f"{name}_low"], values[f"{name}_high"] = value or (None, None)
            else:
                values[name] = json.dumps(value, sort_keys=True) if name in _JSON else value
        yield values
