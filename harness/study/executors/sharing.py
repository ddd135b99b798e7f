"""How steps, and points that are not timed, share what a measured point has to itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction

from harness.contracts.executors import Job
from harness.errors import ConfigError

__all__ = ["SHARE", "alike", "fits", "part_of", "share_of"]

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
