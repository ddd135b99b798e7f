"""Run directories and traces, changed: cut as a kill leaves them, or without seals, as older ones are; full disks."""

from __future__ import annotations

import json
import resource
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.records import SampleRecord, WindowRecord
from harness.running.reading import read_run
from harness.store.committed import sealed_records
from harness.store.record_files import sealed_document, write_document
from harness.store.run_directory import SUMMARY, RunDirectory

__all__ = ["Records", "cut", "full_disk", "reseal", "samples", "unseal", "write_index"]

Records = list[dict[str, Any]]


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


def reseal(run: Path, change: Callable[[Records, Records], object]) -> None:
    """Change the windows and samples of a run, and bind its files together anew, its summary too.

    Args:
        run: its directory.
        change: of the records as JSON, windows and samples, in place; those of a window that is left out go with it.
    """
    with RunDirectory.read(run) as store:
        manifest, before = store.manifest, [list(store.windows()), list(store.samples())]
    windows, records = ([record.model_dump(mode="json") for record in each] for each in before)
    change(windows, records)
    owned = [[sample for sample in records if sample["window"] == window["window"]] for window in windows]
    for number, (window, own) in enumerate(zip(windows, owned, strict=True)):
        window |= {"window": number, "samples": len(own)}
        own[:] = [sample | {"window": number} for sample in own]
    sealed = sealed_records(
        manifest,
        map(WindowRecord.model_validate, windows),
        [SampleRecord.model_validate(sample) for own in owned for sample in own],
    )
    for name, content in sealed.files.items():
        (run / name).write_bytes(content)
    write_document(run / SUMMARY, read_run(run).summary)


def samples(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the samples of a run directory: operating point → sample id → record."""
    found: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found[record["operating_point"]][record["sample_id"]] = record
    return found


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the records of a run directory's JSONL file."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


@contextmanager
def full_disk(bytes_left: int = 0) -> Iterator[None]:
    """Let files grow to so many bytes and no further, as far as this process writes them."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
