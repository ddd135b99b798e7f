"""Reports of many runs: memory that grows by little, and files that are those of a report that holds every record."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.host.interpreter import Helper
from harness.running import reading
from harness.running.reading import read_run, read_runs
from reports.collection import Collection, write_collection
from reports.recorded import ReleasedRun
from reports.tables.run_tables import of_records
from tests.made_up_runs import write_runs
from tests.measured_command import harness
from tests.run_files import cut, unseal

MOST_MB_PER_RUN = 0.6
"""So that 1,000 take less than 1 GB; records held as objects take 5 MB a run, and estimates without slots 0.8 MB."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small runs."""
    folder = tmp_path_factory.mktemp("made")
    write_runs(folder, 2, samples=5, points=3)
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Them, in a folder of their own, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(made, tmp_path / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [("report", "--no-figures"), ("leaderboard",)])
def test_memory_grows_by_little_a_run(command: tuple[str, ...], tmp_path: Path) -> None:
    few, many = 21, 41
    write_runs(tmp_path / "many", many)
    for folder in sorted((tmp_path / "many").iterdir())[:few]:
        shutil.copytree(folder, tmp_path / "few" / folder.name)
    held = [
        harness(*command, tmp_path / name, "--stored", "--out", tmp_path / f"of {name}", cache=tmp_path)[1]
        for name in ("few", "many")
    ]
    assert (held[1] - held[0]) / (many - few) < MOST_MB_PER_RUN, held


def written(collection: Collection, out: Path) -> dict[str, bytes]:
    write_collection(collection, out, figures=False)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_report_is_the_same_when_records_are_released(runs: Path, tmp_path: Path) -> None:
    whole, _ = read_runs([runs])
    kept, _ = read_runs([runs], keep=True, held=1, before=of_records)
    again, _ = read_runs([runs], keep=True, held=1)
    assert not any(isinstance(run, ReleasedRun) for run in whole)
    assert all(isinstance(run, ReleasedRun) for run in (*kept, *again))
    assert len(list((tmp_path / "cache").rglob("*.json.gz"))) == 2
    files = written(Collection(tuple(whole)), tmp_path / "whole")
    assert files == written(Collection(tuple(kept)), tmp_path / "kept")
    assert files == written(Collection(tuple(again)), tmp_path / "again")
    entries = json.loads(files["summary.json"])
    assert files["summary.json"].decode() == json.dumps(entries, indent=2) + "\n"
    assert [entry["summary"] for entry in entries] == [run.summary.model_dump(mode="json") for run in whole]


def test_records_are_read_again_as_they_were(runs: Path) -> None:
    shutil.copytree(runs / "0000", runs / "0002")
    cut(runs / "0002", -1)
    held = read_run(runs / "0002")
    *_, released = read_runs([runs], held=1)[0]
    shutil.copytree(runs / "0000", runs / "0002", dirs_exist_ok=True)  # it went on meanwhile
    assert released.state == held.state == "not finished: 14 of 15 windows"
    assert (released.windows, released.samples, released.cells) == (held.windows, held.samples, held.cells)
    assert released.identity == held.identity
    shutil.copytree(runs / "0001", runs / "0002", dirs_exist_ok=True)
    _ = read_runs([runs], held=1)[0][0].samples  # another run's were read in between
    with pytest.raises(StoreError, match="0002 was changed while it was reported"):
        _ = released.samples


