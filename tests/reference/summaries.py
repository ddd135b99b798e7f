"""Summaries and tables of stored runs, computed anew."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any
from unittest import mock

from tests.reference.command import harness
from tests.reference.points import TINY
from tests.reference.real import REAL

STORED = Path(__file__).with_name("stored_runs")
TIMED = ("--energy", "estimate", "--tdp-w", 8, "--idle-s", 0.2)


def _timed(arguments: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(value for value in arguments if value != "--untimed")


RUNS: dict[str, tuple[object, ...]] = {
    "real": (
        *_timed(REAL), *TIMED, "--weights-format", "float32,int8", "--limit", 3, "--block-size", 1,
        "--decode", "lossy,lossless+lookup", "--strategy", "classifier", "--strategy", "confidence:threshold=0.7",
    ),
    "batch": (
        *_timed(TINY), *TIMED, "--model", "tiny-llama", "--weights-format", "float32", "--limit", 6, "--batch-size", 2,
        "--block-size", 2, "--repeats", 2, "--kv", "recompute,propagate", "--strategy", "confidence:threshold=0.3",
        "--strategy", "fixed:layer=4,6,10", "--strategy", "oracle", "--strategy", "patience:patience=2",
    ),
    "stops": (
        *TINY, "--model", "tiny-llama", "--weights-format", "float32", "--limit", 6, "--stop", "none,line",
        "--max-new-tokens", 12, "--strategy", "confidence:threshold=q20,q80", "--strategy", "del@lossless",
    ),
    "attributed": (
        *_timed(TINY), *TIMED, "--model", "tiny-llama", "--weights-format", "float32", "--limit", 6, "--block-size", 1,
        "--strategy", "confidence:threshold=0.3", "--strategy", "saturation:threshold=0.8", "--attribute",
    ),
}  # fmt: skip
LEFT = ("summary.json", "summary.csv", "report.md", ".lock")
"""What a stored run lacks: it is made of the rest."""
COMPARED = (("batch", "attributed"), ("batch", "batch"), ("real", "real"))
POINTS = (
    ("--point-a", "confidence:threshold=0.3@recompute", "--point-b", "confidence:threshold=0.3"),
    ("--point-a", "fixed:layer=4@propagate", "--point-b", "confidence:threshold=0.3@recompute"),
    ("--point-a", "full@float32", "--point-b", "classifier@lossless+lookup@float32"),
)


def store() -> None:
    """Measure the runs anew and store them: with the code that is the reference, and not otherwise."""
    STORED.mkdir(exist_ok=True)
    for name, arguments in RUNS.items():
        harness("run", *arguments, "--out", f"measured/{name}")
        pack(Path("measured") / name)


def pack(run: Path) -> None:
    """Store a run without what is made of the rest, the same bytes each time."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path in sorted(run.iterdir()):
            if path.name not in LEFT:
                entry = tarfile.TarInfo(f"{run.name}/{path.name}")
                entry.size = path.stat().st_size
                archive.addfile(entry, io.BytesIO(path.read_bytes()))
    (STORED / f"{run.name}.tar.gz").write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))


def record() -> dict[str, Any]:
    """Return summaries and cells of tables strictly, and what else is written as texts."""
    with mock.patch.dict(os.environ, {"XDG_CACHE_HOME": str(Path("cache").absolute())}):  # nothing is kept from before
        return _recorded()


def _recorded() -> dict[str, Any]:
    found: dict[str, Any] = {"texts": {}}
    for path in sorted(STORED.glob("*.tar.gz")):
        with tarfile.open(path) as archive:
            archive.extractall("reported", filter="data")
    for name in RUNS:
        run = Path("reported") / name
        texts = {"terminal": harness("report", run).out, "json": harness("report", run, "--json").out}
        found[f"{name} report --json"] = _plain(json.loads(texts.pop("json")))
        for path in sorted(run.glob("*")):
            _keep(found, f"{name} {path.name}", path)
        harness("report", run, "--out", Path("written") / name, "--no-figures")
        for path in sorted((Path("written") / name).rglob("*")):
            _keep(found, f"{name} out/{path.relative_to(Path('written') / name)}", path)
        found["texts"] |= {f"{name} {kind}": text for kind, text in texts.items()}
    harness("report", *(Path("reported") / name for name in RUNS), "--out", "written/all", "--no-figures")
    for path in sorted(Path("written/all").rglob("*")):
        _keep(found, f"all out/{path.relative_to('written/all')}", path)
    for number, ((first, second), points) in enumerate(zip(COMPARED, POINTS, strict=True)):
        arguments = ("compare", f"reported/{first}", f"reported/{second}", *points)
        ran = harness(*arguments, "--json", quiet=False)
        found[f"compare {number}"] = _plain(json.loads(ran.out)) if ran.out.startswith("{") else [ran.code, ran.err]
        found["texts"][f"compare {number}"] = harness(*arguments, "--details", quiet=False).out
        harness(*arguments, "--markdown", f"compare-{number}.md", quiet=False)
        if Path(f"compare-{number}.md").exists():
            _keep(found, f"compare {number} markdown", Path(f"compare-{number}.md"))
    return found


def _keep(found: dict[str, Any], name: str, path: Path) -> None:
    if path.suffix == ".json" and path.name != "manifest.json":
        found[name] = _plain(json.loads(path.read_text()))
    elif path.suffix == ".csv":
        found[name] = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
        found[name] = [{key: _number(value) for key, value in row.items()} for row in found[name]]
    elif path.suffix in (".md", ".tex", ".txt"):
        found["texts"][name] = path.read_text(encoding="utf-8")
    elif path.suffix == ".html":
        text = re.sub(r"<(script|style).*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        lines = html.unescape(re.sub(r"<[^>]+>", "\n", text)).splitlines()
        found["texts"][name] = "\n".join(line.strip() for line in lines if line.strip())


def _number(value: Any) -> Any:
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def _plain(document: Any) -> Any:
    """Leave out what binds files together."""
    if isinstance(document, dict):
        return {key: _plain(value) for key, value in document.items() if key not in ("sha256", "written", "version")}
    return [_plain(value) for value in document] if isinstance(document, list) else document
