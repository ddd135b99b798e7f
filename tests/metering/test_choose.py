"""From ``--energy`` to a meter, and the words for what is not there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from harness.contracts import EnergyReading
from harness.errors import MeterError, UnknownNameError
from harness.metering import open_meter
from harness.metering.nvml import Nvml
from harness.metering.rapl import Rapl
from harness.registry import METERS


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


def test_auto_works_on_this_machine() -> None:
    meter, missing = open_meter("auto", "cpu", None)
    assert meter.source in {"rapl", "estimate"}
    assert "nvml" in missing
    assert all(reason and "\n" not in reason for reason in missing.values())
    meter.close()


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
