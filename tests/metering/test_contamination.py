"""What else the machine did, read from made-up kernel files, and from this machine's own."""

from __future__ import annotations

import math
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.metering import contamination, observed
from harness.metering.contamination import (
    QUIET_S,
    Contamination,
    LoadReading,
    LoadWatch,
    Surroundings,
    default_idle_s,
    gpu_clock_reasons,
    rest,
    threads_left,
)
from harness.metering.estimate import NoMeter

CORES = 2
TICK_S = 0.01


@dataclass
class Machine:
    """A two-core machine whose counters say what the test says; ``None``: they are hidden."""

    cpus: Path
    clock: Any
    times: tuple[float, float, float] | None = (100.0, 1.0, 999.0)

    def core(self, number: int, name: str, value: int | None) -> None:
        file = self.cpus / f"cpu{number}" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if value is None:
            file.unlink()
        else:
            file.write_text(f"{value}\n")

    def window(
        self,
        surroundings: Surroundings,
        wall_s: float,
        own_s: float = 0.0,
        others_s: float = 0.0,
        stolen_s: float = 0.0,
    ) -> Contamination:
        before = surroundings.glance()
        self.clock.work(wall_s=wall_s, cpu_s=own_s)
        busy, stolen, idle = self.times or (0.0, 0.0, 0.0)
        self.times = busy + own_s + others_s, stolen + stolen_s, idle
        return surroundings.compare(before, surroundings.glance())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Any) -> Machine:
    made = Machine(tmp_path / "cpu", clock)
    monkeypatch.setattr(contamination, "core_times", lambda: made.times)
    monkeypatch.setattr(contamination, "CPU_ROOT", tmp_path / "cpu")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    return made


@pytest.fixture
def surroundings(machine: Machine) -> Surroundings:
    return Surroundings(clock=machine.clock)


@pytest.mark.parametrize(
    ("wall_s", "own_s", "others_s", "stolen_s", "found"),
    [
        (10.0, 8.0, 0.5, 0.0, (0.5, 0.0, ())),  # everything less this process
        (10.0, 0.0, 0.95, 0.0, (0.95, 0.0, ())),  # 5 % of 2 × 10 s is 1 s
        (10.0, 0.0, 1.05, 0.0, (1.05, 0.0, ("foreign-cpu",))),
        (0.1, 0.0, 0.03, 0.0, (0.03, 0.0, ())),  # two ticks of two cores are 40 ms, whatever the window's length
        (0.1, 0.0, 0.05, 0.0, (0.05, 0.0, ("foreign-cpu",))),
        (10.0, 0.0, 0.0, 0.19, (0.0, 0.19, ())),  # 1 % of 2 × 10 s is 0.2 s; what is stolen is nobody's here
        (10.0, 0.0, 0.0, 0.21, (0.0, 0.21, ("stolen-cpu",))),
        (1.0, 1.0, -0.03, 0.0, (0.0, 0.0, ())),  # ticks lag behind this process
        (1.0, 1.0, -1.0, 0.0, (None, 0.0, ())),  # a sandbox's counters may stand still
        (1.0, 0.0, -50.0, -0.5, (None, None, ())),  # counters that run backwards are not believed
    ],
)
def test_what_others_took_is_found_and_flagged_by_its_share(
    machine: Machine, surroundings: Surroundings, wall_s: float, own_s: float, others_s: float, stolen_s: float,
    found: tuple[float | None, float | None, tuple[str, ...]],
) -> None:  # fmt: skip
    seen = machine.window(surroundings, wall_s, own_s, others_s, stolen_s)
    assert (seen.foreign_cpu_s, seen.stolen_cpu_s) == (pytest.approx(found[0]), pytest.approx(found[1]))
    assert seen.flags == found[2]


def test_hidden_counters_are_none_and_flag_nothing(machine: Machine, surroundings: Surroundings) -> None:
    machine.times = None
    before = surroundings.glance()
    machine.clock.work(wall_s=1.0)
    assert surroundings.compare(before, surroundings.glance()) == Contamination(None, None)
    assert "hides" in str(LoadWatch().read())


def test_busy_is_all_but_idle_waiting_and_stolen_and_only_of_cores_that_are_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = {"user": 1.0, "nice": 2.0, "system": 3.0, "idle": 10.0, "iowait": 20.0, "irq": 4.0, "softirq": 5.0}
    shown = [
        SimpleNamespace(**core, steal=0.5, guest=1.0),
        SimpleNamespace(**core, steal=0.25),
        SimpleNamespace(**core),
    ]
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: shown)
    for cores, found in (({0}, (15, 0.5, 30)), ({0, 1}, (30, 0.75, 60)), ({0, 2}, None), ({0, 7}, None), (set(), None)):
        monkeypatch.setattr("os.sched_getaffinity", lambda pid, cores=cores: cores, raising=False)
        assert contamination.core_times() == found  # core 2 does not tell what was stolen; there is no core 7


