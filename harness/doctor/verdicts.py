"""From facts to a verdict per metric, as bad as its worst remark, and both as tables.

A pure function of :class:`MachineRecord`: the same facts give the same verdicts, those of an old manifest included.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from harness.metering.contamination import FOREIGN_SHARE, STOLEN_SHARE, threads_left
from harness.metering.examine import CACHE_MULTIPLE
from harness.records.machine import MachineRecord, SensorRecord
from reports.tables.table import Cell, Column, Line, Part, Table, Tone

COARSE_TIMER_S = 1e-5
"""A token takes milliseconds: a coarser clock errs by a percent and more."""

SLOW_DISPATCH_S = 2e-5
PERIOD_RATIO = 2.0
LOW_PRECISION = ("bfloat16", "float16")


class Level(StrEnum):
    """How far a metric can be trusted, best first."""

    TRUSTWORTHY = "trustworthy"
    CARE = "usable with care"
    NOT_AVAILABLE = "not available"


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing to know about a metric."""

    level: Level
    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far one metric can be trusted here."""

    metric: str
    level: Level
    remarks: tuple[Remark, ...]


def judge(facts: MachineRecord) -> tuple[Verdict, ...]:
    """Return one verdict per metric, in a fixed order."""
    share, rate = facts.foreign_share, facts.bandwidth_bytes_per_s
    quiet = "" if share is None else f"others take {share:.1%} of the cores' time, and nothing else disturbs"
    exact = "load and clock do not affect them"
    if facts.dtype in LOW_PRECISION:
        exact = f"in {facts.dtype} another machine may break near-ties of tokens differently"
    sensor = facts.sensor(facts.meter)
    ticks = "" if sensor is None or sensor.period_s is None else f" and ticks every {sensor.period_s * 1e3:.3g} ms"
    streams = "" if rate is None else f"weights stream at {rate / 1e9:.3g} GB/s with the decode kernel"
    return (
        _verdict("latency", [*_clockwork(facts), *_disturbances(facts)], quiet),
        _verdict("throughput", _disturbances(facts), quiet),
        _verdict("energy", _energy(facts), f"{facts.meter} answers{ticks}"),
        _verdict("depth", (), f"layers, checks and heads are counted, not timed; {exact}"),
        _verdict(
            "accuracy",
            (Remark(Level.CARE, missing) for missing in facts.scores_missing),
            f"scores follow from the tokens alone; {exact}",
        ),
        _verdict("bandwidth", _bandwidth(facts), streams),
    )


def _verdict(metric: str, remarks: Iterable[Remark], otherwise: str) -> Verdict:
    """Judge by the remarks; without any, the metric is trustworthy and ``otherwise`` says why."""
    order = list(Level)
    found = sorted(remarks, key=lambda remark: order.index(remark.level), reverse=True)
    found = found or [Remark(Level.TRUSTWORTHY, otherwise)]
    return Verdict(metric, found[0].level, tuple(found))


def _clockwork(facts: MachineRecord) -> Iterator[Remark]:
    if facts.timer_backward_steps:
        reason = f"the clock ran backwards {facts.timer_backward_steps} times while it was read"
        yield Remark(Level.NOT_AVAILABLE, reason, "choose another clock source, or measure on another machine")
    elif facts.timer_resolution_s is None:
        yield Remark(Level.NOT_AVAILABLE, "the clock did not move while it was read", "measure on another machine")
    elif facts.timer_resolution_s > COARSE_TIMER_S:
        reason = f"the clock moves in steps of {facts.timer_resolution_s * 1e6:.3g} µs"
        yield Remark(Level.CARE, reason, "compare whole windows, not single tokens")


def _disturbances(facts: MachineRecord) -> Iterator[Remark]:
    foreign, stolen = facts.foreign_share, facts.stolen_share
    if foreign is None:
        yield Remark(Level.CARE, "the load of other processes cannot be seen here", "make sure that nothing else runs")
    elif foreign > FOREIGN_SHARE:
        reason = f"other processes take {foreign:.0%} of the usable cores' time"
        fewer = threads_left(foreign, facts.load_cores or 1)
        crowded = facts.device.startswith("cpu") and facts.threads is not None and facts.threads > fewer
        reason += f", and {facts.threads} threads wait for whichever is held up" if crowded else ""
        remedy = f"stop them, or --threads {fewer}" if crowded else "stop them, or wait"
        yield Remark(Level.CARE, reason, f"{remedy}; trust paired ratios rather than times")
    if stolen is not None and stolen > STOLEN_SHARE:
        reason = f"the hypervisor gave {stolen:.1%} of the cores' time to other machines"
        yield Remark(Level.CARE, reason, "use a machine with cores of its own, or more --repeats")
    elif facts.hypervisor is not None and stolen is None:
        reason = "a virtual machine, and what its hypervisor takes away cannot be seen"
        yield Remark(Level.CARE, reason, "repeat at another hour, or use a machine of your own")
    moving = [name for name in facts.governors or () if name != "performance"]
    if moving:
        reason = f"the governor '{moving[0]}' changes the clock with the load"
        yield Remark(Level.CARE, reason, "sudo cpupower frequency-set -g performance")
    room = facts.room
    if facts.device.startswith("cpu") and facts.threads and room is not None and facts.threads > room:
        reason = f"{facts.threads} threads share {room:g} cores and wait for each other"
        yield Remark(Level.CARE, reason, f"--threads {max(1, int(room))}")


def _energy(facts: MachineRecord) -> Iterator[Remark]:
    if facts.meter == "none" or not facts.meter_measured:
        usable = [sensor.name for sensor in facts.sensors if sensor.unavailable is None]
        reason = f"{usable[0]} is here and not in use" if usable else "no sensor serves this device"
        remedy = "see the sensors above" if facts.sensors else "run harness doctor for the reason"
        if facts.meter != "none":
            reason = f"{facts.meter} only, which no sensor measures here: {reason}"
        yield Remark(Level.NOT_AVAILABLE, reason, f"--energy {usable[0]}" if usable else remedy)
        return
    sensor = facts.sensor(facts.meter)
    if sensor is None or sensor.period_s is None:
        why = (sensor.period_reason if sensor else None) or "it was not polled"
        yield Remark(Level.CARE, f"the sensor's period was not measured: {why}", "make windows long: --block-size")
    elif sensor.stated_period_s is not None and sensor.period_s > PERIOD_RATIO * sensor.stated_period_s:
        reason = (
            f"the sensor ticks every {sensor.period_s * 1e3:.3g} ms, not every {sensor.stated_period_s * 1e3:.3g} ms"
        )
        yield Remark(Level.CARE, reason, "make windows longer in proportion: --block-size")
    foreign = facts.foreign_share
    if facts.device.startswith("cpu"):
        if foreign is None:
            yield Remark(Level.CARE, "the sensor counts all processes, and theirs cannot be seen", "run nothing else")
        elif foreign > FOREIGN_SHARE:
            reason = f"the sensor counts all processes, and others take {foreign:.0%} of the cores' time"
            yield Remark(Level.CARE, reason, "stop them, or wait")


def _bandwidth(facts: MachineRecord) -> Iterator[Remark]:
    if facts.bandwidth_bytes_per_s is None:
        why = facts.missing.get("bandwidth", "it was not measured")
        yield Remark(Level.NOT_AVAILABLE, f"no memory bandwidth: {why}", "free memory, then run this again")
        return
    foreign, stolen = facts.foreign_share, facts.stolen_share
    if foreign is not None and foreign > FOREIGN_SHARE:
        reason = f"others took {foreign:.0%} of the cores' time while the bandwidth was measured"
        yield Remark(Level.CARE, reason, "stop them: the true bandwidth is higher")
    if stolen is not None and stolen > STOLEN_SHARE:
        yield Remark(Level.CARE, "the hypervisor took time away while the bandwidth was measured", "measure again")
    size, cache = facts.bandwidth_buffer_bytes, facts.bandwidth_cache_bytes
    if cache is None and facts.device.startswith("cpu"):
        yield Remark(Level.CARE, "the cache's size is hidden, so the bandwidth may be a cache's", "compare data sheets")
    elif size is not None and cache is not None and size < CACHE_MULTIPLE * cache * 0.99:
        limit = "free more memory" if facts.bandwidth_limited_by == "memory" else ""
        reason = f"the buffer is {size / cache:.2g} caches instead of {CACHE_MULTIPLE}, so part of it may be cached"
        yield Remark(Level.CARE, reason, limit)
    if facts.dispatch_s is not None and facts.dispatch_s > SLOW_DISPATCH_S:
        reason = f"an operation costs {facts.dispatch_s * 1e6:.0f} µs before it computes anything"
        yield Remark(Level.CARE, reason, "small models will stay below it: use a larger one, or larger batches")


MARKS: dict[Level, tuple[str, Tone]] = {
    Level.TRUSTWORTHY: ("●", "good"),
    Level.CARE: ("◐", "doubtful"),
    Level.NOT_AVAILABLE: ("○", "bad"),
}
_TEXTS = Column(header="", kind="text")


def examination(machine: str, facts: MachineRecord, verdicts: Sequence[Verdict]) -> Iterator[Part]:
    """Yield what was measured on a machine, given in one line, and what follows from it."""
    yield Line(machine, "strong")
    sensors = [
        *((sensor.name, _sensor(sensor)) for sensor in facts.sensors),
        ("in use", facts.meter_description or facts.meter),
    ]
    for title, rows in (("This machine now", [*_facts(facts)]), ("Energy sensors", sensors)):
        yield Table.of_rows(title, [_TEXTS] * 2, [(Line(name, "faint"), value) for name, value in rows])
    remarks: list[tuple[Cell | Line, ...]] = []
    for verdict in verdicts:
        mark, tone = MARKS[verdict.level]
        first: tuple[Cell | Line, ...] = (Line(mark, tone), Line(verdict.metric, "strong"), Line(verdict.level, tone))
        for remark in verdict.remarks:
            words = f"{remark.reason} → {remark.remedy}" if remark.remedy else remark.reason
            remarks.append((*first, words))
            first = ("", "", "")
    yield Table.of_rows("What can be trusted", [_TEXTS] * 4, remarks)


def _facts(facts: MachineRecord) -> Iterator[tuple[str, str]]:
    quota = "no quota" if facts.quota_cores is None else f"a quota of {facts.quota_cores:g}"
    usable = facts.usable_cores if facts.usable_cores is not None else facts.logical_cores
    cores = f"{usable} usable of {facts.logical_cores or 'an unknown number'}, {quota}"
    yield "cores", "hidden" if usable is None else cores
    known = facts.threads is not None and facts.interop_threads is not None
    threads = f"{facts.threads} in an operation, {facts.interop_threads} between operations"
    yield "threads", threads if known else "not read"
    named = {None: "none seen", "unnamed": "present, unnamed"}
    yield "hypervisor", named.get(facts.hypervisor) or str(facts.hypervisor)
    yield "clock", _clock(facts)
    yield "governor", ", ".join(facts.governors) if facts.governors else "hidden"
    foreign, stolen = facts.foreign_share, facts.stolen_share
    if foreign is None or stolen is None:
        yield "others' load", f"hidden: {facts.missing.get('foreign_cpu_s', 'not read')}"
    else:
        taken = f"{facts.foreign_cpu_s:.2f} CPU seconds in {facts.load_span_s:.1f} s"
        yield "others' load", f"{foreign:.1%} of the cores' time ({taken}), {stolen:.1%} stolen by the hypervisor"
    if facts.bandwidth_bytes_per_s is None:
        yield "bandwidth", f"not measured: {facts.missing.get('bandwidth', '')}"
    else:
        size = (facts.bandwidth_buffer_bytes or 0) / 2**30
        short = f", cut short by {facts.bandwidth_limited_by}" if facts.bandwidth_limited_by else ""
        rate = f"{facts.bandwidth_bytes_per_s / 1e9:.3g} GB/s of {facts.dtype} weights in matrix × vector"
        yield "bandwidth", f"{rate} ({facts.bandwidth_kernel}, {size:.2g} GiB{short})"
    if facts.gemm_flops_per_s is None:
        yield "GEMM peak", f"not measured: {facts.missing.get('gemm', '')}"
    else:
        rate = f"{facts.gemm_flops_per_s / 1e9:,.0f} GFLOP/s in {facts.dtype}"
        yield "GEMM peak", f"{rate} ({facts.gemm_size} × {facts.gemm_size})"
    dispatch = f"{(facts.dispatch_s or 0) * 1e6:.2g} µs for a torch operation without work"
    yield "dispatch floor", "not measured" if facts.dispatch_s is None else dispatch
    back = f"ran backwards {facts.timer_backward_steps} times" if facts.timer_backward_steps else "never backwards"
    timer = f"{facts.timer}, steps of {(facts.timer_resolution_s or 0) * 1e9:.0f} ns, {back}"
    yield "timer", "does not move" if facts.timer_resolution_s is None else timer


def _clock(facts: MachineRecord) -> str:
    if facts.clock_mhz is None:
        return "hidden"
    low, high = min(facts.clock_mhz), max(facts.clock_mhz)
    span = f"{low:,.0f} MHz" if high - low < 1 else f"{low:,.0f} to {high:,.0f} MHz"
    stated = facts.clock_source == "cpuinfo" and facts.hypervisor is not None
    cores = f"{len(facts.clock_mhz)} core{'s' if len(facts.clock_mhz) > 1 else ''}"
    return f"{span} on {cores}" + (", as the hypervisor states it" if stated else "")


def _sensor(sensor: SensorRecord) -> str:
    if sensor.unavailable is not None:
        return f"not here: {sensor.unavailable}"
    stated = "" if sensor.stated_period_s is None else f" (stated: {sensor.stated_period_s * 1e3:g} ms)"
    if sensor.period_s is None:
        return f"works; its period was not measured: {sensor.period_reason}{stated}"
    return f"works; ticks every {sensor.period_s * 1e3:.3g} ms, measured by polling{stated}"
