"""How steps, and points that are not timed, share what a measured point has to itself.

Physical cores that a point has to itself on a machine, whatever other points run there.

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
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import IO

from harness.contracts.executors import Job
from harness.errors import ConfigError
from harness.host.processor import sibling_sets

SHARE = "share"
"""Option of an executor: how many steps, or points that are not timed, run where a measured one would be alone."""


def share_of(options: Mapping[str, str]) -> int | None:
    """Return the option; ``None`` where the threads of each point decide.

    Raises:
        ConfigError: it is no number of points.
    """
    text = options.get(SHARE)
    if text is None:
        return None
    if not text.isdigit() or not int(text):
        raise ConfigError(f"{SHARE}={text} is no number of points. Use {SHARE}=2, for example.")
    return int(text)


def part_of(job: Job, cores: int, share: int | None) -> Fraction:
    """Return which part of what a measured job owns a job takes: 1, if it does not share or names no threads.

    Args:
        job: which.
        cores: that a measured job owns.
        share: of :func:`share_of`.
    """
    if not job.shares:
        return Fraction(1)
    return Fraction(1, share or (max(1, cores // job.threads) if job.threads else 1))


def alike(job: Job, running: Iterable[Job]) -> bool:
    """Whether a job may run beside others.

    What is measured never does beside what shares, nor beside a step, which times nothing even where it does not share;
    nor the other way round.
    """
    return all(
        other.shares == job.shares and (job.shares or (other.command is None) == (job.command is None))
        for other in running
    )


def fits(job: Job, part: Fraction, running: Iterable[tuple[Job, Fraction]], capacity: int) -> bool:
    """Return whether a job may begin beside others.

    Args:
        job: which.
        part: that it takes.
        running: jobs with the parts that they take.
        capacity: measured jobs at once.
    """
    running = list(running)
    taken = sum((each for _, each in running), part)
    return alike(job, (other for other, _ in running)) and taken <= capacity


if sys.platform != "win32":
    import fcntl


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
