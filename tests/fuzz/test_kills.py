"""Runs that are killed again and again come to what they would have come to undisturbed."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from .cases import Ran, Warm
from .conftest import MINUTES, RUN, few_and_many

Fresh = Callable[[], AbstractContextManager[Path]]

CONTENT = ("token_ids", "exit_layers", "text", "reference", "scores", "finish_reason", "prompt_ids", "error",
           "full_depth_ids", "exit_checks", "lm_head_evaluations", "layers_executed", "kv_fill_layers")  # fmt: skip
"""Of a sample: what was decoded, and how much work that was; times differ."""

PATIENCE = 40
"""Kills in a row after which a run is left alone, so that it ends."""


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    file = folder / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_bytes().split(b"\n")[:-1]] if file.exists() else []


def committed(folder: Path) -> tuple[bytes, bytes]:
    """Return the committed bytes of windows and samples."""
    windows = b"".join(line + b"\n" for line in _bytes(folder / "windows.jsonl").split(b"\n")[:-1])
    count = sum(json.loads(line)["samples"] for line in windows.splitlines())
    samples = _bytes(folder / "samples.jsonl").split(b"\n")[:count]
    return windows, b"".join(line + b"\n" for line in samples)


def _bytes(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def outcomes(folder: Path) -> dict[tuple[Any, ...], tuple[str, ...]]:
    """Return what was decoded for each sample; fails when one is there twice."""
    found: dict[tuple[Any, ...], tuple[str, ...]] = {}
    for record in lines(folder, "samples"):
        key = tuple(record[name] for name in ("task", "operating_point", "repeat", "sample_id"))
        assert key not in found, f"{key} is there twice"
        found[key] = tuple(json.dumps(record[name]) for name in CONTENT)
    return found


def measured(folder: Path) -> list[tuple[Any, ...]]:
    """Return the windows that count, in their order, with what they hold."""
    names = ("task", "block", "repeat", "operating_point", "samples", "failed", "tokens")
    windows = lines(folder, "windows")
    assert [window["window"] for window in windows] == list(range(len(windows)))
    return [tuple(one[name] for name in names) for one in windows if not (one["warmup"] or one["idle"])]


@pytest.mark.parametrize("kills", [1000] if MINUTES else few_and_many(6, 20))
def test_what_is_killed_goes_on_where_it_was(
    warm: Warm, fresh: Fresh, model: Path, rows_file: Path, kills: int, record_property: Callable[[str, str], None]
) -> None:
    arguments = (
        *("--model", model, "--source", rows_file, "--limit", 4, *RUN, "--exit-points", "all"),
        *("--strategy", "random:probability=0.4", "--strategy", "oracle"),
    )
    chance = random.Random(None if MINUTES else kills)
    done = runs = 0
    with fresh() as place:
        began = time.monotonic()
        whole = warm.run("run", *arguments, "--out", "whole", cwd=place)
        seconds = time.monotonic() - began
        assert whole.judge() == 0, whole
        try:
            while done < kills:
                runs += 1
                out = place / f"out-{runs}"
                done += _run_through(warm, place, out, arguments, seconds, chance, min(PATIENCE, kills - done))
                assert outcomes(out) == outcomes(place / "whole")
                assert measured(out) == measured(place / "whole")
                assert warm.run("report", out.name, cwd=place).judge() == 0
        finally:
            record_property("fuzz", json.dumps({"kills": {"killed": done, "come to an end": runs}}))


def _run_through(
    warm: Warm, place: Path, out: Path, arguments: tuple[object, ...], seconds: float, chance: random.Random, most: int
) -> int:
    """Run to the end, however often it is killed; return how often it was."""
    done = 0
    while True:
        before = committed(out)
        start = ("--resume", out.name) if (out / "manifest.json").exists() else (*arguments, "--out", out.name)
        kill_after_s = chance.uniform(0, 1.1 * seconds) if done < most else None
        ran = warm.run("run", *start, cwd=place, kill_after_s=kill_after_s)
        after = committed(out)
        for old, new in zip(before, after, strict=True):
            assert new.startswith(old), f"loses or changes what was finished\n{ran}"
        if not _killed(ran):
            assert ran.judge() == 0, ran
            return done
        done += 1


def _killed(ran: Ran) -> bool:
    return ran.code == -signal.SIGKILL