def test_a_summary_is_kept_for_these_records_this_code_and_these_scores(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    summarise = reading._summarise

    def counted(*records: object) -> object:
        made.append(1)
        return summarise(*records)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "_summarise", counted)
    first = read_run(runs / "0000", keep=True)
    assert read_run(runs / "0000", keep=True).summary == first.summary
    assert len(made) == 1
    (file,) = (tmp_path / "cache").rglob("*.json.gz")
    file.write_bytes(file.read_bytes()[:-20])
    assert read_run(runs / "0000", keep=True).summary == first.summary  # damaged: made and kept again
    assert len(made) == 2
    assert read_run(runs / "0000").summary == first.summary  # not asked to keep
    read_run(runs / "0001", keep=True)  # other records
    assert len(made) == 4
    with monkeypatch.context() as other:
        other.setattr(reading, "missing_scores", lambda: ("not shown: CodeBLEU",))
        read_run(runs / "0000", keep=True)
        other.setattr(reading, "_code", lambda: "another version")
        read_run(runs / "0000", keep=True)
    assert len(made) == 6
    read_run(runs / "0000", keep=True)
    assert len(made) == 6


def test_what_cannot_be_kept_is_made_every_time(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert read_run(runs / "0000", keep=True).summary == read_run(runs / "0000").summary
    (tmp_path / "cache").unlink()
    unseal(runs / "0000")
    read_run(runs / "0000", keep=True)
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Have even a few runs read ahead, in two processes; returns those that were started."""
    monkeypatch.setattr(reading, "FEWEST_RUNS", 2)
    monkeypatch.setattr(reading, "core_count", lambda: 2)
    found: list[subprocess.Popen[bytes]] = []

    class Noted(Helper):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            found.append(self.process)

    monkeypatch.setattr(reading, "Helper", Noted)
    return found


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_runs_that_are_read_ahead_are_those_read_one_after_the_other(
    runs: Path,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(runs / "0000", runs / "changed")
    file = runs / "changed" / "samples.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"repeat":0', b'"repeat":1', 1))
    shutil.copytree(runs / "0001", runs / "unsealed")
    unseal(runs / "unsealed")
    (runs / "empty").mkdir()
    (runs / "empty" / "manifest.json").write_text("{")
    before = contents(runs)
    one_by_one, wrong = read_runs([runs])
    assert not started
    assert [refusal.directory.name for refusal in wrong] == ["changed", "empty"]
    made: list[str] = []
    summarise = reading._summarise

    def counted(*records: Any) -> Any:
        made.append(records[0].run)
        return summarise(*records)

    monkeypatch.setattr(reading, "_summarise", counted)
    steps: list[tuple[int, int]] = []
    found, refused = read_runs([runs], keep=True, progress=lambda done, total: steps.append((done, total)))
    assert len(started) == 2
    assert not [process for process in started if process.returncode is None]
    assert [(run.directory, run.summary) for run in found] == [(run.directory, run.summary) for run in one_by_one]
    assert refused == wrong
    assert steps == [(done, 5) for done in range(6)]
    assert made == [""]  # the one without a seal: the others were found made
    assert contents(runs) == before
    assert not caplog.records
    assert [run.summary for run in read_runs([runs], keep=True)[0]] == [run.summary for run in found]
    assert len(started) == 2  # nothing is left to make


def test_what_a_process_leaves_its_reader_reads(
    runs: Path,
    started: list[subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    found, _ = read_runs([runs], keep=True)
    assert [run.summary for run in found] == [run.summary for run in read_runs([runs])[0]]
    assert len(started) == 2
    assert ["exit code 1; its runs are read here" in record.message for record in caplog.records] == [True, True]


def test_an_interrupt_leaves_no_process_that_reads_ahead(
    runs: Path, started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reading, "read_run", interrupted)
    shutil.copytree(runs / "0000", runs / "0")
    (runs / "0" / "windows.jsonl").write_text("")  # comes first, and is not waited for
    with pytest.raises(KeyboardInterrupt):
        read_runs([runs], keep=True)
    assert len(started) == 2
    assert not [process for process in started if process.returncode is None]


def test_a_leaderboard_is_read_ahead(
    runs: Path, started: list[subprocess.Popen[bytes]], cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    ran = cli("leaderboard", runs, "--out", tmp_path / "stored", "--stored")
    assert (ran.code, started) == (0, [])
    assert cli("leaderboard", runs, "--out", tmp_path / "made").code == 0
    assert len(started) == 2
