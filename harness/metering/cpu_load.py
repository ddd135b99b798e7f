"""Who else used the cores: CPU time of other processes, and time the hypervisor gave away.

From Linux' ``/proc/stat``, which counts every core since boot in ticks of usually 10 ms, minus this process'
own CPU time. Only cores this process may run on are looked at: what happens on others delays it less.

Not promised: who the others are, and kernel work done on behalf of this process (it counts as foreign).
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from harness.host.processor import usable_cores

STAT = Path("/proc/stat")

SHORTEST_LOOK_S = 1.0
"""The kernel counts in ticks of 10 ms: of a shorter look, one tick would be more than 1 %."""


@dataclass(frozen=True, slots=True)
class CoreTimes:
    """CPU seconds of the watched cores since boot.

    Attributes:
        busy_s: user, nice, system and interrupt time, guests included.
        stolen_s: time in which a core was wanted and the hypervisor ran something else.
        idle_s: time in which a core had nothing to do, waiting for a disk included.
    """

    busy_s: float
    stolen_s: float
    idle_s: float


@dataclass(frozen=True, slots=True)
class LoadReading:
    """CPU time over a span.

    Attributes:
        span_s: length of the span.
        cores: cores watched.
        own_cpu_s: CPU seconds of this process and of its children that have ended.
        foreign_cpu_s: CPU seconds of everything else on these cores; a rounding below zero is zero.
        stolen_cpu_s: CPU seconds the hypervisor gave to others.
    """

    span_s: float
    cores: int
    own_cpu_s: float
    foreign_cpu_s: float
    stolen_cpu_s: float

    @property
    def foreign_share(self) -> float:
        """Share of the cores' time that others used, 0…1."""
        return self.foreign_cpu_s / (self.span_s * self.cores)

    @property
    def stolen_share(self) -> float:
        """Share of the cores' time that the hypervisor gave away, 0…1."""
        return self.stolen_cpu_s / (self.span_s * self.cores)


class LoadWatch:
    """Watches the usable cores from its creation on.

    Args:
        stat: the kernel's counters.
    """

    def __init__(self, stat: Path = STAT) -> None:
        self._stat = stat
        self._cores = usable_cores()
        self._times = read_core_times(self._cores, stat)
        self._own_s, self._started = _own_cpu_s(), time.perf_counter()

    def read(self) -> LoadReading | str:
        """Return the load since the watch began, or why it cannot be had. May be asked again."""
        now = read_core_times(self._cores, self._stat)
        own_s, span_s = _own_cpu_s() - self._own_s, time.perf_counter() - self._started
        if self._times is None or now is None or self._cores is None:
            return f"{STAT} is not there or does not show these cores: this system hides what other processes do"
        busy_s, stolen_s = now.busy_s - self._times.busy_s, now.stolen_s - self._times.stolen_s
        if busy_s + stolen_s + now.idle_s - self._times.idle_s <= 0:
            return f"{STAT} did not move in {span_s:.2g} s: this system hides what other processes do"
        return LoadReading(span_s, len(self._cores), own_s, max(0.0, busy_s - own_s), max(0.0, stolen_s))


def threads_left(foreign_share: float, cores: int) -> int:
    """Return how many threads still have a core of their own beside what others take, at least one.

    Threads wait for each other many times in every layer, so one that has to share its core holds up all.
    """
    return max(1, round(cores * (1 - foreign_share)))


def read_core_times(cores: Collection[int] | None, stat: Path = STAT) -> CoreTimes | None:
    """Return the sums over some cores; ``None`` where the counters do not show all of them."""
    try:
        lines = stat.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    rows = {fields[0]: fields[1:] for fields in map(str.split, lines) if fields and fields[0].startswith("cpu")}
    try:
        ticks = [[int(field) for field in rows[f"cpu{core}"]] for core in sorted(cores or ())]
    except (KeyError, ValueError):
        return None
    if not ticks or any(len(row) < 8 for row in ticks):  # kernels before 2.6.11 do not tell what was stolen
        return None
    second = os.sysconf("SC_CLK_TCK")
    user, nice, system, idle, waiting, interrupts, soft_interrupts, stolen = (
        sum(column) / second for column in list(zip(*ticks, strict=False))[:8]
    )
    return CoreTimes(user + nice + system + interrupts + soft_interrupts, stolen, idle + waiting)


def _own_cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
