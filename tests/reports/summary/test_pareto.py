"""The front is exact, of the columns shown, and marks what the run can tell; and the draws behind figures."""

from __future__ import annotations

import random
from typing import Any

import pytest

from reports.metrics.faithfulness import exact_prefixes
from reports.statistics.intervals import mean_interval
from reports.summary.pareto import choose_gain, front
from reports.summary.resampling import Resampling

FULL, OTHER, THIRD, LOSSLESS = "full", "fixed:layer=5", "fixed:layer=8", "rl@lossless"


def dominated(point: tuple[float, float], points: list[tuple[float, float]]) -> bool:
    return any(cost <= point[0] and quality >= point[1] and (cost, quality) != point for cost, quality in points)


def test_front_equals_the_brute_force_front() -> None:
    for seed in range(40):
        generator = random.Random(seed)
        values = 4 if seed % 2 else 1_000  # few values: many ties
        points = [(float(generator.randrange(values)), float(generator.randrange(values))) for _ in range(30)]
        assert front(points) == [not dominated(point, points) for point in points]


def measured(run: Any, point: str, kept: float | None, seconds: float, *, noise: float = 0.0, blocks: int = 8) -> None:
    """Add windows whose completions keep so much of full depth's four decided tokens, every other one slower."""
    for block in range(blocks):
        tokens = None if kept is None else (1, 2, 3, 4, 5)[: 1 + round(4 * kept)] + (9,) * round(4 - 4 * kept)
        sample = {"error": "lost"} if tokens is None else {"token_ids": tokens}
        spent = {"energy_j": 1 / seconds, "energy_source": "rapl"}  # which decides no mark
        run.window(point, sample, duration=seconds * (1 + noise * (-1) ** block) + block / 1000, block=block, **spent)


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


def test_a_full_depth_that_is_slower_than_the_fastest_is_not_on_the_front(build: Any) -> None:
    run = build(points=(FULL, "full@fp16"), formats=("float32", "fp16"))
    measured(run, FULL, 1.0, 1.0)
    measured(run, "full@fp16", 0.5, 0.5)
    assert run.row(FULL).value("speedup_over_fastest") == pytest.approx(0.5, abs=0.01)
    assert flags(run) == {FULL: False, "full@fp16": True}


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


def test_tables_have_their_own_fronts(build: Any) -> None:
    run = build(tasks=("py150", "javacorpus"))
    for task, seconds in (("py150", 2.0), ("javacorpus", 0.5)):
        for block in range(8):
            run.window(FULL, {"token_ids": (1, 2)}, task=task, block=block)
            run.window(OTHER, {"token_ids": (1, 9)}, task=task, block=block, duration=seconds)
    assert [row.pareto for row in run.summary().rows] == [True, False, True, True]


def test_random_weights_have_no_front(build: Any) -> None:
    run = build(weights="random")
    measured(run, FULL, 1.0, 1.0)
    measured(run, OTHER, 0.5, 0.5)
    assert choose_gain(run.summary().rows) is None
    assert flags(run) == {FULL: False, OTHER: False}


def cells(build: Any, blocks: int = 12, **scores: Any) -> Any:
    made = build(points=("full", "rl"))
    for block in range(blocks):
        made.window("full", {"token_ids": (1, 2, 3), "latency_s": 1.0 + block}, block=block, energy_j=3.0)
        made.window(
            "rl",
            {
                "token_ids": (1, 2, 9) if block % 2 else (1, 2, 3),
                "exit_layers": (10, 5, 5),
                "scores": {"edit_similarity": block / 20},
                "latency_s": 0.5 + block / 10,
            },
            block=block,
            energy_j=1.5,
            energy_source="rapl",
        )
    from reports.summary.measured import select

    return list(select(made.manifest, made.windows, made.samples).values())


def test_values_are_the_tables(build: Any) -> None:
    full, rl = cells(build)
    resampling = Resampling([full, rl])
    score = resampling.score(rl, "edit_similarity", 5.5 / 20)
    assert score is not None
    assert score.value == 5.5 / 20
    assert score.interval == pytest.approx(mean_interval([[block / 20] for block in range(12)]), abs=0.02)
    layers = resampling.layers(rl, 10)
    exact = resampling.mean(rl, exact_prefixes(rl, full))
    assert layers is not None
    assert (layers.value, layers.interval) == (0.5, (0.5, 0.5))
    assert exact is not None
    assert exact.value == pytest.approx((6 * 1 + 6 * 1 / 2) / 12)


def test_a_corpus_score_that_is_no_mean_has_no_interval(build: Any) -> None:
    full, rl = cells(build)
    estimate = Resampling([full, rl]).score(rl, "edit_similarity", 0.9)
    assert estimate is not None
    assert (estimate.value, estimate.interval) == (0.9, None)
    assert Resampling([full, rl]).score(rl, "codebleu", None) is None