@pytest.mark.parametrize(
    ("after", "own_s", "foreign_s"),
    [
        ((102.3, 1.2, 1000.5), 1.5, 0.8),
        ((100.5, 1.0, 1002.5), 0.52, 0.0),  # a rounding below zero
        ((100.0, 1.0, 999.0), 0.0, None),  # counters that stand still are no zero load
    ],
)
def test_a_load_is_what_this_process_did_not_use(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    after: tuple[float, float, float],
    own_s: float,
    foreign_s: float | None,
) -> None:
    own, moments = iter([5.0, 5.0 + own_s]), iter([100.0, 102.0])
    monkeypatch.setattr("os.times", lambda: (next(own), 0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(contamination, "time", SimpleNamespace(perf_counter=lambda: next(moments)))
    watch = LoadWatch()
    machine.times = after
    load = watch.read()
    if foreign_s is None:
        assert "did not move in 2 s" in str(load)
        return
    assert isinstance(load, LoadReading)
    assert (load.span_s, load.cores, load.own_cpu_s) == (2.0, CORES, pytest.approx(own_s))
    assert load.foreign_cpu_s == pytest.approx(foreign_s)
    assert load.foreign_share == pytest.approx(foreign_s / 4)
    assert load.stolen_share == pytest.approx((after[1] - 1.0) / 4)


def test_threads_have_what_others_leave() -> None:
    assert [threads_left(share, 2) for share in (0, 0.2, 0.3, 0.9)] == [2, 2, 1, 1]
    assert threads_left(0.25, 8) == 6


def test_heat_and_clocks_that_change_are_flagged(machine: Machine) -> None:
    """The fastest core decides of clocks, since a core that dozes off says nothing; files that go away flag nothing."""
    for number, khz in enumerate((800_000, 3_000_000)):
        machine.core(number, "thermal_throttle/core_throttle_count", 5)
        machine.core(number, "cpufreq/scaling_cur_freq", khz)
    made = Surroundings(clock=machine.clock)
    before = made.glance()
    assert before.clock_hz == 3e9
    for name, value, flags in (
        ("cpufreq/scaling_cur_freq", 2_800_000, ()),
        ("cpufreq/scaling_cur_freq", 2_600_000, ("clock-change",)),
        ("cpufreq/scaling_cur_freq", 3_200_000, ()),
        ("thermal_throttle/core_throttle_count", 6, ("throttled",)),
        ("thermal_throttle/core_throttle_count", None, ()),
    ):
        machine.core(1, name, value)
        assert made.compare(before, made.glance()).flags == flags


@pytest.mark.parametrize(
    ("reasons", "flagged"),
    [([0x01, 0x04], False), ([0x40, 0x04], True), ([0x04, 0x24], True), ([0, 0x80], True), ([None, None], False)],
)
def test_a_gpu_slowed_by_heat_is_flagged_and_a_busy_one_is_not(
    machine: Machine, reasons: list[int | None], flagged: bool
) -> None:
    made = Surroundings(iter(reasons).__next__, clock=machine.clock)
    assert (made.compare(made.glance(), made.glance()).flags == ("throttled",)) == flagged
    assert gpu_clock_reasons("cpu") is None


def test_the_reasons_are_nvmls() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert sum(getattr(pynvml, f"nvmlClocksEventReason{name}") for name in names) == contamination.THERMAL_REASONS
    assert not contamination.THERMAL_REASONS & pynvml.nvmlClocksEventReasonSwPowerCap


def burn(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        math.sqrt(2.0)


def test_a_real_child_is_foreign_and_this_process_is_not() -> None:
    surroundings = Surroundings.of("cpu")
    if surroundings.glance().busy_s is None:
        pytest.skip("this machine has no /proc/stat")
    meter = NoMeter(device="cpu")
    with observed(meter, surroundings) as alone:
        burn(0.3)
    child = multiprocessing.get_context("spawn").Process(target=burn, args=(0.3,))
    with observed(meter, surroundings) as accompanied:
        child.start()
        child.join()
    assert alone.reading is not None
    assert alone.contamination is not None
    assert accompanied.contamination is not None
    assert alone.reading.cpu_time_s >= 0.3
    if accompanied.contamination.foreign_cpu_s is None:
        pytest.skip("this machine's /proc/stat does not count its processes")
    assert accompanied.contamination.foreign_cpu_s >= 0.25
    busy_s = surroundings._cores * alone.reading.duration_s
    assert alone.contamination.foreign_cpu_s is not None
    assert alone.contamination.foreign_cpu_s <= busy_s - 0.3 + surroundings._cores * 2 * TICK_S + 0.05


def test_rest_waits_for_quiet_outside_the_window(clock: Any) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.work(wall_s=seconds)

    window = rest(NoMeter(device="cpu", clock=clock), Surroundings(clock=clock), 3.0, sleep)
    assert slept == [QUIET_S, 3.0]
    assert default_idle_s(None) == 0 < default_idle_s(0.001) < default_idle_s(0.1)  # as long as a slow sensor needs
    assert window.reading is not None
    assert (window.reading.duration_s, window.reading.cpu_time_s) == (3.0, 0.0)
