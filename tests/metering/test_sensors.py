"""The zeus-backed meters: which counters are read, how often they tick, and what becomes of a sensor that fails."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import EnergyReading
from harness.errors import MeterError
from harness.metering import sensors, window
from harness.metering.estimate import Estimate
from harness.metering.sensors import NVML_PERIOD_S, RAPL_PERIOD_S, Nvml, Rapl, measure_period, measure_ticks


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
    monkeypatch.setattr(sensors, "POWERCAP", (root,))
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


def test_only_the_gpu_that_works_is_read(clock: Any, monitors: Any, no_sync: None) -> None:
    reading = read_gpu(clock, monitors, 10.0, {1: 2500.0})
    assert (monitors.opened[0].gpu_indices, monitors.opened[0].cpu_indices) == ([1], [])
    assert monitors.opened[0].calls == ["begin", "end", "restart", "end"]  # a throwaway window comes first
    assert reading == EnergyReading(2500.0, "nvml", "gpu board", 10.0, 0.25, NVML_PERIOD_S)


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


def test_zones_are_ordered_by_number_as_zeus_does(powercap: Path) -> None:
    add_zone(powercap, 10, "package-2")
    zones = {index: (zone / "name").read_text().strip() for index, zone in sensors.package_zones().items()}
    assert zones == {0: "package-0", 2: "package-1", 3: "package-2"}


@pytest.mark.parametrize("dram", [True, False])
def test_packages_and_their_memory_add_up_psys_is_left_out_and_a_missed_wrap_is_corrected(
    clock: Any, monitors: Any, powercap: Path, dram: bool
) -> None:
    range_j = 262_143.328850
    monitors.energy = {"cpu_energy": {0: 0.1, 2: 0.1}, **({"dram_energy": {0: 0.01, 2: 0.01}} if dram else {})}
    meter = Rapl(device="cpu", clock=clock)
    assert (monitors.opened[0].gpu_indices, monitors.opened[0].cpu_indices) == ([], [0, 2])
    monitors.opened[0].energy = {
        "cpu_energy": {0: 10.0, 2: 20.0 - range_j},
        "dram_energy": {0: 1.0 - range_j, 2: 2.0} if dram else None,
    }
    meter.begin()
    clock.work(wall_s=1.0)
    reading = meter.end()
    assert reading.energy_j == pytest.approx(33.0 if dram else 30.0)
    assert reading.scope == ("cpu package + dram" if dram else "cpu package")
    assert (reading.sensor_period_s, reading.flags) == (RAPL_PERIOD_S, ())
    assert "package-0, package-1" in meter.description


def test_rapl_says_why_it_is_not_available(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Rapl.probe("cpu") is None
    assert "cuda" in (Rapl.probe("cuda") or "")
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: "intel-rapl:2:0" not in str(path))
        assert "root only (run `sudo chmod -R a+r" in (Rapl.probe("cpu") or "")
        patch.setenv("ZEUSD_SOCK_PATH", "socket")
        assert Rapl.probe("cpu") is None
    monkeypatch.setattr(sensors, "POWERCAP", (powercap / "gone",))
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


class Polled:
    """A counter that steps every ``period_s``; each reading of the clock takes ``read_s``."""

    def __init__(self, period_s: float, read_s: float, first_s: float = 0.0) -> None:
        self.moment_s, self.period_s, self.read_s, self.first_s = first_s, period_s, read_s, first_s

    def now(self) -> float:
        self.moment_s += self.read_s
        return self.moment_s

    def read(self) -> int:
        return int(self.moment_s / self.period_s)


@pytest.mark.parametrize(("period_s", "read_s"), [(0.1, 0.0007), (0.001, 0.00001), (0.02, 0.003)])
@pytest.mark.parametrize("first_s", [0.0, 0.0137])  # the interval that the beginning cuts off does not count
def test_the_period_is_found_to_one_reading(period_s: float, read_s: float, first_s: float) -> None:
    counter = Polled(period_s, read_s, first_s)
    found = measure_ticks(counter.read, timeout_s=30, now=counter.now)
    assert found == (pytest.approx(period_s, abs=2 * read_s), None)


@pytest.mark.parametrize(("period_s", "moved"), [(1e9, 0), (0.5, 2)])
def test_a_counter_that_hardly_moves_has_no_period(period_s: float, moved: int) -> None:
    counter = Polled(period_s, 0.001)
    found = measure_ticks(counter.read, timeout_s=1.2, now=counter.now)
    assert found == (None, f"the counter moved {moved} times in 1.2 s, too few to tell its period")


def test_rapl_polls_the_file_of_the_first_package_and_not_psys(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    polled: list[Path] = []
    monkeypatch.setattr(Path, "read_bytes", lambda self: polled.append(self) or str(len(polled) // 100).encode())
    (powercap / "intel-rapl:0" / "name").write_text("psys\n")
    period_s, reason = measure_period("rapl", "cpu")
    assert (period_s is not None, reason) == (True, None)
    assert set(polled) == {powercap / "intel-rapl:2" / "energy_uj"}


def test_what_cannot_be_polled_is_a_reason(powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("estimate", "none", "wattmeter"):
        assert measure_period(source, "cpu") == (None, "its counter cannot be polled from here")

    def gone(self: Path) -> bytes:
        raise OSError("No such device")

    monkeypatch.setattr(Path, "read_bytes", gone)
    assert measure_period("rapl", "cpu") == (None, "its counter failed while it was polled: No such device")


@pytest.mark.parametrize(("kind", "device"), [(Nvml, "cuda"), (Nvml, "cpu"), (Rapl, "cpu"), (Rapl, "cuda")])
def test_a_probe_of_this_machine_is_none_or_one_line(
    kind: type[Nvml | Rapl], device: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reason = kind.probe(device)
    assert reason is None or (reason and "\n" not in reason)
    assert capfd.readouterr() == ("", "")
