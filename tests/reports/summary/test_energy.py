"""Energy and power, worked out by hand: gross, net of idle, and against full depth."""

from __future__ import annotations

import pytest

FULL, OTHER = "full", "fixed:layer=5"


def test_energy_is_total_over_total(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2)}, energy_j=6.0, energy_source="rapl")
    run.window(FULL, {"token_ids": (1, 2, 3, 4)}, block=1, energy_j=6.0, energy_source="rapl")
    row = run.row(FULL)
    assert (row.value("energy_j"), row.value("energy_j_per_token"), row.energy_source) == (12.0, 2.0, "rapl")


def test_one_window_without_a_reading_leaves_no_energy(build) -> None:
    run = build()
    run.window(FULL, {}, energy_j=6.0, energy_source="nvml")
    run.window(FULL, {}, block=1, energy_j=None, energy_source="nvml", energy_reason="window too short")
    row = run.row(FULL)
    assert (row.value("energy_j"), row.value("energy_j_per_token"), row.energy_source) == (None, None, "nvml")


def test_measured_zero_energy_is_zero(build) -> None:
    run = build()
    run.window(FULL, {}, energy_j=0.0, energy_source="rapl")
    assert run.row(FULL).value("energy_j") == 0.0


def test_an_estimate_and_a_measurement_are_never_added(build) -> None:
    run = build()
    run.window(FULL, {}, energy_j=6.0, energy_source="rapl")
    run.window(FULL, {}, block=1, energy_j=6.0, energy_source="estimate")
    row = run.row(FULL)
    assert (row.value("energy_j"), row.energy_source) == (None, "mixed")


def measured(run, source="rapl", idle=True, blocks=8, power=(20.0, 20.0)):
    """Full depth takes 2 s and the other 1 s a block; idle the machine draws 8 W."""
    if idle:
        run.idle(energy_j=16.0, duration=2.0, energy_source=source)
    for block in range(blocks):
        for point, seconds, watts in zip((FULL, OTHER), (2.0, 1.0), power, strict=True):
            run.window(point, {}, duration=seconds, block=block, energy_j=watts * seconds, energy_source=source)
    return run


def test_energy_per_request_and_power(build) -> None:
    row = measured(build()).row(FULL)
    assert row.value("energy_j_per_request") == pytest.approx(40.0)
    assert row.value("energy_j_per_token") == pytest.approx(40 / 3)
    assert row.value("mean_power_w") == pytest.approx(20.0)


def test_a_window_with_a_failed_sample_counts_in_no_cost(build) -> None:
    """What the failure took is not known; the energy of all windows has it nevertheless."""
    run = build()
    run.window(FULL, {}, {}, energy_j=6.0, energy_source="rapl", duration=2.0, block=0)
    run.window(FULL, {}, {"error": "timed out"}, energy_j=600.0, energy_source="rapl", duration=120.0, block=1)
    row = run.row(FULL)
    assert row.value("energy_j_per_request") == 3.0
    assert row.value("energy_j_per_token") == 1.0
    assert row.value("tokens_per_s") == 3.0
    assert row.value("energy_j") == 606.0


def test_a_row_of_the_data_that_is_no_prompt_takes_nothing(build) -> None:
    run = build(bad_rows=1)
    bad = {"error": "row 3: is too short", "prompt_ids": ()}
    run.window(FULL, {}, {}, bad, energy_j=6.0, energy_source="rapl", duration=2.0, failed=1)
    row = run.row(FULL)
    assert row.value("energy_j_per_request") == 3.0
    assert row.value("tokens_per_s") == 3.0
    assert "failure(s)" not in " ".join(run.summary().notes)


def test_net_of_idle_takes_off_idle_power_times_time(build) -> None:
    row = measured(build()).row(FULL)
    assert row.value("idle_power_w") == pytest.approx(8.0)
    assert row.value("energy_net_j_per_token") == pytest.approx((40 - 8 * 2) / 3)


def test_idle_power_is_energy_over_time_of_all_idle_windows_of_that_sensor(build) -> None:
    run = measured(build())
    run.idle(energy_j=3.0, duration=1.0, energy_source="rapl")
    run.idle(energy_j=300.0, duration=1.0, energy_source="nvml")  # another sensor
    run.idle(energy_j=None, duration=1.0, energy_source="rapl")
    run.idle(energy_j=300.0, duration=1.0, energy_source="rapl", superseded=True)
    assert run.row(FULL).value("idle_power_w") == pytest.approx(19 / 3)


@pytest.mark.parametrize(("source", "idle"), [("estimate", True), ("rapl", False)])
def test_no_net_energy_for_estimates_or_without_idle_windows(build, source, idle) -> None:
    row = measured(build(), source, idle).row(OTHER)
    assert (row.value("idle_power_w"), row.value("energy_net_j_per_token"), row.value("energy_net_ratio")) == (
        None,
        None,
        None,
    )
    assert row.value("energy_ratio") == pytest.approx(2.0)


def test_energy_ratio_is_paired_and_has_an_interval(build) -> None:
    row = measured(build(), power=(20.0, 30.0)).row(OTHER)
    assert row.value("energy_ratio") == pytest.approx(40 / 30)
    assert row.estimate("energy_ratio").interval == pytest.approx((40 / 30, 40 / 30))
    assert row.value("energy_net_ratio") == pytest.approx((40 - 16) / (30 - 8))
    assert row.estimate("energy_ratio").p == pytest.approx(2 / 2**8)


def test_no_ratio_between_two_sensors_or_where_a_reading_is_missing(build) -> None:
    run = build()
    for block in range(6):
        run.window(FULL, {}, block=block, energy_j=2.0, energy_source="rapl")
        run.window(OTHER, {}, block=block, energy_j=1.0, energy_source="nvml")
    assert run.row(OTHER).value("energy_ratio") is None
    run = measured(build())
    run.window(OTHER, {}, block=9, energy_j=None, energy_source="rapl")
    assert run.row(OTHER).value("energy_ratio") is None


def test_constant_power_makes_energy_no_evidence_of_its_own(build) -> None:
    def said(run):
        return "energy saved ≈ time saved" in " ".join(run.summary().notes)

    assert said(measured(build(), power=(20.0, 20.5)))
    assert not said(measured(build(), power=(20.0, 20.7)))
    assert not said(measured(build(), "estimate"))


def test_a_note_when_gross_and_net_differ(build) -> None:
    text = " ".join(measured(build()).summary().notes)
    assert "gross and net-of-idle energy differ by up to 40 %" in text
    assert "draws 8 W" in text
    assert "differ by" not in " ".join(measured(build(), power=(200.0, 200.0)).summary().notes)
    assert "idle power was not measured" in " ".join(measured(build(), idle=False).summary().notes)


@pytest.mark.parametrize("reading", [-3.0, float("nan"), float("inf")])
def test_a_reading_that_cannot_be_true_is_no_reading(build, reading) -> None:
    run = measured(build())
    run.windows[-1] = run.windows[-1].model_copy(update={"energy_j": reading})
    summary = run.summary()
    assert [row.value("energy_j") is None for row in summary.rows] == [False, True]
    assert summary.rows[1].value("speedup") == pytest.approx(2.0)  # its time still counts
    assert f"1 of 16 windows have no energy reading (the sensor read {reading:g} J)" in " ".join(summary.notes)
