"""The files of a run are bound together: whatever is changed, lost or exchanged in them is refused, never reported."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.store.committed import sealed_records
from harness.store.run_directory import RunDirectory
from tests.store.test_run_directory import make_manifest, make_window, run_of

FILES = ("manifest.json", "windows.jsonl", "samples.jsonl")


def lines_of(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def refusal(path: Path) -> str:
    """What a reader says, and the same of a resume, which leaves the files as they are."""
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    with pytest.raises(StoreError) as read:
        RunDirectory.read(path)
    with pytest.raises(StoreError):
        RunDirectory.resume(path, make_manifest())
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before
    assert "\n" not in str(read.value)
    return str(read.value)


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two runs of the same configuration, three windows each, equal but for what binds their files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    run_of(tmp_path / "one", 3)
    run_of(tmp_path / "two", 3)
    return tmp_path / "one", tmp_path / "two"


def ids(*paths: Path) -> list[str]:
    return [RunDirectory.read(path).manifest.run for path in paths]


def test_every_changed_byte_is_noticed(two: tuple[Path, Path]) -> None:
    path, _ = two
    for name in FILES:
        whole = (path / name).read_bytes()
        for place in range(0, len(whole), 5):
            for changed in {whole[place] ^ 1, ord("1") if chr(whole[place]).isdigit() else ord(" ")} - {whole[place]}:
                (path / name).write_bytes(whole[:place] + bytes([changed]) + whole[place + 1 :])
                with pytest.raises(StoreError):
                    RunDirectory.read(path)
        (path / name).write_bytes(whole)
    assert RunDirectory.read(path).next_window == 3


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_run_is_refused(two: tuple[Path, Path], name: str) -> None:
    one, other = two
    assert len(set(ids(one, other))) == 2
    shutil.copy(other / name, one / name)
    assert "line 1 is not what run " in refusal(one)
    for each in FILES:
        shutil.copy(other / each, one / each)
    assert len(set(ids(one, other))) == 1


@pytest.mark.parametrize("what", [{"task": "javacorpus"}, {"operating_point": "fixed:layer=2"}, {"window": 7}])
def test_records_of_something_else_are_refused_however_they_are_sealed(two: tuple[Path, Path], what: Any) -> None:
    with RunDirectory.read(two[0]) as run:
        windows, samples = [one.model_copy(update=what) for one in run.windows()], list(run.samples())
        foreign = samples[0].model_copy(update={"exit_layers": (99,)})
        for some, others in ((windows, samples), (list(run.windows()), [foreign, *samples[1:]])):
            for name, content in sealed_records(run.manifest, some, others).files.items():
                (two[0] / name).write_bytes(content)
            assert "line 1 and its samples do not fit manifest.json" in refusal(two[0])


@pytest.mark.parametrize("gone", [lambda file: file.unlink(), lambda file: file.write_bytes(b"")])
def test_samples_without_their_windows_are_never_measured_again(
    two: tuple[Path, Path], gone: Callable[[Path], None]
) -> None:
    gone(two[0] / "windows.jsonl")
    message = refusal(two[0])
    assert "holds samples of window 1, and windows.jsonl commits only those before 0" in message
    assert "Restore it from a copy, or start again with another --out" in message


def test_a_crash_costs_one_window_and_a_cut_is_no_crash(two: tuple[Path, Path]) -> None:
    windows = two[0] / "windows.jsonl"
    kept = lines_of(windows)
    windows.write_bytes(b"".join(kept[:2]))
    assert RunDirectory.read(two[0]).next_window == 2
    windows.write_bytes(b"".join(kept[:1]))
    assert "was cut or lost" in refusal(two[0])


def test_a_reader_may_be_overtaken_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that are committed between the reading of windows and of samples are no excess."""
    from harness.store import committed

    with RunDirectory.create(tmp_path, make_manifest()) as run:
        run.commit(*make_window(0))
        there = committed.lines

        def overtaken(file: Path, **where: int) -> Iterator[bytes]:
            yield from there(file, **where)
            for number in (1, 2, 3) if file.name == "windows.jsonl" else ():
                run.commit(*make_window(number))

        monkeypatch.setattr(committed, "lines", overtaken)
        assert RunDirectory.read(tmp_path).next_window == 1


@pytest.mark.parametrize("name", ["windows.jsonl", "samples.jsonl"])
@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
        lambda lines: [*lines[:1], *lines[2:]],
        lambda lines: [line.replace(b'"tokens":6', b'"tokens":7').replace(b"[1,2,3]", b"[1,2,4]") for line in lines],
        lambda lines: [b" " + line for line in lines],
        lambda lines: [json.dumps(json.loads(line)).encode() + b"\n" for line in lines],
    ],
)
def test_lines_stand_as_they_were_written(
    two: tuple[Path, Path], name: str, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    file = two[0] / name
    file.write_bytes(b"".join(change(lines_of(file))))
    refusal(two[0])


def test_a_line_without_end_is_refused_before_memory_is(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.store.record_files.LONGEST_LINE_BYTES", 1 << 16)
    with (two[0] / "windows.jsonl").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreError, match="a line has more than"):
        RunDirectory.read(two[0])


def test_records_that_were_changed_on_purpose_are_sealed_anew(two: tuple[Path, Path]) -> None:
    path, _ = two
    with RunDirectory.read(path) as run:
        manifest, windows = run.manifest, list(run.windows())
        samples = [sample.model_copy(update={"text": "changed"}) for sample in run.samples()]
    sealed = sealed_records(manifest, windows, samples)
    for name, content in sealed.files.items():
        (path / name).write_bytes(content)
    run = RunDirectory.read(path)
    assert (run.seal, {sample.text for sample in run.samples()}) == (sealed.seal, {"changed"})


@pytest.mark.parametrize("name", [*FILES, ".lock"])
def test_a_pipe_in_place_of_a_file_is_refused_at_once(two: tuple[Path, Path], name: str) -> None:
    path = two[0]
    (path / name).unlink()
    os.mkfifo(path / name)
    for open_run in (RunDirectory.read, lambda path: RunDirectory.resume(path, make_manifest())):
        if name == ".lock" and open_run == RunDirectory.read:
            continue  # readers do not need it
        with pytest.raises(StoreError, match="named pipe"):
            open_run(path)
