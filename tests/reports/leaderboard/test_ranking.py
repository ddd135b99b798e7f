"""Who ranks with whom, who may, and ranks that intervals tell apart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from harness.records.conditions import Conditions, Group, group_id, hardware_class
from harness.records.estimate import Estimate, NoInterval
from harness.records.machine import MachineRecord
from harness.records.summary import SummaryRow
from reports.leaderboard.data import entry_of
from reports.leaderboard.ranking import CRITERIA, MARGIN, quality_of, ranks
from reports.recorded import RecordedRun

SPEED, _, ENERGY, SIMILARITY = CRITERIA


def row(name: str = "fixed", **given: Any) -> SummaryRow:
    """A candidate that keeps quality and is twice as fast, unless told otherwise."""
    facts: dict[str, Any] = {
        "operating_point": name, "strategy": name, "options": {}, "task": "py150", "language": "python",
        "protocol": "green-code", "source": "made up", "model": "m", "weights": "tuned", "kv": "propagate",
        "batch_size": 1, "dtype": "float32", "n": 100, "errors": 0, "repeats": 1, "energy_source": "rapl",
        "energy_measured": True,
    }  # fmt: skip
    numbers = {
        "edit_similarity": 0.5,
        "speedup": 2.0,
        "speedup_ci": (1.9, 2.1),
        "edit_similarity_difference": 0.0,
        "edit_similarity_difference_ci": (-0.01, 0.01),
    }
    told = {name: value for name, value in given.items() if name in SummaryRow.model_fields}
    numbers |= {name: value for name, value in given.items() if name not in told}
    return SummaryRow.model_validate(facts | told | {"metrics": estimates(numbers)})


def estimates(numbers: dict[str, Any]) -> dict[str, Estimate]:
    """Estimates by metric; ``NAME_ci`` and ``NAME_p_holm`` belong to NAME."""
    found = {}
    for name, value in numbers.items():
        if value is not None and not name.endswith(("_ci", "_p_holm")):
            low, high = numbers.get(f"{name}_ci") or (None, None)
            found[name] = Estimate(value=value, low=low, high=high, p_holm=numbers.get(f"{name}_p_holm"))
    return found


FULL = row("full", speedup=1.0, speedup_ci=None, edit_similarity_difference=None)


def test_rows_that_intervals_do_not_tell_apart_share_a_rank() -> None:
    rows = [
        row(speedup=2.0, speedup_ci=(1.8, 2.2)),
        row(speedup=1.9, speedup_ci=(1.7, 2.0)),  # overlaps the best
        row(speedup=1.6, speedup_ci=(1.5, 1.75)),  # overlaps the second, not the best
        row(speedup=1.2, speedup_ci=(1.1, 1.3)),
        FULL,
    ]
    assert ranks(rows, SPEED) == [1, 1, 2, 4, 5]
    assert ranks([row(speedup=0.8, speedup_ci=(0.7, 0.9)), row(speedup_ci=None), FULL], SPEED) == [2, None, 1]
    assert ranks([row(**told(DIFFERENCE, -0.2, -0.3, -0.1, 0.01)), FULL], SIMILARITY) == [2, 1]


DIFFERENCE = "edit_similarity_difference"


def told(name: str, value: float, low: float, high: float, p: float | None = None) -> dict[str, Any]:
    return {name: value, f"{name}_ci": (low, high), f"{name}_p_holm": p}


@pytest.mark.parametrize(
    ("given", "quality"),
    [
        ({}, "kept"),
        (told(DIFFERENCE, -0.02, -MARGIN, 0.01), "kept"),
        (told(DIFFERENCE, -0.02, -MARGIN - 0.001, 0.01), "unclear"),
        (told(DIFFERENCE, 0.0, -0.4, 0.4), "unclear"),  # nothing is distinguishable in an interval this wide
        ({f"{DIFFERENCE}_ci": None}, "unclear"),
        (told(DIFFERENCE, -0.02, -0.03, -0.01, 0.01), "lost"),
        (told("exact_match_difference", -0.1, -0.2, -0.01, 0.04), "lost"),
        (told(DIFFERENCE, 0.2, 0.1, 0.3, 0.01), "kept"),
        ({"weights": "random"}, "undefined"),
    ],
)
def test_only_what_keeps_quality_ranks_by_cost(given: dict[str, Any], quality: str) -> None:
    one = row(**given)
    assert quality_of(one) == quality
    assert (ranks([one], SPEED) == [1]) == (quality == "kept")


@pytest.mark.parametrize(
    ("samples", "differing", "quality"), [(71, 0, "unclear"), (72, 0, "kept"), (100, 1, "unclear"), (200, 3, "kept")]
)
def test_a_lossless_row_keeps_quality_where_few_prompts_can_differ(samples: int, differing: int, quality: str) -> None:
    """No interval, since too few samples differ: then 1 − 0.025^(1/72) = 5.0 % of all prompts may, at most."""
    one = row()
    few = Estimate(value=0.0, no_interval=NoInterval.FEW_DIFFERING, samples=samples, differing=differing)
    one = one.model_copy(update={"metrics": {**one.metrics, "edit_similarity_difference": few}})
    assert quality_of(one) == quality


def test_the_oracle_and_random_weights_never_rank() -> None:
    for criterion in CRITERIA:
        assert ranks([row(rehearsed=True), row(weights="random")], criterion) == [None, None]


def test_energy_ranks_only_where_it_was_measured() -> None:
    saved = {"energy_ratio": 2.0, "energy_ratio_ci": (1.9, 2.1)}
    assert ranks([row(**saved)], ENERGY) == [1]
    assert ranks([row(energy_measured=False, **saved)], ENERGY) == [None]


def test_full_depth_of_a_second_format_ranks_by_what_it_loses() -> None:
    """Its speed-up is 1 by definition; its scores are not full depth's by definition, as those of the first format."""
    facts = {"strategy": "full", "speedup": 1.0, "speedup_ci": None, "weights_format": "int4"}
    worse = {"edit_similarity_difference": -0.2, "edit_similarity_difference_ci": (-0.25, -0.15)}
    lossy = row("full@int4", **facts, baseline_format="fp16", **worse, edit_similarity_difference_p_holm=0.001)
    own = row("full", **facts, edit_similarity_difference=None)
    assert (quality_of(lossy), quality_of(own)) == ("lost", "kept")
    assert ranks([lossy, row()], SIMILARITY) == [2, 1]
    assert ranks([lossy, row()], SPEED) == [None, 1]
    close = row("full@int8", **facts, baseline_format="fp16")
    assert quality_of(close) == "kept"
    assert ranks([close, row()], SPEED) == [2, 1]


