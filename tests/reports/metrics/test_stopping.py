"""What stop rules save, and what accepted characters cost, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records import SampleRecord
from harness.records.estimate import NoInterval

FULL, STOPPED = "full", "full@stop=statement"
SAVED, ENDED, TIME, ENERGY = "tokens_saved", "stopped", "accepted_character_s", "energy_j_per_accepted_character"


def stopped(tokens: int, accepted: float | None, **more: Any) -> dict[str, Any]:
    scores = {} if accepted is None else {"scores": {"accepted_prefix": accepted}}
    return {"token_ids": tuple(range(tokens)), "finish_reason": "stop", "stop_rule": "statement", **scores, **more}


@pytest.fixture
def run(build: Any) -> Any:
    """Six blocks: full depth makes 6 tokens in 3 s and 6 J, the rule leaves 2, or 6, in 1 s and 2 J."""
    made = build(points=(FULL, STOPPED), kv="recompute")
    for block in range(6):
        full = {"token_ids": tuple(range(6)), "finish_reason": "length", "scores": {"accepted_prefix": 10.0}}
        made.window(FULL, full, block=block, duration=3.0, energy_j=6.0, energy_source="rapl")
        rest = stopped(2, 4.0) if block else {**full, "scores": {"accepted_prefix": 10.0}}
        made.window(STOPPED, rest, block=block, duration=1.0, energy_j=2.0, energy_source="rapl")
    return made


def test_tokens_saved_are_of_full_depth_s_without_the_rule(run: Any) -> None:
    row = run.row(STOPPED)
    assert row.value(SAVED) == pytest.approx(5 * 4 / 36)
    assert row.value(ENDED) == pytest.approx(5 / 6)
    assert row.estimate(SAVED).interval is not None
    assert run.row(FULL).estimate(SAVED) is run.row(FULL).estimate(ENDED) is None


def test_time_and_energy_are_of_all_requests_over_all_accepted_characters(run: Any) -> None:
    row, full = run.row(STOPPED), run.row(FULL)
    assert row.value(TIME) == pytest.approx(6 * 1.0 / (5 * 4 + 10))
    assert row.value(ENERGY) == pytest.approx(6 * 2.0 / (5 * 4 + 10))
    assert (full.value(TIME), full.value(ENERGY)) == (pytest.approx(3 / 10), pytest.approx(6 / 10))
    low, high = row.estimate(ENERGY).interval
    assert low < row.value(ENERGY) < high


@pytest.mark.parametrize("accepted", [0.0, None])
def test_without_accepted_characters_none_has_a_cost(build: Any, accepted: float | None) -> None:
    run = build(points=(FULL, STOPPED), kv="recompute")
    for name in (FULL, STOPPED):
        run.window(name, stopped(1, accepted), energy_j=6.0, energy_source="rapl")
    row = run.row(STOPPED)
    assert row.estimate(TIME) is row.estimate(ENERGY) is None
    assert row.value(SAVED) == 0.0
    assert row.estimate(SAVED).no_interval is NoInterval.FEW_DIFFERING


def test_what_a_rule_ends_in_a_few_completions_is_no_certainty(build: Any) -> None:
    """All of five: a bootstrap would know it exactly."""
    run = build(points=(FULL, STOPPED), kv="recompute")
    for block in range(5):
        run.window(FULL, {}, block=block)
        run.window(STOPPED, stopped(1, 2.0), block=block)
    ended = run.row(STOPPED).estimate("stopped")
    assert (ended.value, ended.interval, ended.no_interval) == (1.0, None, NoInterval.FEW_DIFFERING)


def test_energy_that_was_not_measured_is_none(build: Any) -> None:
    run = build(points=(FULL,), kv="recompute")
    run.window(FULL, stopped(2, 3.0))
    assert run.row(FULL).estimate(ENERGY) is None
    assert run.row(FULL).value(TIME) == pytest.approx(1 / 3)


def test_what_a_strategy_ends_counts_too(build: Any) -> None:
    run = build(points=(FULL, "sec"), kv="recompute")
    run.window(FULL, {"token_ids": (1,) * 4, "finish_reason": "length"})
    run.window("sec", {"token_ids": (1,) * 3, "finish_reason": "strategy"})
    assert (run.row("sec").value(SAVED), run.row("sec").value(ENDED)) == (0.25, 1.0)


def test_the_front_weighs_requests_where_completions_are_cut(run: Any) -> None:
    """Per token the rule looks worse, since prefill is spread over fewer; it keeps less of full depth's text."""
    assert {row.stop for row in run.summary().rows} == {"", "statement"}
    rows = {row.operating_point: row for row in run.summary().rows}
    assert (rows[FULL].pareto, rows[STOPPED].pareto) == (True, True)


@pytest.mark.parametrize(
    ("name", "samples", "said"),
    [
        (STOPPED, [stopped(1, 0.0), stopped(1, 0.0)], "the rule ended all of its 2 completions with their first"),
        # what reads states is not asked of the first token, whose state is the prompt's
        (STOPPED, [stopped(2, 0.0), stopped(2, 0.0)], "the rule ended all of its 2 completions with their second"),
        (
            "sec",
            [stopped(1, 0.0, finish_reason="strategy", stop_rule="")],
            "the strategy ended all of its 1 ",
        ),
        (STOPPED, [stopped(2, 0.0), stopped(1, 0.0)], None),
        (STOPPED, [stopped(1, 0.0), stopped(1, 0.0, finish_reason="eos", stop_rule="")], None),
        ("sec", [stopped(2, 0.0, finish_reason="strategy", stop_rule="")], None),
    ],
)
def test_what_always_stops_is_warned_of(build: Any, name: str, samples: list[dict[str, Any]], said: str | None) -> None:
    run = build(points=(FULL, name), kv="recompute")
    for block, sample in enumerate(samples):
        run.window(FULL, {"finish_reason": "length"}, block=block)
        run.window(name, sample, block=block)
    found = [note for note in run.summary().notes if note.startswith(f"{name} on py150 always stops")]
    assert len(found) == (said is not None)
    assert all(said in note for note in found if said)


def test_older_records_say_stop_of_the_protocol_s_rule_alone() -> None:
    older = SampleRecord.model_validate(
        {"window": 0, "operating_point": "full", "task": "t", "sample_id": "0", "finish_reason": "stop"}
    )
    assert older.stop_rule == ""
