"""The doctor's findings in a terminal: facts, sensors and verdicts, in 80 columns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from harness.appearance.terminal import Line, Text
from harness.doctor.verdicts import Level, Verdict
from harness.records.machine import MachineRecord, SensorRecord

__all__ = ["render_examination"]

STYLES = {Level.TRUSTWORTHY: "green", Level.CARE: "yellow", Level.NOT_AVAILABLE: "red"}
MARKS = {Level.TRUSTWORTHY: "●", Level.CARE: "◐", Level.NOT_AVAILABLE: "○"}


def render_examination(machine: str, facts: MachineRecord, verdicts: Sequence[Verdict]) -> RenderableType:
    """Return the findings as one rich renderable.

    Args:
        machine: the machine in one line.
        facts: what was measured.
        verdicts: what follows from it.
    """
    return Group(
        Line(machine, "bold"),
        Text(),
        _titled("This machine now", _rows(_facts(facts))),
        Text(),
        _titled("Energy sensors", _rows(_sensors(facts))),
        Text(),
        _titled("What can be trusted", _verdicts(verdicts)),
    )


def _titled(title: str, body: RenderableType) -> RenderableType:
    return Group(Text(title, "bold"), body)


def _rows(rows: Iterator[tuple[str, str]]) -> Table:
    table = _table()
    table.add_column(no_wrap=True, style="dim", min_width=14)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Line(name), Line(value))
    return table


def _table() -> Table:
    return Table(
        box=box.SIMPLE_HEAD, show_header=False, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), expand=True
    )


def _facts(facts: MachineRecord) -> Iterator[tuple[str, str]]:
    yield "cores", _cores(facts)
    yield "threads", _threads(facts)
    yield (
        "hypervisor",
        _hypervisor(facts),
    )
    yield "clock", _clock(facts)
    yield "governor", ", ".join(facts.governors) if facts.governors else "hidden"
    yield "others' load", _load(facts)
    yield "bandwidth", _bandwidth(facts)
    yield "GEMM peak", _compute(facts)
    yield "dispatch floor", _unknown(facts.dispatch_s, 1e6, "µs for a torch operation without work")
    yield "timer", _timer(facts)


def _cores(facts: MachineRecord) -> str:
    quota = "no quota" if facts.quota_cores is None else f"a quota of {facts.quota_cores:g}"
    usable = facts.usable_cores if facts.usable_cores is not None else facts.logical_cores
    return "hidden" if usable is None else f"{usable} usable of {facts.logical_cores or 'an unknown number'}, {quota}"


def _hypervisor(facts: MachineRecord) -> str:
    if facts.hypervisor is None:
        return "none seen"
    return "present, unnamed" if facts.hypervisor == "unnamed" else facts.hypervisor


def _threads(facts: MachineRecord) -> str:
    if facts.threads is None or facts.interop_threads is None:
        return "not read"
    return f"{facts.threads} in an operation, {facts.interop_threads} between operations"


def _clock(facts: MachineRecord) -> str:
    if facts.clock_mhz is None:
        return "hidden"
    low, high = min(facts.clock_mhz), max(facts.clock_mhz)
    span = f"{low:,.0f} MHz" if high - low < 1 else f"{low:,.0f} to {high:,.0f} MHz"
    stated = facts.clock_source == "cpuinfo" and facts.hypervisor is not None
    cores = f"{len(facts.clock_mhz)} core{'s' if len(facts.clock_mhz) > 1 else ''}"
    return f"{span} on {cores}" + (", as the hypervisor states it" if stated else "")


def _load(facts: MachineRecord) -> str:
    foreign, stolen = facts.foreign_share, facts.stolen_share
    if foreign is None or stolen is None:
        return f"hidden: {facts.missing.get('foreign_cpu_s', 'not read')}"
    return (
        f"{foreign:.1%} of the cores' time ({facts.foreign_cpu_s:.2f} CPU seconds in {facts.load_span_s:.1f} s), "
        f"{stolen:.1%} stolen by the hypervisor"
    )


def _bandwidth(facts: MachineRecord) -> str:
    if facts.bandwidth_bytes_per_s is None:
        return f"not measured: {facts.missing.get('bandwidth', '')}"
    size = (facts.bandwidth_buffer_bytes or 0) / 2**30
    short = f", cut short by {facts.bandwidth_limited_by}" if facts.bandwidth_limited_by else ""
    return (
        f"{facts.bandwidth_bytes_per_s / 1e9:.3g} GB/s of {facts.dtype} weights in matrix × vector "
        f"({facts.bandwidth_kernel}, {size:.2g} GiB{short})"
    )


def _compute(facts: MachineRecord) -> str:
    if facts.gemm_flops_per_s is None:
        return f"not measured: {facts.missing.get('gemm', '')}"
    return f"{facts.gemm_flops_per_s / 1e9:,.0f} GFLOP/s in {facts.dtype} ({facts.gemm_size} × {facts.gemm_size})"


def _timer(facts: MachineRecord) -> str:
    if facts.timer_resolution_s is None:
        return "does not move"
    backward = f"ran backwards {facts.timer_backward_steps} times" if facts.timer_backward_steps else "never backwards"
    return f"{facts.timer}, steps of {facts.timer_resolution_s * 1e9:.0f} ns, {backward}"


def _unknown(value: float | None, factor: float, unit: str) -> str:
    return "not measured" if value is None else f"{value * factor:.2g} {unit}"


def _sensors(facts: MachineRecord) -> Iterator[tuple[str, str]]:
    for sensor in facts.sensors:
        yield sensor.name, _sensor(sensor)
    yield "in use", facts.meter_description or facts.meter


def _sensor(sensor: SensorRecord) -> str:
    if sensor.unavailable is not None:
        return f"not here: {sensor.unavailable}"
    stated = "" if sensor.stated_period_s is None else f" (stated: {sensor.stated_period_s * 1e3:g} ms)"
    if sensor.period_s is None:
        return f"works; its period was not measured: {sensor.period_reason}{stated}"
    return f"works; ticks every {sensor.period_s * 1e3:.3g} ms, measured by polling{stated}"


def _verdicts(verdicts: Sequence[Verdict]) -> Table:
    table = _table()
    table.add_column(no_wrap=True, width=1)
    table.add_column(no_wrap=True, width=10)
    table.add_column(no_wrap=True, width=16)
    table.add_column(overflow="fold")
    for verdict in verdicts:
        style = STYLES[verdict.level]
        for index, remark in enumerate(verdict.remarks):
            words = Line(remark.reason)
            if remark.remedy:
                words.append(f" → {remark.remedy}", "cyan")
            first = (Text(MARKS[verdict.level], style), Line(verdict.metric, "bold"), Text(verdict.level, style))
            table.add_row(*(first if index == 0 else (Text(), Text(), Text())), words)
    return table
