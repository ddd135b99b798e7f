"""What counts and is scored: warm-up, errors, uncommitted and repeated records, several tasks, unfinished runs."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import pytest

from harness.errors import StoreError
from harness.records.estimate import NoInterval
from harness.registry import SCORES
from reports.metrics.vocabulary import DRAFTS, SESSIONS, all_metrics, in_section
from reports.summary.measured import select

FULL, OTHER = "full", "fixed:layer=5"


def test_one_row_per_task_and_operating_point_full_depth_first(build) -> None:
    run = build(tasks=("py150", "javacorpus"))
    run.window(OTHER, {}, task="javacorpus")
    rows = run.summary().rows
    assert [(row.task, row.operating_point) for row in rows] == [
        ("py150", FULL),
        ("py150", OTHER),
        ("javacorpus", FULL),
        ("javacorpus", OTHER),
    ]
    assert [row.n for row in rows] == [0, 0, 0, 1]
    assert rows[1].options == {"layer": "5"}
    assert rows[1].kv == "propagate"


def test_warm_up_is_left_out_of_everything(build) -> None:
    run = build()
    run.window(FULL, {"latency_s": 99.0, "scores": {"bleu": 0.0}}, warmup=True, duration=99.0, energy_source="nvml")
    run.window(FULL, {"latency_s": 1.0, "scores": {"bleu": 1.0}}, energy_j=1.0, energy_source="rapl")
    row = run.row(FULL)
    assert (row.n, row.value("latency_p99_s"), row.value("bleu"), row.value("tokens_per_s")) == (1, 1.0, 1.0, 3.0)
    assert (row.value("energy_j"), row.energy_source) == (1.0, "rapl")


def test_failed_samples_are_counted_once_and_neither_scored_nor_timed(build) -> None:
    run = build()
    for repeat in range(2):
        run.window(FULL, {"scores": {"bleu": 0.5}}, {"error": "bad row"}, repeat=repeat)
    row = run.row(FULL)
    assert (row.n, row.errors, row.repeats, row.value("bleu")) == (1, 1, 2, 0.5)
    assert row.value("latency_p99_s") == pytest.approx(0.3)


ONE_TOKEN = {"token_ids": (1,), "exit_layers": (10,), "token_times_s": (0.1,)}


def test_a_sample_that_was_written_twice_counts_as_its_last_record(build) -> None:
    run = build()
    run.window(FULL, {"error": "killed"}, {"scores": {"bleu": 0.1}})
    again = [
        run.samples[0].model_copy(update={"error": None, "scores": {"bleu": 0.3}} | ONE_TOKEN),
        run.samples[1].model_copy(update={"scores": {"bleu": 0.5}}),
    ]
    run.samples.extend(again)
    row = run.row(FULL)
    assert (row.n, row.errors) == (2, 0)
    assert row.value("bleu") == pytest.approx(0.4)


def test_a_complete_run_has_every_metric(build) -> None:
    run = build(points=(FULL, "fixed:layer=5", "oracle"), policies={"oracle": "recompute"}, bandwidth=1e4)
    depths = {FULL: (10, 10, 10), "fixed:layer=5": (10, 5, 5), "oracle": (10, 5, 10)}
    for block, repeat, point in itertools.product(range(8), range(2), depths):
        scores = {"edit_similarity": 0.5, "exact_match": 0.0, "codebleu": 0.5, "accepted_prefix": 2.0}
        sample = {"exit_layers": depths[point], "scores": scores, "arrival_s": 0.0, "queue_s": 0.0}
        sample |= {"token_ids": (1, 2, 3 if point == FULL else 9), "full_depth_ids": (1, 2, 3)}
        sample |= {"text": "abc" if point == FULL else "abx"}
        run.window(point, sample, block=block, repeat=repeat, energy_j=1.0, energy_source="rapl")
    run.idle(energy_j=0.1, duration=1.0, energy_source="rapl")
    metrics = {metric.name: metric for metric in all_metrics()}
    ordinary = [name for name in SCORES.names() if name in metrics]  # those of one benchmark are shown where recorded
    row = run.row("oracle", score_corpus=lambda *_: dict.fromkeys(ordinary, 0.5))
    without = {f"{name}_difference" for name in SCORES.names() if name not in scores}
    without |= {"cheap_heads_per_token"}  # every check reads the LM head
    without |= {"tokens_saved", "stopped"}  # nothing may end it early
    without |= {"prompt_layers_skipped", "prompt_speedup"}  # prompts are read by all layers
    without |= {"speedup_over_lossless", "decode_speedup_over_lossless"}  # no lossless row
    without |= {metric.name for metric in in_section(metrics.values(), DRAFTS, SESSIONS)}  # lossy, and of no session
    assert row.metrics.keys() == metrics.keys() - without
    for name, estimate in row.metrics.items():
        held = {name for name, value in asdict(estimate).items() if value is not None}
        missing = {"no_interval"} if estimate.interval else {"low", "high", "p", "p_holm"}
        assert held == {"value", *metrics[name].parts} - missing, name
        whole = estimate.interval or not metrics[name].parts
        assert estimate.no_interval in ({None} if whole else {NoInterval.FEW_SAMPLES, NoInterval.FEW_DIFFERING})


def test_probes_that_never_exit_get_no_row_and_change_nothing(build) -> None:
    def filled(points, probes=()):
        run = build(points=points, probes=probes)
        for block in range(8):
            for index, point in enumerate(points):
                scores = {"edit_similarity": 0.5 + 0.1 * index}
                run.window(point, {"scores": scores}, block=block, duration=1.0 / (1 + index))
        return run

    plain = filled((FULL, OTHER)).summary()
    probed = filled((FULL, OTHER, "probe"), ("probe",))
    assert probed.summary().model_copy(update={"attributions": ()}) == plain
    assert ("py150", "probe") in select(probed.manifest, probed.windows, probed.samples)


def test_each_operating_point_may_have_its_own_kv_policy(build) -> None:
    run = build(points=(FULL, OTHER, "uncached"), policies={"uncached": "none"})
    for block in range(6):
        for point in run.points:
            run.window(point, {"exit_layers": (10, 4, 4)}, block=block, duration=3.0 if point == "uncached" else 1.0)
    rows = {row.operating_point: row for row in run.summary().rows}
    assert [row.kv for row in rows.values()] == ["propagate", "propagate", "none"]
    assert rows[OTHER].value("exit_layer_mean") == 4.0  # the token of prefill does not count
    assert rows["uncached"].value("exit_layer_mean") == 6.0
    assert rows["uncached"].value("speedup") == pytest.approx(1 / 3)  # one baseline for all
    assert rows["uncached"].value("byte_model_speedup") is None
    assert "operating points differ in their KV policy" in " ".join(run.summary().notes)


def test_the_oracle_under_exact_keys_and_values_measures_every_policy(build) -> None:
    policies = {"oracle": "recompute", "oracle@none": "none", "uncached": "none"}
    run = build(points=(FULL, OTHER, "oracle", "oracle@none", "fixed", "uncached"), policies=policies)
    drifting = build(points=(FULL, OTHER, "oracle"), kv="propagate")
    for point in drifting.points:
        drifting.window(point, {"exit_layers": (10, 10, 10) if point == FULL else (10, 5, 7)})
    assert all(row.value("oracle_share") is None for row in drifting.summary().rows)
    for point in run.points:
        layers = {FULL: (10, 10, 10), "fixed": (10, 5, 5), "uncached": (5, 5, 5), "oracle@none": (9, 5, 7)}
        run.window(point, {"exit_layers": layers.get(point, (10, 5, 7))})
    summary = run.summary()
    rows = {row.operating_point: row for row in summary.rows}
    assert rows[OTHER].kv == "propagate"
    assert rows[OTHER].value("oracle_share") == rows["oracle"].value("oracle_share") == 1.0
    assert rows["fixed"].value("oracle_share") == 1.0  # what it skips beyond the oracle counts for nothing
    assert rows["uncached"].value("oracle_share") == rows["oracle@none"].value("oracle_share") == 1.0
    notes = [note for note in summary.notes if note.startswith("oracle")]
    assert len(notes) == 2
    assert all("whatever --kv says" in note for note in notes)


def test_a_constant_depth_is_the_rival_of_another_policy_that_keeps_a_cache(build) -> None:
    policies = {OTHER: "recompute", "uncached": "none"}
    run = build(points=(FULL, OTHER, "fixed", "uncached"), policies=policies)
    for point in run.points:
        layers = {FULL: (10, 10, 10), "fixed": (10, 5, 5), "uncached": (5, 5, 5)}.get(point, (10, 5, 7))
        run.window(point, {"exit_layers": layers})
    rows = {row.operating_point: row for row in run.summary().rows}
    assert rows[OTHER].value("exact_prefix_over_fixed") is not None  # against a fixed exit of another policy
    assert rows["uncached"].value("exact_prefix_over_fixed") is None


@pytest.mark.parametrize("points", [(), ("probe",)])
def test_a_manifest_without_full_depth_is_refused(build, points) -> None:
    with pytest.raises(StoreError, match="does not begin with full depth"):
        build(points=points, probes=points).summary()


def test_agreement_is_tokens_over_tokens_and_missing_places_disagree(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2, 3, 4)}, {"token_ids": (5, 6)})
    run.window(OTHER, {"token_ids": (1, 2)}, {"token_ids": (5, 9, 6, 6)})  # 2 of 4, then 1 of 2
    assert run.row(OTHER).value("agreement") == pytest.approx(3 / 6)
    assert run.row(FULL).value("agreement") == 1.0


def test_agreement_needs_both_samples_and_ignores_later_repeats(build) -> None:
    run = build()
    run.window(FULL, {"token_ids": (1, 2)}, {"token_ids": (1, 1)})
    run.window(OTHER, {"token_ids": (1, 2)}, {"error": "broken"})
    for point in (FULL, OTHER):
        run.window(point, {"token_ids": (1, 8 if point == FULL else 9)}, repeat=1)
    assert run.row(OTHER).value("agreement") == 1.0


def test_scores_are_means_over_the_first_repeat(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"exact_match": 1.0}}, {"scores": {"exact_match": 0.0}})
    run.window(FULL, {"scores": {"exact_match": 0.0}}, {"scores": {"exact_match": 0.0}}, repeat=1)
    row = run.row(FULL)
    assert (row.value("exact_match"), row.n, row.repeats) == (0.5, 2, 2)
    run.window(FULL, {"scores": {"dataflow": None}}, {"scores": {"dataflow": 0.4}}, block=1)
    assert run.row(FULL).value("dataflow") == pytest.approx(0.4)  # undefined is not zero


def test_corpus_scores_win_also_when_they_say_not_defined(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"bleu": 0.9, "codebleu": 0.9, "chrf": 0.9}})
    row = run.row(FULL, score_corpus=lambda *_: {"bleu": 0.1, "codebleu": None, "n": 99})
    assert (row.value("bleu"), row.value("codebleu"), row.value("chrf")) == (0.1, None, 0.9)
    assert row.n == 1  # a scorer cannot overwrite what is not a score


def test_corpus_scorer_sees_each_finished_sample_of_the_first_repeat_once(build) -> None:
    run = build()
    run.window(FULL, {"text": "a", "reference": "A"}, {"error": "broken"}, {"text": "b", "reference": "B"})
    run.window(FULL, {"text": "later"}, repeat=1)
    calls = []
    run.summary(lambda *arguments: calls.append(arguments) or {})
    assert calls == [("python", ("a", "b"), ("A", "B"))]  # and not at all for the operating point without samples
