"""What lossless decoding drafted and what that cost, worked out by hand on a 10-layer model.

Its layer reads 100 bytes, its LM head 200, one cached position in one layer 1; prompts have 4 tokens.
"""

from __future__ import annotations

from typing import Any

import pytest

from reports.metrics.drafts import ACCEPTANCE, DRAFTED, LAYERS_DISCARDED, LAYERS_READ, TOKENS_PER_VERIFICATION
from reports.metrics.point import Point, units_of
from reports.summary.measured import select

FULL, DRAFTING = "full", "fixed:layer=5@lossless"
ALL = (TOKENS_PER_VERIFICATION, ACCEPTANCE, DRAFTED, LAYERS_READ, LAYERS_DISCARDED)

KEPT = {  # two exits after layer 5, and one pass that went deep with the token behind them
    "token_ids": (1, 2, 3, 4),
    "exit_layers": (10,) * 4,
    "drafted_at": (None, 5, 5, None),
    "accepted": (False, True, True, False),
    "drafts": 2,
    "verifications": 1,
    "lm_head_evaluations": 2 + 3,
    "layers_executed": 30,
    "layers_read": 5 + 5 + 10,
    "layers_discarded": 0,
}
REPLACED = {  # three exits, of which full depth disagreed with the first
    "token_ids": (1, 9),
    "exit_layers": (10, 10),
    "drafted_at": (None, 5),
    "accepted": (False, False),
    "drafts": 3,
    "verifications": 1,
    "lm_head_evaluations": 3 + 4,
    "layers_executed": 40,
    "layers_read": 3 * 5 + 10,
    "layers_discarded": 30,
}


@pytest.fixture
def run(build: Any) -> Any:
    made = build(points=(FULL, DRAFTING), kv="recompute")
    for block, drafted in enumerate((KEPT, REPLACED)):
        made.window(FULL, {"token_ids": drafted["token_ids"]}, block=block)
        made.window(DRAFTING, drafted, block=block)
    return made


def test_ratios_are_totals_over_totals(run: Any) -> None:
    row = run.row(DRAFTING)
    assert [row.value(metric) for metric in ALL] == [4 / 2, 2 / 5, 5 / 4, 45 / 4, 30 / 4]


def test_time_and_energy_per_verified_token(build: Any) -> None:
    """0.1 s a token in the builder's samples; prefill's token took none of the time that counts, and of the energy."""
    run = build(points=(FULL, DRAFTING), kv="recompute")
    for name, more in ((FULL, {"token_ids": KEPT["token_ids"]}), (DRAFTING, KEPT)):
        run.window(name, more, energy_j=8.0, energy_source="rapl")
    row = run.row(DRAFTING)
    assert row.value("verified_token_s") == pytest.approx(0.1)
    assert row.value("energy_j_per_verified_token") == row.value("energy_j_per_token") == 2.0
    assert run.row(FULL).estimate("verified_token_s") is run.row(FULL).estimate("energy_j_per_verified_token") is None


def test_energy_that_no_meter_read_is_missing(run: Any) -> None:
    assert run.row(DRAFTING).estimate("energy_j_per_verified_token") is None


def test_lossy_rows_have_none_of_it(run: Any) -> None:
    row = run.row(FULL)
    assert [row.estimate(metric) for metric in ALL] == [None] * len(ALL)


def test_a_prompt_without_a_draft_has_no_acceptance(build: Any) -> None:
    run = build(points=(FULL, DRAFTING), kv="recompute")
    run.window(FULL, {"token_ids": (1,)})
    run.window(DRAFTING, {"token_ids": (1,), "drafted_at": (None,), "accepted": (False,)})
    row = run.row(DRAFTING)
    assert [row.value(metric) for metric in ALL] == [None] * len(ALL)


def test_units_add_up_to_the_ratios(run: Any) -> None:
    cells = tuple(select(run.manifest, run.windows, run.samples).values())
    point = Point(cells[1], cells, run.manifest)
    for metric in ALL:
        over, under = map(sum, zip(*units_of(metric, point).values(), strict=True))
        assert over / under == pytest.approx(run.row(DRAFTING).value(metric))
        assert not units_of(metric, Point(cells[0], cells, run.manifest))


