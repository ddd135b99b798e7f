"""Recorded readings in place of a sensor: the same windows, edges and refusals as with one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from harness.contracts import EnergyReading, Meter
from harness.errors import MeterError
from harness.metering import metered, open_meter
from harness.metering.replay_meter import Recording, Replay

RANGE_J = 65_532.610987


def replay(clock: Any, *readings: dict[str, float] | str, **more: Any) -> Replay:
    return Replay(device="cpu", recording=Recording(readings=readings, **more), clock=clock)


def window(meter: Replay, clock: Any, wall_s: float = 1.0) -> EnergyReading:
    with metered(meter) as closed:
        clock.work(wall_s=wall_s, cpu_s=0.5)
    assert closed.reading is not None
    return closed.reading


def test_a_window_is_the_difference_of_its_edges(clock: Any) -> None:
    meter = replay(
        clock, {"package-0": 5.0}, {"package-0": 25.0}, {"package-0": 30.0}, {"package-0": 31.5, "psys": 9.0}
    )
    assert isinstance(meter, Meter)
    assert window(meter, clock) == EnergyReading(20.0, "replay", "unknown", 1.0, 0.5, 0.001)
    assert window(meter, clock).energy_j == 1.5  # what was used between the windows belongs to none


def test_a_wrap_is_corrected_with_its_range(clock: Any) -> None:
    edges = ({"package-0": RANGE_J - 3.0, "psys": 0.0}, {"package-0": 7.0, "psys": 60.0})
    assert window(replay(clock, *edges, ranges_j={"package-0": RANGE_J}), clock).energy_j == pytest.approx(10.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("edge", [0, 1])
def test_a_reading_that_is_no_number_voids_its_window_and_no_other(clock: Any, bad: float, edge: int) -> None:
    first = [{"gpu": 1.0}, {"gpu": 2.0}]
    first[edge] = {"gpu": bad}
    meter = replay(clock, *first, {"gpu": 3.0}, {"gpu": 4.0})
    voided = window(meter, clock)
    assert voided.energy_j is None
    assert "gave no reading" in (voided.reason or "")
    assert window(meter, clock).energy_j == 1.0


@pytest.mark.parametrize("end", [[], ["GPU is lost"]], ids=["the recording ends", "the sensor vanishes"])
@pytest.mark.parametrize(("good", "edge"), [(2, "began"), (3, "ended")])
def test_a_sensor_that_vanishes_is_one_line(clock: Any, end: list[str], good: int, edge: str) -> None:
    meter = replay(clock, *({"gpu": float(number)} for number in range(good)), *end)
    assert window(meter, clock).energy_j == 1.0
    with pytest.raises(MeterError, match=f"when a window {edge}: {end[0] if end else 'the recording'}") as caught:
        window(meter, clock)
    assert "\n" not in str(caught.value)
    with pytest.raises(MeterError, match=r"cannot be opened: permission denied.*--energy estimate"):
        replay(clock, "permission denied")


def test_a_recording_opens_by_its_file(tmp_path: Path) -> None:
    file = tmp_path / "counters.json"
    facts = {"recorded_from": "rapl", "scope": "cpu package", "readings": [{"package-0": 1.0}]}
    file.write_text(json.dumps(facts))
    meter, unavailable = open_meter(f"replay:{file}", "cpu")
    assert (meter.source, meter.sensor_period_s, unavailable) == ("replay", 0.001, {})
    assert "counters.json (recorded from rapl), not measured here" in meter.description
    assert str(tmp_path) not in meter.description


def test_what_is_no_recording_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "counters.json"
    for content, words in (
        ("{", "is not JSON"),
        ("[" * 200_000, "is nested deeper than 100"),
        ("[]", "no recording"),
        ("{}", "readings: Field required"),
        ('{"readings": []}', "readings: "),
        ('{"readings": [{}], "perod_s": 1}', "perod_s"),
        ('{"readings": [{}], "period_s": NaN}', "period_s"),
    ):
        file.write_text(content)
        with pytest.raises(MeterError, match="--energy replay:FILE") as caught:
            open_meter(f"replay:{file}", "cpu")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    for choice in ("replay", "replay:", "replay:nowhere.json"):
        with pytest.raises(MeterError, match="--energy replay:FILE"):
            open_meter(choice, "cpu")
    with pytest.raises(MeterError, match=r"'none' takes nothing after a colon.*--energy none"):
        open_meter("none:file.json", "cpu")
