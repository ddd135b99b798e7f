"""CPU time of others: hand-made counters, and a real process that burns."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.metering import cpu_load
from harness.metering.cpu_load import CoreTimes, LoadReading, LoadWatch, read_core_times, threads_left

TICK = os.sysconf("SC_CLK_TCK")


def stat(path: Path, **cores: list[float]) -> Path:
    """Write counters given in seconds: user nice system idle iowait irq softirq steal guest guest_nice."""
    rows = [f"{name} {' '.join(str(round(second * TICK)) for second in seconds)}" for name, seconds in cores.items()]
    path.write_text("\n".join(["cpu 0 0 0 0 0 0 0 0 0 0", *rows, "intr 5", "ctxt 7"]) + "\n", encoding="ascii")
    return path


def test_busy_is_all_but_idle_waiting_and_stolen_and_guests_count_once(tmp_path: Path) -> None:
    file = stat(tmp_path / "stat", cpu0=[1, 2, 3, 10, 20, 4, 5, 0.5, 1, 0], cpu1=[1, 0, 0, 5, 0, 0, 0, 0.25, 0, 0])
    assert read_core_times({0}, file) == CoreTimes(busy_s=15, stolen_s=0.5, idle_s=30)
    assert read_core_times({0, 1}, file) == CoreTimes(busy_s=16, stolen_s=0.75, idle_s=35)


@pytest.mark.parametrize("cores", [{0, 7}, set(), None])
def test_cores_that_are_not_shown_are_not_guessed(tmp_path: Path, cores: set[int] | None) -> None:
    assert read_core_times(cores, stat(tmp_path / "stat", cpu0=[0] * 10)) is None
    assert read_core_times({0}, tmp_path / "gone") is None


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Counters of two cores at zero; this process has used nothing, and two seconds pass between two looks."""
    moments = iter([100.0, 102.0])
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(cpu_load.time, "perf_counter", lambda: next(moments))
    return stat(tmp_path / "stat", cpu0=[0] * 10, cpu1=[0] * 10)


def test_what_this_process_used_is_not_foreign(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = iter([5.0, 6.5])
    monkeypatch.setattr(cpu_load, "_own_cpu_s", lambda: next(own))
    watch = LoadWatch(watched)
    stat(watched, cpu0=[1.5, 0, 0, 0.5, 0, 0, 0, 0, 0, 0], cpu1=[0.6, 0, 0.2, 1, 0, 0, 0, 0.2, 0, 0])
    load = watch.read()
    assert isinstance(load, LoadReading)
    assert (load.span_s, load.cores, load.own_cpu_s) == (2.0, 2, 1.5)
    assert load.foreign_cpu_s == pytest.approx(1.5 + 0.8 - 1.5)
    assert load.foreign_share == pytest.approx(0.8 / 4)
    assert load.stolen_share == pytest.approx(0.2 / 4)


def test_a_rounding_below_zero_is_zero(watched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = iter([0.0, 0.52])
    monkeypatch.setattr(cpu_load, "_own_cpu_s", lambda: next(own))
    watch = LoadWatch(watched)
    stat(watched, cpu0=[0.5, 0, 0, 1.5, 0, 0, 0, 0, 0, 0], cpu1=[0, 0, 0, 2, 0, 0, 0, 0, 0, 0])
    load = watch.read()
    assert isinstance(load, LoadReading)
    assert load.foreign_cpu_s == 0


def test_counters_that_stand_still_are_no_zero_load(watched: Path) -> None:
    load = LoadWatch(watched).read()
    assert isinstance(load, str)
    assert "did not move in 2 s" in load


def test_a_missing_file_is_a_reason(tmp_path: Path) -> None:
    load = LoadWatch(tmp_path / "gone").read()
    assert isinstance(load, str)
    assert "hides" in load


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux")
def test_a_process_that_burns_is_seen() -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True); time.sleep(20)"
    watch = LoadWatch()
    with subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()  # it has used half a second and sleeps
        time.sleep(0.05)
        load = watch.read()
        other.kill()
    if isinstance(load, str):
        pytest.skip(load)
    assert load.foreign_cpu_s >= 0.4


def test_threads_have_what_others_leave() -> None:
    assert [threads_left(share, 2) for share in (0, 0.2, 0.3, 0.9)] == [2, 2, 1, 1]
    assert threads_left(0.25, 8) == 6
