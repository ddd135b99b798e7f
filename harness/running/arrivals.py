"""When requests come: back to back, or at a fixed rate whatever the machine manages (a Poisson process).

A closed loop sends the next request when the last one is done: it measures speed. Editors do not wait for their turn:
requests come when somebody types, so there is idle time, and a queue when two come close together; latency counts from
the arrival. Arrivals of a block are drawn once from the run's seed, so that every operating point serves the same ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Schedule", "poisson"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Arrivals of one window's requests.

    Attributes:
        arrivals_s: from the start of the window, ascending, one per request.
    """

    arrivals_s: tuple[float, ...]

    def wait(self, request: int, started: float) -> float:
        """Sleep until a request is there and return how long it has waited already, seconds.

        Args:
            request: its place in the window.
            started: ``time.perf_counter()`` at the start of the window.
        """
        due = started + self.arrivals_s[request]
        while (early := due - time.perf_counter()) > 0:
            time.sleep(early)
        return time.perf_counter() - due


def poisson(rate_per_s: float, requests: int, seed: Sequence[object]) -> Schedule:
    """Draw the arrivals of so many requests: exponential gaps with mean ``1 / rate_per_s``.

    Args:
        rate_per_s: requests per second on average.
        requests: how many.
        seed: whatever names the window, for example run seed, task, block and repeat.
    """
    chance = random.Random(" ".join(map(str, seed)))
    now, arrivals = 0.0, []
    for _ in range(requests):
        now += chance.expovariate(rate_per_s)
        arrivals.append(now)
    return Schedule(tuple(arrivals))
