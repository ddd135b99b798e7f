"""Two whole runs: what pairs, what is refused, what is said, and what readers see of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest
from rich.console import Console

from harness.errors import ConfigError, StoreError
from harness.records.estimate import NoInterval
from harness.records.machine import MachineRecord
from reports.comparing.compare import compare_runs
from reports.comparing.conditions import judge, parse_condition
from reports.comparing.document import comparison_document, comparison_markdown, tables
from reports.comparing.results import RunChange
from reports.recorded import RecordedRun
from reports.statistics.significance import LEVEL, holm
from reports.tables.table import Table
from reports.tables.writers import escape_markdown, to_terminal

Make = Callable[..., RecordedRun]
TIMES = [1.0, 1.1, 0.9, 1.2, 1.0, 1.3, 0.8, 1.0, 1.1, 0.95, 1.05, 1.15]
FIXED = "fixed:layer=5"


def compared(a: RecordedRun, b: RecordedRun, *points: str, pair: tuple[str, str] | None = None) -> RunChange:
    return compare_runs(a, b, points, pair)


def seconds(full: float = 1.0, fixed: float = 0.5) -> dict[str, list[float]]:
    return {"full": [full * s for s in TIMES], FIXED: [fixed * s for s in TIMES]}


def test_a_slower_machine_cancels_in_the_speed_up(recorded: Make) -> None:
    found = compared(recorded("a", seconds=seconds()), recorded("b", seconds=seconds(1.3, 0.65)))
    full, fixed = found.points
    for point in (full, fixed):
        for name in ("latency_p50_s", "tpot_p50_s", "ttft_p50_s"):
            assert point.of(name).relative == pytest.approx(0.3)
        assert point.of("latency_p50_s").distinguishable
        assert point.of("tokens_per_s").relative == pytest.approx(1 / 1.3 - 1)
    assert fixed.of("speedup").a == pytest.approx(2.0)
    assert fixed.of("speedup").relative == pytest.approx(0.0, abs=1e-12)
    assert fixed.of("decode_speedup").relative == pytest.approx(0.0, abs=1e-12)
    assert not full.of("speedup").applies
    assert fixed.verdict == (
        "requests 30.0 % [30.0, 30.0] slower; decodes 30.0 % [30.0, 30.0] slower; every token the same"
    )
    assert any("full depth itself is 30.0 % slower in B" in note for note in found.notes)
    assert any("not interleaved" in note for note in found.notes)
    assert "slower at 2 of 2" in found.verdict
    assert "Against full depth of its own run: no distinguishable change at 1 of 1" in found.verdict
    slower = compared(recorded("c", seconds=seconds()), recorded("d", seconds=seconds(1.0, 0.6))).points[1]
    assert slower.of("speedup").relative == pytest.approx(1 / 0.6 / 2 - 1)
    assert slower.of("speedup").distinguishable


def test_layers_tokens_and_scores(recorded: Make) -> None:
    other = [(1, 2, 3, 4)] * 59 + [(1, 9, 9, 4)]
    times = {point: 5 * of for point, of in seconds().items()}
    a = recorded("a", seconds=times, scores={FIXED: [0.5] * 60})
    b = recorded("b", seconds=times, scores={FIXED: [0.6] * 60}, layers={FIXED: 8}, tokens={FIXED: other})
    fixed = compared(a, b).points[1]
    assert fixed.of("layers_skipped").absolute == pytest.approx(0.2 - 0.5)
    assert fixed.of("exit_layer_mean").absolute == pytest.approx(3)
    assert fixed.of("agreement").value == pytest.approx(238 / 240)
    assert fixed.of("edit_similarity").absolute == pytest.approx(0.1)
    assert fixed.of("exact_match").reason == "not measured in both"
    assert "edit similarity 0.100 [0.100, 0.100] higher" in fixed.verdict
    assert "skips 30.0 percentage points [30.0, 30.0] fewer layers" in fixed.verdict
    assert "1 of 60 completions have other tokens" in fixed.verdict


def test_other_prompts_are_not_compared(recorded: Make) -> None:
    a = recorded("a", seconds=seconds(), scores={FIXED: [0.5] * 12})
    b = recorded("b", seconds=seconds(2.0, 1.0), scores={FIXED: [0.5] * 12}, prompts=lambda index: (index, 8))
    found = compared(a, b)
    for name in ("edit_similarity", "agreement", "latency_p50_s", "layers_skipped"):
        assert (found.points[1].of(name).value, found.points[1].of(name).reason) == (None, "the prompts differ")
    assert found.points[1].verdict == "nothing could be compared"
    assert "py150: no prompts matched (A has 12, B 12)." in found.notes
    assert "Costs are not compared: the prompts differ." in found.notes


def test_blocks_of_other_sizes_are_joined(recorded: Make) -> None:
    """Blocks of 4 and of 8 share their short last one alone, in which B is faster; on all others B is slower."""
    before, after = [1.0] * 100, [1.3] * 96 + [0.5] * 4
    a = recorded("a", seconds={"full": before, FIXED: before}, block=4)
    b = recorded("b", seconds={"full": before, FIXED: after}, block=8)
    found = compared(a, b)
    fixed = found.points[1]
    for name in ("tokens_per_s", "speedup", "latency_p50_s", "layers_skipped"):
        one = fixed.of(name)
        assert (one.paired, one.units, one.prompts) == (True, 13, 100)
    for name in ("tokens_per_s", "speedup"):
        one = fixed.of(name)
        assert one.relative == pytest.approx(100 / (96 * 1.3 + 4 * 0.5) - 1)
        assert one.reason == "blocks joined until both runs have the same prompts in them"


def test_one_block_in_common_does_not_speak_for_the_run(recorded: Make) -> None:
    """Blocks of 4 and of 7 meet only after 28 prompts: four unions of 15 blocks are too coarse to pair."""
    times = [1.0] * 100
    found = compared(recorded("a", seconds={"full": times}, block=4), recorded("b", seconds={"full": times}, block=7))
    one = found.points[0].of("tokens_per_s")
    assert (one.value, one.reason) == (None, "the runs form their blocks of different prompts")
    tokens = found.points[0].of("layers_skipped")  # they know nothing of the window
    assert (tokens.paired, tokens.units) == (True, 100)


def test_prompts_that_a_cost_leaves_out_are_counted(recorded: Make) -> None:
    """B's second prompt differs: the block of two that holds it pairs with nothing, and its neighbour is lost."""
    times = {"full": [1.0] * 40}
    found = compared(
        recorded("a", seconds=times, block=2),
        recorded("b", seconds=times, block=2, prompts=lambda index: (index, 7, 8 if index == 1 else 7)),
    )
    (full,) = found.points
    assert len(full.matched.same) == 39
    for name in ("latency_p50_s", "tokens_per_s"):
        assert (full.of(name).prompts, full.of(name).paired) == (38, True)
        assert full.of(name).reason == "rests on 38 of 39 prompts"


