"""The zeus-backed meters: which counters are read, and what becomes of readings that are wrong."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import EnergyReading
from harness.errors import MeterError
from harness.metering import rapl, window
from harness.metering.estimate import Estimate
from harness.metering.nvml import NVML_PERIOD_S, Nvml
from harness.metering.rapl import RAPL_PERIOD_S, Rapl


@pytest.fixture
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "synchronise", lambda device: None)


def add_zone(root: Path, number: int, name: str, dram: bool = False) -> Path:
    zone = root / f"intel-rapl:{number}"
    parts = {zone: name, **({zone / f"intel-rapl:{number}:0": "dram"} if dram else {})}
    for folder, title in parts.items():
        folder.mkdir(parents=True)
        (folder / "name").write_text(title + "\n")
        (folder / "energy_uj").write_text("1000000\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")
    return zone


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sysfs tree as on a two-socket machine whose firmware shows a psys zone between the packages."""
    root = tmp_path / "intel-rapl"
    monkeypatch.setattr(rapl, "POWERCAP", (root,))
    monkeypatch.delenv("ZEUSD_SOCK_PATH", raising=False)
    monkeypatch.delenv("ZEUSD_HOST_PORT", raising=False)
    add_zone(root, 0, "package-0", dram=True)
    add_zone(root, 1, "psys")
    add_zone(root, 2, "package-1", dram=True)
    return root


def read_gpu(clock: Any, monitors: Any, duration_s: float, energy: dict[int, float]) -> EnergyReading:
    meter = Nvml(device="cuda:1", clock=clock)
    monitors.opened[-1].energy = {"gpu_energy": energy}
    meter.begin()
    clock.work(wall_s=duration_s, cpu_s=0.25)
    return meter.end()


# ---------------------------------------------------------------------------------------- nvml


def test_only_the_gpu_that_works_is_read(clock: Any, monitors: Any, no_sync: None) -> None:
    reading = read_gpu(clock, monitors, 10.0, {1: 2500.0})
    assert (monitors.opened[0].gpu_indices, monitors.opened[0].cpu_indices) == ([1], [])
    assert reading == EnergyReading(2500.0, "nvml", "gpu board", 10.0, 0.25, NVML_PERIOD_S)


def test_a_throwaway_window_comes_first(clock: Any, monitors: Any, no_sync: None) -> None:
    read_gpu(clock, monitors, 10.0, {1: 1.0})
    assert monitors.opened[0].calls == ["begin", "end", "restart", "end"]


@pytest.mark.parametrize(
    ("periods", "energy_j", "flags"),
    [
        (9.9, None, ("invalid-window",)),
        (10.1, 100.0, ("short-window",)),
        (49.9, 100.0, ("short-window",)),
        (50.1, 100.0, ()),
    ],
)
@pytest.mark.usefixtures("no_sync")
def test_windows_are_judged_by_sensor_periods(
    clock: Any, monitors: Any, periods: float, energy_j: float | None, flags: tuple[str, ...]
) -> None:
    reading = read_gpu(clock, monitors, periods * NVML_PERIOD_S, {1: 100.0})
    assert (reading.energy_j, reading.flags) == (energy_j, flags)
    if energy_j is None:
        assert reading.reason == "a window of 0.99 s is shorter than 10 sensor periods (1 s)"


@pytest.mark.parametrize(
    ("energy", "reason"),
    [
        ({}, "gave no reading"),
        ({0: 5.0}, "gave no reading"),
        ({1: math.nan}, "gave no reading"),
        ({1: math.inf}, "gave no reading"),
        ({1: -3.0}, "ran backwards"),
        ({1: 0.0}, "did not move in 10 s"),
    ],
)
def test_a_reading_that_is_none_is_none_and_not_zero(
    clock: Any, monitors: Any, no_sync: None, energy: dict[int, float], reason: str
) -> None:
    reading = read_gpu(clock, monitors, 10.0, energy)
    assert reading.energy_j is None
    assert reading.reason is not None
    assert reason in reading.reason
    assert (reading.duration_s, reading.cpu_time_s) == (10.0, 0.25)


