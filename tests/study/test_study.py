"""A study from its file to its run directories, and what is left of it when something goes wrong."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.host import environment
from harness.store import run_directory
from harness.study.grid import expand, read_study
from harness.study.ledger import EVENTS, StudyDirectory
from tests.run_files import cut

Command = Callable[..., Any]
Declare = Callable[..., Path]


def events(folder: Path) -> list[tuple[str, str]]:
    """What became of which point, in the order written; a point by its setting."""
    lines = (folder / EVENTS).read_text(encoding="utf-8").splitlines()
    return [(each["point"].rpartition("-")[0], each["what"]) for each in map(json.loads, lines)]


def test_every_point_is_a_run_directory_and_the_same_command_goes_on(
    cli: Command, declare: Declare, tmp_path: Path
) -> None:
    first = cli("study", declare(seed=[0, 1]), "--out", "s")
    assert (first.code, first.out.splitlines()[0]) == (0, "2 points are measured.")
    folder = tmp_path / "s"
    assert events(folder) == [(f"seed={seed}", what) for seed in (0, 1) for what in ("started", "finished")]
    runs = sorted((folder / "runs").iterdir())
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs]
    assert [manifest["config"]["seed"] for manifest in manifests] == [0, 1]
    assert len({manifest["placement"]["process"] for manifest in manifests}) == 1  # the model was loaded once
    assert manifests[0]["placement"]["executor"] == "local"
    assert cli("report", runs[0]).code == 0

    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.name != "study.json"}
    again = cli("study", declare(seed=[2, 1, 0]), "--out", "s")  # grown, and in another order
    assert again.out.splitlines()[0] == "3 points are measured."
    assert events(folder)[4:] == [("seed=2", "started"), ("seed=2", "finished")]
    for file, content in before.items():
        assert file.read_bytes().startswith(content), file


@pytest.mark.usefixtures("inline")
def test_a_point_that_cannot_run_fails_with_its_reason_and_the_others_go_on(
    cli: Command, declare: Declare, tmp_path: Path
) -> None:
    file = declare(strategies=[["fixed:layer=3"], ["fixed:layer=6"]])
    done = cli("study", file, "--out", "s")
    assert done.code == 1
    assert "1 points are measured, 1 failed (`--retry-failed` tries them again)." in done.out
    assert "fixed:layer=3 is not an exit point" in done.out
    assert [what for _, what in events(tmp_path / "s")] == ["started", "failed", "started", "finished"]

    assert cli("study", file, "--out", "s").code == 1  # not tried again
    assert len(events(tmp_path / "s")) == 4
    cli("study", file, "--out", "s", "--retry-failed")
    assert [what for _, what in events(tmp_path / "s")][4:] == ["started", "failed"]

    seen = cli("watch", tmp_path / "s", "--json")
    status = json.loads(seen.out)
    assert (seen.code, len(status["finished"]), len(status["failed"]), status["waiting"]) == (1, 1, 1, 0)


@pytest.mark.usefixtures("inline")
def test_what_was_cut_off_is_put_right(cli: Command, declare: Declare, tmp_path: Path) -> None:
    file, folder = declare(seed=[0, 1]), tmp_path / "s"
    cli("study", file, "--out", "s")
    log = (folder / EVENTS).read_bytes()
    first, second = sorted((folder / "runs").iterdir())
    (folder / EVENTS).write_bytes(log[: log.index(b"\n") + 30])  # torn in its second line: seed 0 began, no more
    kept = (first / "windows.jsonl").read_bytes()
    damaged = bytearray((second / "windows.jsonl").read_bytes())
    damaged[20:24] = b"????"
    (second / "windows.jsonl").write_bytes(bytes(damaged))

    again = cli("study", file, "--out", "s")
    assert (again.code, again.out.splitlines()[0]) == (0, "2 points are measured.")
    assert events(folder) == [
        *[("seed=0", what) for what in ("started", "finished")],  # its run directory says so
        *[("seed=1", what) for what in ("retried", "started", "finished")],
    ]
    assert (first / "windows.jsonl").read_bytes() == kept
    assert (folder / "aside" / f"{second.name}.1" / "windows.jsonl").read_bytes() == bytes(damaged)


@pytest.mark.usefixtures("inline")
def test_a_moved_study_goes_on_and_another_one_is_merged(cli: Command, declare: Declare, tmp_path: Path) -> None:
    cli("study", declare(seed=[0]), "--out", "s")
    shutil.copytree(tmp_path / "s", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "s")
    cli("study", declare(seed=[1, 2]), "--out", "other")
    merged = cli("study", declare(seed=[0, 1, 2]), "--out", "elsewhere", "--merge", "other")
    assert (merged.code, merged.out.splitlines()[0]) == (0, "3 points are measured.")
    assert events(tmp_path / "elsewhere")[2:] == [("seed=1", "merged"), ("seed=2", "merged")]
    assert cli("study", declare(seed=[0, 1, 2]), "--out", "elsewhere", "--merge", "other").code == 0
    assert len(events(tmp_path / "elsewhere")) == 4
    assert len(list((tmp_path / "elsewhere" / "runs").iterdir())) == 3


def test_refusals(cli: Command, declare: Declare, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    for arguments, said in (
        (["nothing.toml"], "cannot read nothing.toml"),
        (["STUDY", "--executor", "rai"], "unknown executor 'rai'. Did you mean 'ray'?"),
        (["STUDY", "--executor-option", "cpus"], "--executor-option 'cpus' is no NAME=VALUE."),
        (["STUDY", "--address", "auto"], "the local executor has no option 'address'. Known: share."),
        (["STUDY", "--out", "full"], "full is not empty, and no study."),
        (["STUDY", "--merge", "full"], "full"),
        (
            ["STUDY", "--dry-run", "--merge", "other"],
            "--merge takes points over, and --dry-run changes nothing. Omit one",
        ),
    ):
        study = declare(seed=[0])
        ran = cli("study", *[study if argument == "STUDY" else argument for argument in arguments])
        assert ran.code == 2
        assert said in ran.err.replace("\n", " ")
    grid = read_study(str(study))
    with StudyDirectory(tmp_path / "s", grid, expand(grid)):
        assert "the study s is in use by another process." in cli("study", study, "--out", "s").error


@pytest.mark.usefixtures("inline")
def test_a_disk_that_is_full_stops_the_study_and_fails_no_point(
    cli: Command, declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    with monkeypatch.context() as patch:
        patch.setattr(run_directory, "append", full)
        ran = cli("study", declare(seed=[0, 1]), "--out", "s")
    assert ran.code == 2
    assert "No space left on device." in ran.err.replace("\n", " ")
    assert "The study stops; give the same command again to go on." in ran.err.replace("\n", " ")
    assert events(tmp_path / "s") == [("seed=0", "started")]
    assert cli("study", declare(seed=[0, 1]), "--out", "s").code == 0


@pytest.mark.slow
@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("cpu", "Another", 'environment.cpu was \\"'), ("code", {"strategies": "0ther"}, "other code: strategies was ")],
)
def test_what_was_begun_on_another_machine_or_with_other_code_is_set_aside_and_measured_anew(
    cli: Command, declare: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, said: str
) -> None:
    """Numbers of two machines or codes are not mixed in one run, and no point fails for it."""
    cli("study", declare(seed=[0, 1]), "--out", "s")
    whole, half = sorted((tmp_path / "s" / "runs").iterdir())
    cut(half, 2)
    (half / "summary.json").unlink()
    kept = (half / "windows.jsonl").read_bytes()
    here = environment.describe
    monkeypatch.setattr(environment, "describe", lambda: here() | {key: value})
    again = cli("study", declare(seed=[0, 1]), "--out", "s")
    assert (again.code, again.out.splitlines()[0]) == (0, "2 points are measured.")
    assert events(tmp_path / "s")[4:] == [("seed=1", what) for what in ("started", "retried", "started", "finished")]
    assert said in (tmp_path / "s" / EVENTS).read_text().splitlines()[5]
    assert (tmp_path / "s" / "aside" / f"{half.name}.1" / "windows.jsonl").read_bytes() == kept
    found = [json.loads((run / "manifest.json").read_text())["environment"][key] for run in (whole, half)]
    assert found == [here()[key], value]
