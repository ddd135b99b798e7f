"""What editor sessions report: measures by hand, sessions as the units of every interval, cold beside warm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from harness.errors import StoreError
from harness.records.conditions import Conditions, group_id
from reports.comparing.compare import compare_runs
from reports.figures import fixed_exit, settings
from reports.figures.task_table import task_tables
from reports.figures.waiting import PARTS, figures, waits
from reports.leaderboard.checks import publication_checks
from reports.leaderboard.ranking import is_baseline, is_exact
from reports.metrics.evaluation import evaluate
from reports.metrics.point import Point
from reports.metrics.sessions import ACCEPTED_PER_S, SESSION_LATENCY_P50, WITHIN_200_MS
from reports.metrics.speedups import DECODE_SPEEDUP
from reports.metrics.vocabulary import EDIT_SIMILARITY_DIFFERENCE, SESSIONS, all_metrics
from reports.statistics.intervals import percentile_interval
from reports.summary.measured import Measured, independent_units, select
from reports.summary.pareto import choose_gain
from reports.summary.summarise import summarise
from reports.tables.report import report_markdown
from tests.reports.editor_sessions import KEPT, POINTS, PROMPT, play
from tests.reports.figures.on_paper import check_on_paper, drawn

COLD, WARM, COLD_LOOKUP, WARM_LOOKUP = POINTS
LOSSY = "fixed:layer=5@keep=exact"


def request(session: str, ttft_s: float, latency_s: float, **more: Any) -> dict[str, Any]:
    return {"session": session, "ttft_s": ttft_s, "latency_s": latency_s, "overtaken_s": 0.0, **more}


def test_the_measures_of_a_session_by_hand(build: Any) -> None:
    run = build(points=(WARM,))
    run.window(
        WARM,
        request("a", 0.04, 0.09, prompt_ids=(7,) * 10, scores={"accepted_prefix": 9.0}),
        request("a", 0.02, 0.15, prompt_ids=(7,) * 10, prompt_reused=8, scores={"accepted_prefix": 0.0}, overtaken=2,
                overtaken_s=0.2),
        request("b", 0.06, 0.36, prompt_ids=(7,) * 20, prompt_reused=10, scores={"accepted_prefix": 3.0}),
        duration=5.0, energy_j=4.0, energy_source="rapl",
    )  # fmt: skip
    row = run.row(WARM)
    assert {name: pytest.approx(row.value(name)) for name in SESSION_NAMES if row.value(name) is not None} == {
        "session_ttft_p50_s": 0.04, "session_ttft_p95_s": 0.058,
        "session_latency_p50_s": 0.15, "session_latency_p95_s": 0.339,
        "within_100_ms": 1 / 3, "within_200_ms": 2 / 3, "accepted_characters_per_s": 12 / 0.6,
        "accepted_characters_per_j": 12 / 4, "overtaken_share": 0.2 / 0.8, "prompt_reused": 18 / 40,
    }  # fmt: skip
    assert row.value("accepted_character_s") == pytest.approx(0.6 / 12), "typing and waste are nobody's wait"


def test_what_was_computed_while_the_user_typed_stands_beside_the_waste(build: Any) -> None:
    ahead = f"{WARM_LOOKUP}@prefetch=draft"
    run = build(points=(WARM, ahead))
    for block in range(8):
        for point in run.points:
            run.window(
                point,
                request("a", 0.05, 0.1),
                request("a", 0.05, 0.1, overtaken=1, overtaken_s=0.1, prefetch_s=0.3, prefetched=32),
                request("a", 0.05, 0.1, prefetch_s=0.1, prefetched=8, prefetch_used=10),
                block=block, duration=1.0,
            )  # fmt: skip
    rows = {row.operating_point: row for row in run.summary().rows}
    assert {name: rows[ahead].value(name) for name in PREFETCHED} == {
        "prefetch_s": pytest.approx(0.0 + 0.4 / 2), "prefetch_share": pytest.approx(0.4 / (0.4 + 0.1 + 0.2)),
        "prefetch_unused": pytest.approx(30 / 40),
    }  # fmt: skip
    assert not any(name in rows[WARM].metrics for name in PREFETCHED)
    text = report_markdown(run.summary())
    assert "its energy is part of the window's" in text
    assert "its energy is part of the window's" not in report_markdown(play(build(points=POINTS), 8).summary())
    assert "took" not in next(check for check in publication_checks(run.recorded()) if check.name == "times").found


PREFETCHED = ("prefetch_s", "prefetch_share", "prefetch_unused")
SESSION_NAMES = [metric.name for metric in all_metrics() if SESSIONS in metric.sections]


def test_other_runs_have_none_of_it(build: Any) -> None:
    run = build()
    for block in range(8):
        for point in run.points:
            run.window(point, {"scores": {"accepted_prefix": 1.0}}, block=block)
    summary = run.summary()
    assert [name for row in summary.rows for name in SESSION_NAMES if name in row.metrics] == []
    text = report_markdown(summary)
    assert not any(word in text for word in (SESSIONS, "@keep", "| keep |", "over first", "waste", "editor session"))
    assert figures(run.recorded()) == []


def test_blocks_that_share_a_session_are_one_unit(build: Any) -> None:
    """Of blocks of three requests and sessions of two: 0 and 1 share one, 2 and 3 another."""
    run = build(points=(WARM,))
    for block, sessions in enumerate(("aab", "bcc", "dde", "eff", "ggg")):
        run.window(WARM, *(request(session, 0.1, 0.2) for session in sessions), block=block)
    assert independent_units(run.windows, run.samples) == {0: 0, 1: 0, 2: 2, 3: 2, 4: 4}
    assert run.row(WARM).estimate("prompt_reused").n == 3
    assert independent_units(run.windows, []) == {block: block for block in range(5)}


@pytest.mark.parametrize("per_block", [1, 3, 5])
def test_every_interval_of_a_run_is_over_sessions(build: Any, per_block: int) -> None:
    """However its requests lie in windows: one, across the ends of sessions, and a session in each."""
    run = play(build(points=(*POINTS, LOSSY)), 15, 5, per_block=per_block)
    units = 15 if per_block != 3 else 5  # fifteen requests of three sessions lie in five whole blocks
    counted = {
        (row.operating_point, name): one.n
        for row in run.summary().rows for name, one in row.metrics.items() if one.n is not None
    }  # fmt: skip
    assert set(counted.values()) == {units}, {key: n for key, n in counted.items() if n != units}
    names = {name for _, name in counted}
    assert names >= {"speedup", "decode_speedup", "energy_ratio", "exact_prefix", "edit_similarity_difference",
                     "accepted_character_s", *SESSION_NAMES} - {*PREFETCHED}  # fmt: skip
    compared = compare_runs(run.recorded("runs/a"), play(build(points=(*POINTS, LOSSY)), 15, 5, seed=1,
                                                         per_block=per_block).recorded("runs/b"))  # fmt: skip
    found = {one.units for point in compared.points for one in point.changes if one.applies and one.value is not None}
    assert found == {units}


def cells_of(run: Any) -> list[Measured]:
    return list(select(run.manifest, run.windows, run.samples).values())


SIGMA, SESSIONS_DRAWN, REQUESTS, RUNS = 0.3, 16, 5, 100
METRICS = {metric.name: metric for metric in all_metrics(["edit_similarity"])}
TRUTH = {
    (WARM_LOOKUP, DECODE_SPEEDUP.name): 1.5 * np.exp(-(SIGMA**2) / 2),
    (COLD, SESSION_LATENCY_P50.name): 1.02,
    (COLD, ACCEPTED_PER_S.name): 12 / (1.02 * np.exp((SIGMA**2 + 0.1**2) / 2)),
    (LOSSY, EDIT_SIMILARITY_DIFFERENCE): 0.0,
}
"""A ratio of costs, a percentile, a rate and a difference of scores, each where its truth is known."""


def test_intervals_over_sessions_cover_and_those_over_requests_would_not(build: Any) -> None:
    """Requests of a session are alike, in windows of their own: ignoring that halves intervals, which then miss."""
    hits = {how: Counter[str]() for how in ("session", "request")}
    widths = {how: Counter[str]() for how in hits}
    for seed in range(RUNS):
        run = play(build(points=(*POINTS[:2], WARM_LOOKUP, LOSSY)), SESSIONS_DRAWN, REQUESTS, seed=seed, per_block=1,
                   alike=SIGMA)  # fmt: skip
        cells = cells_of(run)
        every = cells[0].units
        for how, units in (("session", every), ("request", {block: block for block in every})):
            table = [replace(cell, units=units) for cell in cells]
            points = {cell.point.name: Point(cell, table, run.manifest) for cell in table}
            for (name, metric), truth in TRUTH.items():
                (found,) = evaluate([METRICS[metric]], [points[name]], Counter())
                low, high = found[METRICS[metric]].estimate.interval
                hits[how][metric] += low <= truth <= high
                widths[how][metric] += high - low
    shares = {how: {metric: count / RUNS for metric, count in hits[how].items()} for how in hits}
    assert all(0.9 <= share <= 0.99 for share in shares["session"].values()), shares
    assert all(share < 0.8 for share in shares["request"].values()), shares
    assert all(widths["request"][metric] < 0.65 * widths["session"][metric] for metric in widths["session"])


LATENCIES: dict[str, Callable[[np.random.Generator], Sequence[Sequence[float]]]] = {
    "40 sessions of 10": lambda g: [g.normal(g.normal(0, 0.3), 0.3, 10).tolist() for _ in range(40)],
    "20 of 25": lambda g: [g.normal(g.normal(0, 0.3), 0.3, 25).tolist() for _ in range(20)],
}


@pytest.mark.parametrize(("percent", "least", "z"), [(50, 0.93, 0.0), (95, 0.88, 1.6449)])
@pytest.mark.parametrize("name", LATENCIES)
def test_percentiles_of_requests_that_are_alike_are_covered(name: str, percent: int, least: float, z: float) -> None:
    """At the 95th a bootstrap of sessions covers 85 to 90 %, and intervals over requests 60."""
    generator, found = np.random.default_rng(5), []
    truth = z * np.hypot(0.3, 0.3)
    for _ in range(600):
        bounds = percentile_interval(LATENCIES[name](generator), percent)
        found.append(bounds[0] <= truth <= bounds[1] if isinstance(bounds, tuple) else None)
    there = [covers for covers in found if covers is not None]
    assert len(there) > 0.9 * len(found)
    assert least <= np.mean(there) <= 0.985


def test_a_percentile_has_no_interval_where_its_end_would_be_an_extreme() -> None:
    assert not isinstance(percentile_interval([[float(place)] for place in range(20)], 95), tuple)
    low, high = percentile_interval([[float(place)] for place in range(400)], 95)
    assert low < 379.05 < high < 399
    assert not isinstance(percentile_interval([[1.0, 2.0, 3.0]] * 4, 50), tuple), "four sessions"


def test_warm_is_held_against_warm_and_against_the_run_s_first(build: Any) -> None:
    """Without noise: cold 1.02 s, warm .21 s after the first request, a look-up saves .04 s of either."""
    run = play(build(points=(*POINTS, LOSSY)), 8, 4, alike=0.0)
    rows = {row.operating_point: row for row in run.summary().rows}
    cold, warm, lookup = 4 * 1.02, 1.02 + 3 * 0.21, 0.98 + 3 * 0.17  # seconds of a session
    assert {name: pytest.approx(row.value("speedup"), rel=0.05) for name, row in rows.items()} == {
        COLD: 1.0, WARM: 1.0, COLD_LOOKUP: 1.02 / 0.98, WARM_LOOKUP: warm / lookup, LOSSY: 1.0,
    }  # fmt: skip
    assert {name: pytest.approx(row.value("speedup_over_first"), rel=0.05) for name, row in rows.items()} == {
        COLD: 1.0, WARM: cold / warm, COLD_LOOKUP: 1.02 / 0.98, WARM_LOOKUP: cold / lookup, LOSSY: cold / warm,
    }  # fmt: skip
    assert rows[WARM].verdict.startswith("whole requests 1")
    assert rows[WARM_LOOKUP].verdict.startswith("full depth's tokens; decodes ")
    assert "(against full@keep=exact)" in rows[WARM_LOOKUP].verdict
    assert choose_gain(list(rows.values())).name == "speedup_over_first"
    assert [name for name, row in rows.items() if row.pareto] == [WARM_LOOKUP]
    alone = play(build(points=(WARM, WARM_LOOKUP)), 8).summary().rows
    assert choose_gain(alone).name == "speedup", "a run that keeps one and the same has one full depth"
    assert not any("speedup_over_first" in row.metrics for row in alone)


def test_a_keep_without_its_full_depth_is_refused(build: Any) -> None:
    with pytest.raises(StoreError, match="no full depth in float32 with keep exact"):
        play(build(points=(COLD, WARM_LOOKUP)), 2).summary()


def test_tables_say_what_is_kept_and_notes_what_it_means(build: Any) -> None:
    text = report_markdown(play(build(points=POINTS), 8).summary())
    head = next(line for line in text.splitlines() if line.startswith("|  | operating point | speed-up"))
    assert head.endswith("| KV | keep |")
    assert "speed-up over first" in head
    assert f"**{SESSIONS}**" in text
    assert "none, nothing (cold); exact, the prompt's and those of the completion that full depth computed" in text
    assert "prompt's;" not in text, "only what the run has"
    assert "differ in what they keep" in text
    alone = report_markdown(play(build(points=(WARM,)), 8).summary())
    assert "differ in what they keep" not in alone
    assert "@keep" not in alone.partition("## How to read this")[2].partition("## Notes")[0]


def conditions(build: Any, *points: str) -> list[Conditions]:
    manifest = build(points=points).manifest
    return [Conditions.of(manifest, manifest.tasks[0], point) for point in manifest.operating_points]


def test_sessions_rank_and_compare_with_none_but_their_like(build: Any) -> None:
    (plain,), (cold, warm), (shallow_full, shallow) = (
        conditions(build, *points) for points in (("full",), (COLD, WARM), ("full", "full@prompt=layer=18:tail=64"))
    )
    groups = [one.group("run") for one in (plain, cold, warm)]
    assert [group["Requests come"] for group in groups] == [
        "one after the other", "in editor sessions, keep none", "in editor sessions, keep exact"
    ]  # fmt: skip
    assert groups[2]["Compared with"].endswith("keep exact; scores against full depth keep none")
    assert len({group_id(group) for group in groups}) == 3
    other = replace(warm, run="another")
    assert cold.why_not_comparable(other, "costs") == "another --keep in editor sessions: none in A, exact in B"
    assert replace(plain, run="third").why_not_comparable(other, "costs").startswith("another --keep")
    assert warm.why_not_comparable(other, "costs") == ""
    assert cold.why_not_comparable(other, "scores") == ""
    assert not cold.same_but_for_kv(warm)
    assert len({one.label for one in (plain, cold, warm)}) == 3
    assert shallow.label == plain.label, "the operating point's own name says how deep its prompts are read"
    assert shallow.group("run") == shallow_full.group("run"), "how deep a prompt is read ranks, as a KV policy does"
    assert shallow.why_not_comparable(replace(shallow_full, run="another"), "costs") == ""
    assert not shallow.same_but_for_kv(shallow_full)


def test_a_shallow_prompt_is_no_full_depth(build: Any) -> None:
    run = build(points=("full@prompt=layer=5", "full"))
    with pytest.raises(StoreError, match="no full depth"):
        build(points=("full@prompt=layer=5",)).summary()
    run = build(points=("full", "full@prompt=layer=5"))
    for block in range(8):
        for point, seconds in zip(run.points, (1.0, 0.5), strict=True):
            skipped = 0 if point == "full" else 6
            prompt = {"ttft_s": seconds, "latency_s": seconds + 0.1, "prompt_layers_skipped": skipped}
            prompt["prompt_layers"] = 40 - skipped
            run.window(point, prompt, block=block, duration=seconds + 0.1)
    full, shallow = run.summary().rows
    assert (is_baseline(full), is_baseline(shallow)) == (True, False)
    assert (is_exact(full), is_exact(shallow)) == (True, False)
    assert shallow.value("speedup") == pytest.approx(1.1 / 0.6), "its prompt is other work than full depth's"
    text = report_markdown(run.summary())
    assert "prompt layers skipped" in text
    assert "| 15.0 % |" in text


def test_the_figure_splits_the_median_wait(build: Any) -> None:
    run = play(build(points=POINTS), 12, alike=0.0).recorded()
    (table,) = task_tables(run)
    found = {one.row.operating_point: one for one in waits(table)}
    assert list(found) == list(POINTS)
    for one in found.values():
        assert sum(one.parts.values()) == pytest.approx(one.median.value)
        assert one.median == one.row.estimate(SESSION_LATENCY_P50)
    share = {name: one.parts["prompt"] / one.median.value for name, one in found.items()}
    left = 0.9 * (PROMPT - KEPT) / PROMPT
    assert share[COLD] == pytest.approx(0.9 / 1.02)
    assert share[WARM] == pytest.approx(left / (left + 0.12))
    (figure,) = figures(run)
    said = check_on_paper(figure, "n = 12 sessions")
    assert PARTS["prompt"][0] in said
    assert PARTS["queue"][0] not in said, "nobody queued"
    assert figure.title == "What a user waits for: py150"
    lengths = [patch.get_width() for patch in drawn(figure).axes[0].patches]
    assert sum(lengths) == pytest.approx(1000 * sum(one.median.value for one in found.values()))


def test_the_queue_is_a_part_of_the_wait(build: Any) -> None:
    run = build(points=(COLD,))
    for block in range(6):
        run.window(COLD, request(f"{block}", 0.5, 0.6, arrival_s=0.0, queue_s=0.2), block=block)
    (wait,) = waits(next(task_tables(run.recorded())))
    assert wait.parts == pytest.approx({"queue": 0.2, "prompt": 0.3, "decoding": 0.1})
    assert wait.row.value(WITHIN_200_MS) == 0


def test_figures_of_settings_keep_cold_and_warm_apart(build: Any) -> None:
    names = ("full", "rl:threshold=0.5", "rl:threshold=0.9", "fixed:layer=5")
    run = play(build(points=tuple(f"{name}@keep={keep}" for keep in ("none", "exact") for name in names)), 6)
    for place, sample in enumerate(run.samples):
        if sample.operating_point.startswith("rl"):
            run.samples[place] = sample.model_copy(update={"exit_layers": (10, 5, 8)})
    manifest = run.manifest.model_copy(
        update={
            "operating_points": tuple(
                point.model_copy(update={"options": {key: float(value) for key, value in point.options.items()}})
                if point.strategy == "rl" else point.model_copy(update={"options": dict.fromkeys(point.options, 5)})
                for point in run.manifest.operating_points
            )
        }
    )  # fmt: skip
    made = replace(run.recorded(), manifest=manifest)
    made = replace(made, summary=summarise(manifest, run.windows, run.samples, lambda *_: {}))
    titles = [figure.title.partition(":")[2] for figure in settings.thresholds(made)]
    assert len(titles) == 2
    assert all(sum(f"@keep={keep}:" in title for title in titles) == 1 for keep in ("none", "exact"))
    (curves,) = fixed_exit.figures([made])
    labels = {text.get_text().replace("\n", " ") for text in drawn(curves).legends[0].get_texts()}
    assert {label.rpartition(", ")[2] for label in labels} == {"keep none", "keep exact"}


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"overtaken_s": -1.0}, "a clock that stood still or ran backwards"),
        ({"overtaken_s": float("nan")}, "a number that is not finite"),
        ({"prompt_reused": PROMPT + 1}, "more tokens reused than the prompt has"),
    ],
)
def test_a_request_that_cannot_be_true_is_left_out(build: Any, wrong: dict[str, Any], why: str) -> None:
    run = play(build(points=(WARM,)), 6)
    run.samples[3] = run.samples[3].model_copy(update=wrong)
    assert run.row(WARM).n == 29
    assert f"1 of 30 sample records left out for {why}." in run.summary().notes


def test_a_run_is_finished_when_its_sessions_are(build: Any) -> None:
    """Six sessions of four requests in as many blocks, though a block holds one request at least."""
    run = play(build(points=(COLD, WARM)), 6, 4)
    manifest = run.manifest
    manifest = manifest.model_copy(update={"tasks": (manifest.tasks[0].model_copy(update={"samples": 24}),)})
    whole = replace(run.recorded(), manifest=manifest)
    assert (whole.windows_expected, whole.state) == (12, "")
    part = replace(whole, windows=whole.windows[:7])
    assert part.state == "not finished: 7 of 12 windows"
    assert replace(whole, windows=whole.windows[:11]).state == "not finished: 11 of 12 windows"


def test_what_is_published_may_hold_overtaken_requests_and_kept_tokens(build: Any) -> None:
    """A window lasts as long as all it computed; what was kept may tip a near-tie, a prompt read whole may not."""
    run = play(build(points=(COLD, WARM)), 6)

    def found(name: str) -> str:
        return next(check for check in publication_checks(run.recorded()) if check.name == name).found

    assert "took" not in found("times")
    kept, read = (
        next(place for place, one in enumerate(run.samples) if one.operating_point == WARM and wanted(one))
        for wanted in (lambda one: one.prompt_reused, lambda one: not one.prompt_reused)
    )
    run.samples[kept] = run.samples[kept].model_copy(update={"token_ids": (5, 2, 3)})
    assert "first token" not in found("tokens").replace("one first token", "")
    run.samples[read] = run.samples[read].model_copy(update={"token_ids": (5, 2, 3)})
    assert "though both are full depth's of one prompt" in found("tokens")
    run.samples = [one.model_copy(update={"overtaken_s": 9.0}) for one in run.samples]
    assert "and its requests" in found("times")


def test_costs_of_sessions_are_not_attributed(build: Any) -> None:
    names = (WARM, "fixed:layer=5@keep=exact", "fixed:layer=5@keep=exact (never exits)")
    run = play(build(points=names, probes=names[2:]), 8)
    assert run.summary().attributions == ()
    for place, sample in enumerate(run.samples):
        run.samples[place] = sample.model_copy(update={"session": ""})
    assert run.summary().attributions != ()
