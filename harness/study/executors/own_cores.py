"""Physical cores that a point has to itself on a machine, whatever other points run there.

A core goes to one point with all of its hardware threads: what runs on the other thread of a core takes from its time.
Who holds what stands in files of the machine, each locked by the process that holds it; the locks die with the process.
Users of one machine do not see each other's.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

from harness.errors import ConfigError
from harness.host.processor import sibling_sets

if sys.platform != "win32":
    import fcntl

__all__ = ["hold_cores", "points_on"]

FREED_S = 10.0
"""Seconds in which a process that was just ended lets go of its cores."""
LOOK_S = 0.2


def points_on(sets: Sequence[Sequence[int]], count: int) -> int:
    """Return how many points fit on a machine at once.

    Args:
        sets: its logical CPUs, those of a physical core together.
        count: logical CPUs that each wants.
    """
    points = held = 0
    for each in sets:
        held += len(each)
        if held >= count:
            points, held = points + 1, 0
    return points


def hold_cores(count: int) -> list[IO[bytes]]:
    """Pin this process to physical cores that no other point on this machine holds.

    Args:
        count: logical CPUs; more are held where a core has more threads. 0 for all that the process may use.

    Returns:
        What holds them until it is closed; empty where processes cannot be pinned.

    Raises:
        ConfigError: there are not so many free.
    """
    if not count or sys.platform == "win32" or not hasattr(os, "sched_setaffinity"):
        return []
    folder = Path(tempfile.gettempdir()) / f"harness-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    sets, deadline = sibling_sets(), time.monotonic() + FREED_S
    while True:
        held: dict[int, IO[bytes]] = {}
        for cores in sets:
            held |= _locked(folder, cores)
            if len(held) >= count:
                os.sched_setaffinity(0, held)
                return list(held.values())
        for lock in held.values():
            lock.close()
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{platform.node()} has {len(held)} free logical CPUs where a point wants {count}. Use fewer: cpus=N."
            )
        time.sleep(LOOK_S)


def _locked(folder: Path, cores: Sequence[int]) -> dict[int, IO[bytes]]:
    """Return the locks of all these cores, or none."""
    held: dict[int, IO[bytes]] = {}
    with ExitStack() as on_error:
        for core in cores:
            held[core] = on_error.enter_context((folder / str(core)).open("ab"))
            try:
                fcntl.flock(held[core], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return {}
        on_error.pop_all()
    return held
