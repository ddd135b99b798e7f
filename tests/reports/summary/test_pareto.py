"""The front is exact, of the columns that tables show, and marks what the run can tell."""

from __future__ import annotations

import random
from typing import Any

import pytest

from reports.summary.pareto import choose_gain, front, mark_front

FULL, OTHER, THIRD, LOSSLESS = "full", "fixed:layer=5", "fixed:layer=8", "rl@lossless"


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


def measured(run: Any, point: str, kept: float | None, seconds: float, *, noise: float = 0.0, blocks: int = 8) -> None:
    """Add windows whose completions keep so much of full depth's four decided tokens, every other one slower."""
    for block in range(blocks):
        tokens = None if kept is None else (1, 2, 3, 4, 5)[: 1 + round(4 * kept)] + (9,) * round(4 - 4 * kept)
        sample = {"error": "lost"} if tokens is None else {"token_ids": tokens}
        run.window(point, sample, duration=seconds * (1 + noise * (-1) ** block) + block / 1000, block=block)


def flags(run: Any) -> dict[str, bool]:
    return {row.operating_point: row.pareto for row in run.summary().rows}


@pytest.mark.parametrize(
    ("others", "on_front"),
    [
        # what keeps all text and is faster beats full depth, and is marked however little its score differs
        ({OTHER: (0.75, 1 / 0.91), LOSSLESS: (1.0, 0.8)}, {LOSSLESS}),
        ({OTHER: (0.5, 0.9), LOSSLESS: (1.0, 0.8), THIRD: (0.25, 0.5)}, {LOSSLESS, THIRD}),
        ({OTHER: (0.5, 0.7), THIRD: (0.5, 0.5)}, {FULL, THIRD}),
        ({OTHER: (0.5, 1.2)}, {FULL}),
        # faster by less than its scatter: it is not marked, and what it beats in the columns is not either
        ({OTHER: (0.5, 0.8), LOSSLESS: (1.0, 0.9, 0.4)}, {OTHER}),
        ({OTHER: (0.5, 0.95), LOSSLESS: (1.0, 0.9, 0.4)}, set()),
    ],
)
def test_the_front_is_of_the_columns_shown_and_told(build: Any, others: dict[str, Any], on_front: set[str]) -> None:
    run = build(points=(FULL, *others))
    measured(run, FULL, 1.0, 1.0)
    for point, facts in others.items():
        measured(run, point, *facts[:2], noise=dict(enumerate(facts)).get(2, 0.0))
    assert {point for point, flag in flags(run).items() if flag} == on_front


@pytest.mark.parametrize(("blocks", "rows", "told"), [(4, 1, False), (6, 1, True), (6, 2, False), (7, 2, True)])
def test_too_few_blocks_mark_nothing(build: Any, blocks: int, rows: int, told: bool) -> None:
    """Below five there is no interval; of n blocks no p-value is below 2 / 2ⁿ, of which Holm asks a family's share."""
    points = (FULL, OTHER, THIRD)[: rows + 1]
    run = build(points=points)
    for place, point in enumerate(points):
        measured(run, point, 1 - 0.25 * place, 1.0 - 0.2 * place, blocks=blocks)
    assert flags(run) == dict.fromkeys(points, told)


def test_the_oracle_is_a_bound_and_never_on_the_front(build: Any) -> None:
    run = build(points=(FULL, OTHER, "oracle"))
    measured(run, FULL, 1.0, 1.0)
    measured(run, OTHER, 0.5, 2.0)  # beaten by full depth
    measured(run, "oracle", 1.0, 0.5)  # would beat everything
    assert flags(run) == {FULL: True, OTHER: False, "oracle": False}


def test_a_row_that_lacks_a_coordinate_is_not_on_the_front_and_beats_nobody(build: Any) -> None:
    run = build(points=(FULL, OTHER, THIRD))
    measured(run, FULL, 1.0, 1.0)
    measured(run, OTHER, None, 0.1)
    measured(run, THIRD, 0.5, 2.0)
    assert flags(run) == {FULL: True, OTHER: False, THIRD: False}


def test_energy_decides_no_mark(build: Any) -> None:
    """The table that leads shows speed-up."""
    run = build()
    for point, seconds, joules in ((FULL, 1.0, 1.0), (OTHER, 0.5, 2.0)):
        for block in range(8):
            window = {"energy_j": joules, "energy_source": "rapl", "block": block, "duration": seconds}
            run.window(point, {"token_ids": (1, 2, 3) if point == FULL else (1, 9, 9)}, **window)
    assert flags(run) == {FULL: True, OTHER: True}


def test_random_weights_have_no_front(build: Any) -> None:
    run = build(weights="random")
    measured(run, FULL, 1.0, 1.0)
    measured(run, OTHER, 0.5, 0.5)
    assert choose_gain(run.summary().rows) is None
    assert flags(run) == {FULL: False, OTHER: False}


def test_tables_have_their_own_fronts(build: Any) -> None:
    run = build(tasks=("py150", "javacorpus"))
    for task, seconds in (("py150", 2.0), ("javacorpus", 0.5)):
        for block in range(8):
            run.window(FULL, {"token_ids": (1, 2)}, task=task, block=block)
            run.window(OTHER, {"token_ids": (1, 9)}, task=task, block=block, duration=seconds)
    assert [row.pareto for row in run.summary().rows] == [True, False, True, True]


def test_marking_twice_changes_nothing(build: Any) -> None:
    run = build()
    measured(run, FULL, 1.0, 1.0)
    measured(run, OTHER, 0.5, 0.5)
    summary = run.summary()
    assert any(row.pareto for row in summary.rows)
    assert mark_front(summary) == summary
