"""Comparisons with full depth, also of several weights formats: paired, corrected, and told as seen."""

from __future__ import annotations

from typing import Any

import pytest

from harness.errors import StoreError
from harness.records.estimate import NoInterval
from harness.records.summary import Summary, SummaryRow
from reports.metrics.speedups import DECODE_SPEEDUP, ENERGY_RATIO, SPEEDUP
from reports.statistics.significance import smallest_p
from reports.summary.measured import full_depths, select
from reports.summary.summarise import NOT_DISTINGUISHABLE, TOO_FEW
from reports.tables.frame import summary_csv
from reports.tables.report import report_markdown
from reports.tables.result import columns_of, headline_columns, split_tables

FULL, OTHER = "full", "fixed:layer=5"
WIGGLE = (0.00, 0.02, -0.01, 0.01, -0.02, 0.015, -0.015, 0.005)


def fill(run: Any, blocks: int = 10, *, factor: float = 1.0, gain: float = 0.0, noise: float = 1.0, **more: Any) -> Any:
    """Each operating point but full depth takes 1 / factor of its time and scores ``gain`` better, with some noise."""
    for block in range(blocks):
        wiggle = noise * WIGGLE[block % len(WIGGLE)]
        for index, point in enumerate(run.points):
            ratio, better = (factor, gain) if index else (1.0, 0.0)
            seconds = (1 + (wiggle if index else -wiggle)) / ratio
            sample = {
                "token_times_s": (0.1, 0.1 + seconds / 2, 0.1 + seconds),
                "latency_s": 0.1 + seconds,
                "scores": {"edit_similarity": 0.5 + better + (wiggle if index else 0), "exact_match": 0.0},
            }
            run.window(point, sample, block=block, duration=seconds, **more)
    return run


def test_differences_are_paired_by_sample(build) -> None:
    run = build()
    for block in range(60):
        run.window(FULL, {"scores": {"edit_similarity": 0.01 * block}}, block=block)
        run.window(OTHER, {"scores": {"edit_similarity": 0.01 * block + 0.02}}, block=block)
    run.window(FULL, {"scores": {"edit_similarity": 1.0}}, block=90)  # nobody to pair with
    run.window(OTHER, {"scores": {"edit_similarity": None}}, block=91)
    row = run.row(OTHER)
    assert row.value("edit_similarity_difference") == pytest.approx(0.02)
    assert row.estimate("edit_similarity_difference").interval == pytest.approx((0.02, 0.02))
    assert row.estimate("edit_similarity_difference").p == smallest_p(60)
    assert row.estimate("edit_similarity_difference").n == 60


def test_what_differs_is_said_with_its_size(build) -> None:
    row = fill(build(), 64, factor=1.25, gain=-0.1).row(OTHER)  # eight wiggles add up to nearly nothing
    assert row.verdict.startswith("decodes 25 % faster [2")
    assert "; whole requests 25 % faster [2" in row.verdict
    assert "; edit similarity 0.099 lower [0.0" in row.verdict


def test_energy_is_said_when_a_sensor_measured_it(build) -> None:
    run = build()
    for block in range(10):
        run.window(FULL, {}, block=block, energy_j=4.0, energy_source="rapl")
        run.window(OTHER, {}, block=block, energy_j=3.0, energy_source="rapl")
    assert "25 % less energy [25, 25]" in run.row(OTHER).verdict
    for index, window in enumerate(run.windows):
        run.windows[index] = window.model_copy(update={"energy_source": "estimate"})
    assert "energy" not in run.row(OTHER).verdict


def test_full_depth_does_not_count_among_the_tested(build) -> None:
    """With one rule six blocks are enough to be told from chance, so that noise is noise and not too few pairs."""
    assert "request time not distinguishable" in fill(build(), 6).row(OTHER).verdict
    assert fill(build(points=(FULL, OTHER, "fixed:layer=8")), 6).row(OTHER).verdict == TOO_FEW


def test_noise_alone_is_not_distinguishable_and_never_called_equal(build) -> None:
    row = fill(build(), blocks=64).row(OTHER)
    assert row.verdict == NOT_DISTINGUISHABLE
    assert fill(build(), 64, factor=1.5).row(OTHER).verdict.endswith("edit similarity not distinguishable")
    alone = build()
    alone.window(OTHER, {})
    assert (alone.row(OTHER).verdict, alone.row(OTHER).estimate("speedup")) == (None, None)  # no full depth


