"""What else the machine did, read from made-up kernel files, and from this machine's own."""

from __future__ import annotations

import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.metering import contamination, observed
from harness.metering import contamination as throttling
from harness.metering.contamination import Contamination, GpuClocks, Surroundings
from harness.metering.estimate import NoMeter

CORES = 2
TICK_S = 0.01


@dataclass
class Machine:
    """A two-core machine whose kernel files say what the test says."""

    stat: Path
    cpus: Path
    clock: Any
    busy_s: float = 100.0
    stolen_s: float = 1.0

    def write(self, fields: int = 10) -> None:
        """Spread the busy time over the five kinds that count; idle, waiting and guest time never do."""
        part, rest = divmod(round(self.busy_s / TICK_S), 5)
        ticks = [part + rest, part, part, 999_999, 88_888, part, part, round(self.stolen_s / TICK_S), part, 0][:fields]
        line = " ".join(map(str, ticks))
        none = " ".join("0" for _ in ticks)
        rows = f"cpu  {line}\ncpu0 {line}\ncpu1 {none}\ncpu2 {line}\n"  # cpu2 is not for this process
        self.stat.write_text(f"{rows}intr 12345 0 0\nctxt 1\n")

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
        self.write()
        before = surroundings.glance()
        self.clock.work(wall_s=wall_s, cpu_s=own_s)
        self.busy_s += own_s + others_s
        self.stolen_s += stolen_s
        self.write()
        return surroundings.compare(before, surroundings.glance())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Any) -> Machine:
    monkeypatch.setattr(contamination, "PROC_STAT", tmp_path / "stat")
    monkeypatch.setattr(contamination, "CPU_ROOT", tmp_path / "cpu")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    made = Machine(tmp_path / "stat", tmp_path / "cpu", clock)
    made.write()
    return made


@pytest.fixture
def surroundings(machine: Machine) -> Surroundings:
    return Surroundings(clock=machine.clock)


# --------------------------------------------------------------------------------- processors


def test_foreign_time_is_everything_less_this_process(machine: Machine, surroundings: Surroundings) -> None:
    found = machine.window(surroundings, wall_s=10.0, own_s=8.0, others_s=0.5)
    assert found.foreign_cpu_s == pytest.approx(0.5)
    assert found.stolen_cpu_s == 0.0
    assert found.flags == ()


@pytest.mark.parametrize(
    ("wall_s", "others_s", "flagged"),
    [
        (10.0, 0.95, False),  # 5 % of 2 × 10 s is 1 s
        (10.0, 1.05, True),
        (0.1, 0.03, False),  # two ticks of two cores are 40 ms, whatever the window's length
        (0.1, 0.05, True),
    ],
)
def test_foreign_time_is_flagged_by_its_share_of_the_core_seconds(
    machine: Machine, surroundings: Surroundings, wall_s: float, others_s: float, flagged: bool
) -> None:
    found = machine.window(surroundings, wall_s=wall_s, own_s=0.0, others_s=others_s)
    assert ("foreign-cpu" in found.flags) == flagged


@pytest.mark.parametrize(("stolen_s", "flagged"), [(0.19, False), (0.21, True)])  # 1 % of 2 × 10 s is 0.2 s
def test_stolen_time_is_flagged_by_its_share(
    machine: Machine, surroundings: Surroundings, stolen_s: float, flagged: bool
) -> None:
    found = machine.window(surroundings, wall_s=10.0, stolen_s=stolen_s)
    assert found.stolen_cpu_s == pytest.approx(stolen_s)
    assert (found.flags == ("stolen-cpu",)) == flagged
    assert found.foreign_cpu_s == 0.0  # what is stolen is nobody's here


def test_a_kernel_that_counts_no_stolen_time_is_not_read(machine: Machine, surroundings: Surroundings) -> None:
    machine.write(fields=7)
    before = surroundings.glance()
    assert surroundings.compare(before, surroundings.glance()) == Contamination(None, None)


def test_ticks_that_lag_behind_this_process_are_no_negative_time(machine: Machine, surroundings: Surroundings) -> None:
    found = machine.window(surroundings, wall_s=1.0, own_s=1.0, others_s=-0.03)
    assert found.foreign_cpu_s == 0.0


def test_counters_that_leave_this_process_out_are_not_believed(machine: Machine, surroundings: Surroundings) -> None:
    """A sandbox may show a ``/proc/stat`` that stands still."""
    found = machine.window(surroundings, wall_s=1.0, own_s=1.0, others_s=-1.0)
    assert found == Contamination(None, 0.0)


