"""What may stand in one ranking, and what may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from harness.records.conditions import Conditions, Group, group_id, hardware_class
from harness.records.machine import MachineRecord
from reports.leaderboard.data import entry_of
from reports.recorded import RecordedRun

Recorded = Callable[..., RecordedRun]
_RUNS = count()


def group(run: RecordedRun) -> Group:
    entry = entry_of(run, run.identity, ())
    return entry.group(entry.points[1])


def conditions(run: RecordedRun) -> Conditions:
    made = Conditions.of(run.manifest, run.manifest.tasks[0], run.manifest.operating_points[0])
    return dataclasses.replace(made, run=str(next(_RUNS)))


def test_two_runs_of_one_kind_are_one_group(recorded: Recorded) -> None:
    one = recorded("one")
    other = recorded("other", points={"fixed:layer=2": 0.3}, manifest={"created": "2026-01-01T00:00:00Z"})
    assert group(one) == group(other)


@pytest.mark.parametrize(
    "given",
    [
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
    ],
)
def test_whatever_could_move_a_number_makes_another_group(recorded: Recorded, given: dict[str, Any]) -> None:
    assert group_id(group(recorded())) != group_id(group(recorded(**given)))


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


def test_embedded_data_are_called_so(recorded: Recorded) -> None:
    assert group(recorded(source_kind="embedded"))["Task"] == "py150 (embedded)"
    assert group(recorded(source_kind="hub"))["Task"] == "py150"


def machine(**given: Any) -> dict[str, Any]:
    return {"machine": MachineRecord(**{"device": "cpu", "dtype": "float32", "usable_cores": 8, "threads": 4, **given})}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"cpu": "Intel(R) Xeon(R) Processor"}, "Intel Xeon, 2 threads on 2 cores"),
        ({"cpu": "AMD EPYC 7763 64-Core Processor"}, "AMD EPYC 7763, 2 threads on 2 cores"),
        ({"manifest": machine()}, "Test Chip, 4 threads on 8 cores"),
        ({"manifest": machine(quota_cores=1.5)}, "Test Chip, 4 threads on 1.5 cores"),
        ({"manifest": machine(), "gpus": ("NVIDIA A100",)}, "Test Chip, 4 threads on 8 cores"),
        ({"manifest": machine(device="cuda"), "gpus": ("NVIDIA A100",)}, "NVIDIA A100, host Test Chip"),
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