def test_full_depth_against_another_point_has_no_speed_up_to_compare(recorded: Make) -> None:
    a = recorded("a", seconds=seconds())
    for pair, letter in ((("full", FIXED), "A"), ((FIXED, "full"), "B")):
        (point,) = compared(a, a, pair=pair).points
        for name in ("speedup", "decode_speedup"):
            assert point.of(name).reason == f"{letter} is full depth, whose own is 1 by definition"
            assert point.of(name).value is None


def test_other_references_forbid_scores_alone(recorded: Make) -> None:
    scored = {FIXED: [0.5] * 8}
    found = compared(recorded("a", scores=scored), recorded("b", scores=scored, reference="y"))
    fixed = found.points[1]
    assert fixed.of("edit_similarity").reason == "the references differ"
    assert fixed.of("agreement").value == 1.0
    assert any("references are not" in note for note in found.notes)


OTHERS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"environment": {"cpu": "Other CPU"}}, "another hardware class: processor is Test in A, Other in B"),
    ({"environment": {"torch_threads": 4}}, "another hardware class: threads is unknown threads in A, 4 threads in B"),
    ({"environment": {"gpus": ["H100"]}}, "another hardware class: GPU is none in A, H100 in B"),
    (
        {"manifest": {"machine": MachineRecord(device="cpu", dtype="float32", usable_cores=8, quota_cores=1.5)}},
        "another hardware class: cores is unknown cores in A, 1.5 cores in B",
    ),
    ({"model": {"dtype": "bfloat16"}}, "another number format: float32 in A, bfloat16 in B"),
    (
        {"model": {"weights_format": "int8"}},
        "another number format: float32 in A, int8 weights, float32 activations in B",
    ),
    (
        {"manifest": {"config": {"kv": "propagate", "batch_size": 1, "arrival_rate": 2.0}}},
        "another arrival rate: – in A, 2.0 in B",
    ),
    (
        {"manifest": {"placement": {"layers": "layers 1–5 on cpu, 6–10 on disk"}}},
        "another hardware class: placement is all layers on one device in A, layers 1–5 on cpu, 6–10 on disk in B",
    ),
)


def test_costs_of_two_machines_have_no_ratio(recorded: Make) -> None:
    scored = {FIXED: [0.5] * 8}
    for change, reason in OTHERS:
        found = compared(recorded("a", scores=scored), recorded("b", scores=scored, **change))
        fixed = found.points[1]
        assert {(one.value, one.reason) for one in fixed.changes if one.metric.is_cost} == {(None, reason)}
        assert fixed.of("edit_similarity").absolute == 0.0
        assert f"Costs are not compared: {reason}." in found.notes


