"""Exit codes and first lines of wrong calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.reference.command import harness
from tests.reference.points import TINY

RUN = ("run", "--model", "tiny-llama", *TINY, "--weights-format", "float32")
OF_RUN = (
    "--strategy confidense", "--strategy confidence:treshold=0.5", "--strategy confidence:threshold=1.5",
    "--strategy confidence:threshold=nan", "--strategy confidence:", "--strategy patience:patience=0",
    "--strategy fixed:layer=5", "--strategy fixed:layer=13", "--strategy classifier", "--strategy layerskip:layer=4",
    "--strategy confidence@lossles", "--strategy @nowhere.json", "--strategy confidence:head=shortlist",
    "--task py15", "--model smollm2-135", "--model nobody/no-such-model", "--energy rappl", "--protocol green-cod",
    "--kv propagat", "--weights rand", "--weights tuned", "--dtype float64", "--source embeded",
    "--source nowhere.jsonl", "--source broken.jsonl", "--source empty.jsonl", "--limt 3", "--limit -1",
    "--limit few", "--batch-size 0", "--max-new-tokens 0", "--max-new-tokens 4097", "--seed -1", "--threads 0",
    "--exit-points 0,4", "--exit-points papr", "--exit-head shortcut", "--decode lossles",
    "--decode lossless+lookupp", "--decode lossless+lookup:length=0", "--draft-max 0", "--draft-head nothing",
    "--stop lin", "--stop excess", "--weights-format int3", "--weights-format auto", "--device cuda:99",
    "--device abacus", "--device-map 3-4=moon", "--arrival-rate 0", "--arrival-rate 5", "--repeats 0",
    "--graphs sometimes", "--config nowhere.toml", "--config broken.toml", "--config unknown.toml",
    "--resume nowhere", "--resume .", "--out rows.jsonl", "--energy replay:nowhere", "--artefacts nowhere",
    "--kv-input shortcut", "--idle-s nan", "surplus", "--limit",
)  # fmt: skip
OTHERS = (
    "shwo", "list strategie", "show confidense", "show", "report", "report nowhere", "report .",
    "compare nowhere other", "compare refused-run refused-run --fail-if latency",
    "compare refused-run refused-run --fail-if agreement>1.5%x", "compare refused-run refused-run --point nothing",
    "compare refused-run", "rescore nowhere", "rescore refused-run --score nothing",
    "calibrate --strategy confidense --target agreement=0.9", "calibrate --strategy confidence",
    "calibrate --strategy confidence --target agreement=2", "calibrate --strategy full --target agreement=0.9",
    "sweep", "sweep --replay nowhere --strategy confidence", "sweep --replay . --strategy confidence",
    "study nowhere.toml", "study broken.toml", "study quic --dry-run", "study quick --executor nowhere",
    "watch nowhere", "reproduce nothing", "reproduce --limit few", "suitability nothing",
    "suitability tiny-llama --documents 1", "trace --model nothing", "trace --documents few", "train",
    "train nothing", "train classifier --traces nowhere", "train lite --model nothing", "train rl --traces nowhere",
    "train shortlist --model nothing", "lm-eval", "lm-eval --tasks nothing --strategy nothing", "export",
    "export out --model nothing", "serve --port 99999", "serve --host 0.0.0.0 --port 0",
    "serve --api-key-file nowhere", "serve --model nothing", "serve --config nowhere.toml",
    "serve --print-config emacs", "leaderboard --out site", "leaderboard nowhere --out site", "submit nowhere",
    "submit refused-run", "doctor --surplus", "cache --clear surplus", "verify --model nothing",
    "verify --model tiny-llama --weights-format int3", "verify --model tiny-llama --strategy nothing",
    "verify --model tiny-llama --batch-size 0",
)  # fmt: skip


def record() -> dict[str, Any]:
    """Return call → exit code and first line of the error, or of what was printed."""
    Path("broken.jsonl").write_text('{"code": \n')
    Path("empty.jsonl").write_text("")
    Path("broken.toml").write_text("limit = = 3\n")
    Path("unknown.toml").write_text("limmit = 3\n")
    harness("run", *RUN[1:], "--strategy", "fixed:layer=4", "--out", "refused-run")
    calls = {f"run {call}": (*RUN, "--out", f"refused-{number}", *call.split()) for number, call in enumerate(OF_RUN)}
    calls |= {call: tuple(call.split()) for call in OTHERS}
    calls["run without times and automatic weights format"] = (*RUN, "--weights-format", "auto")
    return {name: _ended(arguments) for name, arguments in calls.items()}


def _ended(arguments: tuple[object, ...]) -> list[Any]:
    ran = harness(*arguments, quiet=False)
    errors = [line for line in ran.err.splitlines() if line.startswith(("error:", "Traceback"))]
    lines = errors or [line for line in (ran.err or ran.out).splitlines() if line.strip()]
    here = str(Path.cwd())
    return [ran.code, json.loads(json.dumps(lines[0].replace(here, "."))) if lines else ""]
