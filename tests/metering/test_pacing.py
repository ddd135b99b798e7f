"""How long windows are, when a machine is warm, and how long it rests."""

from __future__ import annotations

from typing import Any

import pytest

from harness.metering.contamination import QUIET_S, Surroundings, default_idle_s, rest
from harness.metering.counters import drift, full_depth_window_s, samples_per_block, settled
from harness.metering.estimate import NoMeter
from harness.metering.nvml import NVML_PERIOD_S
from harness.metering.rapl import RAPL_PERIOD_S


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


@pytest.mark.parametrize(("period_s", "passes_s"), [(None, [0.1]), (0.1, []), (0.1, [0.0])])
def test_without_a_sensor_or_a_time_a_block_is_one_batch(period_s: float | None, passes_s: list[float]) -> None:
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


def test_drift_is_slowest_over_fastest() -> None:
    assert drift([5.0, 1.0, 1.1, 1.05]) == pytest.approx(0.1)
    assert drift([1.0, 1.0]) is None


def test_idle_lasts_as_long_as_the_sensor_needs() -> None:
    assert default_idle_s(None) == 0
    assert default_idle_s(RAPL_PERIOD_S) == 2.0
    assert default_idle_s(NVML_PERIOD_S) == pytest.approx(5.0)


def test_rest_waits_for_quiet_outside_the_window(clock: Any) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.work(wall_s=seconds)

    window = rest(NoMeter(device="cpu", clock=clock), Surroundings(clock=clock), 3.0, sleep)
    assert slept == [QUIET_S, 3.0]
    assert window.reading is not None
    assert (window.reading.duration_s, window.reading.cpu_time_s) == (3.0, 0.0)
