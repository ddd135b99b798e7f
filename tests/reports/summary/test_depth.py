"""Layers, work, the byte model, the oracle and fixed exits as deep, worked out by hand on a 10-layer model.

Its layer reads 100 bytes, its LM head 200, a shortcut map 30, a KV fill 10, one cached position in one layer 1; prompts
have 4 tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.records.estimate import Estimate
from reports.metrics import faithfulness
from reports.metrics.point import Point
from reports.summary.measured import Measured, select
from tests.reports.conftest import RunBuilder

FULL, FIXED = "full", "fixed:layer=5"


def test_with_a_cache_the_token_of_prefill_does_not_count(build) -> None:
    run = build()
    run.window(FULL, {"exit_layers": (10, 4, 6)})
    row = run.row(FULL)
    assert row.value("exit_layer_mean") == 5.0
    assert row.value("layers_skipped") == pytest.approx(0.5)
    run.window(FULL, {"token_ids": (1,) * 5, "exit_layers": (10, 8, 8, 8, 8)}, {"token_ids": (1,)}, block=1)
    assert run.row(FULL).value("exit_layer_mean") == pytest.approx((10 + 32) / 6)  # a token counts once
    prompt = build()
    prompt.window(FULL, {"token_ids": (1,)})
    assert prompt.row(FULL).value("exit_layer_mean") is prompt.row(FULL).value("layers_skipped") is None


def test_without_a_cache_every_token_counts(build) -> None:
    run = build(kv="none")
    run.window(FULL, {"exit_layers": (10, 4, 4)})
    assert run.row(FULL).value("exit_layer_mean") == 6.0


def test_work_is_counted_per_decoded_token(build) -> None:
    run = build()
    run.window(FIXED, {"exit_checks": 6, "lm_head_evaluations": 8, "kv_fill_layers": 10})  # 2 decoded tokens
    row = run.row(FIXED)
    assert (
        row.value("exit_checks_per_token"),
        row.value("lm_head_per_token"),
        row.value("kv_fill_layers_per_token"),
    ) == (3.0, 4.0, 5.0)


def test_byte_model_counts_weights_heads_fills_and_cache(build) -> None:
    run = build(bandwidth=10_000.0)
    run.window(FULL, {"token_times_s": (0.0, 0.5, 1.0)})
    run.window(FIXED, {"exit_layers": (10, 5, 5), "kv_fill_layers": 10, "token_times_s": (0.0, 0.25, 0.5)})
    full = 20 * 100 + 2 * 200 + 10 * (5 + 6)  # layers, heads, cache over positions 5 then 6
    fixed = 10 * 100 + 2 * 200 + 10 * 10 + 5 * (5 + 6)
    assert run.row(FULL).value("byte_model_speedup") == 1.0
    assert run.row(FIXED).value("byte_model_speedup") == pytest.approx(full / fixed)
    assert run.row(FULL).value("bandwidth_share") == pytest.approx(full / 1.0 / 10_000)
    assert run.row(FIXED).value("bandwidth_share") == pytest.approx(fixed / 0.5 / 10_000)


def test_prompts_count_what_was_read_and_their_arithmetic_is_priced_by_weights(build) -> None:
    shallow = f"{FULL}@prompt=tail:layer=6"
    run = build(points=(FULL, shallow))
    run.window(FULL, {"prompt_layers": 40})
    run.window(
        shallow,
        {"prompt_layers": 28, "prompt_layers_skipped": 12},
        {"prompt_layers": 10, "prompt_ids": (7,) * 5, "prompt_reused": 4},  # its last token alone
    )
    assert run.row(shallow).value("prompt_layers_skipped") == pytest.approx(12 / 50)
    assert run.row(shallow).value("prompt_speedup") == pytest.approx(50 * 100 / (38 * 100 + 12 * 10))
    assert run.row(FULL).value("prompt_layers_skipped") is run.row(FULL).value("prompt_speedup") is None
    older = build(points=(FULL, shallow))
    older.window(shallow, {})
    assert older.row(shallow).value("prompt_layers_skipped") is older.row(shallow).value("prompt_speedup") is None


def test_the_ladder_adds_one_cost_after_the_other(build) -> None:
    run = build()
    run.window(FULL, {"prompt_ids": ()})
    work = {"lm_head_evaluations": 5, "shortcut_evaluations": 4, "kv_fill_layers": 10}
    run.window(FIXED, {"exit_layers": (10, 5, 5), "prompt_ids": (), **work})
    full = 20 * 100 + 2 * 200 + 10 * (1 + 2)
    layers = 10 * 100 + 2 * 200 + 5 * (1 + 2)  # two tokens, each with the one LM head it needs
    heads = layers + 3 * 200
    maps = heads + 4 * 30
    fills = maps + 10 * 10
    row = run.row(FIXED)
    ladder = (
        row.value("layers_speedup"),
        row.value("heads_speedup"),
        row.value("shortcuts_speedup"),
        row.value("byte_model_speedup"),
    )
    assert ladder == pytest.approx([full / layers, full / heads, full / maps, full / fills])


def test_recomputed_layers_share_the_weight_reads_of_their_pass(build) -> None:
    run = build(kv="recompute")
    # the second token stops at 5; its layers 6…10 run beside the third token's: 15 reads, 20 layer × tokens
    run.window(FULL, {"prompt_ids": ()})
    run.window(FIXED, {"exit_layers": (10, 5, 10), "layers_executed": 20, "prompt_ids": ()})
    full, other = 2000 + 400 + 10 * (1 + 2), 1500 + 400 + 5 + 20
    assert run.row(FIXED).value("byte_model_speedup") == pytest.approx(full / other)


@pytest.mark.parametrize("regime", [{"kv": "none"}, {"batch_size": 4}])
def test_no_byte_model_where_bytes_do_not_explain_time(build, regime) -> None:
    run = build(bandwidth=10_000.0, **regime)
    run.window(FULL, {})
    run.window(FIXED, {"exit_layers": (10, 5, 5)})
    for row in run.summary().rows:
        assert (
            row.value("layers_speedup"),
            row.value("byte_model_speedup"),
            row.value("byte_model_achieved"),
            row.value("bandwidth_share"),
        ) == (None,) * 4


def test_the_oracle_s_share_counts_layers_that_both_skip_by_tokens_that_agree(build) -> None:
    """Ten layers. The first token is prefill's and counts nowhere; the oracle skips 5 + 3 + 2 + 6 = 16."""
    tokens = (1, 2, 3, 4, 5)
    run = build(points=(FULL, FIXED, "saturation", "oracle", "short"), kv="recompute")
    run.window(FULL, {"token_ids": tokens})
    run.window("oracle", {"token_ids": tokens, "exit_layers": (10, 5, 7, 8, 4)})
    # Agrees at the second, fourth and fifth: min(2, 5) + min(8, 2) + min(6, 6); the third's 8 count for nothing.
    run.window(FIXED, {"token_ids": (1, 2, 9, 4, 5), "exit_layers": (10, 8, 2, 2, 4)})
    run.window("saturation", {"token_ids": (1, 9, 9, 9, 5), "exit_layers": (10, 2, 2, 2, 7)})
    run.window("short", {"token_ids": (1, 2), "exit_layers": (10, 5)})  # what is missing does not agree
    assert run.row(FIXED).value("oracle_share") == pytest.approx((2 + 2 + 6) / 16)
    assert run.row("saturation").value("layers_skipped") == pytest.approx(27 / 40)  # 169 % of the oracle's
    assert run.row("saturation").value("oracle_share") == pytest.approx(3 / 16)
    assert run.row("short").value("oracle_share") == pytest.approx(5 / 16)
    assert run.row("oracle").value("oracle_share") == 1.0
    assert run.row(FULL).value("oracle_share") == 0.0  # measured: it skips nothing
    run.window(FIXED, {"exit_layers": (10, 2, 2)}, block=1)  # which the oracle failed on, and counts nowhere
    run.window("oracle", {"error": "broken"}, block=1)
    assert run.row(FIXED).value("oracle_share") == pytest.approx((2 + 2 + 6) / 16)


