"""The doctor's findings as tables: facts, sensors, verdicts; and the coverage that the A/A self-test found."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness.doctor.paired import RealCoverage
from harness.doctor.simulated import COVERAGE_BOUNDS, CaseCoverage
from harness.doctor.verdicts import Level, Verdict
from harness.records.estimate import MISSING, Estimate
from harness.records.machine import MachineRecord, SensorRecord
from reports.tables.table import Cell, Column, Line, Part, Table, Tone

MARKS: dict[Level, tuple[str, Tone]] = {
    Level.TRUSTWORTHY: ("●", "good"),
    Level.CARE: ("◐", "doubtful"),
    Level.NOT_AVAILABLE: ("○", "bad"),
}
FEWEST_COMPARISONS = 20
_TEXTS = Column(header="", kind="text")


def examination(machine: str, facts: MachineRecord, verdicts: Sequence[Verdict]) -> Iterator[Part]:
    """Yield the findings.

    Args:
        machine: the machine in one line.
        facts: what was measured.
        verdicts: what follows from it.
    """
    yield Line(machine, "strong")
    for title, rows in (("This machine now", _facts(facts)), ("Energy sensors", _sensors(facts))):
        yield Table.of_rows(title, [_TEXTS] * 2, [(Line(name, "faint"), value) for name, value in rows])
    yield Table.of_rows("What can be trusted", [_TEXTS] * 4, _remarks(verdicts))


def _remarks(verdicts: Iterable[Verdict]) -> Iterator[tuple[Cell | Line, ...]]:
    for verdict in verdicts:
        mark, tone = MARKS[verdict.level]
        first = (Line(mark, tone), Line(verdict.metric, "strong"), Line(verdict.level, tone))
        for place, remark in enumerate(verdict.remarks):
            words = f"{remark.reason} → {remark.remedy}" if remark.remedy else remark.reason
            yield (*(first if place == 0 else ("", "", "")), words)


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


def real(found: RealCoverage) -> Iterator[Part]:
    """Yield how often real intervals of the same work under two names cover 1."""
    one, both = found.coverage, found.overall
    notes = []
    if both.ratio is not None and isinstance(both.interval, tuple):
        together = Estimate.of(both.ratio, both.interval).text("{:.4f}")
        chance = "" if both.interval[0] <= 1 <= both.interval[1] else " It does not cover 1, as 1 in 20 does by chance."
        notes.append(f"All windows together: ratio {together}.{chance}")
    if found.foreign_share is not None and found.stolen_share is not None:
        notes.append(
            f"Meanwhile other processes took {found.foreign_share:.1%} of the cores' time, "
            f"the hypervisor {found.stolen_share:.1%}."
        )
    half_width = MISSING if one.half_width is None else f"±{one.half_width:.1%}"
    expected = f"{found.expected[0]} to {found.expected[1]}"
    yield Table.of_rows(
        f"Real A/A comparisons: {found.model} at full depth",
        [Column(header=header) for header in ("pairs", "comparisons", "cover 1", "expected", "half-width", "window")],
        [(str(one.pairs), str(one.comparisons), str(one.covered), expected, half_width, f"{found.window_s:.2f} s")],
        notes=tuple(notes),
    )
    yield Line("")
    yield Line(real_verdict(found))


def real_verdict(found: RealCoverage) -> str:
    """Return in words whether this machine's error bars can be trusted."""
    covered, total = found.coverage.covered, found.coverage.comparisons
    low, high = found.expected
    counted = f"{covered} of {total} intervals cover 1; correct ones stay between {low} and {high} (95 %)."
    if covered < low:
        return (
            f"{counted} The error bars are too narrow here: windows of the same work differ by more than chance. "
            "Stop other processes, use longer windows or more --repeats, and do not publish small differences."
        )
    if total < FEWEST_COMPARISONS:
        return f"{counted} Too few comparisons to tell; use --pairs {FEWEST_COMPARISONS} or more."
    return f"{counted} The error bars of windows measured next to each other can be trusted on this machine."


def simulated(found: Sequence[CaseCoverage]) -> Iterator[Part]:
    """Yield how often intervals of synthetic times cover, case by case."""
    first = found[0].coverages
    least, most = COVERAGE_BOUNDS
    yield Table.of_rows(
        "Simulated comparisons",
        (
            Column(header="% that cover, by pairs", kind="text"),
            *(Column(header=str(one.pairs), form=".1f", scale=100) for one in first),
            _TEXTS,
        ),
        [
            (
                case.case if case.regular else f"({case.case})",
                *(one.share for one in case.coverages),
                simulated_verdict(case),
            )
            for case in found
        ],
        notes=(
            f"{first[0].comparisons:,} comparisons each; {100 * least:.0f} to {100 * most:.0f} % is as promised. In "
            "brackets: noise with heavy tails or spikes, where intervals may be wider.",
        ),
    )


def simulated_verdict(found: CaseCoverage) -> str:
    """Return the verdict on the simulated coverages of one case in words."""
    least, most = COVERAGE_BOUNDS
    if any(one.share_ci[1] < least for one in found.coverages):
        return "too narrow"
    if any(one.share_ci[0] > most for one in found.coverages):
        return "wider than necessary"
    return "as promised"
