"""Times and energies, worked out by hand; what is missing is None and never zero."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records.summary import SummaryRow
from reports.metrics.speedups import DECODE_SPEEDUP, SPEEDUP, SPEEDUP_HIGHEST
from reports.statistics.intervals import MINIMUM_PAIRS
from tests.reports.conftest import RunBuilder

FULL, OTHER = "full", "fixed:layer=5"
BAD_ROW = {"error": "row 3: is too short", "prompt_ids": ()}


def test_throughput_is_total_tokens_over_total_window_time(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2)}, duration=1.0, block=0)
    run.window(FULL, {"token_ids": (1,) * 10}, duration=2.0, block=1)
    assert run.row(FULL).value("tokens_per_s") == pytest.approx(4.0)  # a mean of ratios would say 3.5


def test_latency_percentiles_pool_all_repeats(build) -> None:
    run = build()
    run.window(FULL, {"latency_s": 1.0, "ttft_s": 0.1}, {"latency_s": 2.0, "ttft_s": 0.3})
    run.window(FULL, {"latency_s": 3.0, "ttft_s": 0.5}, {"latency_s": 4.0, "ttft_s": 0.7}, repeat=1)
    row = run.row(FULL)
    assert row.value("latency_p50_s") == pytest.approx(2.5)
    assert row.value("latency_p90_s") == pytest.approx(3.7)
    assert row.value("latency_p99_s") == pytest.approx(3.97)
    assert row.value("ttft_p50_s") == pytest.approx(0.4)
    one = build()
    for point in (FULL, OTHER):
        one.window(point, {"token_ids": (1,), "token_times_s": (0.5,)})  # there is no later token
    assert one.row(OTHER).value("tpot_p50_s") is one.row(OTHER).value("decode_speedup") is None
    one.window(OTHER, {"token_ids": (1, 2, 3), "token_times_s": (0.5, 0.6, 0.9)}, block=1)
    assert one.row(OTHER).value("tpot_p50_s") == pytest.approx(0.2)


def test_repeats_of_a_block_are_one_pair_of_the_interval(build) -> None:
    run = build()
    for block in range(MINIMUM_PAIRS - 1):
        for repeat in range(10):
            run.window(FULL, {}, duration=2.0, block=block, repeat=repeat)
            run.window(OTHER, {}, duration=1.0, block=block, repeat=repeat)
    row = run.row(OTHER)
    assert (row.value("speedup"), row.estimate("speedup").interval) == (2.0, None)


def test_a_block_where_only_one_side_failed_is_not_compared(build) -> None:
    run = build()
    run.window(FULL, {}, {}, duration=10.0, block=0)
    run.window(OTHER, {}, {"error": "out of memory"}, duration=1.0, block=0)
    assert run.row(OTHER).value("speedup") is None
    run.window(FULL, {}, {"error": "out of memory"}, duration=10.0, block=1)
    run.window(OTHER, {}, {"error": "out of memory"}, duration=1.0, block=1)  # the same one: what it took is not known
    assert run.row(OTHER).value("speedup") is None
    run.window(FULL, {}, BAD_ROW, duration=3.0, block=2)
    run.window(OTHER, {}, BAD_ROW, duration=2.0, block=2)  # took nothing
    assert run.row(OTHER).value("speedup") == pytest.approx(1.5)


def test_decode_speedup_compares_time_per_token_after_the_first(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2, 3), "token_times_s": (5.0, 5.4, 5.8)})  # 0.4 s/token
    run.window(OTHER, {"token_ids": (1, 2, 3, 4, 5), "token_times_s": (5.0, 5.1, 5.2, 5.3, 5.4)})  # 0.1 s/token
    assert run.row(OTHER).value("decode_speedup") == pytest.approx(4.0)


def test_samples_that_share_a_window_are_one_unit_of_every_comparison(build) -> None:
    """Blocks of ten, as an energy sensor's tick makes them: 60 samples are six pairs."""
    run = build()
    for block in range(6):
        for point in (FULL, OTHER):
            scores = {"edit_similarity": 0.5 + 0.01 * (point == OTHER) * (1 + block % 3)}
            samples = [{"scores": scores}] * 10
            run.window(point, *samples, block=block, energy_j=1.0 + (point == OTHER), energy_source="rapl")
    row = run.row(OTHER)
    for name in ("decode_speedup", "speedup", "energy_ratio", "edit_similarity_difference"):
        estimate = row.estimate(name)
        assert (estimate.n, estimate.interval is not None) == (6, True)
        assert estimate.p >= 2 / 2**6
    difference = row.estimate("edit_similarity_difference")
    assert (difference.value, difference.samples, difference.differing) == (pytest.approx(0.02), 60, 60)
    half = 2.570582 * 0.01 * (2 / 3) ** 0.5 / 5**0.5  # Student's, of six means of ten
    assert difference.interval == pytest.approx((0.02 - half, 0.02 + half))