@pytest.mark.parametrize("differing", [0, 7])
def test_a_score_that_few_samples_differ_in_has_no_interval_and_says_so(build, differing) -> None:
    run = build()
    for block in range(100):
        for point in (FULL, OTHER):
            score = 0.1 if point == OTHER and block < differing else 0.5
            run.window(point, {"scores": {"edit_similarity": score}}, block=block)
    row = run.row(OTHER)
    assert row.verdict.endswith(f"; edit similarity: too few samples that differ to tell ({differing} of 100)")
    difference = row.estimate("edit_similarity_difference")
    assert difference.value == pytest.approx(-0.4 * differing / 100)
    assert (difference.interval, difference.p, difference.p_holm) == (None, None, None)
    assert difference.no_interval is NoInterval.FEW_DIFFERING
    (column,) = [one for one in columns_of([row]).values() if one.name == "edit_similarity_difference"]
    assert column.texts[0].endswith("[too few]")
    assert Summary.model_validate_json(run.summary().model_dump_json()).rows[1].metrics == row.metrics


def test_how_many_pairs_are_enough_depends_on_how_many_are_compared(build) -> None:
    assert fill(build(), 6, factor=2.0).row(OTHER).verdict != TOO_FEW  # 2 / 2⁶ = 0.031
    assert fill(build(), 5, factor=2.0, gain=0.3).row(OTHER).verdict == TOO_FEW  # though all point one way
    several = build(points=(FULL, OTHER, "a", "b"))
    assert fill(several, 6, factor=2.0).row(OTHER).verdict == TOO_FEW  # × 3 operating points
    assert fill(build(points=(FULL, OTHER, "a", "b")), 8, factor=2.0).row(OTHER).verdict != TOO_FEW


def test_correction_is_over_the_operating_points_of_one_task(build) -> None:
    run = build(points=(FULL, OTHER, "a"), tasks=("py150", "javacorpus"))
    for block in range(8):
        for task in ("py150", "javacorpus"):
            for point in run.points:
                run.window(point, {}, block=block, task=task, duration=1.0 if point == FULL else 0.5)
    row = run.row(OTHER)
    assert row.estimate("speedup").p == pytest.approx(2 / 2**8)
    assert row.estimate("speedup").p_holm == pytest.approx(2 * 2 / 2**8)


def test_random_weights_compare_time_but_not_accuracy(build) -> None:
    verdict = fill(build(weights="random"), factor=1.5, gain=0.4).row(OTHER).verdict
    assert "faster" in verdict
    assert "similarity" not in verdict


LATER = (0.1, 0.1 + 0.5, 0.1 + 1.0)  # of tokens, in a request of 1.1 seconds


def run_of(build: Any, seconds: dict[str, float], formats: tuple[str, ...], blocks: int = 8, **options: Any) -> Any:
    """Each operating point takes so many seconds a block, its tokens too; the last token of a format is its place."""
    run = build(points=tuple(seconds), formats=formats, **options)
    for block in range(blocks):
        for point, duration in seconds.items():
            stored = point.removesuffix(" (never exits)").rpartition("@")[2]
            place = formats.index(stored) if stored in formats else 0
            layers = (10, 10, 10) if point.startswith("full") or "never" in point else (10, 5, 5)
            sample = {
                "token_ids": (1, 2, 3 + place),
                "exit_layers": layers,
                "token_times_s": tuple(duration * time for time in LATER),
                "scores": {"edit_similarity": 0.5 - 0.1 * place + 0.01 * (block % 3 if place else 0)},
            }
            noisy = duration * (1 + 0.001 * (block % 3))
            run.window(point, sample, block=block, duration=noisy, energy_j=3 * noisy, energy_source="rapl")
    return run


FOUR = {"full@fp16": 2.0, "full@int4": 1.0, "fixed:layer=5@fp16": 1.0, "fixed:layer=5@int4": 0.4}


def by_name(summary: Summary) -> dict[str, SummaryRow]:
    return {row.operating_point: row for row in summary.rows}


def values(summary: Summary, metric: str) -> list[float | None]:
    found = [row.value(metric) for row in summary.rows]
    return [None if value is None else round(value, 6) for value in found]


@pytest.mark.parametrize("metric", [SPEEDUP.name, DECODE_SPEEDUP.name, ENERGY_RATIO.name])
def test_a_ratio_is_over_the_row_s_own_format_and_over_the_fastest(build: Any, metric: str) -> None:
    summary = run_of(build, FOUR, ("fp16", "int4")).summary()
    assert values(summary, metric) == [1, 1, 2, 2.5]
    assert values(summary, f"{metric}_over_fastest") == [1, 2, 2, 5]
    rows = by_name(summary)
    assert rows["full@int4"].estimate(metric).interval is None  # 1 by definition
    low, high = rows["full@int4"].estimate(f"{metric}_over_fastest").interval
    assert low == pytest.approx(2)
    assert high == pytest.approx(2)


