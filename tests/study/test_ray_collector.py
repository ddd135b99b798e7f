"""What collects records: nothing that is committed is ever out of the file, and one writer at a time is heard."""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS
from harness.store.run_directory import lock_folder
from harness.study.executors import ray_collector
from harness.study.executors.ray_collector import Collector

COMMITTED = b'{"window":0}\n{"window":1}\n'
MORE = b'{"window":2}\n'


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / MANIFEST).write_bytes(b"{}\n")
    (folder / SAMPLES).write_bytes(COMMITTED)
    (folder / WINDOWS).write_bytes(COMMITTED)
    return folder


@pytest.fixture
def collector(run: Path) -> Collector:
    collector = Collector()
    assert collector.begin(1, str(run)) == {MANIFEST: b"{}\n", SAMPLES: COMMITTED, WINDOWS: COMMITTED}
    return collector


def fail(*_: Any) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("torn", [b"", b'{"wi', b"\0\0\0\0"], ids=["whole", "torn", "zeros"])
@pytest.mark.parametrize("name", [SAMPLES, WINDOWS])
def test_what_is_committed_stays_in_the_file_whatever_fails(
    run: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, torn: bytes
) -> None:
    for step in ("append", "_cut", "replace_files"):
        (run / name).write_bytes(COMMITTED + torn)
        with monkeypatch.context() as patch:
            patch.setattr(ray_collector, step, fail)
            for offset, data in ((0, COMMITTED), (len(COMMITTED), MORE)):
                with suppress(OSError, StoreError):
                    collector.grow(1, name, offset, data)
                assert (run / name).read_bytes().startswith(COMMITTED), step
    (run / name).write_bytes(COMMITTED + torn)
    collector.grow(1, name, 0, COMMITTED)
    collector.grow(1, name, len(COMMITTED), MORE)
    assert (run / name).read_bytes() == COMMITTED + MORE


def test_what_is_there_is_not_written_again(run: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in ("append", "_cut", "replace_files"):
        monkeypatch.setattr(ray_collector, step, fail)
    collector.grow(1, WINDOWS, 0, COMMITTED)
    collector.grow(1, WINDOWS, len(COMMITTED), b"")
    assert (run / WINDOWS).read_bytes() == COMMITTED


@pytest.mark.parametrize(("offset", "data"), [(0, MORE), (5, COMMITTED), (1000, MORE)])
def test_other_records_are_left_alone(run: Path, collector: Collector, offset: int, data: bytes) -> None:
    with pytest.raises(StoreError, match=r"samples\.jsonl holds other records than those that were sent before\."):
        collector.grow(1, SAMPLES, offset, data)
    assert (run / SAMPLES).read_bytes() == COMMITTED


def test_a_run_is_locked_until_its_attempt_is_over(run: Path, collector: Collector) -> None:
    with pytest.raises(StoreError, match=r"is in use by another process"):
        lock_folder(run)
    with pytest.raises(StoreError, match=r"is in use by another process"):
        Collector().begin(1, str(run))  # of a driver that was started again at once
    collector.end(1)
    lock_folder(run).close()


def test_an_attempt_that_was_given_up_is_not_heard(run: Path, collector: Collector) -> None:
    collector.end(1)
    collector.begin(2, str(run))
    for method, arguments in (
        ("grow", (WINDOWS, len(COMMITTED), MORE)),
        ("put", ("summary.json", b"{}")),
        ("begin", (str(run),)),
    ):
        with pytest.raises(StoreError, match=r"attempt 1 is over: another one may have its point\."):
            getattr(collector, method)(1, *arguments)
    assert (run / WINDOWS).read_bytes() == COMMITTED
    assert not (run / "summary.json").exists()
    collector.grow(2, WINDOWS, len(COMMITTED), MORE)
    assert (run / WINDOWS).read_bytes() == COMMITTED + MORE
    with pytest.raises(StoreError, match="attempt 3 is over"):  # never begun
        collector.put(3, "summary.json", b"{}")


def test_a_folder_is_made_for_the_first_file_and_is_nobody_elses(tmp_path: Path) -> None:
    collector, new, other = Collector(), tmp_path / "new", tmp_path / "other"
    for attempt, folder in ((1, new), (2, other)):
        assert collector.begin(attempt, str(folder)) == {}
        assert not folder.exists()  # a point that is refused leaves none
    collector.put(1, MANIFEST, b"{}\n")
    with pytest.raises(StoreError, match="in use by another process"):
        lock_folder(new)
    collector.put(1, "summary.json", b"{}\n")
    assert sorted(file.name for file in new.iterdir()) == [".lock", MANIFEST, "summary.json"]

    other.mkdir()
    (other / MANIFEST).write_bytes(b"another run\n")
    for _ in range(2):
        with pytest.raises(StoreError, match="is not empty"):
            collector.put(2, MANIFEST, b"{}\n")
    assert (other / MANIFEST).read_bytes() == b"another run\n"
    lock_folder(other).close()


def test_what_was_told_is_told_once() -> None:
    collector = Collector()
    collector.tell(1, "host:7", "loading", None)
    collector.tell(1, "host:7", "full", (1, 4))
    assert collector.told() == [(1, "host:7", "loading", None), (1, "host:7", "full", (1, 4))]
    assert collector.told() == []
