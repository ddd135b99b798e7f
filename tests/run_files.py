"""Run directories and traces, changed: cut as an earlier kill leaves them, or without seals, as older ones are."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.store.committed import sealed_records
from harness.store.run_directory import RunDirectory
from harness.store.seals import sealed_document

__all__ = ["cut", "samples", "unseal", "write_index"]


def cut(run: Path, windows: int) -> None:
    """Leave so many windows, and their samples, of a run; fewer than none are counted from the end."""
    lines = (run / "windows.jsonl").read_bytes().splitlines(keepends=True)[:windows]
    lines_of_samples = (run / "samples.jsonl").read_bytes().splitlines(keepends=True)
    (run / "windows.jsonl").write_bytes(b"".join(lines))
    (run / "samples.jsonl").write_bytes(
        b"".join(lines_of_samples[: sum(json.loads(line)["samples"] for line in lines)])
    )


def unseal(run: Path) -> None:
    """Make a run one of before there were seals, whose files may then be edited."""
    with RunDirectory.read(run) as store:
        older = store.manifest.model_copy(update={"run": ""})
        files = sealed_records(older, list(store.windows()), list(store.samples())).files
    for name, content in files.items():
        (run / name).write_bytes(content)
    summary = run / "summary.json"
    if summary.exists():
        document = json.loads(summary.read_bytes())
        summary.write_text(
            json.dumps({key: value for key, value in document.items() if key != "sha256"} | {"records": ""})
        )


def write_index(trace: Path, index: Mapping[str, Any]) -> None:
    """Write a trace's index as the harness does: with a seal."""
    unsealed = {name: value for name, value in index.items() if name != "sha256"}
    (trace / "index.json").write_bytes(sealed_document(f"{json.dumps(unsealed, indent=2)}\n".encode())[0])


def samples(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the samples of a run directory: operating point → sample id → record."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record["operating_point"]][record["sample_id"]] = record
    return found