@pytest.mark.parametrize(
    "formats", [("float32", "fp16", "int8"), ("fp16", "int8", "float32"), ("int8", "float32", "fp16")]
)
def test_the_fastest_is_found_by_windows_among_formats_that_keep_tokens(build: Any, formats: tuple[str, ...]) -> None:
    times = {"float32": 3.0, "fp16": 1.5, "int8": 0.5}
    summary = run_of(build, {f"full@{name}": times[name] for name in formats}, formats).summary()
    expected = [round(1.5 / times[name], 6) for name in formats]
    assert values(summary, "speedup_over_fastest") == expected
    assert values(summary, "speedup") == [1, 1, 1]
    notes = " ".join(summary.notes)
    assert "what is stated over fastest is over full@fp16, the fastest full depth in a format that keeps" in notes


def test_where_no_format_keeps_the_tokens_rows_are_held_against_the_first(build: Any) -> None:
    summary = run_of(build, {"full@int8": 1.0, "full@int4": 0.5}, ("int8", "int4")).summary()
    assert values(summary, "speedup_over_fastest") == [1, 2]
    assert "what is stated over fastest is over full@int8, the first. Add auto" in " ".join(summary.notes)
    assert "100 % faster" in summary.rows[1].verdict


def test_one_task_s_fastest_may_be_another_s_slower(build: Any) -> None:
    run = build(points=("full@float32", "full@fp16"), formats=("float32", "fp16"), tasks=("py150", "javacorpus"))
    for task, seconds in (("py150", (2.0, 1.0)), ("javacorpus", (1.0, 2.0))):
        for point, duration in zip(run.points, seconds, strict=True):
            run.window(point, {}, duration=duration, task=task)
    summary = run.summary()
    assert values(summary, "speedup_over_fastest") == [0.5, 1, 1, 0.5]
    notes = " ".join(summary.notes)
    assert "is over full@fp16 on py150; full@float32 on javacorpus, the fastest" in notes


def test_tokens_and_scores_are_held_against_the_run_s_first_full_depth(build: Any) -> None:
    rows = by_name(run_of(build, FOUR, ("fp16", "int4")).summary())
    assert rows["fixed:layer=5@fp16"].value("agreement") == 1
    assert rows["full@int4"].value("agreement") == pytest.approx(2 / 3)
    assert rows["full@int4"].value("exact_prefix") == 0.5
    assert rows["full@fp16"].estimate("edit_similarity_difference") is None
    assert rows["full@int4"].value("edit_similarity_difference") == pytest.approx(-0.0913, abs=1e-3)
    assert {row.baseline_format for row in rows.values()} == {"fp16"}
    assert [row.weights_format for row in rows.values()] == ["fp16", "int4", "fp16", "int4"]


def test_bytes_are_those_of_the_row_s_format(build: Any) -> None:
    summary = run_of(build, FOUR, ("fp16", "int4")).summary()

    def predicted(layer: int, head: int) -> float:
        """Two tokens behind a prompt of four, at positions 5 and 6."""
        deep, shallow = (2 * (depth * layer + head) + depth * (5 + 6) for depth in (10, 5))
        return deep / shallow

    assert values(summary, "layers_speedup") == [
        1, 1, round(predicted(100, 200), 6), round(predicted(25, 50), 6),
    ]  # fmt: skip
    achieved = values(summary, "byte_model_achieved")
    assert achieved[:2] == [1, 1]
    assert achieved[3] == pytest.approx(2.5 / predicted(25, 50))


def test_words_name_the_full_depth_that_is_not_the_first(build: Any) -> None:
    rows = by_name(run_of(build, FOUR, ("fp16", "int4")).summary())
    assert rows["full@fp16"].verdict == "the baseline"
    assert "(against" not in rows["fixed:layer=5@fp16"].verdict
    assert "whole requests 150 % faster [150, 150] (against full@int4)" in rows["fixed:layer=5@int4"].verdict
    of_int4 = rows["full@int4"].verdict
    assert "whole requests 100 % faster [100, 100]" in of_int4  # over the fastest: over its own it is 1 by definition
    assert "int4" not in of_int4


