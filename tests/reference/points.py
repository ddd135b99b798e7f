"""Tokens, exit layers and counters of operating points, as ``samples.jsonl`` has them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.reference.command import ROOT, harness
from tests.reference.models import FAMILIES

SHARED = ROOT.parent / "shared" / "data" / "codexglue_line"
OF_TIME = ("window", "token_times_s", "latency_s", "ttft_s", "arrival_s", "queue_s", "token_texts")
ALWAYS = ("--threads", 1, "--energy", "none")
UNTIMED = (*ALWAYS, "--untimed")
TINY = (*UNTIMED, "--source", "rows.jsonl", "--limit", 3, "--max-new-tokens", 8)
REAL = (*UNTIMED, "--model", "smollm2-135m", "--source", "rows.jsonl", "--limit", 1, "--max-new-tokens", 8)
SHIPPED = ("classifier", "lte", "rl", "hash", "predictor", "sec", "consistent")
SCORED = (
    *("confidence:threshold=0.5,0.9", "confidence:threshold=0.7,head=shortlist,token=head", "margin:threshold=0.4"),
    *("margin:threshold=0.6,decay=4", "entropy:threshold=0.3", "saturation:threshold=0.8", "patience:patience=2"),
    *("shortlist:threshold=0.6", "free:layer=14,threshold=0.6,every=2", "schedule:first=26,last=10,horizon=8"),
    *("fixed:layer=14", "random", "oracle", "pruned"),
)
OF_FAMILIES = ("confidence:threshold=0.3", "patience:patience=2", "fixed:layer=6", "random", "oracle")


def _each(flag: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for value in values for part in (flag, value))


def runs() -> dict[str, tuple[object, ...]]:
    """Return the arguments of ``harness run`` by the run's name."""
    float32 = ("--weights-format", "float32")
    every_kv = ("--kv", "recompute,propagate,none,skip")
    found: dict[str, tuple[object, ...]] = {
        "real-scored": (*REAL, *float32, *_each("--strategy", SCORED)),
        "real-trained": (*REAL, *float32, *_each("--strategy", (*SHIPPED, "classifier:threshold=0.7"))),
        "real-shared-head": (
            *(*REAL, *float32, "--weights", "pretrained", "--exit-head", "shared", "--exit-points", "all"),
            *_each("--strategy", ("confidence:threshold=0.5", "saturation:threshold=0.9", "patience:patience=3")),
        ),
        "real-formats": (
            *(*REAL, "--weights-format", "float32,bfloat16,fp16,int8,int4"),
            *_each("--strategy", ("confidence:threshold=0.7",)),
        ),
        "real-lossless": (
            *(*REAL, *float32, "--decode", "lossless,lossless+lookup", "--draft-max", 6),
            *_each("--strategy", ("classifier", "layerskip:layer=14,length=4", "del")),
        ),
        "real-lossless-sources": (
            *(*REAL, *float32, "--decode", "lossy,lossless+lookup", "--draft-head", "shortlist"),
            *_each("--strategy", ("free:layer=14,threshold=0.5", "sec", "rl@lossless", "patience@lossless")),
        ),
        "real-kv": (
            *(*REAL, *float32, *every_kv),
            *_each("--strategy", ("classifier",)),
        ),
        "real-stops": (
            *(*REAL, *float32, "--stop", "none,line,statement,block", "--max-new-tokens", 12),
            *_each("--strategy", ("sec",)),
        ),
        "real-excess": (*REAL, *float32, "--stop", "excess", "--max-new-tokens", 16, "--strategy", "fixed:layer=18"),
        "real-batch": (
            *(*REAL, *float32, "--limit", 2, "--batch-size", 2),
            *_each("--strategy", ("classifier", "del@lossless", "rl@lossless+lookup")),
        ),
        "real-embedded": (
            *(*REAL, *float32, "--source", "embedded", "--limit", 1, "--task", "javacorpus", "--task", "py150"),
            *_each("--strategy", ("rl",)),
        ),
    }
    for language, task in (("python", "py150"), ("java", "javacorpus")):
        found[f"shared-{language}"] = (
            *(*REAL, *float32, "--limit", 1, "--task", task, "--protocol", "codexglue-line"),
            *("--source", SHARED / f"{language}.jsonl", "--strategy", "classifier"),
        )
    for family in FAMILIES:
        model = (*TINY, "--model", f"tiny-{family}", *float32)
        found[f"{family}-kv"] = (*model, *every_kv, *_each("--strategy", OF_FAMILIES))
        found[f"{family}-lossless"] = (
            *(*model, "--decode", "lossless,lossless+lookup", "--batch-size", 2),
            *_each("--strategy", ("confidence:threshold=0.2", "patience:patience=2", "layerskip:layer=4", "del")),
        )
    tiny = (*TINY, "--model", "tiny-llama", "--max-new-tokens", 12, "--limit", 6)
    found |= {
        "tiny-batch": (*tiny, *float32, "--batch-size", 4, *every_kv, *_each("--strategy", OF_FAMILIES)),
        "tiny-formats": (
            *(*tiny, "--weights-format", "float32,bfloat16,fp16,int8,int4", "--batch-size", 2),
            *_each("--strategy", ("confidence:threshold=0.3", "margin:threshold=0.2@lossless")),
        ),
        "tiny-bfloat16": (*tiny, *float32, "--dtype", "bfloat16", "--strategy", "confidence:threshold=0.3"),
        "tiny-all-exits": (*tiny, *float32, "--exit-points", "all", *_each("--strategy", OF_FAMILIES)),
        "tiny-drafts": (
            *(*tiny, *float32, "--decode", "lossless+lookup", "--draft-max", "1,3"),
            *_each("--strategy", ("confidence:threshold=0.2", "random", "full")),
        ),
        "tiny-stops": (
            *(*tiny, *float32, "--stop", "none,line,statement", "--decode", "lossy,lossless"),
            *_each("--strategy", ("confidence:threshold=0.3",)),
        ),
        "tiny-attributed": (
            *(*ALWAYS, "--source", "rows.jsonl", "--limit", 2, "--max-new-tokens", 6, "--model", "tiny-llama"),
            *(*float32, "--attribute", "--strategy", "confidence:threshold=0.3"),
        ),
        "tiny-percentiles": (*tiny, *float32, "--strategy", "confidence:threshold=q20,q80"),
        "arrivals": (
            *(*ALWAYS, "--source", "rows.jsonl", "--limit", 6, "--max-new-tokens", 12, "--model", "tiny-llama"),
            *(*float32, "--arrival-rate", 2000),
            *_each("--strategy", ("confidence:threshold=0.3", "patience:patience=2", "del@lossless")),
        ),
    }
    return found


def record() -> dict[str, Any]:
    """Run them all; run → operating point → sample → fields that are not empty."""
    found: dict[str, Any] = {}
    for name, arguments in runs().items():
        if name.startswith("shared-") and not SHARED.is_dir():
            found[name] = {"skipped": "the shared data is not beside the repository"}
            continue
        ran = harness("run", *arguments, "--out", f"points/{name}", quiet=False)
        if ran.code:
            found[name] = {"failed": ran.err.splitlines()[-1:]}
        else:
            found[name] = samples(Path("points") / name)
    return found


def samples(run: Path) -> dict[str, Any]:
    """Return operating point → sample → what was recorded of it, times left out."""
    found: dict[str, Any] = {}
    for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        point = found.setdefault(sample.pop("operating_point"), {})
        key = f"{sample.pop('task')} {sample.pop('sample_id')} {sample.pop('repeat')}"
        sample["prompt_ids"] = hashlib.sha256(json.dumps(sample["prompt_ids"]).encode()).hexdigest()[:16]
        kept = {name: value for name, value in sample.items() if name not in OF_TIME}
        point[key] = {name: value for name, value in kept.items() if value not in (None, "", [], {}, 0, False)}
    return found