def test_prefill_and_decode_are_parts_of_the_latency(build) -> None:
    run = build()
    run.window(FULL, {"latency_s": 1.0, "ttft_s": 0.2}, {"latency_s": 3.0, "ttft_s": 0.6})
    row = run.row(FULL)
    assert (row.value("prefill_s"), row.value("decode_s")) == pytest.approx((0.4, 1.6))
    assert row.value("prefill_share") == pytest.approx(0.2)  # 0.8 of 4 seconds, not the mean of the shares


def test_waiting_is_neither_prefill_nor_decode(build) -> None:
    run = build()
    late = {"arrival_s": 0.5, "queue_s": 0.3, "ttft_s": 0.4, "latency_s": 0.6}
    run.window(FULL, late, {**late, "queue_s": 0.1, "ttft_s": 0.2, "latency_s": 0.4})
    row = run.row(FULL)
    assert (row.value("prefill_s"), row.value("decode_s")) == pytest.approx((0.1, 0.2))
    assert row.value("queue_p50_s") == pytest.approx(0.2)
    assert row.value("queue_p99_s") == pytest.approx(0.298)
    assert row.value("ttft_p50_s") == pytest.approx(0.3)  # from the arrival


def test_with_arrivals_the_speedup_is_that_of_latencies_not_of_windows(build) -> None:
    run = build()
    for block in range(6):  # the window is as long as its arrivals, whoever decodes
        run.window(FULL, {"arrival_s": 1.0, "queue_s": 0.0, "latency_s": 0.9}, duration=5.0, block=block)
        run.window(OTHER, {"arrival_s": 1.0, "queue_s": 0.0, "latency_s": 0.6}, duration=5.0, block=block)
    assert run.row(OTHER).value("speedup") == pytest.approx(1.5)


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


def test_energy_by_hand(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2)}, energy_j=6.0, energy_source="rapl")
    run.window(FULL, {"token_ids": (1, 2, 3, 4)}, block=1, energy_j=6.0, energy_source="rapl")
    assert (run.row(FULL).value("energy_j"), run.row(FULL).value("energy_j_per_token")) == (12.0, 2.0)
    run.window(FULL, {}, block=2, energy_j=None, energy_source="rapl", energy_reason="window too short")
    row = run.row(FULL)  # never a smaller total
    assert (row.value("energy_j"), row.value("energy_j_per_token"), row.energy_source) == (None, None, "rapl")
    nothing, sensors = build(), build()
    nothing.window(FULL, {}, energy_j=0.0, energy_source="rapl")
    assert nothing.row(FULL).value("energy_j") == 0.0  # measured, and zero
    for point, source in ((FULL, "rapl"), (OTHER, "nvml")):
        sensors.window(point, {}, energy_j=2.0, energy_source=source)
    assert sensors.row(OTHER).value("energy_ratio") is None
    row = measured(build()).row(FULL)
    assert (row.value("energy_j_per_request"), row.value("mean_power_w")) == (40.0, 20.0)
    assert row.value("energy_net_j_per_token") == pytest.approx((40 - 8 * 2) / 3)


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
    assert row.energy_measured == (source == "rapl")  # no ranking takes an estimate


