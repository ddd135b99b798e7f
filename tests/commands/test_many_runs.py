"""Reports of many runs: memory that grows by little, and files that are those of a report that holds every record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.errors import StoreError
from harness.running import reading
from harness.running.reading import read_run, read_runs
from reports.collection import Collection, write_collection
from reports.recorded import ReleasedRun
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
def test_memory_grows_by_little_a_run(tmp_path: Path) -> None:
    few, many = 11, 61  # the allocator alone makes 4 MB more or fewer of one report
    write_runs(tmp_path / "many", many)
    for folder in sorted((tmp_path / "many").iterdir())[:few]:
        shutil.copytree(folder, tmp_path / "few" / folder.name)
    for command in (("report", "--no-figures"), ("leaderboard",)):
        held = []
        for name in ("few", "many"):
            out = tmp_path / f"{command[0]} of {name}"
            held.append(harness(*command, tmp_path / name, "--stored", "--out", out, cache=tmp_path)[1])
        assert (held[1] - held[0]) / (many - few) < MOST_MB_PER_RUN, (command, held)


def written(collection: Collection, out: Path) -> dict[str, bytes]:
    write_collection(collection, out, figures=False)
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_a_report_is_the_same_when_records_are_released(runs: Path, tmp_path: Path) -> None:
    whole, _ = read_runs([runs])
    kept, _ = read_runs([runs], keep=True, held=1)
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
