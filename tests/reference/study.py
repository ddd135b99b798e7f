"""A study that is killed twice: what its folder says is done, and what was measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.reference.command import SETTINGS, harness
from tests.reference.points import samples

DECLARED = """[run]
model = "tiny-llama"
source = "rows.jsonl"
limit = 2
max_new_tokens = 4
energy = "none"
threads = 1
strategies = ["fixed:layer=4"]
weights_format = "float32"
untimed = true
[grid]
seed = [0, 1]
kv = ["recompute", "propagate"]
"""


def record() -> dict[str, Any]:
    """Kill after the first and the second finished point, then let it end."""
    Path("study.toml").write_text(DECLARED)
    folder = Path("studied")
    for finished in (1, 2):
        _killed(folder, finished)
    ran = _study(folder).wait(300)
    statuses = json.loads(harness("watch", folder, "--json", quiet=False).out)
    events = _events(folder)
    return {
        "code": ran,
        "again": harness("study", "study.toml", "--out", folder).out.splitlines()[0],
        "finished": dict(Counter(event["point"] for event in events if event["what"] == "finished")),
        "kinds": sorted({event["what"] for event in events}),
        "watch": _plain(statuses),
        "points": sorted(json.loads((folder / "study.json").read_text())["points"]),
        "runs": {run.name: samples(run) for run in sorted((folder / "runs").iterdir())},
    }


def _study(folder: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-c",
        "from harness.cli import main; main()",
        "study",
        "study.toml",
        "--out",
        str(folder),
    ]
    return subprocess.Popen(
        command, env=os.environ | SETTINGS, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _killed(folder: Path, finished: int) -> None:
    process = _study(folder)
    limit = time.monotonic() + 900
    while sum(event["what"] == "finished" for event in _events(folder)) < finished:
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"the study ended with {process.poll()} before {finished} points were finished")
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _events(folder: Path) -> list[dict[str, Any]]:
    file = folder / "events.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _plain(document: Any) -> Any:
    if isinstance(document, dict):
        return {
            key: _plain(value)
            for key, value in document.items()
            if not key.endswith(("_s", "_bytes")) and key not in ("at", "place", "created", "eta", "folder")
        }
    return [_plain(value) for value in document] if isinstance(document, list) else document
