"""Comparisons with full depth: paired, corrected, and said in words that claim no more than was seen."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records.estimate import NoInterval
from harness.records.summary import Summary
from reports.statistics.significance import smallest_p
from reports.summary.summarise import NOT_DISTINGUISHABLE, TOO_FEW
from reports.tables.result import columns_of

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


def test_a_score_that_no_sample_has_by_itself_has_no_difference(build) -> None:
    row = fill(build()).row(OTHER, score_corpus=lambda *_: {"codebleu": 0.4})
    assert row.value("codebleu") == 0.4
    assert row.estimate("codebleu_difference") is None


def test_later_repeats_are_not_further_samples(build) -> None:
    run = build()
    for repeat in range(3):
        for block in range(4):
            for point in (FULL, OTHER):
                run.window(point, {"scores": {"edit_similarity": 0.5}}, block=block, repeat=repeat)
    assert run.row(OTHER).estimate("edit_similarity_difference").p is None  # four samples


def test_full_depth_is_the_baseline_and_not_tested(build) -> None:
    row = fill(build()).row(FULL)
    assert row.verdict == "the baseline"
    assert (row.value("speedup"), row.estimate("speedup").p) == (1.0, None)
    assert row.estimate("edit_similarity_difference") is None


def test_what_differs_is_said_with_its_size(build) -> None:
    row = fill(build(), 64, factor=1.25, gain=-0.1).row(OTHER)  # eight wiggles add up to nearly nothing
    assert row.verdict.startswith("decodes 25 % faster [2")
    assert "; whole requests 25 % faster [2" in row.verdict
    assert "; edit similarity 0.099 lower [0.0" in row.verdict


def test_slower_is_said_of_speed(build) -> None:
    assert fill(build(), factor=0.5, noise=0.0).row(OTHER).verdict.startswith("decodes 50 % slower [50, 50]")


def test_energy_is_said_when_a_sensor_measured_it(build) -> None:
    run = build()
    for block in range(10):
        run.window(FULL, {}, block=block, energy_j=4.0, energy_source="rapl")
        run.window(OTHER, {}, block=block, energy_j=3.0, energy_source="rapl")
    assert "25 % less energy [25, 25]" in run.row(OTHER).verdict
    for index, window in enumerate(run.windows):
        run.windows[index] = window.model_copy(update={"energy_source": "estimate"})
    assert "energy" not in run.row(OTHER).verdict


def test_noise_alone_is_not_distinguishable_and_never_called_equal(build) -> None:
    row = fill(build(), blocks=64).row(OTHER)
    assert row.verdict == NOT_DISTINGUISHABLE
    assert "equal" not in row.verdict


def test_one_that_differs_and_one_that_does_not(build) -> None:
    verdict = fill(build(), 64, factor=1.5).row(OTHER).verdict
    assert verdict.startswith("decodes 50 % faster")
    assert verdict.endswith("edit similarity not distinguishable")


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


def test_a_score_of_few_samples_has_no_interval_and_says_so(build) -> None:
    """49 samples that all score worse; with one more it is told."""
    few, enough = (fill(build(), blocks, gain=-0.3).row(OTHER) for blocks in (49, 50))
    assert few.verdict.endswith("; edit similarity: too few samples to tell")
    assert few.value("edit_similarity_difference") == pytest.approx(-0.3, abs=0.01)
    assert few.estimate("edit_similarity_difference").no_interval is NoInterval.FEW_SAMPLES
    assert few.estimate("edit_similarity_difference").p is None
    assert "edit similarity 0.299 lower" in enough.verdict


def test_what_is_not_tested_is_no_member_of_the_family(build) -> None:
    """Of three operating points two score as full depth does: one hypothesis is tested, and nothing is corrected."""
    run = fill(build(points=(FULL, OTHER, "a", "b")), 64, gain=-0.1)
    for index, sample in enumerate(run.samples):
        if sample.operating_point in {"a", "b"}:
            run.samples[index] = sample.model_copy(update={"scores": {"edit_similarity": 0.5}})
    difference = run.row(OTHER).estimate("edit_similarity_difference")
    assert difference.p == difference.p_holm
    assert run.row("a").estimate("edit_similarity_difference").p is None
    assert run.row(OTHER).estimate("speedup").p_holm == pytest.approx(min(1, 3 * run.row(OTHER).estimate("speedup").p))


@pytest.mark.parametrize("blocks", [1, 4, 5])
def test_too_few_pairs_to_tell_even_when_all_point_one_way(build, blocks) -> None:
    row = fill(build(), blocks, factor=2.0, gain=0.3).row(OTHER)
    assert row.value("speedup") == pytest.approx(2.0, rel=0.1)
    assert row.verdict == TOO_FEW


def test_how_many_pairs_are_enough_depends_on_how_many_are_compared(build) -> None:
    assert fill(build(), 6, factor=2.0).row(OTHER).verdict != TOO_FEW  # 2 / 2⁶ = 0.031
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


def test_significant_alone_is_not_enough_after_correction(build) -> None:
    """Of eight operating points one is a little faster; alone it would pass."""

    def filled(points):
        run = build(points=points)
        for block in range(12):
            wiggle = WIGGLE[block % len(WIGGLE)] * (1 if block < 8 else -1)
            for index, point in enumerate(points):
                duration = 1.0 if point == FULL else 0.993 + wiggle if index == 1 else 1.0 + 3 * wiggle
                run.window(point, {}, block=block, duration=duration)
        return run.row(OTHER)

    alone, among = filled((FULL, OTHER)), filled((FULL, OTHER, *"abcdefg"))
    assert alone.estimate("speedup").p == among.estimate("speedup").p
    assert alone.estimate("speedup").p_holm == alone.estimate("speedup").p
    assert among.estimate("speedup").p_holm == pytest.approx(min(1.0, 8 * (among.estimate("speedup").p or 0)))


def test_random_weights_compare_time_but_not_accuracy(build) -> None:
    verdict = fill(build(weights="random"), factor=1.5, gain=0.4).row(OTHER).verdict
    assert "faster" in verdict
    assert "similarity" not in verdict


def test_without_full_depth_there_is_no_verdict_and_a_note(build) -> None:
    run = build()
    run.window(OTHER, {})
    assert run.row(OTHER).verdict is None
    assert "py150: full depth has no finished window, so nothing is compared with it" in " ".join(run.summary().notes)
