"""The facts of this machine, really measured; and that a run writes them down and can go on on another day."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.doctor.verdicts import judge
from harness.host import environment
from harness.metering import examine as examine_module
from harness.metering import measure_bandwidth, open_meter
from harness.metering import sensors as sensors_module
from harness.metering.examine import examine
from harness.metering.sensors import TickReading, look_for_sensors, sensors_of_meter
from harness.records import Manifest
from harness.records.machine import MachineRecord, SensorRecord

Command = Callable[..., Any]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real bandwidth measurement on 8 MiB, and half a second less of watching the cores."""
    monkeypatch.setattr(
        examine_module,
        "measure_bandwidth",
        lambda dtype, device: measure_bandwidth(dtype, device, buffer_bytes=8 << 20),
    )
    monkeypatch.setattr(examine_module, "SHORTEST_LOOK_S", 0.5)


def look(**changes: Any) -> MachineRecord:
    given: dict[str, Any] = {
        "meter": "none",
        "meter_description": "",
        "meter_measured": False,
        "sensors": (),
        "scores_missing": (),
        "environment": environment.describe(),
    }
    return examine("cpu", "float32", **given | changes)


@pytest.mark.usefixtures("small")
def test_this_machine_is_examined() -> None:
    heard: list[str] = []
    facts = look(stage=heard.append)
    assert heard
    assert facts.threads == torch.get_num_threads()
    assert facts.bandwidth_bytes_per_s is not None
    assert facts.bandwidth_bytes_per_s > 1e8
    assert facts.gemm_flops_per_s is not None
    assert facts.gemm_flops_per_s > 1e8
    assert facts.dispatch_s is not None
    assert 1e-8 < facts.dispatch_s < 1e-3
    assert facts.timer_backward_steps == 0
    assert facts.foreign_cpu_s is not None or "foreign_cpu_s" in facts.missing
    assert facts.load_span_s is None or facts.load_span_s >= 0.5
    assert {verdict.metric: verdict.level.value for verdict in judge(facts)}["depth"] == "trustworthy"


@pytest.mark.usefixtures("small")
def test_memory_that_runs_out_is_a_reason_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(dtype: str, device: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(examine_module, "measure_bandwidth", exhausted)
    monkeypatch.setattr(examine_module, "measure_compute", exhausted)
    facts = look()
    assert (facts.bandwidth_bytes_per_s, facts.gemm_flops_per_s) == (None, None)
    assert facts.missing["bandwidth"] == facts.missing["gemm"] == "no memory left for the measurement"


@pytest.mark.usefixtures("small")
def test_another_failure_stays_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(dtype: str, device: str) -> None:
        raise RuntimeError("illegal instruction")

    monkeypatch.setattr(examine_module, "measure_compute", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        look()


# ----------------------------------------------------------------------------------------- sensors


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what each sensor's probe answers; a counter that is polled ticks every 50 ms."""

    def answer(nvml: str | None = "no driver", rapl: str | None = "no powercap", soc: str | None = "no chip") -> None:
        monkeypatch.setattr(sensors_module.Nvml, "probe", classmethod(lambda cls, device: nvml))
        monkeypatch.setattr(sensors_module.Rapl, "probe", classmethod(lambda cls, device: rapl))
        monkeypatch.setattr(sensors_module, "probe_soc", lambda: soc)
        monkeypatch.setattr(sensors_module, "measure_period", lambda name, device: TickReading(0.05, 12, 1e-4))

    return answer


@pytest.mark.parametrize(
    ("device", "answers", "usable"),
    [
        ("cpu", {}, []),
        ("cpu", {"rapl": None}, ["rapl"]),
        ("cpu", {"rapl": None, "nvml": None}, ["rapl"]),
        ("cuda:1", {"rapl": None, "nvml": None}, ["nvml"]),
        ("cuda", {"rapl": None}, []),
        ("cpu", {"soc": None}, []),  # nothing reads it yet
    ],
)
def test_a_sensor_is_usable_when_it_is_there_and_counts_the_device(
    probes: Callable[..., None], device: str, answers: dict[str, None], usable: list[str]
) -> None:
    probes(**answers)
    found = look_for_sensors(device)
    assert [sensor.name for sensor in found] == ["nvml", "rapl", "soc"]
    assert [sensor.name for sensor in found if sensor.unavailable is None] == usable
    for sensor in found:
        assert (sensor.period_s == 0.05) == (sensor.name in usable)


def test_a_sensor_of_the_other_device_is_told_apart_from_one_that_is_absent(probes: Callable[..., None]) -> None:
    probes(nvml=None)
    reasons = {sensor.name: sensor.unavailable for sensor in look_for_sensors("cpu")}
    assert reasons["nvml"] == "it counts a GPU and the work runs on the CPU (--device cuda)"
    assert reasons["rapl"] == "no powercap"


def test_a_run_s_meter_is_polled_and_an_estimate_is_not(probes: Callable[..., None]) -> None:
    class Sensor:
        source, description, sensor_period_s = "rapl", "", 0.001

    probes()
    assert sensors_of_meter(Sensor(), {"nvml": "no driver"}, "cpu") == (  # type: ignore[arg-type]
        SensorRecord(name="rapl", stated_period_s=0.001, period_s=0.05),
        SensorRecord(name="nvml", unavailable="no driver"),
    )
    meter, missing = open_meter("estimate", "cpu")
    assert sensors_of_meter(meter, missing, "cpu") == ()


def test_this_machine_s_sensors_are_there_or_say_why_not() -> None:
    for sensor in look_for_sensors("cpu"):
        assert (sensor.unavailable is None) == (sensor.period_s is not None or sensor.period_reason is not None)
        assert sensor.unavailable is None or "\n" not in sensor.unavailable


# ---------------------------------------------------------------------------------------- manifest


def manifest(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "manifest.json").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("small")
def test_a_run_writes_the_facts_down(tiny_run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.running.runner.examine", examine)  # the command's fixture pretends
    assert tiny_run("--out", "out").code == 0
    written = manifest(tmp_path / "out")
    assert written.machine is not None
    assert (written.machine.device, written.machine.dtype, written.machine.threads) == ("cpu", "float32", 1)
    assert written.machine.bandwidth_bytes_per_s == written.bandwidth_bytes_per_s
    assert written.bandwidth_detail["kernel"] == written.machine.bandwidth_kernel
    assert written.machine.timer_resolution_s is not None


def test_a_busier_machine_does_not_stop_a_run_from_going_on(
    tiny_run: Command, cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiny_run("--out", "out").code == 0
    before = manifest(tmp_path / "out").machine
    # as if killed before its last window
    windows = tmp_path / "out" / "windows.jsonl"
    windows.write_text("".join(windows.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    busy = MachineRecord(device="cpu", dtype="float32", load_span_s=1, load_cores=1, foreign_cpu_s=1, stolen_cpu_s=0)
    monkeypatch.setattr("harness.running.runner.examine", lambda *arguments, **given: busy)
    ran = cli("run", "--resume", "out")
    assert ran.code == 0, ran.err
    assert manifest(tmp_path / "out").machine == before


def test_a_manifest_of_before_reads_back(tiny_run: Command, tmp_path: Path) -> None:
    assert tiny_run("--out", "out").code == 0
    text = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert text.pop("machine")
    assert Manifest.model_validate_json(json.dumps(text)).machine is None