def test_a_sensor_that_vanishes_stops_the_run_and_leaves_no_window(clock: Any, monitors: Any, no_sync: None) -> None:
    from zeus.device.gpu.common import ZeusGPULostError

    meter = Nvml(device="cuda", clock=clock)
    monitor = monitors.opened[0]
    meter.begin()
    monitor.failure = ZeusGPULostError("GPU is lost")
    with pytest.raises(MeterError, match=r"nvml sensor failed when a window ended: GPU is lost.*--energy none"):
        meter.end()
    with pytest.raises(MeterError, match="failed when a window began: GPU is lost"):
        meter.begin()
    monitor.failure = None
    meter.begin()


def test_a_sensor_that_cannot_be_opened_is_one_line(monitors: Any) -> None:
    monitors.failure = ValueError("No GPUs available.\nsecond line")
    with pytest.raises(MeterError, match=r"nvml sensor cannot be opened: No GPUs available\. Use") as caught:
        Nvml(device="cuda")
    assert "\n" not in str(caught.value)


def test_energy_of_several_gpus_is_summed_and_never_in_part(
    clock: Any, monitors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose layers are on two GPUs: both are waited for, and one that is missing makes the sum missing."""
    waited: list[str] = []
    monkeypatch.setattr("torch.cuda.synchronize", waited.append)
    meter = Nvml(device="cuda:0,cuda:2", clock=clock)
    assert monitors.opened[-1].gpu_indices == [0, 2]
    assert "GPUs 0, 2, summed" in meter.description
    readings = []
    for energy in ({0: 1000.0, 2: 250.0}, {0: 1000.0}):
        monitors.opened[-1].energy = {"gpu_energy": energy}
        meter.begin()
        clock.work(wall_s=10.0, cpu_s=0.25)
        readings.append(meter.end())
    assert readings[0].energy_j == 1250.0
    assert readings[1].energy_j is None
    assert "GPU 2" in (readings[1].reason or "")
    assert waited == ["cuda:0", "cuda:2"] * 4


def test_no_meter_counts_a_gpu_and_leaves_the_cpu_out(clock: Any, no_sync: None) -> None:
    assert "of cuda:0,cpu not all are" in (Nvml.probe("cuda:0,cpu") or "")
    assert "the work runs on 'cpu,cuda:0'" in (Rapl.probe("cpu,cuda:0") or "")
    meter = Estimate(device="cpu,cuda:0", clock=clock)
    meter.begin()
    clock.work(wall_s=1.0, cpu_s=1.0)
    reading = meter.end()
    assert (reading.energy_j, reading.reason) == (
        None, "an estimate from CPU time says nothing of the device 'cpu,cuda:0'"
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- rapl


def test_psys_is_left_out_and_zones_keep_zeus_numbers(clock: Any, monitors: Any, powercap: Path) -> None:
    Rapl(device="cpu", clock=clock)
    assert (monitors.opened[0].gpu_indices, monitors.opened[0].cpu_indices) == ([], [0, 2])


def test_zones_are_ordered_by_number_as_zeus_does(powercap: Path) -> None:
    add_zone(powercap, 10, "package-2")
    assert [(zone.index, zone.name) for zone in rapl.package_zones()] == [
        (0, "package-0"),
        (2, "package-1"),
        (3, "package-2"),
    ]


def test_packages_and_their_memory_add_up(clock: Any, monitors: Any, powercap: Path) -> None:
    monitors.energy = {"cpu_energy": {0: 0.1, 2: 0.1}, "dram_energy": {0: 0.01, 2: 0.01}}
    meter = Rapl(device="cpu", clock=clock)
    monitors.opened[0].energy = {"cpu_energy": {0: 10.0, 2: 20.0}, "dram_energy": {0: 1.0, 2: 2.0}}
    meter.begin()
    clock.work(wall_s=1.0)
    reading = meter.end()
    assert reading.energy_j == pytest.approx(33.0)
    assert (reading.scope, reading.sensor_period_s, reading.flags) == ("cpu package + dram", RAPL_PERIOD_S, ())
    assert "package-0, package-1" in meter.description


@pytest.mark.parametrize(
    "energy",
    [
        {"cpu_energy": {0: 10.0, 2: -260_000.0}, "dram_energy": {0: 1.0, 2: 1.0}},
        {"cpu_energy": {0: 10.0}, "dram_energy": {0: 1.0, 2: 1.0}},
        {"cpu_energy": {0: 10.0, 2: 10.0}, "dram_energy": None},
        {"cpu_energy": None, "dram_energy": None},
    ],
    ids=["wrapped", "package missing", "dram missing", "nothing"],
)
def test_a_partial_reading_is_no_reading(clock: Any, monitors: Any, powercap: Path, energy: dict[str, Any]) -> None:
    monitors.energy = {"cpu_energy": {0: 0.1, 2: 0.1}, "dram_energy": {0: 0.01, 2: 0.01}}
    meter = Rapl(device="cpu", clock=clock)
    monitors.opened[0].energy = energy
    meter.begin()
    clock.work(wall_s=1.0)
    reading = meter.end()
    assert reading.energy_j is None
    assert reading.reason is not None


def test_a_wrap_that_zeus_missed_is_corrected_by_the_kernels_range(clock: Any, monitors: Any, powercap: Path) -> None:
    monitors.energy = {"cpu_energy": {0: 0.1, 2: 0.1}, "dram_energy": {0: 0.01, 2: 0.01}}
    meter = Rapl(device="cpu", clock=clock)
    range_j = 262_143.328850
    monitors.opened[0].energy = {
        "cpu_energy": {0: 10.0, 2: 20.0 - range_j},
        "dram_energy": {0: 1.0 - range_j, 2: 2.0},
    }
    meter.begin()
    clock.work(wall_s=1.0)
    assert meter.end().energy_j == pytest.approx(33.0)


def test_without_a_dram_counter_the_scope_says_so(clock: Any, monitors: Any, powercap: Path) -> None:
    monitors.energy = {"cpu_energy": {0: 4.0, 2: 5.0}}
    meter = Rapl(device="cpu", clock=clock)
    meter.begin()
    clock.work(wall_s=1.0)
    reading = meter.end()
    assert (reading.energy_j, reading.scope) == (9.0, "cpu package")


def test_rapl_says_why_it_is_not_available(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rapl.probe("cpu") is None
    assert "cuda" in (Rapl.probe("cuda") or "")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: "intel-rapl:2:0" not in str(path))
        assert "root only (run `sudo chmod -R a+r" in (Rapl.probe("cpu") or "")
        patch.setenv("ZEUSD_SOCK_PATH", "socket")
        assert Rapl.probe("cpu") is None
    monkeypatch.setattr(rapl, "POWERCAP", (powercap / "gone",))
    assert "absent" in (Rapl.probe("cpu") or "")
    with pytest.raises(MeterError, match="absent"):
        Rapl(device="cpu")
    (powercap / "gone").mkdir()
    assert "no package zone" in (Rapl.probe("cpu") or "")


def test_real_zeus_over_a_made_up_powercap_tree(
    clock: Any, powercap: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Everything of zeus but its helper processes: numbering, units, windows, silence."""
    import zeus.device.cpu
    from zeus.device.cpu import rapl as zeus_rapl

    monkeypatch.setattr(zeus_rapl, "RAPL_DIR", str(powercap))
    monkeypatch.setattr(zeus_rapl, "RaplWraparoundTracker", lambda *_: SimpleNamespace(get_num_wraparounds=lambda: 0))
    monkeypatch.setattr(zeus.device.cpu, "_cpus", None)
    zeus_rapl.rapl_is_available.cache_clear()
    try:
        meter = Rapl(device="cpu", clock=clock)
        for _ in range(2):
            meter.begin()
            clock.work(wall_s=2.0)
            for counter in powercap.glob("**/energy_uj"):  # two packages, two memories, and a psys that must not count
                counter.write_text(f"{int(counter.read_text()) + 1_500_000}\n")
            reading = meter.end()
            assert reading.energy_j == pytest.approx(4 * 1.5)
            assert (reading.scope, reading.flags, reading.reason) == ("cpu package + dram", (), None)
    finally:
        zeus_rapl.rapl_is_available.cache_clear()
    assert capfd.readouterr() == ("", "")


# --------------------------------------------------------------------------------- this machine


@pytest.mark.parametrize(("kind", "device"), [(Nvml, "cuda"), (Nvml, "cpu"), (Rapl, "cpu"), (Rapl, "cuda")])
def test_a_probe_of_this_machine_is_none_or_one_line(
    kind: type[Nvml | Rapl], device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = kind.probe(device)
    assert reason is None or (reason and "\n" not in reason)
    assert capfd.readouterr() == ("", "")


def test_each_sensor_refuses_the_other_device() -> None:
    assert "GPU" in (Nvml.probe("cpu") or "")
    assert "CPU" in (Rapl.probe("cuda:0") or "")
