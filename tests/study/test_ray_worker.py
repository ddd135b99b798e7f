"""A point measured on a node and collected beside the driver, without Ray between them: who is to blame for what."""

from __future__ import annotations

import errno
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ConfigError
from harness.store import run_directory
from harness.store.run_directory import RunDirectory, lock_folder
from harness.study.executors import ray_collector, ray_worker
from harness.study.executors.ray_collector import Collector
from harness.study.executors.ray_worker import Ended, PointWorker
from harness.study.grid import expand, read_study
from harness.study.kept_run import is_measured
from tests.run_files import cut

Declare = Callable[..., Path]
Measure = Callable[..., Ended]


class GoneError(Exception):
    """What Ray raises where the collector died."""


@pytest.fixture
def settings(declare: Declare) -> dict[str, Any]:
    (point,) = expand(read_study(str(declare(run={"limit": 3}))))
    return dict(point.settings)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def measure(run: Path, settings: dict[str, Any]) -> Measure:
    """``measure(model=…)`` is one attempt by one process; settings that are named differ."""
    collector, worker = Collector(), PointWorker(0)
    attempts = iter(range(1, 100))

    def attempt(send: Callable[..., Any] | None = None, **others: Any) -> Ended:
        number = next(attempts)
        deliver = send or (lambda method, *arguments: getattr(collector, method)(*arguments))
        try:
            return worker.measure(number, "point", str(run), settings | others, deliver)
        finally:
            collector.end(number)

    return attempt


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def windows(run: Path) -> list[bytes]:
    return (run / "windows.jsonl").read_bytes().splitlines(keepends=True)


def test_a_point_that_goes_on_loses_nothing_when_its_collector_fails(
    measure: Measure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert measure().how == "done"
    assert is_measured(run)
    assert measure().how == "done"  # nothing is left to do
    cut(run, -3)
    (run / "summary.json").unlink()
    kept = windows(run)
    append = ray_collector.append
    for working in range(4):
        left = iter([True] * working)

        def fail_after_some(file: Path, data: bytes, left: Any = left) -> None:
            if not next(left, False):
                raise OSError(errno.EIO, "Input/output error")
            append(file, data)

        with monkeypatch.context() as patch:
            patch.setattr(ray_collector, "append", fail_after_some)
            ended = measure()
        assert (ended.how, ended.lacks) == ("refused", "")
        assert windows(run)[: len(kept)] == kept
        with RunDirectory.read(run) as store:
            kept = windows(run)[: store.next_window]
    assert measure().how == "done"
    assert windows(run)[: len(kept)] == kept
    assert is_measured(run)


def test_a_full_disk_of_the_study_stops_it_and_one_of_the_node_does_not(
    measure: Measure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ray_collector, "append", full)
        ended = measure()
    said = f"cannot write to {run}: No space left on device. Every finished window is kept; make room."
    assert (ended.how, ended.text, ended.lacks) == ("stopped", said, "")

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "append", full)
        ended = measure()
    assert (ended.how, ended.lacks) == ("unfit", "room")
    assert "No space left on device" in ended.text
    assert str(run) not in ended.text

    with monkeypatch.context() as patch:
        patch.setattr(ray_worker, "TemporaryDirectory", full)
        ended = measure()
    assert (ended.how, ended.lacks) == ("unfit", "room")
    assert measure().how == "done"


def test_a_model_that_is_not_there_or_cannot_be_read_may_be_on_another_node(
    measure: Measure, tiny_llama: Path, tmp_path: Path
) -> None:
    ended = measure(model=str(tmp_path / "nowhere"))
    assert (ended.how, ended.lacks) == ("unfit", "model")
    assert "nowhere" in ended.text
    shutil.copytree(tiny_llama, tmp_path / "torn")
    (weights,) = (tmp_path / "torn").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    ended = measure(model=str(tmp_path / "torn"))
    assert (ended.how, ended.lacks) == ("unfit", "model")


def test_what_no_node_can_measure_is_refused(measure: Measure, run: Path) -> None:
    ended = measure(strategies=["fixed:layer=3"])
    assert (ended.how, ended.lacks) == ("refused", "")
    assert "fixed:layer=3 is not an exit point" in ended.text
    assert not run.exists()


def test_a_collector_that_is_gone_makes_no_point_fail(measure: Measure, run: Path) -> None:
    collector = Collector()

    def send(method: str, *arguments: Any) -> Any:
        if method == "grow":
            raise GoneError
        return getattr(collector, method)(*arguments)

    with pytest.raises(GoneError):
        measure(send=send)


def test_a_point_waits_for_what_an_earlier_driver_left_behind(
    measure: Measure, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.mkdir()
    with lock_folder(run) as lock:
        with monkeypatch.context() as patch:
            patch.setattr(ray_worker, "BUSY_S", 0.0)
            ended = measure()
        assert (ended.how, ended.lacks) == ("refused", "")
        assert ended.text == f"the run directory {run} is in use by another process. Stop it or wait for it."
        threading.Timer(0.5, lock.close).start()
        assert measure().how == "done"


def test_a_point_without_cores_is_tried_again(measure: Measure, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(count: int) -> None:
        raise ConfigError("here has 0 free logical CPUs where a point wants 1. Use fewer: cpus=N.")

    monkeypatch.setattr(ray_worker, "hold_cores", none)
    assert measure().how == "lost"
