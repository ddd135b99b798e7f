"""``harness trace`` as a function, two processes, and what is made by hand: a trace's facts, and episodes."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.contracts.recipes import Progress, Silent
from harness.training.agents.episodes import Episodes, TracedDocument
from harness.training.agents.reward import Reward, reward_table
from harness.training.options import TraceCommand
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces

FACTS: dict[str, Any] = {
    "model": "toy", "model_fingerprint": "a" * 16, "tokenizer_fingerprint": "b" * 16, "exit_points": [4, 6],
    "exit_head": "shared", "num_layers": 8, "hidden_size": 8, "weights": "pretrained", "dtype": "float32", "seed": 0,
    "length": 64,
}  # fmt: skip
"""Of a trace that no model made."""


def episodes_of(right: Tensor, observations: Tensor, lengths: Sequence[int], reward: Reward, length: int) -> Episodes:
    """Episodes of so many tokens of each document, at exits 4, 6 and 10 of 12 layers."""
    points = (4, 6, 10)
    rewards, optimal = reward_table(right, points, 12, reward)
    starts = itertools.accumulate(lengths, initial=0)
    documents = (
        TracedDocument(number, f"k{number}", "py150, x", start, tokens, 0, tokens)
        for number, (start, tokens) in enumerate(zip(starts, lengths, strict=False))
    )
    return Episodes(
        observations.numpy(), rewards.numpy(), right.numpy(), optimal.numpy(), tuple(documents), length,
        generated=False, exit_points=points, num_layers=12,
    )  # fmt: skip


def trace_of(
    model: Path | str, source: Path | str, out: Path, *tasks: str, progress: Progress | None = None, **changes: Any
) -> Traces:
    """Trace untuned weights at their own exit head on the CPU; changes are the command's options."""
    settings: dict[str, Any] = {
        "model": str(model), "tasks": tasks or ["py150"], "sources": [str(source)], "out": out, "device": "cpu",
        "weights": "pretrained", "exit_head": "shared", **changes,
    }  # fmt: skip
    return trace(TraceCommand.build(settings), progress or Silent())


def two_processes(*arguments: object, cwd: Path) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python …`` twice at once, as ``torchrun`` starts two processes, without the seconds of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    common |= {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, *map(str, arguments)]

    def run(rank: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | common | {"RANK": rank, "LOCAL_RANK": rank}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=env, timeout=500)

    with ThreadPoolExecutor() as both:
        return list(both.map(run, ("0", "1")))
