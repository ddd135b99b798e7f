"""What a study's folder holds, what is made of it when something is wrong, and how soon it is read when it is large."""

from __future__ import annotations

import errno
import io
import json
import os
import tarfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.host import files as foreign_files
from harness.host.files import open_regular
from harness.store import record_files
from harness.store.committed import MANIFEST, SAMPLES, WINDOWS
from harness.store.packed_run import pack_folder, unpack_folder
from harness.store.run_directory import LOCK, SUMMARY
from harness.study.grid import expand, read_study
from harness.study.ledger import EVENTS, RUNS, STUDY, Event, in_place_of
from harness.study.status import StudyView
from tests.conftest import snapshot
from tests.run_files import cut

from .made_up import damage, open_study, put_runs

Command = Callable[..., Any]


def test_ten_thousand_finished_points_resume_in_three_seconds(cli: Command, tmp_path: Path) -> None:
    """Of which no two are of one configuration, seeds apart."""
    file = tmp_path / "large.toml"
    file.write_text(f'[grid]\nlimit = {list(range(1, 5001))}\ntasks = ["py150", "javacorpus"]\n')
    lines = []
    for point in expand(read_study(str(file))):
        folder = tmp_path / "s" / RUNS / point.name
        folder.mkdir(parents=True)
        (folder / SUMMARY).touch()
        event = {"at": "2026-01-01T00:00:00+00:00", "point": point.name, "identity": point.identity}
        lines += [
            Event(**event, what="started").model_dump_json(),
            Event(**event, what="finished", records_bytes=0).model_dump_json(),
        ]
    (tmp_path / "s" / EVENTS).write_text("\n".join(lines) + "\n")
    (tmp_path / "s" / STUDY).write_text(
        '{"schema_version": 1, "created": "2026-01-01T00:00:00+00:00", "declared": {}, "points": {}}'
    )
    began = time.process_time()
    ran = cli("study", file, "--out", "s", "--yes")
    seconds = time.process_time() - began
    assert (ran.code, ran.out.splitlines()[0]) == (0, "10000 points are measured.")
    assert seconds < 3
    assert StudyView(tmp_path / "s").look().exit_code == 0


def refuse(patch: pytest.MonkeyPatch, name: str, code: int) -> None:
    """Let the files of this name be opened by nobody."""

    def opened(path: Path) -> Any:
        if path.name == name:
            raise OSError(code, os.strerror(code), str(path))
        return open_regular(path)

    for module in (record_files, foreign_files):
        patch.setattr(module, "open_regular", opened)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(("name", "code"), [(MANIFEST, errno.EACCES), (WINDOWS, errno.EIO), (SAMPLES, errno.EMFILE)])
def test_a_run_that_cannot_be_read_now_stays_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int, finished: bool
) -> None:
    with open_study(tmp_path / "s", 1) as study:
        (point,) = study.points
        put_runs(study, point)
        if not finished:
            cut(study.directory(point), 2)
            (study.directory(point) / SUMMARY).unlink()
        before = snapshot(tmp_path)
        with monkeypatch.context() as patch:
            refuse(patch, name, code)
            for look in (study.settle, study.is_done):
                with pytest.raises(StoreError, match=rf"cannot read .*/{name}: {os.strerror(code)}\."):
                    look(point)
        assert snapshot(tmp_path) == before
        assert study.settle(point) is finished  # of what the log does not say
        if finished:
            file = study.directory(point) / MANIFEST
            file.write_text(json.dumps(json.loads(file.read_bytes()) | {"schema_version": 2}))
            (tmp_path / "s" / EVENTS).unlink()
    if finished:
        with open_study(tmp_path / "s", 1) as study, pytest.raises(StoreError, match="has schema_version 2 and this"):
            study.settle(point)


def test_a_damaged_line_of_the_log_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_study(tmp_path / "s", 2) as study:
        put_runs(study, *study.points)
        for point in study.points:
            study.log(point, "started")
            study.log(point, "finished")
    damage(tmp_path / "s" / EVENTS, 2)
    with open_study(tmp_path / "s", 2) as study:
        first, second = study.points
        assert StudyView(tmp_path / "s").look().waiting == 0  # begun, as far as the log says
        assert [study.settle(point) for point in (first, second)] == [True, True]
        found = [study.last(point) for point in (first, second)]
    assert [None if event is None else event.reason for event in found] == ["finished before", ""]
    assert "events.jsonl, line 2 is damaged and passed over" in caplog.text
    assert StudyView(tmp_path / "s").look().exit_code == 0


def test_what_is_damaged_elsewhere_is_left_out_and_the_rest_taken_over(tmp_path: Path) -> None:
    with open_study(tmp_path / "other", 4) as other:
        put_runs(other, *other.points[:3])
        damage(other.directory(other.points[0]) / WINDOWS, 1)
    before = snapshot(tmp_path / "other")
    with open_study(tmp_path / "s", 4) as study:
        put_runs(study, study.points[1])
        found = [(point.settings["seed"], reason) for point, reason in study.merge(tmp_path / "other")]
        assert [seed for seed, _ in found] == [0, 2]
        assert "windows.jsonl, line 1 is damaged" in found[0][1]
        assert found[1][1] == ""
        assert [study.settle(point) for point in study.points] == [False, True, True, False]
        run, theirs = (each.directory(study.points[2]) for each in (study, other))
        assert not study.directory(study.points[0]).exists()
    assert snapshot(tmp_path / "other") == before
    assert {file.name: file.read_bytes() for file in run.iterdir()} == {
        file.name: file.read_bytes() for file in theirs.iterdir() if file.name != LOCK
    }


def test_a_copy_that_fails_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_study(tmp_path / "other", 1) as other:
        put_runs(other, *other.points)

    def full(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_study(tmp_path / "s", 1) as study:
        monkeypatch.setattr("harness.study.step_run.shutil.copyfileobj", full)
        with pytest.raises(StoreError, match=f"cannot copy .*{os.strerror(errno.EIO)}"):
            list(study.merge(tmp_path / "other"))
        assert list((tmp_path / "s" / RUNS).iterdir()) == []
        assert study.last(study.points[0]) is None


def test_what_a_machine_of_a_cluster_sends_stays_in_its_folder_and_is_whole(tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "a").write_text("what was made")
    archive, target = pack_folder(tmp_path / "node", ["a"]), tmp_path / "s" / "runs" / "p"
    target.parent.mkdir(parents=True)
    outside = io.BytesIO()
    with tarfile.open(fileobj=outside, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../../a"))
    for sent in (archive, outside.getvalue(), archive[:520], b"no archive"):
        with (
            nullcontext() if sent == archive else pytest.raises(tarfile.TarError),
            in_place_of(target, "cannot write") as folder,
        ):
            unpack_folder(sent, folder)
        assert [file.relative_to(tmp_path / "s").as_posix() for file in (tmp_path / "s").rglob("*")] == [
            "runs", "runs/p", "runs/p/a"
        ]  # fmt: skip
