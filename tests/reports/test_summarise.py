"""What counts: warm-up, errors, uncommitted and repeated records, several tasks, unfinished runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from harness.contracts import KVPolicy
from harness.errors import StoreError
from harness.records import SummaryRow
from reports.quality import SCORES
from reports.summarise import summarise

FULL, OTHER = "full", "fixed:layer=5"
IDENTITY = {
    "operating_point", "strategy", "options", "task", "language", "protocol", "source", "model", "weights", "exit_head",
    "kv", "batch_size", "dtype", "n", "errors", "repeats", "energy_source", "pareto", "rehearsed",
}  # fmt: skip


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
    assert rows[1].kv is KVPolicy.PROPAGATE


def test_tasks_do_not_mix(build) -> None:
    run = build(tasks=("py150", "javacorpus"))
    for task, duration in (("py150", 4.0), ("javacorpus", 1.0)):
        run.window(FULL, {"sample_id": "same"}, task=task, duration=duration)
        run.window(OTHER, {"sample_id": "same"}, task=task, duration=1.0)
    assert run.row(OTHER, "py150").speedup == 4.0
    assert run.row(OTHER, "javacorpus").speedup == 1.0


def test_warm_up_is_left_out_of_everything(build) -> None:
    run = build()
    run.window(FULL, {"latency_s": 99.0, "scores": {"bleu": 0.0}}, warmup=True, duration=99.0, energy_source="nvml")
    run.window(FULL, {"latency_s": 1.0, "scores": {"bleu": 1.0}}, energy_j=1.0, energy_source="rapl")
    row = run.row(FULL)
    assert (row.n, row.latency_p99_s, row.bleu, row.tokens_per_s) == (1, 1.0, 1.0, 3.0)
    assert (row.energy_j, row.energy_source) == (1.0, "rapl")


def test_warm_up_errors_are_not_errors(build) -> None:
    run = build()
    run.window(FULL, {"error": "cold"}, warmup=True)
    assert run.row(FULL).errors == 0


def test_failed_samples_are_counted_once_and_neither_scored_nor_timed(build) -> None:
    run = build()
    for repeat in range(2):
        run.window(FULL, {"scores": {"bleu": 0.5}}, {"error": "bad row"}, repeat=repeat)
    row = run.row(FULL)
    assert (row.n, row.errors, row.repeats, row.bleu) == (1, 1, 2, 0.5)
    assert row.latency_p99_s == pytest.approx(0.3)


def test_samples_of_a_window_that_was_never_committed_do_not_count(build) -> None:
    run = build()
    run.window(FULL, {})
    run.window(FULL, {}, block=1)
    run.windows.pop()
    assert run.row(FULL).n == 1


def test_a_sample_that_was_written_twice_counts_as_its_last_record(build) -> None:
    run = build()
    run.window(FULL, {"error": "killed"}, {"scores": {"bleu": 0.1}})
    again = [
        run.samples[0].model_copy(update={"error": None, "scores": {"bleu": 0.3}, "token_ids": (1,)}),
        run.samples[1].model_copy(update={"scores": {"bleu": 0.5}}),
    ]
    run.samples.extend(again)
    row = run.row(FULL)
    assert (row.n, row.errors) == (2, 0)
    assert row.bleu == pytest.approx(0.4)


@pytest.mark.parametrize("kv", list(KVPolicy))
def test_a_row_without_measurements_has_no_numbers(build, kv) -> None:
    run = build(kv=kv.value)
    run.window(FULL, {})
    row = run.row(OTHER)
    numbers = {name: value for name, value in row.model_dump().items() if name not in IDENTITY}
    assert set(numbers.values()) == {None}
    assert (row.n, row.errors, row.repeats, row.pareto) == (0, 0, 0, False)


def test_nothing_paired_without_full_depth(build) -> None:
    run = build()
    run.window(OTHER, {})
    row = run.row(OTHER)
    assert (row.agreement, row.speedup, row.decode_speedup, row.roofline_speedup) == (None,) * 4
    assert row.latency_p50_s is not None


def test_every_computed_field_is_one_the_record_has(build) -> None:
    """The record ignores names it does not know, so a typing error would lose a column silently."""
    run = build(points=(FULL, "fixed:layer=5", "oracle"), bandwidth=1e4)
    depths = {FULL: (10, 10, 10), "fixed:layer=5": (10, 5, 5), "oracle": (10, 5, 10)}
    for block in range(6):
        for point, layers in depths.items():
            sample = {"exit_layers": layers, "scores": {"edit_similarity": 0.5}}
            run.window(point, sample, block=block, energy_j=1.0, energy_source="rapl")
    row = run.row("oracle", score_corpus=lambda *_: dict.fromkeys(SCORES, 0.5))
    assert [name for name, value in row if value is None] == []
    assert set(SCORES) < set(SummaryRow.model_fields)


def test_the_machine_is_what_the_caller_says(build) -> None:
    run = build()
    assert summarise(run.manifest, [], [], lambda *_: {}, machine="a machine, 2 cores").machine == "a machine, 2 cores"
    assert run.summary().machine == "Test CPU"


def test_a_manifest_without_regime_is_refused(build) -> None:
    manifest = build().manifest.model_copy(update={"config": {"kv": "sideways", "batch_size": 1}})
    with pytest.raises(StoreError, match="sideways"):
        summarise(manifest, [], [], lambda *_: {})


def test_reports_load_neither_torch_nor_pandas_nor_higher_floors() -> None:
    code = (
        "import sys, reports.summarise, reports.terminal, reports.export;"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('torch', 'transformers', 'pandas', 'strategies', 'tasks') or name == 'harness.runner'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