def test_with_one_format_the_second_statement_is_the_first_and_no_column(build: Any) -> None:
    plain = run_of(build, {"full": 2.0, "fixed:layer=5": 1.0}, ())
    summary = plain.summary()
    for row in summary.rows:
        for name in (SPEEDUP.name, DECODE_SPEEDUP.name, ENERGY_RATIO.name):
            assert row.estimate(f"{name}_over_fastest") == row.estimate(name)
    (table,) = split_tables(summary)
    columns = columns_of(table.rows)
    assert not [column for column in columns.values() if column.name.endswith("_over_fastest")]
    assert "over fastest" not in report_markdown(summary)
    header, *lines = summary_csv(summary).splitlines()
    assert "speedup_over_fastest" in header
    assert len(lines) == 2
    several = run_of(build, FOUR, ("fp16", "int4")).summary().rows
    assert "speedup_over_fastest" in [column.name for column in columns_of(several).values()]
    assert "speedup_over_fastest" in [column.name for column in headline_columns(several, counts=False)]


def test_of_two_policies_and_two_formats_the_first_policy_is_each_format_s_baseline(build: Any) -> None:
    names = [f"full@{kv}@{stored}" for kv in ("none", "propagate") for stored in ("fp16", "int4")]
    run = build(points=tuple(names), formats=("fp16", "int4"))
    for name, duration in zip(names, (8.0, 4.0, 2.0, 1.0), strict=True):
        run.window(name, {}, duration=duration)
    cells = list(select(run.manifest, run.windows, run.samples).values())
    assert {name: cell.point.name for name, cell in full_depths(cells).items()} == {
        ("fp16", ""): "full@none@fp16", ("int4", ""): "full@none@int4",
    }  # fmt: skip
    assert [cell.conditions.kv for cell in cells] == ["none", "none", "propagate", "propagate"]
    assert values(run.summary(), "speedup") == [1, 1, 4, 4]
    assert values(run.summary(), "speedup_over_fastest") == [1, 2, 4, 8]


def test_costs_are_attributed_within_a_format(build: Any) -> None:
    seconds = {
        **{f"full@{stored}": time for stored, time in (("fp16", 2.0), ("int4", 1.0))},
        **{f"fixed:layer=5@{stored}": time for stored, time in (("fp16", 1.1), ("int4", 0.6))},
        **{f"fixed:layer=5@{stored} (never exits)": time for stored, time in (("fp16", 2.2), ("int4", 1.1))},
    }
    probes = tuple(name for name in seconds if "never" in name)
    run = run_of(build, seconds, ("fp16", "int4"), probes=probes, batch_size=1)
    for sample in list(run.samples):  # checks are what a probe adds
        asked = 2 if "fixed" in sample.operating_point else 0
        run.samples[run.samples.index(sample)] = sample.model_copy(update={"exit_checks": asked})
    times = [one for one in run.summary().attributions if one.quantity == "time"]
    assert [one.weights_format for one in times] == ["fp16", "int4"]
    assert [[row.operating_point for row in one.rows] for one in times] == [
        ["full@fp16", "fixed:layer=5@fp16"], ["full@int4", "fixed:layer=5@int4"],
    ]  # fmt: skip
    direct = [check.direct.value for one in times for check in one.checks if check.strategy == "fixed"]
    assert direct == pytest.approx([0.1, 0.05], rel=0.01)  # a probe less full depth of its own format, for two checks
    assert "py150, int4 · where the time goes" in report_markdown(run.summary())


def test_a_format_without_a_full_depth_is_refused(build: Any) -> None:
    run = run_of(build, {"full@fp16": 1.0, "fixed:layer=5@int4": 0.5}, ("fp16", "int4"))
    with pytest.raises(StoreError, match="no full depth in int4"):
        run.summary()


def test_rows_are_held_against_the_fastest_lossless_one_that_text_drafts_for(build) -> None:
    """Not against exits that draft, nor against one that is slower."""
    lossless = {"full@lossless+lookup": 0.8, "full@lossless+suffix": 0.5, "rl@lossless+suffix": 0.4}
    seconds = {FULL: 1.0, OTHER: 0.6, **lossless}
    run = build(points=tuple(seconds), kv="recompute")
    for block in range(8):
        for point, took in seconds.items():
            times = {"ttft_s": 0.1, "token_times_s": (0.1, 0.1 + took / 2, 0.1 + took), "latency_s": 0.1 + took}
            run.window(point, times, block=block, duration=0.1 + took)
    over = {point: run.row(point).value("decode_speedup_over_lossless") for point in seconds}
    assert over == pytest.approx({point: 0.5 / took for point, took in seconds.items()})
    assert run.row("full@lossless+suffix").estimate("speedup_over_lossless").interval is None  # itself
    assert run.row(OTHER).value("speedup_over_lossless") == pytest.approx((0.1 + 0.5) / (0.1 + 0.6))
