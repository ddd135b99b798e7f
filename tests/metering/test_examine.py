"""The facts of this machine, really measured; and that a run writes them down and can go on on another day."""

from __future__ import annotations

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
from harness.metering.examine import examine, last_level_cache_bytes, measure_compute, measure_timer
from harness.metering.sensors import look_for_sensors, sensors_of_meter
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

    def broken(dtype: str, device: str) -> None:
        raise RuntimeError("illegal instruction")  # another failure stays one

    monkeypatch.setattr(examine_module, "measure_compute", broken)
    with pytest.raises(RuntimeError, match="illegal instruction"):
        look()


SMALL = 8 << 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_fastest_kernel_counts(dtype: str) -> None:
    reading = measure_bandwidth(dtype, "cpu", buffer_bytes=SMALL)
    assert reading.kernel in {"torch.nn.functional.linear", "torch.mv", "torch.mm"}
    assert 1e8 < reading.bytes_per_s < 1e13
    assert SMALL <= reading.buffer_bytes < 1.01 * SMALL
    assert reading.limited_by is None


def test_the_buffer_takes_a_quarter_of_the_memory_and_no_more_time_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module.processor, "available_memory_bytes", lambda: 2 * SMALL)
    reading = measure_bandwidth("float32", "cpu", buffer_bytes=SMALL)
    assert reading.limited_by == "memory"
    assert SMALL // 2 <= reading.buffer_bytes < 1.01 * SMALL // 2
    monkeypatch.setattr(examine_module.processor, "available_memory_bytes", lambda: 99 * SMALL)
    monkeypatch.setattr(examine_module, "FILL_BUDGET_S", 0.0)
    monkeypatch.setattr(examine_module, "BLOCK_BYTES", 1 << 20)
    reading = measure_bandwidth("float32", "cpu", buffer_bytes=SMALL)
    assert (reading.limited_by, reading.buffer_bytes) == ("time", 1 << 20)


def test_by_default_the_buffer_is_four_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "ASSUMED_CACHE_BYTES", 1 << 20)
    monkeypatch.setattr(examine_module, "last_level_cache_bytes", lambda: 2 << 20)
    reading = measure_bandwidth("float32", "cpu")
    assert (reading.buffer_bytes, reading.cache_bytes) == (8 << 20, 2 << 20)
    monkeypatch.setattr(examine_module, "last_level_cache_bytes", lambda: None)
    reading = measure_bandwidth("float32", "cpu")
    assert (reading.buffer_bytes, reading.cache_bytes) == (4 << 20, None)


def add_cache(folder: Path, *, level: int, kind: str, shared: str, size: str) -> None:
    folder.mkdir(parents=True)
    for name, value in (("level", str(level)), ("type", kind), ("shared_cpu_list", shared), ("size", size)):
        (folder / name).write_text(value + "\n")


def test_cache_instances_count_once_each(tmp_path: Path) -> None:
    for cpu in range(4):
        caches = tmp_path / f"cpu{cpu}" / "cache"
        add_cache(caches / "index0", level=1, kind="Data", shared=str(cpu), size="48K")
        add_cache(caches / "index1", level=1, kind="Instruction", shared=str(cpu), size="64K")
        add_cache(caches / "index3", level=3, kind="Unified", shared="0-1" if cpu < 2 else "2-3", size="32768K")
    (tmp_path / "cpu0" / "cache" / "index9").mkdir()
    assert last_level_cache_bytes(tmp_path) == 2 * 32 << 20
    assert last_level_cache_bytes(tmp_path / "cpu0") is None


def test_matrices_grow_until_a_pass_is_long_and_the_best_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = iter([0.001, 0.001, 0.03, 0.02, 0.05, *[0.04] * 20])
    monkeypatch.setattr(examine_module, "_seconds", lambda work, device: next(spans))
    flops_per_s, size = measure_compute("float32", "cpu", budget_s=60)
    assert size == 2 * examine_module.SMALLEST
    assert flops_per_s == pytest.approx(2 * size**3 / 0.02)


@pytest.mark.parametrize(
    ("values", "found"), [([1.0, 1.0, 1.25, 1.75, 1.5, 1.5625, 2.5], (0.0625, 1)), ([3.0] * 5, (None, 0))]
)
def test_the_timer_s_step_and_every_step_back_are_seen(values: list[float], found: tuple[float | None, int]) -> None:
    later = iter(values)
    assert measure_timer(lambda: next(later), reads=len(values)) == found


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Say what each sensor's probe answers; a counter that is polled ticks every 50 ms."""

    def answer(nvml: str | None = "no driver", rapl: str | None = "no powercap") -> None:
        monkeypatch.setattr(sensors_module.Nvml, "probe", classmethod(lambda cls, device: nvml))
        monkeypatch.setattr(sensors_module.Rapl, "probe", classmethod(lambda cls, device: rapl))
        monkeypatch.setattr(sensors_module, "measure_period", lambda name, device: (0.05, None))

    return answer


@pytest.mark.parametrize(
    ("device", "answers", "usable"),
    [
        ("cpu", {}, []),
        ("cpu", {"rapl": None}, ["rapl"]),
        ("cpu", {"rapl": None, "nvml": None}, ["rapl"]),
        ("cuda:1", {"rapl": None, "nvml": None}, ["nvml"]),
        ("cuda", {"rapl": None}, []),
    ],
)
def test_a_sensor_is_usable_when_it_is_there_and_counts_the_device(
    probes: Callable[..., None], device: str, answers: dict[str, None], usable: list[str]
) -> None:
    probes(**answers)
    found = look_for_sensors(device)
    assert [sensor.name for sensor in found] == ["nvml", "rapl"]
    assert [sensor.name for sensor in found if sensor.unavailable is None] == usable
    for sensor in found:
        assert (sensor.period_s == 0.05) == (sensor.name in usable)
    if (device, answers) == ("cpu", {"rapl": None, "nvml": None}):  # the other device's is told from an absent one
        assert found[0].unavailable == "it counts a GPU and the work runs on the CPU (--device cuda)"


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
