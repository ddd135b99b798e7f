"""The dispatch floor: what one torch operation costs when it has nothing to compute.

A decode step of a small model is hundreds of operations on one token; no speed predicted from bytes or FLOPs
can be reached where this floor times their number is the larger part of the step.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

from harness.metering.window import synchronise

__all__ = ["DispatchReading", "measure_dispatch"]

OPERATIONS = 500
ROUNDS = 30


@dataclass(frozen=True, slots=True)
class DispatchReading:
    """Cost of an operation without work.

    Attributes:
        seconds: per operation, called from Python; the median round. On a GPU operations are queued back to back,
            so it is the longer of issuing and launching one.
        operations: operations of one round.
        rounds: how many rounds.
    """

    seconds: float
    operations: int
    rounds: int


def measure_dispatch(device: str, *, operations: int = OPERATIONS, rounds: int = ROUNDS) -> DispatchReading:
    """Measure the seconds of adding two numbers with torch, in about 50 ms.

    Args:
        device: torch device.
        operations: operations of one round.
        rounds: rounds; the median counts.
    """
    import torch

    seconds = []
    with torch.inference_mode():
        number = torch.ones(1, device=device)
        for _ in range(rounds + 1):  # the first one is the warm-up
            synchronise(device)
            started = time.perf_counter()
            for _ in range(operations):
                torch.add(number, number)
            synchronise(device)
            seconds.append((time.perf_counter() - started) / operations)
    return DispatchReading(statistics.median(seconds[1:]), operations, rounds)
