"""Counters, judged: what is added up, corrected and refused, with numbers done by hand; and how long windows are."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest

from harness.contracts import EnergyReading
from harness.errors import MeterError
from harness.metering.counters import (
    LARGEST_W,
    Verdict,
    full_depth_window_s,
    judge,
    samples_per_block,
    settled,
)
from harness.metering.sensors import NVML_PERIOD_S, RAPL_PERIOD_S
from harness.metering.window import sound

RANGE_J = 262_143.328850
"""``max_energy_range_uj`` of a real package."""


def verdict(joules: Mapping[str, float | None], duration_s: float = 1.0, **ranges_j: float) -> Verdict:
    return judge(joules, source="rapl", period_s=0.001, duration_s=duration_s, ranges_j=ranges_j)


def test_sound_counters_add_up() -> None:
    assert verdict({"package-0": 10.0, "package-0 dram": 1.5}) == Verdict(11.5)
    assert verdict({"package-0": 10.0, "package-0 dram": 0.0}).energy_j == 10.0  # a memory at rest is no missing one
    assert verdict({"package": 0.0}).flags == ("stuck-counter",)  # and not zero joules
    assert verdict({}).energy_j is None


@pytest.mark.parametrize("wraps", [-1, 1], ids=["missed by zeus", "counted late by zeus"])
def test_a_wrap_is_corrected_where_the_range_is_known(wraps: int) -> None:
    assert verdict({"package": 20.0 + wraps * RANGE_J}, package=RANGE_J).energy_j == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("value", "ranges", "flag", "words"),
    [
        (16.0 - (RANGE_J - 4.0), {}, "negative-reading", "its range is not known"),
        (-995.0, {"package": RANGE_J}, "negative-reading", "no wrap explains it"),  # a reset: 261 kJ in a second
        (LARGEST_W + 1, {"package": RANGE_J}, "counter-jump", "no wrap explains it"),
        (-2 * RANGE_J, {"package": RANGE_J}, "negative-reading", "no wrap explains it"),
    ],
)
def test_what_no_single_wrap_explains_is_refused(value: float, ranges: dict[str, float], flag: str, words: str) -> None:
    found = verdict({"package": value}, **ranges)
    assert (found.energy_j, found.flags) == (None, (flag,))
    assert words in (found.reason or "")


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_one_counter_without_a_number_voids_the_window(value: float | None) -> None:
    found = verdict({"package-0": 10.0, "package-1": value})
    assert found == Verdict(None, reason="the counter of package-1 gave no reading")


@pytest.mark.parametrize(
    ("duration_s", "energy_j", "flags"),
    [(0.0099, None, ("invalid-window",)), (0.0101, 1.0, ("short-window",)), (0.0501, 1.0, ())],
)
def test_windows_are_judged_by_ticks(duration_s: float, energy_j: float | None, flags: tuple[str, ...]) -> None:
    found = verdict({"package": 1.0}, duration_s)
    assert (found.energy_j, found.flags) == (energy_j, flags)
    assert (found.reason is None) == (energy_j is not None)


# ------------------------------------------------------------------------- readings of anybody


def reading(**changes: object) -> EnergyReading:
    fields = {"energy_j": 1.0, "source": "wattmeter", "scope": "machine", "duration_s": 1.0, "cpu_time_s": 1.0}
    return EnergyReading(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("energy_j", [math.nan, math.inf, -math.inf, -1.0])
def test_a_third_partys_number_that_is_none_becomes_none(energy_j: float) -> None:
    found = sound(reading(energy_j=energy_j))
    assert found.energy_j is None
    assert "wattmeter" in (found.reason or "")
    assert (found.flags == ("negative-reading",)) == (energy_j == -1.0)


def test_sound_readings_pass_as_they_are() -> None:
    for good in (reading(), reading(energy_j=0.0), reading(energy_j=None, reason="no sensor")):
        assert sound(good) is good
    assert sound(reading(energy_j=None)).reason  # None needs a reason


@pytest.mark.parametrize("field", ["duration_s", "cpu_time_s"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_a_window_without_a_length_stops_the_run(field: str, value: float) -> None:
    with pytest.raises(MeterError, match="wattmeter") as caught:
        sound(reading(**{field: value}))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------- how long, how warm


@pytest.mark.parametrize(("period_s", "aim_s"), [(NVML_PERIOD_S, 10.0), (RAPL_PERIOD_S, 1.0), (1.0, 100.0)])
@pytest.mark.parametrize("pass_s", [0.013, 0.4, 7.0, 100.0])
def test_a_block_is_long_enough_even_for_an_early_exit(period_s: float, aim_s: float, pass_s: float) -> None:
    samples = samples_per_block(period_s, [pass_s], 1)
    assert samples * pass_s / 2 >= aim_s  # twice as fast: the aim of the measurement rules
    assert samples * pass_s / 4 >= 50 * period_s  # four times as fast: not flagged
    if samples > 1:
        assert (samples - 1) * pass_s < full_depth_window_s(period_s)  # and no longer than that needs


def test_a_block_is_whole_batches_and_the_fastest_pass_decides() -> None:
    assert samples_per_block(RAPL_PERIOD_S, [3.0, 0.5, 0.9], 8) == 8 * 4  # 2 s of full depth in passes of 0.5 s
    assert samples_per_block(RAPL_PERIOD_S, [30.0], 8) == 8
    for period_s, passes_s in ((None, [0.1]), (0.1, []), (0.1, [0.0])):  # without a sensor, or a time
        assert samples_per_block(period_s, passes_s, 3) == 3


@pytest.mark.parametrize(
    ("passes_s", "expected"),
    [
        ([], False),
        ([1.0, 1.0], False),
        ([9.0, 1.0, 1.01, 1.019], True),  # what was before the last three does not matter
        ([1.0, 1.01, 1.021], False),
        ([1.0, 0.97, 1.0], False),
        ([0.0, 0.0, 0.0], False),  # a clock that stands still shows nothing
    ],
)
def test_three_passes_within_two_percent_are_settled(passes_s: list[float], expected: bool) -> None:
    assert settled(passes_s) == expected
