"""Verdicts are a function of the facts: hand-made machines, what may be said of each, and how it is shown."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from harness.doctor.verdicts import Level, Verdict, examination, judge
from harness.records.machine import MachineRecord, SensorRecord
from reports.tables.writers import to_terminal

CARE, TRUST, NOT = Level.CARE, Level.TRUSTWORTHY, Level.NOT_AVAILABLE

QUIET: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "logical_cores": 8,
    "usable_cores": 8,
    "threads": 8,
    "governors": ("performance",),
    "load_span_s": 2.0,
    "load_cores": 8,
    "own_cpu_s": 12.0,
    "foreign_cpu_s": 0.1,
    "stolen_cpu_s": 0.0,
    "timer_resolution_s": 4e-8,
    "timer_backward_steps": 0,
    "bandwidth_bytes_per_s": 4e10,
    "bandwidth_buffer_bytes": 256 << 20,
    "bandwidth_cache_bytes": 64 << 20,
    "gemm_flops_per_s": 1e12,
    "dispatch_s": 1e-6,
    "meter": "rapl",
    "meter_measured": True,
    "sensors": (SensorRecord(name="rapl", stated_period_s=0.001, period_s=0.00098),),
}
"""A machine of which nothing bad can be said."""


def verdicts(**changes: Any) -> dict[str, Verdict]:
    return {verdict.metric: verdict for verdict in judge(MachineRecord(**QUIET | changes))}


def levels(**changes: Any) -> dict[str, Level]:
    return {metric: verdict.level for metric, verdict in verdicts(**changes).items()}


ALL_WELL = dict.fromkeys(("latency", "throughput", "energy", "depth", "accuracy", "bandwidth"), TRUST)


def test_a_quiet_machine_is_trusted_in_everything() -> None:
    assert levels() == ALL_WELL


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        # load: 5 % of 2 s × 8 cores is 0.8 CPU seconds
        ({"foreign_cpu_s": 0.79}, {}),
        ({"foreign_cpu_s": 0.81}, {"latency": CARE, "throughput": CARE, "energy": CARE, "bandwidth": CARE}),
        (
            {"load_span_s": None, "load_cores": None, "foreign_cpu_s": None, "stolen_cpu_s": None},
            {"latency": CARE, "throughput": CARE, "energy": CARE},
        ),
        # virtual machines: only what is taken away counts, or that it cannot be seen
        ({"hypervisor": "KVM"}, {}),
        ({"hypervisor": "KVM", "stolen_cpu_s": 0.2}, {"latency": CARE, "throughput": CARE, "bandwidth": CARE}),
        ({"hypervisor": "KVM", "stolen_cpu_s": None}, {"latency": CARE, "throughput": CARE}),
        ({"governors": ("powersave",)}, {"latency": CARE, "throughput": CARE}),
        ({"governors": ("performance", "schedutil")}, {"latency": CARE, "throughput": CARE}),
        ({"governors": None}, {}),
        ({"threads": 9}, {"latency": CARE, "throughput": CARE}),
        ({"quota_cores": 4.0}, {"latency": CARE, "throughput": CARE}),
        ({"quota_cores": 4.0, "threads": 4}, {}),
        ({"timer_resolution_s": 1.6e-2}, {"latency": CARE}),
        ({"timer_resolution_s": None}, {"latency": NOT}),
        ({"timer_backward_steps": 2}, {"latency": NOT}),
        # energy
        ({"meter": "estimate", "meter_measured": False}, {"energy": NOT}),
        ({"meter": "none"}, {"energy": NOT}),
        ({"sensors": (SensorRecord(name="rapl", period_reason="stuck"),)}, {"energy": CARE}),
        ({"sensors": ()}, {"energy": CARE}),
        ({"sensors": (SensorRecord(name="rapl", stated_period_s=0.001, period_s=0.015),)}, {"energy": CARE}),
        # a GPU's board counter does not see other processes on the CPU, and CPU threads do not matter
        (
            {
                "device": "cuda",
                "meter": "nvml",
                "threads": 99,
                "foreign_cpu_s": 8.0,
                "sensors": (SensorRecord(name="nvml", stated_period_s=0.1, period_s=0.1),),
            },
            {"latency": CARE, "throughput": CARE, "bandwidth": CARE},
        ),
        # bandwidth
        ({"bandwidth_bytes_per_s": None}, {"bandwidth": NOT}),
        ({"bandwidth_buffer_bytes": 100 << 20, "bandwidth_limited_by": "memory"}, {"bandwidth": CARE}),
        ({"bandwidth_cache_bytes": None}, {"bandwidth": CARE}),
        ({"dispatch_s": 5e-5}, {"bandwidth": CARE}),
        ({"scores_missing": ("not shown: CodeBLEU: absent.",)}, {"accuracy": CARE}),
        ({"dtype": "bfloat16"}, {}),
    ],
)
def test_each_fact_moves_the_metrics_it_touches_and_no_other(
    changes: dict[str, Any], differences: dict[str, Level]
) -> None:
    assert levels(**changes) == ALL_WELL | differences


def words(metric: str, **changes: Any) -> str:
    return " | ".join(f"{remark.reason} → {remark.remedy}" for remark in verdicts(**changes)[metric].remarks)


def test_reasons_carry_their_numbers_and_remedies() -> None:
    loaded = words("latency", foreign_cpu_s=4.0)  # of 16 core-seconds: two of eight cores
    assert "other processes take 25% of the usable cores' time, and 8 threads wait for whichever is held up" in loaded
    assert "→ stop them, or --threads 6;" in loaded
    assert "usable cores' time → stop them, or wait;" in words("latency", foreign_cpu_s=4.0, threads=6)
    assert "usable cores' time → stop them, or wait;" in words("latency", foreign_cpu_s=4.0, device="cuda")
    assert "gave 5.0% of the cores' time" in words("latency", stolen_cpu_s=0.8)
    assert "8 threads share 1.5 cores and wait for each other → --threads 1" in words("latency", quota_cores=1.5)
    assert "'powersave'" in words("latency", governors=("powersave",))
    assert "cpupower frequency-set -g performance" in words("latency", governors=("powersave",))
    assert "ticks every 15 ms, not every 1 ms" in words(
        "energy", sensors=(SensorRecord(name="rapl", stated_period_s=0.001, period_s=0.015),)
    )
    absent = {"meter": "estimate", "meter_measured": False}
    assert "estimate only, which no sensor measures here: rapl is here and not in use → --energy rapl" in words(
        "energy", **absent
    )
    assert "no sensor serves this device" in words("energy", **absent, sensors=())
    assert "CodeBLEU: absent" in words("accuracy", scores_missing=("not shown: CodeBLEU: absent.",))
    assert "no memory left" in words("bandwidth", bandwidth_bytes_per_s=None, missing={"bandwidth": "no memory left"})
    assert "bfloat16 another machine may break near-ties" in words("accuracy", dtype="bfloat16")


def test_the_worst_remark_comes_first_and_decides() -> None:
    verdict = verdicts(timer_backward_steps=1, foreign_cpu_s=8.0, governors=("powersave",))["latency"]
    order = list(Level)
    ranks = [order.index(remark.level) for remark in verdict.remarks]
    assert ranks == sorted(ranks, reverse=True)
    assert verdict.level == verdict.remarks[0].level == NOT
    assert len(verdict.remarks) == 3


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


@pytest.mark.parametrize("width", [60, 100])
def test_every_line_fits_and_numbers_come_with_units(width: int) -> None:
    lines = shown(width, **FACTS)
    assert all(len(line) <= width for line in lines)
    text = " ".join(" ".join(lines).split())
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
    record = MachineRecord(device="cpu", dtype="float32", sensors=sensors)
    text = " ".join(" ".join(shown(100, **dict(record))).split())
    for said in ("not here: root only (run chmod)", "dispatch floor not measured", "clock hidden"):
        assert said in text
    assert "None" not in text
    levels_of = {verdict.metric: verdict.level for verdict in judge(record)}
    assert [metric for metric, level in levels_of.items() if level is TRUST] == ["depth", "accuracy"]
    assert [metric for metric, level in levels_of.items() if level is NOT] == ["latency", "energy", "bandwidth"]
