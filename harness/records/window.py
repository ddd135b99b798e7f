"""``windows.jsonl``: what was measured, one :class:`WindowRecord` a line, which commits the samples of its window."""

from __future__ import annotations

from harness.records.record import Count, Record

__all__ = ["WindowRecord"]


class WindowRecord(Record):
    """One measured window: one block of samples under one operating point. Commits its samples.

    Attributes:
        window: id, counting up in the order written.
        task, block, repeat, operating_point: what ran.
        warmup: left out of every summary.
        idle: nothing ran; the model was loaded. Its task and operating point are empty, its power is the machine's own.
        superseded: contaminated and measured again (``--strict``); left out of every summary and counted there.
        samples: number of sample lines this window commits.
        failed: how many of those are error records.
        tokens: generated tokens; ``None`` where a black box does not count its own.
        started: UTC time, ISO 8601.
        duration_s: window length, monotonic clock; ``None`` in a run that was not timed (``untimed``).
        cpu_time_s: CPU seconds of this process; likewise.
        foreign_cpu_s: CPU seconds of everything else on the usable cores; ``None`` where it cannot be read.
        stolen_cpu_s: CPU seconds the hypervisor gave to others; ``None`` where it cannot be read.
        energy_j, energy_source, energy_scope, sensor_period_s, flags, energy_reason: see ``EnergyReading``.
    """

    window: Count
    task: str
    block: Count
    repeat: Count
    operating_point: str
    warmup: bool = False
    idle: bool = False
    superseded: bool = False
    samples: Count
    failed: Count = 0
    tokens: Count | None
    started: str
    duration_s: float | None
    cpu_time_s: float | None
    foreign_cpu_s: float | None = None
    stolen_cpu_s: float | None = None
    energy_j: float | None = None
    energy_source: str = "none"
    energy_scope: str = ""
    sensor_period_s: float | None = None
    flags: tuple[str, ...] = ()
    energy_reason: str | None = None
