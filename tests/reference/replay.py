"""Replays of a stored trace of a tiny model, a calibration, and what suitability says without times."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.reference.command import harness

STORED = Path(__file__).with_name("stored_traces")
TRACES = {
    "teacher": ("--documents", 5, "--length", 96),
    "generated": ("--documents", 4, "--length", 96, "--new-tokens", 8),
}
SWEEPS: dict[str, tuple[object, ...]] = {
    "lossy": ("teacher", "--strategy", "confidence", "--strategy", "margin", "--strategy", "patience:patience=2,3",
              "--strategy", "entropy", "--strategy", "saturation", "--points", 6),
    "propagate": ("teacher", "--strategy", "confidence:threshold=0.2,0.5", "--kv", "propagate"),
    "generated": ("generated", "--strategy", "confidence:threshold=0.2,0.5", "--strategy", "margin:threshold=0.1,0.3"),
    "lossless": ("generated", "--strategy", "confidence:threshold=0.2,0.5", "--strategy", "patience:patience=2",
                 "--strategy", "layerskip:layer=4", "--decode", "lossless,lossless+lookup",
                 "--draft-max", 4),
}  # fmt: skip


def trace(folder: Path) -> None:
    """Make the traces that are stored."""
    for name, options in TRACES.items():
        harness(
            *("trace", "--model", "tiny-llama", "--task", "py150", "--source", "rows.jsonl", "--threads", 1),
            *(*options, "--out", folder / name),
        )


def record() -> dict[str, Any]:
    """Return what the commands give as JSON."""
    shutil.copytree(STORED, "stored", dirs_exist_ok=True)
    found: dict[str, Any] = {"texts": {}}
    trace(Path("traced"))
    for name in TRACES:
        found[f"trace {name}"] = _index(Path("traced") / name)
    for name, (of, *options) in SWEEPS.items():
        arguments = ("sweep", "--replay", f"stored/{of}", "--model", "tiny-llama", "--document-split", "all", *options)
        found[f"sweep {name}"] = _plain(json.loads(harness(*arguments, "--json").out))
        found["texts"][f"sweep {name}"] = harness(*arguments).out
    arguments = ("suitability", "tiny-llama", "--traces", "stored/teacher", "--no-measure-costs", "--threads", 1)
    arguments = (*arguments, "--weights-format", "float32")
    ran = harness(*arguments, "--json", quiet=False)
    found["suitability"] = _plain(json.loads(ran.out)) if not ran.code else ran.err.splitlines()[-1:]
    found["texts"]["suitability"] = harness(*arguments, quiet=False).out
    ran = harness(
        *("calibrate", "--model", "tiny-llama", "--source", "rows.jsonl", "--limit", 6, "--max-new-tokens", 6),
        *("--strategy", "confidence:threshold=0.2,0.5,0.9", "--target", "agreement=0.5", "--untimed"),
        *("--energy", "none", "--weights-format", "float32", "--threads", 1, "--method", "conformal"),
        *("--observe", 1, "--out", "calibrated"),
        quiet=False,
    )
    file = Path("calibrated/operating-point.json")
    found["calibrate"] = (
        _plain(json.loads(file.read_text())) if file.exists() else [ran.code, ran.err.splitlines()[-1:]]
    )
    return found


def _index(trace: Path) -> Any:
    index = _plain(json.loads((trace / "index.json").read_text()))
    return {name: value for name, value in index.items() if name not in ("sha256",)}


def _plain(document: Any) -> Any:
    """Leave out when and where something was made."""
    left_out = ("created", "run", "records", "sha256", "environment", "machine", "replay_s")
    if isinstance(document, dict):
        return {key: _plain(value) for key, value in document.items() if key not in left_out}
    return [_plain(value) for value in document] if isinstance(document, list) else document
