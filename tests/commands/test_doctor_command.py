"""``harness doctor`` as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.doctor.verdicts import judge
from harness.metering import examine as examine_module
from harness.metering import measure_bandwidth
from harness.records.machine import MachineRecord

Command = Callable[..., Any]

METRICS = ["latency", "throughput", "energy", "depth", "accuracy", "bandwidth"]


@pytest.fixture
def doctor(cli: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command with a small bandwidth buffer, in 80 columns."""
    monkeypatch.setattr(
        examine_module,
        "measure_bandwidth",
        lambda dtype, device: measure_bandwidth(dtype, device, buffer_bytes=8 << 20),
    )
    monkeypatch.setattr(examine_module, "SHORTEST_LOOK_S", 0.2)
    monkeypatch.setenv("COLUMNS", "80")
    return lambda *arguments: cli("doctor", *arguments)


@pytest.fixture
def self_test(doctor: Command, tiny_llama: Path, rows_file: Path) -> Command:
    sizes = ("--pairs", 3, "--windows", 5, "--max-new-tokens", 2)
    given = ("--aa", "--model", tiny_llama, "--source", rows_file, "--energy", "none", *sizes)
    return lambda *arguments: doctor(*given, *arguments)


def test_it_fits_a_terminal_and_judges_every_metric(doctor: Command) -> None:
    ran = doctor("--threads", 1)
    assert ran.code == 0, ran.err
    assert all(len(line) <= 80 for line in ran.out.splitlines())
    judged = [line.split()[1] for line in ran.out.splitlines() if line[:1] in ("●", "◐", "○") and line]
    assert judged == METRICS


def test_json_holds_the_facts_the_verdicts_follow_from(doctor: Command) -> None:
    ran = doctor("--json", "--dtype", "bfloat16", "--energy", "estimate")
    found = json.loads(ran.out)
    facts = MachineRecord.model_validate(found["facts"])
    assert [verdict["metric"] for verdict in found["verdicts"]] == METRICS
    assert [verdict["level"] for verdict in found["verdicts"]] == [verdict.level for verdict in judge(facts)]
    assert (facts.dtype, facts.meter) == ("bfloat16", "estimate")
    assert {sensor.name for sensor in facts.sensors} == {"nvml", "rapl"}
    assert found["environment"]["packages"]["torch"] is not None


def test_a_sensor_that_fails_is_a_finding_and_no_refusal(doctor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.metering.sensors.Rapl.probe", classmethod(lambda cls, device: "root only (run chmod)"))
    ran = doctor("--energy", "rapl")
    assert ran.code == 0
    said = " ".join(ran.out.split())
    assert "rapl not here: root only (run chmod)" in said
    assert "○ energy not available" in said


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--energy", "rappl"), "Did you mean 'rapl'"),
        (("--dtype", "int8"), "dtype = 'int8'"),
        (("--device", "tpu"), "device 'tpu' is"),
        (("--threads", 0), "threads = 0"),
        (("--aa", "--windows", 4), "--windows 4 is too small; at least 5: fewer have no interval"),
        (("--aa", "--pairs", 0), "'--pairs'"),
        (("--aa", "--model", "no-such-model"), "no-such-model"),
        (("--aa", "--task", "py15"), "Did you mean 'py150'"),
    ],
)
def test_what_cannot_be_done_is_one_line(doctor: Command, arguments: tuple[object, ...], word: str) -> None:
    assert word in doctor(*arguments).error


def test_the_self_test_as_json(self_test: Command) -> None:
    real = json.loads(self_test("--json").out)["real"]
    assert len(real["comparisons"]) == real["coverage"]["comparisons"] == 3
    covered = [one["interval"][0] <= 1 <= one["interval"][1] for one in real["comparisons"]]
    assert sum(covered) == real["coverage"]["covered"]
    assert real["expected"] == [2, 3]
