"""Estimates that share their draws keep the tables' values and have the intervals of the tables' statistics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reports.metrics.faithfulness import exact_prefixes
from reports.statistics.intervals import mean_interval
from reports.summary.resampling import Resampling


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
    assert (layers.estimate.value, layers.estimate.interval) == (0.5, (0.5, 0.5))
    assert exact is not None
    assert exact.estimate.value == pytest.approx((6 * 1 + 6 * 1 / 2) / 12)


def test_a_corpus_score_that_is_no_mean_has_no_interval(build: Any) -> None:
    full, rl = cells(build)
    estimate = Resampling([full, rl]).score(rl, "edit_similarity", 0.9)
    assert estimate is not None
    assert (estimate.value, estimate.interval) == (0.9, None)
    assert Resampling([full, rl]).score(rl, "codebleu", None) is None


def test_few_blocks_have_no_interval(build: Any) -> None:
    full, rl = cells(build, blocks=4)
    layers = Resampling([full, rl]).layers(rl, 10)
    assert layers is not None
    assert layers.estimate.interval is None


def test_the_same_draws_for_every_operating_point(build: Any) -> None:
    full, _ = cells(build)
    resampling = Resampling([full])
    blocks = [window.block for window in full.windows.values()]
    first, second = (resampling.share((block, times * (1.0 + block), 1.0) for block in blocks) for times in (1, 2))
    assert first is not None
    assert second is not None
    assert np.array_equal(2 * first.replicates, second.replicates)
