"""Drafts, stop rules and what they save, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records.estimate import NoInterval
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


def test_scores_of_the_same_tokens_do_not_differ(run: Any) -> None:
    for sample in range(len(run.samples)):
        run.samples[sample] = run.samples[sample].model_copy(update={"scores": {"edit_similarity": 0.5}})
    found = run.row(DRAFTING).estimate("edit_similarity_difference")
    assert (found.value, found.interval, found.no_interval) == (0.0, None, None)
    assert "edit similarity" not in run.row(DRAFTING).verdict


STOPPED = "full@stop=statement"
SAVED, ENDED, TIME, ENERGY = "tokens_saved", "stopped", "accepted_character_s", "energy_j_per_accepted_character"


def stopped(tokens: int, accepted: float | None, **more: Any) -> dict[str, Any]:
    scores = {} if accepted is None else {"scores": {"accepted_prefix": accepted}}
    return {"token_ids": tuple(range(tokens)), "finish_reason": "stop", "stop_rule": "statement", **scores, **more}


@pytest.fixture
def cut_short(build: Any) -> Any:
    """Six blocks: full depth makes 6 tokens in 3 s and 6 J, the rule leaves 2, or 6, in 1 s and 2 J."""
    made = build(points=(FULL, STOPPED), kv="recompute")
    for block in range(6):
        full = {"token_ids": tuple(range(6)), "finish_reason": "length", "scores": {"accepted_prefix": 10.0}}
        made.window(FULL, full, block=block, duration=3.0, energy_j=6.0, energy_source="rapl")
        rest = stopped(2, 4.0) if block else {**full, "scores": {"accepted_prefix": 10.0}}
        made.window(STOPPED, rest, block=block, duration=1.0, energy_j=2.0, energy_source="rapl")
    return made


def test_tokens_saved_are_of_full_depth_s_without_the_rule(cut_short: Any) -> None:
    row = cut_short.row(STOPPED)
    assert row.value(SAVED) == pytest.approx(5 * 4 / 36)
    assert row.value(ENDED) == pytest.approx(5 / 6)
    assert row.estimate(SAVED).interval is not None
    assert cut_short.row(FULL).estimate(SAVED) is cut_short.row(FULL).estimate(ENDED) is None


def test_time_and_energy_are_of_all_requests_over_all_accepted_characters(cut_short: Any) -> None:
    row, full = cut_short.row(STOPPED), cut_short.row(FULL)
    assert row.value(TIME) == pytest.approx(6 * 1.0 / (5 * 4 + 10))
    assert row.value(ENERGY) == pytest.approx(6 * 2.0 / (5 * 4 + 10))
    assert (full.value(TIME), full.value(ENERGY)) == (pytest.approx(3 / 10), pytest.approx(6 / 10))
    low, high = row.estimate(ENERGY).interval
    assert low < row.value(ENERGY) < high


@pytest.mark.parametrize("accepted", [0.0, None])
def test_without_accepted_characters_none_has_a_cost(build: Any, accepted: float | None) -> None:
    cut_short = build(points=(FULL, STOPPED), kv="recompute")
    for name in (FULL, STOPPED):
        cut_short.window(name, stopped(1, accepted), energy_j=6.0, energy_source="rapl")
    row = cut_short.row(STOPPED)
    assert row.estimate(TIME) is row.estimate(ENERGY) is None
    assert row.value(SAVED) == 0.0
    assert row.estimate(SAVED).no_interval is NoInterval.FEW_DIFFERING


STRATEGY = {"finish_reason": "strategy", "stop_rule": ""}


@pytest.mark.parametrize(
    ("name", "samples", "said"),
    [
        (STOPPED, [stopped(1, 0.0), stopped(1, 0.0)], "the rule ended all of its 2 completions"),
        (STOPPED, [stopped(2, 0.0)], "the rule"),  # it reads states, and is not asked of the prompt's token
        ("sec", [stopped(1, 0.0, **STRATEGY)], "the strategy ended all of its 1 "),
        (STOPPED, [stopped(2, 0.0), stopped(1, 0.0)], None),
        (STOPPED, [stopped(1, 0.0), stopped(1, 0.0, finish_reason="eos", stop_rule="")], None),
        ("sec", [stopped(2, 0.0, **STRATEGY)], None),
    ],
)
def test_what_always_stops_is_warned_of(build: Any, name: str, samples: list[dict[str, Any]], said: str | None) -> None:
    cut_short = build(points=(FULL, name), kv="recompute")
    for block, sample in enumerate(samples):
        cut_short.window(FULL, {"finish_reason": "length"}, block=block)
        cut_short.window(name, sample, block=block)
    if name == "sec":  # what a strategy ends counts as what a rule ends
        assert cut_short.row(name).value(ENDED) == 1.0
    found = [note for note in cut_short.summary().notes if "always stops" in note]
    assert len(found) == (said is not None)
    assert all(note.startswith(f"{name} on py150 always stops: {said}") for note in found)
