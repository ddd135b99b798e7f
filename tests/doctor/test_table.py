"""The finding in a terminal: it fits, and it says what is missing."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from harness.doctor.tables import examination
from harness.doctor.verdicts import judge
from harness.records.machine import MachineRecord, SensorRecord
from reports.tables.writers import to_terminal

FACTS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "hypervisor": "unnamed",
    "clock_mhz": (2600.0, 800.0),
    "clock_source": "cpufreq",
    "governors": ("powersave",),
    "load_span_s": 2.0,
    "load_cores": 8,
    "foreign_cpu_s": 0.1,
    "stolen_cpu_s": 0.0,
    "timer": "clock_gettime(CLOCK_MONOTONIC)",
    "timer_resolution_s": 4e-8,
    "timer_backward_steps": 0,
    "bandwidth_bytes_per_s": 4e10,
    "bandwidth_kernel": "torch.nn.functional.linear",
    "bandwidth_buffer_bytes": 1 << 30,
    "bandwidth_limited_by": "memory",
    "gemm_flops_per_s": 1e12,
    "gemm_size": 2048,
    "dispatch_s": 1e-6,
    "meter": "rapl",
    "sensors": (
        SensorRecord(name="rapl", stated_period_s=0.001, period_s=0.00098),
        SensorRecord(name="nvml", unavailable="a long reason " * 9),
    ),
}


def shown(width: int, **facts: Any) -> list[str]:
    record = MachineRecord(**facts)
    console = Console(file=io.StringIO(), width=width, emoji=False, highlight=False)
    console.print(to_terminal(examination("Some Processor (8 cores), 16 GiB", record, judge(record))))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("facts", [FACTS, {"device": "cpu", "dtype": "bfloat16"}])
def test_every_line_fits(width: int, facts: dict[str, Any]) -> None:
    lines = shown(width, **facts)
    assert all(len(line) <= width for line in lines)
    for metric in ("latency", "throughput", "energy", "depth", "accuracy", "bandwidth"):
        assert any(f" {metric} " in line for line in lines)


def test_numbers_come_with_units() -> None:
    text = " ".join(" ".join(shown(100, **FACTS)).split())
    for part in (
        "40 GB/s of float32 weights",
        "1,000 GFLOP/s in float32",
        "1 µs for a torch operation",
        "800 to 2,600 MHz on 2 cores",
        "0.6% of the cores' time (0.10 CPU seconds in 2.0 s), 0.0% stolen",
        "steps of 40 ns, never backwards",
        "works; ticks every 0.98 ms, measured by polling (stated: 1 ms)",
    ):
        assert part in text


def test_what_is_not_known_is_said_and_never_zero() -> None:
    sensors = (SensorRecord(name="rapl", unavailable="root only (run chmod)"),)
    text = " ".join(" ".join(shown(100, device="cpu", dtype="float32", sensors=sensors)).split())
    assert "not here: root only (run chmod)" in text
    assert "dispatch floor not measured" in text
    assert "clock hidden" in text
    assert "None" not in text
