"""Tokens, exit layers and counters of tiny models' operating points, as ``samples.jsonl`` has them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.reference.command import harness
from tests.reference.models import FAMILIES

OF_TIME = ("run", "window", "token_times_s", "latency_s", "ttft_s", "arrival_s", "queue_s", "token_texts")
ALWAYS = ("--threads", 1, "--energy", "none")
UNTIMED = (*ALWAYS, "--untimed")
TINY = (*UNTIMED, "--source", "rows.jsonl", "--limit", 3, "--max-new-tokens", 8)
OF_FAMILIES = ("confidence:threshold=0.3", "patience:patience=2", "fixed:layer=6", "random", "oracle")


def each(flag: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(part for value in values for part in (flag, value))


def runs() -> dict[str, tuple[object, ...]]:
    """Return the arguments of ``harness run`` by the run's name."""
    float32 = ("--weights-format", "float32")
    every_kv = ("--kv", "recompute,propagate,none,skip")
    found: dict[str, tuple[object, ...]] = {}
    for family in FAMILIES:
        model = (*TINY, "--model", f"tiny-{family}", *float32)
        found[f"{family}-kv"] = (*model, *every_kv, *each("--strategy", OF_FAMILIES))
        found[f"{family}-lossless"] = (
            *(*model, "--decode", "lossless,lossless+lookup", "--batch-size", 2),
            *each("--strategy", ("confidence:threshold=0.2", "patience:patience=2", "layerskip:layer=4", "del")),
        )
    tiny = (*TINY, "--model", "tiny-llama", "--max-new-tokens", 12, "--limit", 6)
    found |= {
        "tiny-batch": (*tiny, *float32, "--batch-size", 4, *every_kv, *each("--strategy", OF_FAMILIES)),
        "tiny-formats": (
            *(*tiny, "--weights-format", "float32,bfloat16,fp16,int8,int4", "--batch-size", 2),
            *each("--strategy", ("confidence:threshold=0.3", "margin:threshold=0.2@lossless")),
        ),
        "tiny-bfloat16": (*tiny, *float32, "--dtype", "bfloat16", "--strategy", "confidence:threshold=0.3"),
        "tiny-all-exits": (*tiny, *float32, "--exit-points", "all", *each("--strategy", OF_FAMILIES)),
        "tiny-drafts": (
            *(*tiny, *float32, "--decode", "lossless+lookup", "--draft-max", "1,3"),
            *each("--strategy", ("confidence:threshold=0.2", "random", "full")),
        ),
        "tiny-stops": (
            *(*tiny, *float32, "--stop", "none,line,statement", "--decode", "lossy,lossless"),
            *each("--strategy", ("confidence:threshold=0.3",)),
        ),
        "tiny-attributed": (
            *(*ALWAYS, "--source", "rows.jsonl", "--limit", 2, "--max-new-tokens", 6, "--model", "tiny-llama"),
            *(*float32, "--attribute", "--strategy", "confidence:threshold=0.3"),
        ),
        "tiny-percentiles": (*tiny, *float32, "--strategy", "confidence:threshold=q20,q80"),
        "arrivals": (  # timed: without del, which then drafts by the costs it measures
            *(*ALWAYS, "--source", "rows.jsonl", "--limit", 6, "--max-new-tokens", 12, "--model", "tiny-llama"),
            *(*float32, "--arrival-rate", 2000),
            *each("--strategy", ("confidence:threshold=0.3", "patience:patience=2")),
        ),
    }
    return found


def record(match: str = "") -> dict[str, Any]:
    """Return run → operating point → sample → fields, of the runs whose names have the pattern."""
    return measured({name: given for name, given in runs().items() if re.search(match, name)})


def measured(arguments_of: Mapping[str, tuple[object, ...]]) -> dict[str, Any]:
    """Run them all; run → operating point → sample → fields that are not empty."""
    found: dict[str, Any] = {}
    for name, arguments in arguments_of.items():
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
