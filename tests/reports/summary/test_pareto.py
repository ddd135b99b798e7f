"""The front is exact, and only what may be compared is on it."""

from __future__ import annotations

import random

import pytest

from reports.summary.pareto import choose_axes, front, mark_front

FULL, OTHER = "full", "fixed:layer=5"


def dominated(point: tuple[float, float], points: list[tuple[float, float]]) -> bool:
    return any(cost <= point[0] and quality >= point[1] and (cost, quality) != point for cost, quality in points)


@pytest.mark.parametrize("seed", range(40))
def test_front_equals_the_brute_force_front(seed: int) -> None:
    generator = random.Random(seed)
    values = 4 if seed % 2 else 1_000  # few values: many ties
    points = [(float(generator.randrange(values)), float(generator.randrange(values))) for _ in range(30)]
    assert front(points) == [not dominated(point, points) for point in points]


def test_front_does_not_depend_on_the_order() -> None:
    points = [(1.0, 1.0), (2.0, 3.0), (2.0, 2.0), (3.0, 3.0), (0.5, 0.0)]
    by_point = dict(zip(points, front(points), strict=True))
    assert {point for point, flag in by_point.items() if flag} == {(0.5, 0.0), (1.0, 1.0), (2.0, 3.0)}
    for _ in range(10):
        random.Random(0).shuffle(points)
        assert dict(zip(points, front(points), strict=True)) == by_point


def test_equal_points_share_their_fate() -> None:
    assert front([(1.0, 1.0), (1.0, 1.0), (2.0, 1.0), (2.0, 1.0)]) == [True, True, False, False]


def test_front_of_nothing_and_of_one() -> None:
    assert front([]) == []
    assert front([(1.0, 0.0)]) == [True]


def measured(run, point, quality, latency, **window) -> None:
    run.window(point, {"scores": {"edit_similarity": quality}, "latency_s": latency}, **window)


def flags(run) -> dict[str, bool]:
    return {row.operating_point: row.pareto for row in run.summary().rows}


def test_the_oracle_is_a_bound_and_never_on_the_front(build) -> None:
    run = build(points=(FULL, OTHER, "oracle"))
    measured(run, FULL, 0.5, 1.0)
    measured(run, OTHER, 0.4, 2.0)  # beaten by full depth
    measured(run, "oracle", 0.5, 0.5)  # would beat everything
    assert flags(run) == {FULL: True, OTHER: False, "oracle": False}


def test_a_row_that_lacks_a_coordinate_is_not_on_the_front_and_beats_nobody(build) -> None:
    run = build(points=(FULL, OTHER, "random"))
    measured(run, FULL, 0.5, 1.0)
    measured(run, OTHER, None, 0.1)
    assert flags(run) == {FULL: True, OTHER: False, "random": False}


def test_measured_energy_decides_and_an_estimate_never_does(build) -> None:
    both, full_only = {FULL: True, OTHER: True}, {FULL: True, OTHER: False}
    for source, on_front in (("rapl", full_only), ("estimate", both), ("replay", both)):
        run = build()
        measured(run, FULL, 0.5, 1.0, energy_j=1.0, energy_source=source)
        measured(run, OTHER, 0.4, 0.5, energy_j=2.0, energy_source=source)  # faster, but hungrier
        assert flags(run) == on_front


def test_energy_of_some_rows_only_decides_nothing(build) -> None:
    run = build()
    measured(run, FULL, 0.5, 1.0, energy_j=1.0, energy_source="rapl")
    measured(run, OTHER, 0.4, 0.5)
    axes = choose_axes(run.summary().rows)
    assert axes is not None
    assert axes.cost.name == "latency_p50_s"


def test_random_weights_have_no_front(build) -> None:
    run = build(weights="random")
    measured(run, FULL, 0.5, 1.0)
    assert choose_axes(run.summary().rows) is None
    assert flags(run) == {FULL: False, OTHER: False}


def test_tables_have_their_own_fronts(build) -> None:
    run = build(tasks=("py150", "javacorpus"))
    measured(run, FULL, 0.9, 0.1, task="javacorpus")
    measured(run, FULL, 0.5, 1.0)
    measured(run, OTHER, 0.4, 2.0)
    assert [row.pareto for row in run.summary().rows] == [True, False, True, False]


def test_marking_twice_changes_nothing(build) -> None:
    run = build()
    measured(run, FULL, 0.5, 1.0)
    measured(run, OTHER, 0.4, 0.5)
    summary = run.summary()
    assert mark_front(summary) == summary
