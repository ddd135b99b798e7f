"""From ``--energy`` to a meter, and its windows: one at a time, closed whatever happens, the clock innermost."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import EntryPoint
from types import SimpleNamespace
from typing import Any

import pytest

from harness.contracts import EnergyReading, Meter
from harness.errors import MeterError, UnknownNameError
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
    assert isinstance(meter, Meter)
    assert "\n" not in meter.description
    meter.begin()
    reading = meter.end()
    assert reading.source == meter.source
    assert reading.sensor_period_s == meter.sensor_period_s
    assert reading.duration_s >= 0
    assert (reading.energy_j is None) == (reading.reason is not None)


def test_a_window_cannot_be_opened_twice_and_survives_the_attempt(meter: Meter) -> None:
    meter.begin()
    with pytest.raises(MeterError, match="open already"):
        meter.begin()
    meter.end()
    with pytest.raises(MeterError, match="no window"):
        meter.end()
    meter.begin()


def test_a_closed_meter_stays_closed(meter: Meter) -> None:
    meter.begin()
    meter.close()
    meter.close()
    with pytest.raises(MeterError, match="was closed"):
        meter.begin()


def test_failing_work_closes_the_window_and_keeps_its_own_exception(meter: Meter) -> None:
    with pytest.raises(ZeroDivisionError), metered(meter) as broken:
        1 / 0  # noqa: B018
    assert broken.reading is None
    with metered(meter) as fine:
        assert fine.reading is None
    assert fine.reading is not None


def test_the_window_measures_the_work_and_only_the_work(clock: Any) -> None:
    meter = NoMeter(device="cpu", clock=clock)
    clock.work(wall_s=5, cpu_s=5)
    meter.begin()
    clock.work(wall_s=2.5, cpu_s=4)
    reading = meter.end()
    clock.work(wall_s=5, cpu_s=5)
    assert (reading.duration_s, reading.cpu_time_s) == (2.5, 4)
    assert (reading.energy_j, reading.source) == (None, "none")


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "words"),
    [
        (-0.5, 0.1, "monotonic clock ran backwards by 0.5 s"),
        (1.0, -0.25, "CPU clock ran backwards by 0.25 s"),
        (float("nan"), 0.1, "monotonic clock gave no number"),
    ],
)
def test_a_clock_that_runs_backwards_stops_the_run(clock: Any, wall_s: float, cpu_s: float, words: str) -> None:
    meter = Estimate(device="cpu", clock=clock)
    meter.begin()
    before = (clock.wall_s, clock.cpu_s)
    clock.work(wall_s=wall_s, cpu_s=cpu_s)
    with pytest.raises(MeterError, match=words) as caught:
        meter.end()
    assert "\n" not in str(caught.value)
    clock.wall_s, clock.cpu_s = before
    meter.begin()  # no window was left open
    clock.work(wall_s=1.0, cpu_s=1.0)
    assert meter.end().duration_s == 1.0


def test_real_clocks_agree_with_real_work() -> None:
    meter = NoMeter(device="cpu")
    meter.begin()
    until = time.process_time() + 0.02
    while time.process_time() < until:
        pass
    busy = meter.end()
    meter.begin()
    time.sleep(0.02)
    idle = meter.end()
    assert busy.cpu_time_s >= 0.02
    assert idle.duration_s >= 0.02
    assert idle.cpu_time_s < busy.cpu_time_s


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


def test_a_device_that_fails_at_the_end_leaves_no_window_open(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = NoMeter(device="cuda")
    monkeypatch.setattr(window, "synchronise", lambda device: None)
    meter.begin()
    with monkeypatch.context() as patch:
        patch.setattr(window, "synchronise", lambda device: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            meter.end()
    meter.begin()


# ------------------------------------------------------------------------------------ estimate


def test_the_estimate_is_cpu_time_by_the_share_of_a_core(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    meter = Estimate(device="cpu", tdp_w=120, clock=clock)
    meter.begin()
    clock.work(wall_s=1, cpu_s=3)
    reading = meter.end()
    assert reading.energy_j == pytest.approx(3 * 120 / 8)
    assert (reading.source, reading.scope) == ("estimate", "process (CPU time × TDP share)")
    assert "120 W / 8 logical cores (as given)" in meter.description


def test_the_default_power_is_per_core_and_printed(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for cores in (1, 2, 96):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        meter = Estimate(device="cpu", clock=clock)
        meter.begin()
        clock.work(wall_s=1, cpu_s=1)
        assert meter.end().energy_j == pytest.approx(DEFAULT_W_PER_LOGICAL_CORE)
        assert f"default of {DEFAULT_W_PER_LOGICAL_CORE:g} W per logical core" in meter.description


def test_an_estimate_says_nothing_of_a_gpu(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "synchronise", lambda device: None)
    meter = Estimate(device="cuda:0", tdp_w=100, clock=clock)
    meter.begin()
    clock.work(wall_s=1, cpu_s=1)
    reading = meter.end()
    assert reading.energy_j is None
    assert reading.reason is not None
    assert "cuda:0" in reading.reason


# ------------------------------------------------------------------------------------ by name


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


def test_auto_takes_the_first_sensor_that_answers(monitors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable(Nvml, None, monkeypatch)
    meter, missing = open_meter("auto", "cuda", None)
    assert (meter.source, missing) == ("nvml", {})


def test_auto_ends_at_the_estimate_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable(Nvml, "no driver", monkeypatch)
    unavailable(Rapl, "no powercap", monkeypatch)
    meter, missing = open_meter("auto", "cpu", 50)
    assert meter.source == "estimate"
    assert "50 W" in meter.description
    assert missing == {"nvml": "no driver", "rapl": "no powercap"}


def test_auto_passes_over_a_sensor_that_promises_and_fails(monitors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable(Nvml, None, monkeypatch)
    unavailable(Rapl, "no powercap", monkeypatch)
    monitors.failure = RuntimeError("driver mismatch")
    meter, missing = open_meter("auto", "cuda", None)
    assert meter.source == "estimate"
    assert "driver mismatch" in missing["nvml"]


@pytest.mark.parametrize(("name", "kind"), [("nvml", Nvml), ("rapl", Rapl)])
def test_a_sensor_that_was_asked_for_and_is_missing_stops_the_run(
    name: str, kind: type[Nvml | Rapl], monkeypatch: pytest.MonkeyPatch
) -> None:
    unavailable(kind, "it is not there (plug it in)", monkeypatch)
    with pytest.raises(MeterError, match=f"--energy {name} .*not there.*--energy estimate.*--energy none") as caught:
        open_meter(name, "cpu", None)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["estimate", "none"])
def test_what_needs_no_sensor_opens_anywhere(name: str) -> None:
    for device in ("cpu", "cuda:0"):
        meter, missing = open_meter(name, device, None)
        assert (meter.source, missing) == (name, {})


def test_an_unknown_meter_gets_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'rapl'"):
        open_meter("rappl", "cpu", None)


def test_a_third_party_meter_opens_by_its_name(third_party: None) -> None:
    meter, _ = open_meter("wattmeter", "cpu", None)
    assert isinstance(meter, Wattmeter)
    assert meter.device == "cpu"


def test_a_class_that_is_no_meter_is_refused(third_party: None) -> None:
    with pytest.raises(MeterError, match=r"'half' \(HalfAMeter\) does not implement"):
        open_meter("half", "cpu", None)


def test_a_sensor_that_ticks_in_no_time_is_refused(third_party: None) -> None:
    with pytest.raises(MeterError, match=r"'timeless' says that its sensor ticks every 0\.0 s"):
        open_meter("timeless", "cpu", None)


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


@pytest.mark.parametrize(("name", "measured"), [("nvml", True), ("rapl", True), ("replay", False), ("estimate", False)])
def test_a_meter_says_whether_a_sensor_measures(name: str, measured: bool) -> None:
    assert METERS.load(name).measured is measured
