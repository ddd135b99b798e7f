"""Ratios that are no evidence get neither interval, star nor claim: disturbed windows, the same work, estimates."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records.estimate import NoInterval
from harness.records.summary import SummaryRow
from reports.metrics.vocabulary import metrics_of
from reports.tables.conclusion import conclusion
from reports.tables.report import report_markdown
from reports.tables.result import columns_of, split_tables
from reports.tables.writers import to_html

FULL, RULE = "full", "fixed:layer=5"
BLOCKS = 12


def play(run: Any, *, flagged: dict[str, int] | None = None, seconds: float = 0.5, **sample: Any) -> Any:
    """A rule and full depth, which takes a second; of so many windows the first ones are flagged."""
    for block in range(BLOCKS):
        for point in run.points:
            time = (1.0 if point == FULL else seconds) * (1 + block / 100)
            times = {"latency_s": time, "token_times_s": (0.1, 0.2, time), "ttft_s": 0.1}
            flags = ("foreign-cpu",) if block < (flagged or {}).get(point, 0) else ()
            own = {} if point == FULL else sample
            energy: dict[str, Any] = {"energy_j": 4 * time, "energy_source": "rapl"}
            run.window(point, {**times, **own}, block=block, duration=time, flags=flags, **energy)
    return run


def ratios(row: SummaryRow) -> dict[str, Any]:
    """The ratios of costs of a row with a value."""
    found = {metric.name: row.estimate(metric) for metric in metrics_of([row]) if metric.paired == "ratio"}
    return {name: one for name, one in found.items() if one is not None}


@pytest.mark.parametrize(
    "flagged",
    [{RULE: 7}, {FULL: 7}, {RULE: BLOCKS}, {RULE: BLOCKS, FULL: BLOCKS}],
    ids=lambda one: str([*one.values()]),
)
def test_most_windows_of_either_side_flagged_and_no_ratio_is_told(build: Any, flagged: dict[str, int]) -> None:
    run = play(build(), flagged=flagged)
    row, summary = run.row(RULE), run.summary()
    assert {"speedup", "decode_speedup", "energy_ratio"} <= ratios(row).keys()
    for name, one in ratios(row).items():
        assert (one.no_interval, one.interval, one.p) == (NoInterval.FLAGGED, None, None), name
    assert not row.pareto
    assert "faster" not in row.verdict
    assert "less energy" not in row.verdict
    (table,) = split_tables(summary)
    column = next(one for metric, one in columns_of(table.rows).items() if metric.name == "speedup")
    assert (column.texts[1], column.tones[1]) == ("2.00× [flagged]", "faint")
    assert 'soft">2.00× [flagged]' in "".join(to_html([*_tables(table)]))
    said = conclusion(table)
    assert said.startswith(f"Other work disturbed {sum(flagged.values())} of {2 * BLOCKS} windows")
    assert "--strict" in said
    first = next(line for line in report_markdown(summary).splitlines() if line and not line.startswith("#"))
    assert first.startswith("Other work disturbed"), "the verdict comes before all numbers"


def _tables(table: Any) -> Any:
    from reports.tables.run_tables import headline
    from reports.tables.table import Table

    return (part for part in headline(table) if isinstance(part, Table))


@pytest.mark.parametrize("flagged", [{}, {RULE: 6}, {FULL: 6, RULE: 6}], ids=lambda one: str([*one.values()]))
def test_half_of_the_windows_is_not_most(build: Any, flagged: dict[str, int]) -> None:
    run = play(build(), flagged=flagged)
    row = run.row(RULE)
    assert all(one.interval is not None for one in ratios(row).values())
    assert row.pareto
    assert "The fastest of all is fixed:layer=5" in conclusion(*split_tables(run.summary()))


NEVER = {"exit_layers": (10, 10, 10)}


@pytest.mark.parametrize(
    ("sample", "claimed"),
    [
        (NEVER, False),
        ({"exit_layers": (5, 10, 10)}, False),  # the first token is the prompt's
        ({"exit_layers": (10, 10, 9)}, True),
        ({**NEVER, "drafts": 1}, True),
        ({**NEVER, "finish_reason": "strategy"}, True),
    ],
)
def test_who_leaves_nothing_out_gains_nothing(build: Any, sample: dict[str, Any], claimed: bool) -> None:
    run = play(build(), **sample)
    row = run.row(RULE)
    for name, one in ratios(row).items():
        assert (one.no_interval is NoInterval.SAME_WORK, one.interval is not None) == (not claimed, claimed), name
    assert row.pareto is claimed
    assert ("faster" in row.verdict) is claimed
    if not claimed:
        (table,) = split_tables(run.summary())
        assert conclusion(table).startswith("Use full depth: nothing left a layer out")


def test_what_asking_for_nothing_costs_is_a_finding(build: Any) -> None:
    row = play(build(), seconds=1.5, **NEVER).row(RULE)
    assert row.estimate("speedup").p_holm <= 0.05
    assert "whole requests 33 % slower" in row.verdict


def test_another_format_is_not_the_same_work(build: Any) -> None:
    run = play(build(points=(FULL, "full@int4"), formats=("float32", "int4")), **NEVER)
    one = run.row("full@int4").estimate("speedup_over_fastest")
    assert one is not None
    assert one.no_interval is not NoInterval.SAME_WORK


def test_an_estimate_repeats_none_of_the_time_s_evidence(build: Any) -> None:
    """Energy as an affine copy of time without an intercept has time's very ratio; by a sensor it is its own."""
    run = play(build())
    for index, window in enumerate(run.windows):
        run.windows[index] = window.model_copy(update={"energy_source": "estimate"})
    # prompts by chance slower under the rule, which pooling gives to both
    run.samples = [
        one.model_copy(update={"ttft_s": (0.3 if one.operating_point == RULE else 0.1) * (one.latency_s or 0)})
        for one in run.samples
    ]
    row = run.row(RULE)
    energy, time = row.estimate("energy_ratio"), row.estimate("speedup")
    assert energy.value == pytest.approx(time.value)
    assert (energy.no_interval, energy.interval, energy.p) == (NoInterval.ESTIMATED, None, None)
    (table,) = split_tables(run.summary())
    columns = {metric.name: column for metric, column in columns_of(table.rows).items()}
    assert columns["energy_ratio"].texts[1].endswith("[estimate]")
    assert columns["speedup"].texts[1].endswith("*")