def test_another_use_of_cuda_graphs_has_no_ratio_on_cuda_alone(recorded: Make) -> None:
    facts: dict[str, Any] = {"kv": "propagate", "batch_size": 1}
    another = "another hardware class: use of CUDA graphs is segments in A, off in B"
    for device, reason in (("cuda", another), ("cpu", "")):
        runs = [
            recorded(name, manifest={"config": {**facts, "device": device, **graphs}}, environment={"gpus": ["H100"]})
            for name, graphs in (("a", {}), ("b", {"graphs": "off"}))
        ]
        assert compared(*runs).points[1].of("latency_p50_s").reason.startswith(reason or "an interval needs")


def test_each_column_of_a_task_is_corrected_for_all_of_its_operating_points(build: type[Any]) -> None:
    """Every p-value that decides is Holm's over the points of its task: no fewer, and not those of another task."""
    rules, tasks = [f"fixed:layer={layer}" for layer in range(2, 8)], ("py150", "javacorpus")
    generator = Random(3)
    both = []
    for gain in (1.0, 0.985):
        run = build(points=("full", *rules), tasks=tasks)
        for block, task, point in product(range(10), tasks, run.points):
            took = generator.gauss(1, 0.02) * (gain if point in rules[:4] else 1)
            run.window(point, {"latency_s": took, "ttft_s": 0.1, "token_times_s": (0.1, 0.5, took)}, block=block,
                       duration=took, task=task)  # fmt: skip
        both.append(run.recorded(f"runs/{gain}"))
    found = compared(*both)
    tested = overturned = 0
    for task in tasks:
        columns = zip(*(point.changes for point in found.points if point.task == task), strict=True)
        for column in columns:
            assert [one.p_holm for one in column] == holm([one.p for one in column])
            assert {one.family for one in column} == {max(1, sum(one.p is not None for one in column))}
            tested += sum(one.p is not None for one in column)
            overturned += sum(
                one.p <= LEVEL < one.p_holm and not one.distinguishable for one in column if one.p is not None
            )
    assert tested
    assert overturned, "some change alone would have passed, and must not"


def test_costs_that_are_no_evidence_are_shown_without_interval_or_star(recorded: Make) -> None:
    before, after = (
        recorded(name, seconds=seconds(of), energy=("estimate", of)) for name, of in (("a", 1.0), ("b", 2.0))
    )
    energy = compared(before, after).points[0].of("energy_j_per_token")
    assert energy.relative == pytest.approx(3.0)
    assert (energy.interval, energy.p, energy.distinguishable) == (None, None, False), "it would repeat the time"
    assert compared(before, after).points[0].of("latency_p50_s").distinguishable
    after = replace(after, windows=tuple(one.model_copy(update={"flags": ("foreign-cpu",)}) for one in after.windows))
    found = compared(before, after)
    for point in found.points:
        costs = [one for one in point.changes if one.metric.is_cost and one.value is not None]
        assert costs
        assert {(one.interval, one.p, one.distinguishable) for one in costs} == {(None, None, False)}
    assert "slower" not in found.verdict
    assert NoInterval.FLAGGED in found.verdict
    assert "[flagged]" in comparison_markdown(found, []).replace("\\", "")


def test_energy_needs_one_source(recorded: Make) -> None:
    rapl, nvml = recorded("a", energy=("rapl", 5.0)), recorded("b", energy=("nvml", 5.0))
    assert compared(rapl, nvml).points[1].of("energy_j_per_token").reason == (
        "energy comes from rapl in A and from nvml in B"
    )
    same = compared(rapl, recorded("b", energy=("rapl", 6.0))).points[1].of("energy_j_per_token")
    assert (same.a, same.b, same.source) == (pytest.approx(5 * 0.5 / 4), pytest.approx(6 * 0.5 / 4), "rapl")
    assert same.relative == pytest.approx(0.2)


def test_an_estimate_is_named_and_decides_nothing(recorded: Make) -> None:
    found = compared(recorded("a", energy=("estimate", 5.0)), recorded("b", energy=("estimate", 9.0)))
    assert found.points[1].of("energy_j_per_token").relative == pytest.approx(0.8)
    assert "energy" not in found.points[1].verdict
    assert any("no measurement" in note for note in found.notes)


def test_random_weights_have_no_scores(recorded: Make) -> None:
    scored = {FIXED: [0.5] * 8}
    found = compared(recorded("a", scores=scored), recorded("b", scores=scored, model={"weights": "random"}))
    assert found.points[1].of("edit_similarity").reason == "random weights in B: scores mean nothing"
    assert found.points[1].of("agreement").value == 1.0