def test_an_oracle_that_only_drafts_is_held_against_nothing(build) -> None:
    run = build(points=(FULL, "oracle@lossless", FIXED, "oracle"), kv="recompute")
    run.window(FULL, {})
    run.window("oracle@lossless", {})
    run.window(FIXED, {"exit_layers": (10, 5, 5)})
    run.window("oracle", {"exit_layers": (10, 5, 2)})
    assert run.row(FIXED).value("oracle_share") == pytest.approx(10 / 13)


def test_no_share_without_an_oracle_or_when_it_skipped_nothing(build) -> None:
    run = build()
    run.window(FULL, {})
    assert run.row(FULL).value("oracle_share") is None
    run = build(points=(FULL, "oracle"), kv="recompute")
    run.window(FULL, {})
    run.window("oracle", {"exit_layers": (10, 10, 10)})
    assert run.row(FULL).value("oracle_share") is None


LEARNED = "learned"
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
    for point in (FULL, FIXED):  # which have no rival
        assert not {"exact_prefix_over_fixed", "edit_similarity_over_fixed"} & run.row(point).metrics.keys()


def test_at_a_fixed_layer_the_rival_is_that_layer_alone_and_below_all_there_is_none(build: Any) -> None:
    run = build(points=(FULL, FIXED, LEARNED))
    fill(run, [{"token_ids": (1, 2, 9), "exit_layers": (10, 2, 8)}] * 6)  # mean depth 5
    found = run.row(LEARNED).estimate("exact_prefix_over_fixed")
    assert (found.value, found.no_interval) == (pytest.approx(1 / 2), "too few samples")
    run = build(points=(FULL, LEARNED))
    fill(run, [{"exit_layers": (10, 5, 10)}] * 6)
    assert not {"exact_prefix_over_fixed", "edit_similarity_over_fixed"} & run.row(LEARNED).metrics.keys()


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


def test_near_full_depth_the_interval_has_the_weights_uncertainty(documents: tuple[Any, list[Measured]]) -> None:
    """As if the mixture's weight were known, every third interval would miss."""
    truth, generator, runs = over_fixed(documents, set(range(1_000))).value, np.random.default_rng(1), 300
    drawn = (over_fixed(documents, set(generator.permutation(1_000)[:60].tolist())) for _ in range(runs))
    share = sum(one.interval[0] <= truth <= one.interval[1] for one in drawn if one.interval) / runs
    assert 0.92 <= share <= 0.98
