"""From ``--energy`` to a meter, and its windows: one at a time, closed whatever happens, the clock innermost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import EnergyReading, Meter
from harness.errors import HarnessError, MeterError
from harness.metering import metered, open_meter, window
from harness.metering.estimate import DEFAULT_W_PER_LOGICAL_CORE, Estimate, NoMeter
from harness.metering.sensors import Nvml, Rapl
from harness.registry import METERS


@pytest.fixture(params=[NoMeter, Estimate, Nvml], ids=lambda kind: kind.__name__)
def meter(request: pytest.FixtureRequest, monitors: Any, monkeypatch: pytest.MonkeyPatch) -> Meter:
    monkeypatch.setattr(window, "synchronise", lambda device: None)
    kind: Callable[..., Meter] = request.param
    return kind(device="cuda" if kind is Nvml else "cpu", tdp_w=None)


def test_built_in_meters_fulfil_the_contract(meter: Meter) -> None:
    """One window at a time, closed whatever happens in it, with the exception of its work."""
    assert isinstance(meter, Meter)
    assert "\n" not in meter.description
    with pytest.raises(ZeroDivisionError), metered(meter) as broken:
        1 / 0  # noqa: B018
    assert broken.reading is None
    meter.begin()
    with pytest.raises(MeterError, match="open already"):
        meter.begin()
    reading = meter.end()
    assert reading.source == meter.source
    assert reading.sensor_period_s == meter.sensor_period_s
    assert reading.duration_s >= 0
    assert (reading.energy_j is None) == (reading.reason is not None)
    with pytest.raises(MeterError, match="no window"):
        meter.end()
    with metered(meter) as fine:
        assert fine.reading is None
    assert fine.reading is not None
    meter.begin()
    meter.close()
    meter.close()
    with pytest.raises(MeterError, match="was closed"):
        meter.begin()


def test_the_window_measures_the_work_and_only_the_work(clock: Any) -> None:
    meter = NoMeter(device="cpu", clock=clock)
    clock.work(wall_s=5, cpu_s=5)
    meter.begin()
    clock.work(wall_s=2.5, cpu_s=4)
    reading = meter.end()
    clock.work(wall_s=5, cpu_s=5)
    assert (reading.duration_s, reading.cpu_time_s) == (2.5, 4)
    assert (reading.energy_j, reading.source) == (None, "none")


def test_the_device_is_synchronised_before_both_edges(monkeypatch: pytest.MonkeyPatch, monitors: Any) -> None:
    import torch

    meter = Nvml(device="cuda:1")
    events = monitors.opened[0].calls
    events.clear()
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(synchronize=lambda device: events.append(f"sync {device}")))
    meter.begin()
    events.append("work")
    meter.end()
    assert events == ["sync cuda:1", "restart", "work", "sync cuda:1", "end"]


def test_the_estimate_is_cpu_time_by_the_share_of_a_core(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    meter = Estimate(device="cpu", tdp_w=120, clock=clock)
    meter.begin()
    clock.work(wall_s=1, cpu_s=3)
    reading = meter.end()
    assert reading.energy_j == pytest.approx(3 * 120 / 8)
    assert (reading.source, reading.scope) == ("estimate", "process (CPU time × TDP share)")
    assert "120 W / 8 logical cores (as given)" in meter.description
    by_default = Estimate(device="cpu", clock=clock)
    by_default.begin()
    clock.work(wall_s=1, cpu_s=1)
    assert by_default.end().energy_j == pytest.approx(DEFAULT_W_PER_LOGICAL_CORE)
    assert f"default of {DEFAULT_W_PER_LOGICAL_CORE:g} W per logical core" in by_default.description


class Wattmeter:
    """A third party's meter, without a probe."""

    source = "wattmeter"
    description = "a meter at the wall"
    sensor_period_s = 1.0

    def __init__(self, *, device: str, tdp_w: float | None) -> None:
        self.device = device

    def begin(self) -> None: ...

    def end(self) -> EnergyReading:
        return EnergyReading(1.0, self.source, "machine", 1.0, 1.0)

    def close(self) -> None: ...


class Timeless(Wattmeter):
    sensor_period_s = 0.0


class HalfAMeter:
    def __init__(self, *, device: str, tdp_w: float | None) -> None: ...


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> None:
    points = dict(METERS._points)
    for name, kind in (("wattmeter", Wattmeter), ("timeless", Timeless), ("half", HalfAMeter)):
        points[name] = EntryPoint(name, f"{__name__}:{kind.__name__}", METERS.group)
    monkeypatch.setitem(METERS.__dict__, "_points", points)


def unavailable(kind: type[Nvml | Rapl], reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kind, "probe", classmethod(lambda cls, device: reason))


def test_auto_takes_the_first_sensor_that_opens_and_says_why_not_the_others(
    monitors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    unavailable(Nvml, None, monkeypatch)
    unavailable(Rapl, "no powercap", monkeypatch)
    meter, missing = open_meter("auto", "cuda", None)
    assert (meter.source, missing) == ("nvml", {})
    monitors.failure = RuntimeError("driver mismatch")
    meter, missing = open_meter("auto", "cpu", 50)
    assert meter.source == "estimate"
    assert "50 W" in meter.description
    assert missing.keys() == {"nvml", "rapl"}
    assert "driver mismatch" in missing["nvml"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nvml", "--energy nvml .*not there.*--energy estimate.*--energy none"),
        ("rapl", "--energy rapl .*not there.*--energy estimate.*--energy none"),
        ("rappl", "Did you mean 'rapl'"),
        ("half", r"'half' \(HalfAMeter\) does not implement"),
        ("timeless", r"'timeless' says that its sensor ticks every 0\.0 s"),
    ],
)
def test_a_meter_that_cannot_be_had_is_one_line(
    name: str, said: str, third_party: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (Nvml, Rapl):
        unavailable(kind, "it is not there (plug it in)", monkeypatch)
    with pytest.raises(HarnessError, match=said) as caught:
        open_meter(name, "cpu", None)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_meter_says_whether_a_sensor_measures() -> None:
    """What is ranked, and called measured, follows from it."""
    found = {name: METERS.load(name).measured for name in ("nvml", "rapl", "replay", "estimate")}
    assert found == {"nvml": True, "rapl": True, "replay": False, "estimate": False}


def test_importing_the_room_loads_no_sensor_library() -> None:
    code = (
        "import sys, harness.metering, harness.host.environment, harness.store.run_directory\n"
        "from harness.registry import METERS\n"
        "[METERS.load(name) for name in ('nvml', 'rapl', 'estimate', 'none', 'replay')]\n"
        "harness.host.environment.describe()\n"
        "print(sorted({'torch', 'zeus', 'pandas', 'pynvml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