def test_the_byte_model_reads_weights_once_for_all_rows_of_a_pass(build: Any) -> None:
    run = build(points=(FULL, DRAFTING), kv="recompute")
    run.window(FULL, {"token_ids": KEPT["token_ids"]})
    run.window(DRAFTING, KEPT)
    full = 30 * 100 + 3 * 200 + 10 * (5 + 6 + 7)
    layers = 20 * 100 + 1 * 200 + 20 * 6  # one LM head for all places of the verification; positions as at the middle
    row = run.row(DRAFTING)
    assert row.value("layers_speedup") == pytest.approx(full / layers)
    assert row.value("heads_speedup") == pytest.approx(full / (layers + 2 * 200))
    assert row.value("byte_model_speedup") == row.value("heads_speedup")


def test_what_was_discarded_costs_a_row_of_the_last_head_and_no_more(build: Any) -> None:
    run = build(points=(FULL, DRAFTING), kv="recompute")
    run.window(FULL, {"token_ids": REPLACED["token_ids"]})
    run.window(DRAFTING, REPLACED)
    full = 10 * 100 + 200 + 10 * 5
    here = 25 * 100 + 200 + 25 * 5 + 3 * 200
    assert run.row(DRAFTING).value("byte_model_speedup") == pytest.approx(full / here)


# ---------------------------------------------------------------------------- whether lossless rows are


def test_agreement_of_a_lossless_row_is_asserted(run: Any) -> None:
    """As full depth's own: 1, and no interval to look for."""
    for name in (FULL, DRAFTING):
        estimate = run.row(name).estimate("exact_prefix")
        assert (estimate.value, estimate.interval, estimate.no_interval) == (1.0, None, None)
    assert run.row(DRAFTING).decode == "lossless"
    assert run.row(DRAFTING).verdict.startswith("full depth's tokens; ")
    assert "lossless rows: the tokens are full depth's in all 2 completions." in run.summary().notes


def test_a_lossless_row_that_differs_is_averaged_and_named_with_its_place(run: Any) -> None:
    run.window(FULL, {"token_ids": (1, 2, 3)}, block=2)
    run.window(DRAFTING, KEPT | {"token_ids": (1, 2, 5, 4)}, block=2)
    estimate = run.row(DRAFTING).estimate("exact_prefix")
    assert estimate.value == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert estimate.no_interval is not None
    assert not run.row(DRAFTING).verdict.startswith("full depth's tokens")
    (note,) = (note for note in run.summary().notes if note.startswith("lossless"))
    assert note.startswith(
        f"lossless rows differ from full depth in 1 of 3 completions, first {DRAFTING} in 2-0 at token 3. "
    )
    assert "`harness verify`" in note


def test_a_run_without_lossless_rows_says_nothing_of_them(build: Any) -> None:
    run = build()
    run.window(FULL, {})
    run.window("fixed:layer=5", {})
    assert not [note for note in run.summary().notes if note.startswith("lossless")]
    estimate = run.row("fixed:layer=5").estimate("exact_prefix")
    assert (estimate.value, estimate.interval) == (1.0, None)
    assert estimate.no_interval is not None  # that it never differed is an observation


def test_own_text_of_a_lossless_row_is_asserted_too(build: Any) -> None:
    run = build(points=(FULL, DRAFTING), kv="recompute")
    for name, more in ((FULL, {}), (DRAFTING, KEPT)):
        run.window(name, {"token_ids": (1, 2, 3, 4), "full_depth_ids": (1, 2, 3, 4), **more})
    estimate = run.row(DRAFTING).estimate("own_text_agreement")
    assert (estimate.value, estimate.interval, estimate.no_interval) == (1.0, None, None)


def test_scores_of_the_same_tokens_do_not_differ(run: Any) -> None:
    for sample in range(len(run.samples)):
        run.samples[sample] = run.samples[sample].model_copy(update={"scores": {"edit_similarity": 0.5}})
    found = run.row(DRAFTING).estimate("edit_similarity_difference")
    assert (found.value, found.interval, found.no_interval) == (0.0, None, None)
    assert "edit similarity" not in run.row(DRAFTING).verdict