LOSSLESS = {"decode": "lossless", "strategy": "fixed", "edit_similarity_difference_ci": None}


def test_a_lossless_row_keeps_quality_by_definition_where_its_tokens_are_full_depth_s() -> None:
    asserted = row("a", **LOSSLESS, exact_prefix=1.0)
    assert quality_of(asserted) == "kept"
    assert ranks([asserted, FULL], SIMILARITY) == [1, 1]
    assert quality_of(row("b", **LOSSLESS, exact_prefix=0.9, exact_prefix_ci=(0.8, 0.95))) == "unclear"
    unsure = Estimate(value=1.0, no_interval=NoInterval.FEW_DIFFERING)
    observed = row("c", **LOSSLESS)
    assert quality_of(observed.model_copy(update={"metrics": {**observed.metrics, "exact_prefix": unsure}})) == (
        "unclear"
    )
    assert quality_of(row("d", **LOSSLESS, exact_prefix=1.0, weights_format="int8", baseline_format="fp16")) == (
        "unclear"
    )
    assert quality_of(row("e", **LOSSLESS | {"decode": "lossy"}, exact_prefix=1.0)) == "unclear"


Recorded = Callable[..., RecordedRun]


@pytest.fixture
def recorded(recorded: Recorded) -> Recorded:
    """Runs of one block, which is enough: groups are of manifests."""
    return functools.partial(recorded, blocks=1)


_RUNS = count()


def group(run: RecordedRun) -> Group:
    entry = entry_of(run, run.identity, ())
    return entry.group(entry.points[1])


def conditions(run: RecordedRun) -> Conditions:
    made = Conditions.of(run.manifest, run.manifest.tasks[0], run.manifest.operating_points[0])
    return dataclasses.replace(made, run=str(next(_RUNS)))


MOVES = (
    {"cpu": "Another CPU"},
    {"energy": "estimate"},
    {"energy": "rapl"},
    {"batch_size": 4},
    {"kv": "none"},
    {"weights": "tuned"},
    {"weights": "random"},
    {"source": "path: elsewhere"},
    {"source_kind": "embedded"},
    {"model": {"weights_sha256": "cd" * 32}},
    {"model": {"fingerprint": "cd" * 8}},  # of the same weights with another configuration or tokenizer
    {"model": {"name": "another"}},
    {"model": {"dtype": "bfloat16"}},
    {"model": {"exit_head": "shortcut:1"}},
    {"manifest": {"config": {"kv": "propagate", "batch_size": 1, "arrival_rate": 0.5}}},
    {"manifest": {"config": {"kv": "propagate", "batch_size": 1, "max_new_tokens": 3}}},
    {"manifest": {"placement": {"layers": "layers 1–5 on cpu, 6–10 on disk"}}},
)


def test_whatever_could_move_a_number_makes_another_group(recorded: Recorded) -> None:
    usual = group_id(group(recorded()))
    other = recorded("other", points={"fixed:layer=2": 0.3}, manifest={"created": "2026-01-01T00:00:00Z"})
    assert group_id(group(other)) == usual, "two runs of one kind"
    assert [given for given in MOVES if group_id(group(recorded(**given))) == usual] == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"placement": {"executor": "slurm", "host": "node1"}},  # of a study's point
        *({"config": {"kv": "propagate", "batch_size": 1, **more}} for more in (
            {"device_map": "auto"}, {"graphs": "segments"}, {"graphs": "off"},  # on a CPU there are no graphs
        )),
    ],
)  # fmt: skip
def test_a_usual_run_keeps_the_group_s_permanent_id(recorded: Recorded, given: dict[str, Any]) -> None:
    assert group_id(group(recorded(manifest=given))) == "909e2eaf48"


