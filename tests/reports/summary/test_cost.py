"""Times, worked out by hand; what is missing is None and never zero."""

from __future__ import annotations

import pytest

from reports.statistics.intervals import MINIMUM_PAIRS

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


def test_time_per_later_token_needs_two_tokens(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1,), "token_times_s": (0.5,)})
    assert run.row(FULL).value("tpot_p50_s") is None
    run.window(FULL, {"token_ids": (1, 2, 3), "token_times_s": (0.5, 0.6, 0.9)}, block=1)
    assert run.row(FULL).value("tpot_p50_s") == pytest.approx(0.2)


def test_speedup_pairs_windows_by_block_and_repeat(build) -> None:
    run = build()
    for block, (full, other) in enumerate([(4.0, 2.0), (8.0, 4.0)]):
        run.window(FULL, {}, duration=full, block=block)
        run.window(OTHER, {}, duration=other, block=block)
    run.window(FULL, {}, duration=100.0, block=2)  # nobody to pair with
    assert run.row(OTHER).value("speedup") == pytest.approx(2.0)


def test_full_depth_is_one_by_definition_and_has_no_interval(build) -> None:
    run = build()
    for block in range(MINIMUM_PAIRS):
        run.window(FULL, {}, block=block)
    row = run.row(FULL)
    for name in ("speedup", "decode_speedup"):
        assert (row.value(name), row.estimate(name).interval) == (1.0, None)


def test_a_second_full_depth_is_compared_like_any_other(build) -> None:
    run = build(points=("full", "full again"))
    for block in range(8):
        run.window("full", {}, duration=1.0 + 0.01 * (block % 2), block=block)
        run.window("full again", {}, duration=1.01 - 0.01 * (block % 2), block=block)
    row = run.row("full again")
    assert row.value("speedup") == pytest.approx(1.0)
    assert row.estimate("speedup").interval is not None
    assert row.estimate("speedup").interval[0] < 1 < row.estimate("speedup").interval[1]


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


def test_a_block_where_everything_failed_compares_nothing(build) -> None:
    run = build()
    run.window(FULL, {"error": "bad row"}, duration=3.0)
    run.window(OTHER, {"error": "bad row"}, duration=2.0)
    assert run.row(OTHER).value("speedup") is None


def test_decode_speedup_compares_time_per_token_after_the_first(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2, 3), "token_times_s": (5.0, 5.4, 5.8)})  # 0.4 s/token
    run.window(OTHER, {"token_ids": (1, 2, 3, 4, 5), "token_times_s": (5.0, 5.1, 5.2, 5.3, 5.4)})  # 0.1 s/token
    assert run.row(OTHER).value("decode_speedup") == pytest.approx(4.0)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_samples_that_share_a_window_are_one_unit_of_every_comparison(build, batch_size) -> None:
    """Blocks of ten, as an energy sensor's tick makes them: 60 samples are six pairs."""
    run = build(batch_size=batch_size)
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


def test_fewer_blocks_than_pairs_are_needed_have_no_interval(build) -> None:
    run = build()
    for block in range(MINIMUM_PAIRS - 1):
        for point in (FULL, OTHER):
            run.window(point, *[{"scores": {"edit_similarity": 0.1 * (point == OTHER)}}] * 20, block=block)
    row = run.row(OTHER)
    for name in ("decode_speedup", "speedup", "edit_similarity_difference"):
        assert row.estimate(name).no_interval == "too few pairs"
        assert (row.estimate(name).interval, row.estimate(name).p) == (None, None)


def test_decode_speedup_is_none_without_later_tokens(build) -> None:
    run = build()
    for point in (FULL, OTHER):
        run.window(point, {"token_ids": (1,), "token_times_s": (0.5,)})
    assert run.row(OTHER).value("decode_speedup") is None


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


def test_back_to_back_nobody_waits(build) -> None:
    run = build()
    run.window(FULL, {})
    assert (run.row(FULL).value("queue_p50_s"), run.row(FULL).value("queue_p99_s")) == (None, None)


def test_with_arrivals_the_speedup_is_that_of_latencies_not_of_windows(build) -> None:
    run = build()
    for block in range(6):  # the window is as long as its arrivals, whoever decodes
        run.window(FULL, {"arrival_s": 1.0, "queue_s": 0.0, "latency_s": 0.9}, duration=5.0, block=block)
        run.window(OTHER, {"arrival_s": 1.0, "queue_s": 0.0, "latency_s": 0.6}, duration=5.0, block=block)
    assert run.row(OTHER).value("speedup") == pytest.approx(1.5)
