"""A strategy against the mixture of fixed exits that is as deep."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.records.estimate import Estimate
from reports.metrics import faithfulness
from reports.metrics.point import Point
from reports.statistics.intervals import score_interval
from reports.summary.measured import Measured, select
from tests.reports.conftest import RunBuilder

FULL, FIXED, LEARNED = "full", "fixed:layer=5", "learned"
REFERENCE = (1, 2, 3)


def fill(run: Any, learned: list[dict[str, Any]]) -> None:
    """Full depth all right, fixed at 5 of 10 layers wrong from the first token that it decides."""
    for block, one in enumerate(learned):
        run.window(FULL, {"token_ids": REFERENCE, "scores": {"edit_similarity": 1.0}}, block=block)
        half = {"token_ids": (1, 9, 9), "exit_layers": (10, 5, 5), "scores": {"edit_similarity": 0.4}}
        if FIXED in run.points:
            run.window(FIXED, half, block=block)
        run.window(LEARNED, one, block=block)


def test_difference_to_the_mixture_of_the_two_neighbours(build: Any) -> None:
    run = build(points=(FULL, FIXED, LEARNED))
    # Mean depth 7.5: half of fixed at 5 (exact prefix 0), half of full depth (1) make 1/2.
    fill(run, [{"token_ids": REFERENCE, "exit_layers": (10, 5, 10), "scores": {"edit_similarity": 0.9}}] * 60)
    row = run.row(LEARNED)
    assert row.value("exact_prefix_over_fixed") == pytest.approx(1 - 1 / 2)
    assert row.value("edit_similarity_over_fixed") == pytest.approx(0.9 - 0.7)
    low, high = row.estimate("exact_prefix_over_fixed").interval
    assert low == pytest.approx(high) == pytest.approx(1 / 2)


def test_the_interval_covers_what_samples_differ_in(build: Any) -> None:
    run = build(points=(FULL, FIXED, LEARNED))
    good, bad = (1, 2, 3), (1, 9, 9)
    fill(run, [{"token_ids": good if n % 2 else bad, "exit_layers": (10, 5, 10)} for n in range(60)])
    row = run.row(LEARNED)
    low, high = row.estimate("exact_prefix_over_fixed").interval
    assert row.value("exact_prefix_over_fixed") == pytest.approx(0.0, abs=1e-9)
    assert low < -0.05 < 0.05 < high


def test_at_a_fixed_layer_the_rival_is_that_layer_alone(build: Any) -> None:
    run = build(points=(FULL, FIXED, LEARNED))
    fill(run, [{"token_ids": (1, 2, 9), "exit_layers": (10, 2, 8)}] * 6)  # mean depth 5
    assert run.row(LEARNED).value("exact_prefix_over_fixed") == pytest.approx(1 / 2)


def test_fixed_exits_themselves_have_no_rival(build: Any) -> None:
    run = build(points=(FULL, FIXED, LEARNED))
    fill(run, [{"exit_layers": (10, 5, 10)}] * 6)
    for point in (FULL, FIXED):
        assert not {"exact_prefix_over_fixed", "edit_similarity_over_fixed"} & run.row(point).metrics.keys()


def test_nothing_where_no_fixed_exit_is_as_shallow(build: Any) -> None:
    run = build(points=(FULL, LEARNED))
    fill(run, [{"exit_layers": (10, 5, 10)}] * 6)
    assert not {"exact_prefix_over_fixed", "edit_similarity_over_fixed"} & run.row(LEARNED).metrics.keys()


def test_few_samples_have_no_interval(build: Any) -> None:
    run = build(points=(FULL, FIXED, LEARNED))
    fill(run, [{"exit_layers": (10, 5, 10)}] * 49)
    row = run.row(LEARNED)
    assert row.value("exact_prefix_over_fixed") is not None
    assert row.estimate("exact_prefix_over_fixed").no_interval == "too few samples"


@pytest.fixture(scope="module")
def documents() -> tuple[Any, list[Measured]]:
    """1,000 documents: one token in ten leaves early, and takes a fifth of the score with it."""
    generator, run = np.random.default_rng(0), RunBuilder(points=(FULL, FIXED, LEARNED))
    for block in range(1_000):
        left = generator.binomial(10, generator.beta(1, 9))
        scores = (1.0, generator.uniform(0.2, 0.6), 1 - 0.02 * left)
        for point, early, score in zip(run.points, (0, 10, left), scores, strict=True):
            layers = (10, *[5] * early, *[10] * (10 - early))
            times = {"token_times_s": tuple(range(1, 12)), "latency_s": 11.0, "ttft_s": 1.0}
            tokens = {"token_ids": tuple(range(11)), "exit_layers": layers, "scores": {"edit_similarity": score}}
            run.window(point, {**times, **tokens}, block=block)
    return run.manifest, list(select(run.manifest, run.windows, run.samples).values())


def over_fixed(documents: tuple[Any, list[Measured]], chosen: set[int]) -> Estimate:
    manifest, cells = documents
    ids = {f"{block}-0" for block in chosen}
    kept = [
        replace(
            cell,
            windows={number: window for number, window in cell.windows.items() if window.block in chosen},
            samples={key: sample for key, sample in cell.samples.items() if key[0] in ids},
        )
        for cell in cells
    ]
    found: Estimate = faithfulness.EDIT_SIMILARITY_OVER_FIXED.compute(Point(kept[-1], kept, manifest))
    return found


@pytest.mark.parametrize("weight_known", [False, True])
def test_near_full_depth_the_interval_has_the_weights_uncertainty(
    documents: tuple[Any, list[Measured]], monkeypatch: pytest.MonkeyPatch, weight_known: bool
) -> None:
    """As if the mixture's weight were known, every third interval misses."""
    if weight_known:
        monkeypatch.setattr(faithfulness, "score_interval", lambda units, _: score_interval(units))
    truth, generator, runs = over_fixed(documents, set(range(1_000))).value, np.random.default_rng(1), 300
    drawn = (over_fixed(documents, set(generator.permutation(1_000)[:60].tolist())) for _ in range(runs))
    share = sum(one.interval[0] <= truth <= one.interval[1] for one in drawn if one.interval) / runs
    assert share < 0.75 if weight_known else 0.92 <= share <= 0.98
