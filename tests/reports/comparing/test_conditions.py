"""Conditions and verdicts: their grammar and words, and that nothing passes by accident."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from harness.contracts import Metric
from harness.errors import HarnessError
from reports.comparing.change import Change, compared_metrics
from reports.comparing.compare import compare_runs
from reports.comparing.conditions import grouped, judge, parse_condition
from reports.comparing.pairing import Matched
from reports.comparing.results import PointChange, verdict
from reports.metrics.depth import LAYERS_SKIPPED
from reports.recorded import RecordedRun

Make = Callable[..., RecordedRun]
FIXED = "fixed:layer=5"
TIMES = [1.0, 1.1, 0.9, 1.2, 1.0, 1.3, 0.8, 1.0, 1.1, 0.95, 1.05, 1.15]


@pytest.mark.parametrize(
    ("text", "metric", "sign", "threshold", "relative", "where"),
    [
        ("latency_p50>+5%", "latency_p50_s", ">", 0.05, True, ""),
        ("latency_p50 > 5 %", "latency_p50_s", ">", 0.05, True, ""),
        ("edit_similarity<-0.01", "edit_similarity", "<", -0.01, False, ""),
        ("edit_similarity<−0.01", "edit_similarity", "<", -0.01, False, ""),
        ("speedup<=-3%@py150/full@none", "speedup", "<=", -0.03, True, "py150/full@none"),
        ("exact_match<0", "exact_match", "<", 0.0, False, ""),
        ("agreement<0.99 @ confidence:threshold=0.9", "agreement", "<", 0.99, False, "confidence:threshold=0.9"),
        ("latency_p90>=+.5", "latency_p90_s", ">=", 0.5, False, ""),
    ],
)
def test_what_can_be_written(text: str, metric: str, sign: str, threshold: float, relative: bool, where: str) -> None:
    found = parse_condition(text)
    assert (found.metric.name, found.sign, found.relative, found.where) == (metric, sign, relative, where)
    assert found.threshold == pytest.approx(threshold)


REFUSED = (
    ("latncy_p50>+5%", "Did you mean 'latency_p50_s'?"),
    ("latency_p50", "is no condition"),
    ("latency_p50=5", "is no condition"),
    ("latency_p50>five", "is no condition"),
    ("latency_p50>+5%%", "is no condition"),
    ("latency_p50>+5% @", "is no condition"),
    ("", "is no condition"),
    ("edit_similarity<0.5", "has a sign: edit_similarity<+0.5, or -0.5"),
    ("agreement<-1%", "is a share from 0 to 1"),
    ("agreement<99", "is a share from 0 to 1"),
)


def test_what_would_surprise_is_refused() -> None:
    for text, said in REFUSED:
        with pytest.raises(HarnessError, match=re.escape(said)):
            parse_condition(text)


@pytest.fixture
def points(recorded: Make) -> tuple[PointChange, ...]:
    """Full depth as before; the fixed exit slower by 10 % on average, and by anything from 0 to 20 % per prompt."""
    slower = [1.0, 1.2] * 6
    before = {"full": TIMES, FIXED: [0.5 * s for s in TIMES]}
    after = {"full": TIMES, FIXED: [0.5 * s * f for s, f in zip(TIMES, slower, strict=True)]}
    return compare_runs(recorded("a", seconds=before), recorded("b", seconds=after)).points


def outcome(condition: str, points: tuple[PointChange, ...]) -> dict[str, str]:
    return {one.point: one.outcome for one in judge(parse_condition(condition), points)}


def test_it_holds_with_the_whole_interval(points: tuple[PointChange, ...]) -> None:
    low, high = points[1].of("tokens_per_s").relative_interval or (0, 0)
    assert low < -0.08 < high < 0
    assert outcome("tokens_per_s<-1%", points) == {"full": "passed", FIXED: "holds"}
    assert outcome(f"tokens_per_s<-8.5% @ {FIXED}", points) == {FIXED: "perhaps"}
    assert outcome("tokens_per_s<-30%", points) == {"full": "passed", FIXED: "passed"}
    assert outcome("agreement<1", points) == {"full": "passed", FIXED: "passed"}
    assert outcome("agreement>=1", points) == {"full": "holds", FIXED: "holds"}


def test_full_depth_has_no_speed_up_to_fail(points: tuple[PointChange, ...]) -> None:
    assert outcome("speedup<-50%", points) == {FIXED: "passed"}
    (alone,) = judge(parse_condition("speedup<-50% @ full"), points)
    assert alone.outcome == "unknown"
    assert alone.words == "speedup<-50% @ full: cannot be judged: full depth is what it is compared with."


def test_what_cannot_be_judged_does_not_pass(recorded: Make, points: tuple[PointChange, ...]) -> None:
    judged = judge(parse_condition("latency_p99>+5%"), points)
    assert {one.outcome for one in judged} == {"unknown"}
    ((line, _),) = grouped(judged)
    assert line == (
        "latency_p99>+5% at py150, full: cannot be judged: an interval needs 500 prompts, there are 12 "
        "(and at 1 more operating points)."
    )
    assert set(outcome("edit_similarity<0", points).values()) == {"unknown"}
    assert set(outcome("energy_per_token>+5%", points).values()) == {"unknown"}
    run = {"seconds": {"full": TIMES, FIXED: TIMES}}
    other = recorded("b", **run, environment={"cpu": "Other CPU"})
    elsewhere = compare_runs(recorded("a", **run), other).points
    (one, _) = judge(parse_condition("latency_p50>+5%"), elsewhere)
    assert one.about == "cannot be judged: another hardware class: processor is Test in A, Other in B."


def test_scores_of_few_prompts_cannot_be_judged(recorded: Make) -> None:
    """Of 49 prompts that all lose a tenth nothing is said; of 60 of which seven do, a pass at most."""

    def judged(condition: str, before: list[float], after: list[float]) -> tuple[str, str]:
        times = [1.0] * len(before)
        first = recorded("a", seconds={"full": times, FIXED: times}, scores={FIXED: before})
        second = recorded("b", seconds={"full": times, FIXED: [1.1 * s for s in times]}, scores={FIXED: after})
        (one,) = judge(parse_condition(f"{condition} @ {FIXED}"), compare_runs(first, second).points)
        return one.outcome, one.about

    few = judged("edit_similarity<-0.01", [0.5] * 49, [0.4] * 49)
    assert few == ("unknown", "cannot be judged: a score's interval needs 50 prompts, there are 49.")
    assert judged("edit_similarity<-0.01", [0.5] * 50, [0.4] * 50)[0] == "holds"
    alike = [0.5] * 53 + [0.3] * 7
    assert judged("edit_similarity<-0.01", [0.5] * 60, alike) == (
        "unknown", "cannot be judged: a score's interval needs 8 prompts that differ, there are 7.",
    )  # fmt: skip
    assert judged("edit_similarity<-0.1", [0.5] * 60, alike)[0] == "passed"
    assert judged("edit_similarity<-0.01", [0.5] * 60, [0.5] * 60) == (
        "passed", "does not hold: +0; a score's interval needs 8 prompts that differ, there are 0.",
    )  # fmt: skip


def test_estimated_energy_is_no_judge(recorded: Make) -> None:
    run = {"seconds": {"full": TIMES, FIXED: TIMES}}
    a, b = recorded("a", **run, energy=("estimate", 1.0)), recorded("b", **run, energy=("estimate", 9.0))
    judged = judge(parse_condition("energy_per_token>+5%"), compare_runs(a, b).points)
    assert {one.about for one in judged} == {"cannot be judged: energy is an estimate, no measurement."}
    a, b = recorded("a", **run, energy=("rapl", 1.0)), recorded("b", **run, energy=("rapl", 9.0))
    judged = judge(parse_condition("energy_per_token>+5%"), compare_runs(a, b).points)
    assert {one.outcome for one in judged} == {"holds"}


def test_a_place_that_was_not_compared_is_refused(points: tuple[PointChange, ...]) -> None:
    with pytest.raises(HarnessError, match=r"'oracle' was not compared\. Compared: py150/full, py150/fixed:layer=5"):
        judge(parse_condition("latency_p50>+5% @ oracle"), points)
    assert outcome("latency_p50>+500% @ py150/", points) == {"full": "passed", FIXED: "passed"}


def point_of(changes: tuple[Change, ...]) -> PointChange:
    return PointChange("py150", "full", "full", Matched(frozenset("a"), frozenset("a"), 1, 1), changes)


def change_of(metric: Metric, *, units: int, moved: bool = False) -> Change:
    """A change of a tenth, distinguishable if ``moved``; of so few units that none could be, below six."""
    interval, p = ((0.05, 0.15), 0.001) if moved else ((-0.1, 0.3), 1.0)
    return Change(metric, 1.0, 1.1, 0.1, 0.1, interval, interval, p, p, units=units)


@pytest.mark.parametrize(
    ("work", "others", "moved", "words"),
    [
        (200, 5, "", "too few prompts to tell"),  # layers skipped were tested, which says nothing of time
        (200, 200, "", "no distinguishable change"),
        (5, 200, "", "no distinguishable change"),
        (200, 5, "tokens_per_s exact_prefix", "changed: exact prefix, tokens/s"),
        (200, 200, "tokens_per_s latency_p50_s", "requests 10.0 % [5.0, 15.0] slower"),
    ],
)
def test_unchanged_work_does_not_say_that_nothing_changed(work: int, others: int, moved: str, words: str) -> None:
    changes = tuple(
        change_of(metric, units=work if metric is LAYERS_SKIPPED else others, moved=metric.name in moved.split())
        for metric in compared_metrics()
    )
    assert verdict(point_of(changes)) == words
