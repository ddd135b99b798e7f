"""The same of the default model, on small documents, on embedded rows and on those of the shared data."""

from __future__ import annotations

import re
from typing import Any

from tests.reference.command import ROOT
from tests.reference.points import UNTIMED, each, measured

SHARED = ROOT.parent / "shared" / "data" / "codexglue_line"
REAL = (*UNTIMED, "--model", "smollm2-135m", "--source", "rows.jsonl", "--limit", 1, "--max-new-tokens", 8)
SHIPPED = (
    *("classifier:threshold=0.7", "lte:threshold=0.6", "rl:threshold=0.001", "hash:threshold=0.2"),
    *("predictor:threshold=0.3", "sec:threshold=0.2", "consistent:threshold=0.001", "classifier"),
)
SCORED = (
    *("confidence:threshold=0.5,0.9", "confidence:threshold=0.7,head=shortlist,token=head", "margin:threshold=0.4"),
    *("margin:threshold=0.6,decay=4", "entropy:threshold=0.3", "saturation:threshold=0.8", "patience:patience=2"),
    *("shortlist:threshold=0.6", "free:layer=14,threshold=0.6,every=2", "schedule:first=26,last=10,horizon=8"),
    *("fixed:layer=14", "random", "oracle", "pruned"),
)


def runs() -> dict[str, tuple[object, ...]]:
    """Return the arguments of ``harness run`` by the run's name."""
    float32 = ("--weights-format", "float32")
    every_kv = ("--kv", "recompute,propagate,none,skip")
    found: dict[str, tuple[object, ...]] = {
        "scored": (*REAL, *float32, *each("--strategy", SCORED)),
        "trained": (*REAL, *float32, *each("--strategy", SHIPPED)),
        "own-head": (
            *(*REAL, *float32, "--weights", "pretrained", "--exit-head", "shared", "--exit-points", "all"),
            *each("--strategy", ("confidence:threshold=0.5", "saturation:threshold=0.9", "patience:patience=3")),
        ),
        "formats": (
            *(*REAL, "--weights-format", "float32,bfloat16,fp16,int8,int4"),
            *each("--strategy", ("confidence:threshold=0.7",)),
        ),
        "lossless": (
            *(*REAL, *float32, "--decode", "lossless,lossless+lookup", "--draft-max", 6),
            *each("--strategy", ("classifier", "layerskip:layer=14,length=4", "del")),
        ),
        "lossless-sources": (
            *(*REAL, *float32, "--decode", "lossy,lossless+lookup", "--draft-head", "shortlist"),
            *each("--strategy", ("free:layer=14,threshold=0.5", "sec", "rl@lossless", "patience@lossless")),
        ),
        "kv": (
            *(*REAL, *float32, *every_kv),
            *each("--strategy", ("classifier",)),
        ),
        "stops": (
            *(*REAL, *float32, "--stop", "none,line,statement,block", "--max-new-tokens", 12),
            *each("--strategy", ("sec",)),
        ),
        "excess": (*REAL, *float32, "--stop", "excess", "--max-new-tokens", 16, "--strategy", "fixed:layer=18"),
        "batch": (
            *(*REAL, *float32, "--limit", 2, "--batch-size", 2),
            *each("--strategy", ("classifier", "del@lossless", "rl@lossless+lookup")),
        ),
        "embedded": (
            *(*REAL, *float32, "--source", "embedded", "--limit", 1, "--task", "javacorpus", "--task", "py150"),
            *each("--strategy", ("rl",)),
        ),
    }
    for language, task in (("python", "py150"), ("java", "javacorpus")):
        found[f"shared-{language}"] = (
            *(*REAL, *float32, "--limit", 1, "--task", task, "--protocol", "codexglue-line"),
            *("--source", SHARED / f"{language}.jsonl", "--strategy", "classifier"),
        )
    return found


def record(match: str = "") -> dict[str, Any]:
    """Return run → operating point → sample → fields, of the runs whose names have the pattern."""
    wanted = {name: given for name, given in runs().items() if re.search(match, name)}
    there = {name: given for name, given in wanted.items() if SHARED.is_dir() or not name.startswith("shared-")}
    skipped = {
        name: {"skipped": "the shared data is not beside the repository"} for name in wanted if name not in there
    }
    return {**measured(there), **skipped}
