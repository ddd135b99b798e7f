"""How long threads that wait for each other spin before they sleep.

GNU's OpenMP, which torch's CPU wheels bring, spins some ten milliseconds: longer than the kernel lets a thread run
beside others. A thread that has to share its core is then waited for by one that takes the time it needs. It reads the
number once, when it is loaded; so whoever starts the process decides, before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

__all__ = ["SPINS", "spin_briefly"]

SPINS = 3_000
"""Turns of the waiting loop: as fast as the default on a quiet machine, and up to ten times as fast beside others."""

CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
"""A user's own setting, which is kept."""


def spin_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let the threads of this process and of those that it starts sleep sooner, unless the user has chosen a policy."""
    if not any(name in environment for name in CHOSEN):
        environment["GOMP_SPINCOUNT"] = str(SPINS)