def test_an_unfinished_run_is_compared_as_far_as_it_got(recorded: Make) -> None:
    b = recorded("b", seconds={"full": TIMES, FIXED: TIMES[:6]}, samples=12)
    found = compared(recorded("a", seconds=seconds()), b)
    assert "B is not finished: 18 of 24 windows; what both finished is compared." in found.notes
    assert found.points[1].of("layers_skipped").units == 6
    assert [point.name for point in compared(recorded("a"), b, FIXED).points] == [FIXED]
    with pytest.raises(ConfigError, match=f"Did you mean '{FIXED}'"):
        compared(recorded("a"), b, "fixed:layer=6")
    before, after = ({"packages": {"torch": version, "zeus": "1"}} for version in ("2.6", "2.7"))
    (other,) = compared(recorded("a", environment=before), recorded("b", environment=after)).differences
    assert other == ("package torch", "2.6", "2.7"), "versions may differ, and are named"


def test_a_run_of_errors_is_refused(recorded: Make) -> None:
    broken = recorded("b", errors=frozenset({"full", FIXED}))
    with pytest.raises(StoreError, match=r"nothing to compare: py150, full: every sample failed in B, .* it broke"):
        compared(recorded("a"), broken)
    half = compared(recorded("a"), recorded("b", errors=frozenset({FIXED})))
    assert half.skipped == (("py150", FIXED, "every sample failed in B, the first with: it broke"),)
    assert [point.name for point in half.points] == ["full"]


def test_nothing_in_common_lists_both(recorded: Make) -> None:
    a, b = recorded("a", seconds={"full": TIMES}), recorded("b", seconds={"full@none": TIMES})
    with pytest.raises(StoreError, match=r"A \(a\) has full; B \(b\) has full@none"):
        compared(a, b)
    with pytest.raises(StoreError, match=r"no task in common: A \(a\) has py150; B \(c\) has javacorpus"):
        compared(a, recorded("c", seconds={"full": TIMES}, task="javacorpus"))


def test_one_run_is_compared_with_itself_only_by_name(recorded: Make) -> None:
    a = recorded("a", seconds=seconds())
    with pytest.raises(ConfigError, match="are the same directory, a"):
        compared(a, a)
    with pytest.raises(ConfigError, match=r"24 of the 24 windows of B \(a/copy\) are A's own \(a\): one is a copy"):
        compared(a, replace(a, directory=a.directory / "copy"))
    with pytest.raises(ConfigError, match="both 'full' of one run"):
        compared(a, a, pair=("full", "full"))
    (point,) = compared(a, a, pair=("full", FIXED)).points
    assert point.name == f"full → {FIXED}"
    assert point.of("latency_p50_s").relative == pytest.approx(-0.5)
    assert any("interleaved: drift" in note for note in compared(a, a, pair=("full", FIXED)).notes)


EVIL = "evil|`<b>all</b>#1 [x](y)"


@pytest.fixture
def found(recorded: Make) -> RunChange:
    scored = {EVIL: [0.5] * 12}
    a = recorded("a", seconds={"full": TIMES, EVIL: TIMES}, scores=scored)
    slower = [1.25 * s for s in TIMES]
    b = recorded("b", seconds={"full": TIMES, EVIL: slower}, scores=scored, model={"name": "<script>alert(1)</script>"})
    return compare_runs(a, b)


def printed(found: RunChange, width: int, *, details: bool = True) -> str:
    console = Console(file=io.StringIO(), width=width, emoji=False)
    console.print(to_terminal(tables(found, details=details)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_terminal_and_markdown_show_the_same_changes(found: RunChange) -> None:
    shown = [part for part in tables(found, details=True) if isinstance(part, Table) and part.wide]
    changes = {text for table in shown for column in table.columns for text in column.texts if "[" in text}
    assert len(changes) > 5
    terminal, markdown = printed(found, 100), comparison_markdown(found, [])
    for change in changes:
        assert change in terminal
        assert change in markdown or escape_markdown(change) in markdown  # numbers need no escapes
    for point in found.points:
        assert point.verdict in " ".join(terminal.split())
        assert escape_markdown(point.verdict) in markdown


def test_json_says_why_something_is_missing(found: RunChange) -> None:
    document = comparison_document(found, judge(parse_condition("exact_match<0"), found.points))
    again = json.loads(json.dumps(document))
    full, evil = again["points"]
    assert evil["metrics"]["latency_p50_s"]["relative"] == pytest.approx(0.25)
    assert evil["metrics"]["latency_p50_s"]["distinguishable"] is True
    assert evil["metrics"]["exact_match"]["absolute"] is None
    assert evil["metrics"]["exact_match"]["reason"] == "not measured in both"
    assert full["metrics"]["speedup"]["reason"] == "full depth is what it is compared with"
    assert {one["outcome"] for one in again["conditions"]} == {"unknown"}
    assert again["schema_version"] == 2
    assert (full["kv_a"], full["kv_b"]) == ("propagate", "propagate")