@pytest.mark.parametrize(
    "text", [None, "", "cpu0\ncpu1\n", "cpu0 1 2 three 4 5 6 7 8\ncpu1 1\n", "cpu0 1 2 3 4 5 6 7 8\n", "intr 0\n"]
)
def test_what_cannot_be_read_is_none_and_flags_nothing(
    machine: Machine, surroundings: Surroundings, text: str | None
) -> None:
    if text is None:
        machine.stat.unlink()
    else:
        machine.stat.write_text(text)
    before = surroundings.glance()
    machine.clock.work(wall_s=1.0)
    assert surroundings.compare(before, surroundings.glance()) == Contamination(None, None)


def test_counters_that_run_backwards_are_not_believed(machine: Machine, surroundings: Surroundings) -> None:
    assert machine.window(surroundings, wall_s=1.0, others_s=-50.0, stolen_s=-0.5) == Contamination(None, None)


def test_a_machine_without_proc_still_opens(machine: Machine) -> None:
    machine.stat.unlink()
    made = Surroundings(clock=machine.clock)
    assert made.compare(made.glance(), made.glance()) == Contamination(None, None)


# ------------------------------------------------------------------------------ heat and clocks


def test_a_throttle_event_between_the_edges_is_flagged(machine: Machine) -> None:
    for number in range(CORES):
        machine.core(number, "topology/physical_package_id", 0)
        machine.core(number, "topology/core_id", number)
        machine.core(number, "thermal_throttle/core_throttle_count", 5)
        machine.core(number, "thermal_throttle/package_throttle_count", 7)
    made = Surroundings(clock=machine.clock)
    before = made.glance()
    assert len(before.throttle_counts or {}) == 3  # two cores, and their package once
    assert made.compare(before, made.glance()).flags == ()
    machine.core(1, "thermal_throttle/core_throttle_count", 6)
    assert made.compare(before, made.glance()).flags == ("throttled",)


@pytest.mark.parametrize(("khz", "flagged"), [(2_800_000, False), (3_200_000, False), (2_600_000, True)])
def test_a_clock_that_changes_is_flagged(machine: Machine, khz: int, flagged: bool) -> None:
    """The fastest core decides: a core that dozes off says nothing."""
    machine.core(0, "cpufreq/scaling_cur_freq", 800_000)
    machine.core(1, "cpufreq/scaling_cur_freq", 3_000_000)
    made = Surroundings(clock=machine.clock)
    before = made.glance()
    assert before.clock_hz == 3e9
    machine.core(1, "cpufreq/scaling_cur_freq", khz)
    assert (made.compare(before, made.glance()).flags == ("clock-change",)) == flagged


def test_a_file_that_goes_away_flags_nothing(machine: Machine) -> None:
    machine.core(0, "cpufreq/scaling_cur_freq", 3_000_000)
    machine.core(0, "thermal_throttle/core_throttle_count", 5)
    made = Surroundings(clock=machine.clock)
    before = made.glance()
    machine.core(0, "cpufreq/scaling_cur_freq", None)
    machine.core(0, "thermal_throttle/core_throttle_count", None)
    assert made.compare(before, made.glance()).flags == ()


# ----------------------------------------------------------------------------------------- GPU


class NvmlError(Exception):
    pass


def nvml(reasons: Iterator[int]) -> Any:
    return SimpleNamespace(NVMLError=NvmlError, nvmlDeviceGetCurrentClocksEventReasons=lambda handle: next(reasons))


@pytest.mark.parametrize(
    ("reasons", "flagged"), [([0x01, 0x04], False), ([0x40, 0x04], True), ([0x04, 0x24], True), ([0, 0x80], True)]
)
def test_a_gpu_slowed_by_heat_is_flagged_and_a_busy_one_is_not(
    machine: Machine, reasons: list[int], flagged: bool
) -> None:
    made = Surroundings(GpuClocks(nvml(iter(reasons)), None), clock=machine.clock)
    assert (made.compare(made.glance(), made.glance()).flags == ("throttled",)) == flagged


def test_a_gpu_that_does_not_say_flags_nothing() -> None:
    def refuse(handle: object) -> int:
        raise NvmlError

    assert (
        GpuClocks(SimpleNamespace(NVMLError=NvmlError, nvmlDeviceGetCurrentClocksEventReasons=refuse), 0).reasons()
        is None
    )
    assert GpuClocks.of("cpu") is None


def test_the_reasons_are_nvmls() -> None:
    pynvml = pytest.importorskip("pynvml")
    names = ("HwSlowdown", "SwThermalSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown")
    assert sum(getattr(pynvml, f"nvmlClocksEventReason{name}") for name in names) == throttling.THERMAL_REASONS
    assert not throttling.THERMAL_REASONS & pynvml.nvmlClocksEventReasonSwPowerCap


# --------------------------------------------------------------------------------- this machine


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


def test_failing_work_leaves_no_reading_and_its_own_exception() -> None:
    with pytest.raises(ZeroDivisionError), observed(NoMeter(device="cpu"), Surroundings.of("cpu")) as window:
        1 / 0  # noqa: B018
    assert (window.reading, window.contamination) == (None, None)