def test_energy_ratio_is_paired_and_has_an_interval(build) -> None:
    row = measured(build(), power=(20.0, 30.0)).row(OTHER)
    assert row.value("energy_ratio") == pytest.approx(40 / 30)
    assert row.estimate("energy_ratio").interval == pytest.approx((40 / 30, 40 / 30))
    assert row.value("energy_net_ratio") == pytest.approx((40 - 16) / (30 - 8))
    assert row.estimate("energy_ratio").p == pytest.approx(2 / 2**8)


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


@pytest.mark.parametrize("reading", [-3.0, float("nan")])
def test_a_reading_that_cannot_be_true_is_no_reading(build, reading) -> None:
    run = measured(build())
    run.windows[-1] = run.windows[-1].model_copy(update={"energy_j": reading})
    summary = run.summary()
    assert [row.value("energy_j") is None for row in summary.rows] == [False, True]
    assert summary.rows[1].value("speedup") == pytest.approx(2.0)  # its time still counts
    assert f"1 of 16 windows have no energy reading (the sensor read {reading:g} J)" in " ".join(summary.notes)


THIRD = "fixed:layer=8"


def request(run: Any, point: str, prompt_s: float, decode_s: float, *, block: int = 0, **more: Any) -> None:
    """Add a window of one request whose prompt took so long, and two tokens after it."""
    times = (prompt_s, prompt_s + decode_s / 2, prompt_s + decode_s)
    window = {key: more.pop(key) for key in ("repeat",) if key in more}
    sample = {"token_times_s": times, "ttft_s": prompt_s, "latency_s": times[-1], **more}
    run.window(point, sample, duration=times[-1], block=block, **window)


@pytest.mark.parametrize(
    ("built", "sample"),
    [
        ({}, {}),
        ({}, {"prompt_reused": 3}),  # warm
        ({"kv": "none"}, {}),  # the first token is decoded as any other
        ({"batch_size": 2}, {}),  # one pass for several prompts
        ({}, {"arrival_s": 0.0, "queue_s": 0.0}),  # a slow prompt delays whoever waits
    ],
)
def test_a_request_takes_what_it_took_with_its_prompt(
    build: Any, built: dict[str, Any], sample: dict[str, Any]
) -> None:
    """What other rows took for the same prompt changes nothing, repeat by repeat."""
    run = build(points=(FULL, OTHER, THIRD), **built)
    for repeat, slower in ((0, 1.0), (1, 5.0)):
        request(run, FULL, slower, 2.0, repeat=repeat, **sample)
        request(run, OTHER, slower + 2, 1.0, repeat=repeat, **sample)
        request(run, THIRD, slower + 1, 2.0, repeat=repeat, **sample)
    row = run.row(OTHER)
    assert row.value(SPEEDUP) == pytest.approx((3 + 7) / (4 + 8))
    assert row.value(SPEEDUP_HIGHEST) == pytest.approx(7 / 8)
    assert row.value(DECODE_SPEEDUP) == pytest.approx(2.0)


def run_of(factors: list[float]) -> RunBuilder:
    """One repeat per factor: the other operating point takes 1 s × factor, full depth 2 s."""
    run = RunBuilder()
    for repeat, factor in enumerate(factors):
        for block in range(6):
            run.window("full", {}, duration=2.0, block=block, repeat=repeat)
            run.window(OTHER, {}, duration=factor, block=block, repeat=repeat)
    return run


def spread(row: SummaryRow) -> tuple[float | None, float | None]:
    return row.value("speedup_range_low"), row.value("speedup_range_high")


def test_the_ratio_of_each_repeat_spans_the_range() -> None:
    row = run_of([1.0, 1.25, 0.8]).row(OTHER)
    assert spread(run_of([1.0]).row(OTHER)) == (None, None)
    said = run_of([1.0, 1.25]).summary().notes
    assert any("25.0 % (fixed:layer=5: 1.600× to 2.000×)" in note for note in said)
    assert spread(row) == (pytest.approx(1.6), pytest.approx(2.5))
    assert row.value("speedup") == pytest.approx(6 * 2 / (1.0 + 1.25 + 0.8) / 2)
    assert row.estimate("speedup").n == 6  # repeats of a block are one pair