def test_other_rows_make_another_group(recorded: Recorded) -> None:
    run = recorded()
    other = run.manifest.tasks[0].model_copy(update={"fingerprint": "cd" * 32})
    assert group(run) != group(recorded(manifest={"tasks": (other,)}))


def machine(**given: Any) -> dict[str, Any]:
    return {"machine": MachineRecord(**{"device": "cpu", "dtype": "float32", "usable_cores": 8, "threads": 4, **given})}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cpu": "Intel(R) Xeon(R) Processor"}, "Intel Xeon, 2 threads on 2 cores"),
        ({"manifest": machine()}, "Test Chip, 4 threads on 8 cores"),
        ({"manifest": machine(quota_cores=1.5)}, "Test Chip, 4 threads on 1.5 cores"),
        ({"manifest": machine(), "gpus": ("NVIDIA A100",)}, "Test Chip, 4 threads on 8 cores"),
        ({"manifest": machine(device="cuda:1"), "gpus": ("NVIDIA T4", "NVIDIA A100")}, "NVIDIA A100, host Test Chip"),
        ({"gpus": ("NVIDIA A100",)}, "NVIDIA A100, host Test Chip"),
        (
            {"manifest": {"placement": {"layers": "layers 1–5 on cpu, 6–10 on disk"}}},
            "Test Chip, 2 threads on 2 cores; layers 1–5 on cpu, 6–10 on disk",
        ),
        (
            {
                "manifest": {**machine(device="cuda"), "placement": {"layers": "layers 1–5 on cuda, 6–10 on cuda:1"}},
                "gpus": ("NVIDIA A100", "NVIDIA T4"),
            },
            "NVIDIA A100, host Test Chip; layers 1–5 on cuda, 6–10 on cuda:1 (NVIDIA T4)",
        ),
        (
            {
                "manifest": {**machine(device="cuda"), "config": {"kv": "propagate", "batch_size": 1, "graphs": "off"}},
                "gpus": ("NVIDIA A100",),
            },
            "NVIDIA A100, host Test Chip; CUDA graphs: off",
        ),
    ],
)
def test_the_hardware_class_says_what_decoded(recorded: Recorded, given: dict[str, Any], expected: str) -> None:
    run, other = recorded(**given), recorded()
    assert hardware_class(run.manifest, "0" * 16) == expected
    assert not conditions(run).why_not_comparable(conditions(run), "costs")
    same = hardware_class(other.manifest, "0" * 16) == expected
    comparable = not conditions(other).why_not_comparable(conditions(run), "costs")
    assert comparable is same, "what compares is what ranks together"


def test_an_unnamed_processor_is_a_class_of_its_own(recorded: Recorded) -> None:
    run = recorded(cpu="")
    assert hardware_class(run.manifest, "a" * 16) != hardware_class(run.manifest, "b" * 16)
    obstacle = "another hardware class: processor is not recorded in A, not recorded in B"
    assert conditions(run).why_not_comparable(conditions(run), "costs") == obstacle


def test_identity_is_what_was_measured_not_where_it_lies(recorded: Recorded) -> None:
    run = recorded("one")
    assert run.identity == recorded("elsewhere").identity
    shorter = run.windows[0].model_copy(update={"duration_s": 0.5})
    for changed in (
        recorded("one", text="x = 2"),
        RecordedRun(run.directory, run.manifest, (shorter, *run.windows[1:]), run.samples, run.summary),
        recorded("one", manifest={"created": "2026-01-01T00:00:00Z"}),
    ):
        assert changed.identity != run.identity


def test_rows_of_another_format_have_a_group_of_their_own_that_says_what_scores_are_against(
    recorded: Recorded,
) -> None:
    """Scores of int4 in a run that began with fp16 are against fp16's; of int4 alone against its own."""
    names = ("full@int4", "fixed:layer=5@fp16", "fixed:layer=5@int4")  # after full depth in fp16
    several = recorded(points=dict.fromkeys(names, 0.5), formats=("fp16", "int4"))
    entry = entry_of(several, several.identity, ())
    groups = [entry.group(point) for point in entry.points]
    assert [str(one["Number format"]).partition(" ")[0] for one in groups] == ["fp16", "int4", "fp16", "int4"]
    assert groups[0] == groups[2]
    assert groups[1] == groups[3]
    alone = [group(recorded(points={"fixed:layer=5": 0.5}, formats=(name,))) for name in ("fp16", "int4")]
    assert groups[0] == alone[0]
    assert groups[1] != alone[1]
    assert groups[1]["Compared with"] == "full depth, KV propagate, in int4; scores against full depth in fp16"
    assert alone[1]["Compared with"] == "full depth, KV propagate"
