"""``harness report --out``: one report of whatever can be read, and what is wrong with the rest."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.models.artefacts import SHIPPED
from harness.store.run_directory import LOCK
from reports.figures.drawing import FORMATS
from tests.run_files import cut, unseal

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's runs are kept, made once."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(tiny_run: Command, tmp_path: Path, kept: Path) -> Path:
    """A finished run of four operating points, in ``runs/one``."""
    if not (kept / "one").exists():
        points = ("--strategy", "fixed:layer=6", "--strategy", "margin:threshold=0.1,0.4")
        assert tiny_run(*points, "--limit", 6, "--out", kept / "one").code == 0
    return Path(shutil.copytree(kept / "one", tmp_path / "runs" / "one"))


@pytest.fixture
def small(tiny_run: Command, tmp_path: Path, kept: Path) -> Path:
    """A finished run of two operating points and one sample, in ``runs/small``."""
    if not (kept / "small").exists():
        assert tiny_run("--strategy", "fixed:layer=6", "--limit", 1, "--out", kept / "small").code == 0
    return Path(shutil.copytree(kept / "small", tmp_path / "runs" / "small"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_table_of_the_columns_asked_for(cli: Command, finished: Path) -> None:
    ran = cli("report", finished, "--columns", "exit_layer_mean,exact_prefix", "--sort", "exit_layer_mean")
    assert ran.code == 0, ran.err
    rows = re.findall(r"^[◇●]? +([A-D])  (\S+) +([\d.]+) ", ran.out, re.M)
    layers = [float(value) for _, _, value in rows]
    assert (len(rows), rows[0][1]) == (4, "full")
    assert layers[1:] == sorted(layers[1:], reverse=True)  # neither direction is better
    assert "edit" not in ran.out
    only = cli("report", finished, "--table", "agreement with").out
    assert "Agreement with full depth" in only
    assert "Depth and work" not in only
    assert "Did you mean 'speedup'" in cli("report", finished, "--columns", "speeup").error
    assert "unknown table 'nothing like it'" in cli("report", finished, "--table", "nothing like it").error
    assert "Omit one" in cli("report", finished, "--columns", "speedup", "--table", "depth").error
    assert "Omit --out" in cli("report", finished, "--sort", "speedup", "--out", "out").error


@pytest.mark.slow
def test_a_whole_report(cli: Command, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    ran = cli("report", "runs", "--out", "out", "--width", "column")
    assert ran.code == 0, ran.err
    assert "out/index.html" in ran.out
    assert contents(finished) == before  # the run is only read
    text = (tmp_path / "out" / "report.md").read_text()
    linked = set(re.findall(r"\((figures/[^)]*)\)", text))
    drawn = {f"figures/{path.name}" for path in (tmp_path / "out" / "figures").iterdir()}
    assert linked == drawn
    assert {Path(path).suffix[1:] for path in drawn} == set(FORMATS)
    page = (tmp_path / "out" / "index.html").read_text()
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', page))
    assert drawn | {"report.md", "tables.tex", "tables-details.tex", "completions-one.html"} <= links
    assert all((tmp_path / "out" / link).is_file() for link in links)
    assert set(re.findall(r'href="#(\w+)"', page)) <= set(re.findall(r'id="([\w-]+)"', page))
    assert page.partition("<details>")[0].count('<th scope="row">') == 4
    assert "max-width: 3.5in" in page
    stems = {Path(path).stem for path in drawn}
    assert {"one-py150-front-speedup", "one-py150-front-layers", "one-py150-thresholds-margin", "one-py150-exit-layers",
            } <= stems  # fmt: skip
    assert any(stem.endswith("fixed-exit") for stem in stems)
    assert "one-py150-front-energy" not in stems  # not measured
    with (tmp_path / "out" / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["operating_point"]) for row in rows][:2] == [("one", "full"), ("one", "fixed:layer=6")]
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (entry["run"], entry["state"]) == ("one", "")
    assert len(entry["summary"]["rows"]) == len(rows) == 4
    assert r"\texttt{margin:threshold=0.4}" in (tmp_path / "out" / "tables.tex").read_text()


def test_the_rest_is_reported_when_some_cannot_be_read(cli: Command, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "manifest.json").write_text("{")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "calibration.json").write_text("{")
    ran = cli("report", "runs", "nowhere", "sweep", "--out", "out", "--no-figures", "--json")
    assert ran.code == 0
    assert [line.partition(":")[0] for line in ran.err.splitlines() if "left out" in line] == ["left out"] * 3
    text = (tmp_path / "out" / "report.md").read_text()
    assert "could not be read (3)" in text
    assert "sweep/calibration.json is no calibration" in text
    assert "not JSON" in text
    assert not (tmp_path / "out" / "figures").exists()
    read, *refused = json.loads(ran.out)
    assert read["summary"]["rows"]
    assert [entry["summary"] for entry in refused] == [None] * 3
    assert "does not exist" in refused[1]["refused"]


def unfinished(run: Path) -> None:
    cut(run, -3)


def failed(run: Path) -> None:
    unseal(run)
    file = run / "samples.jsonl"
    names = ("window", "operating_point", "task", "sample_id", "repeat", "prompt_ids")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    kept = [{name: record[name] for name in names} | {"error": "it | broke"} for record in records]
    file.write_text("".join(json.dumps(record) + "\n" for record in kept))


@pytest.mark.parametrize(
    ("spoil", "written", "state"),
    [
        (unfinished, False, "not finished: 21 of 24 windows"),
        (unfinished, True, "still being written: 21 of 24 windows"),
        (failed, False, "every sample failed, the first with: it | broke"),
    ],
)
def test_what_is_missing_stands_beside_the_run(
    cli: Command, finished: Path, tmp_path: Path, spoil: Callable[[Path], None], written: bool, state: str
) -> None:
    spoil(finished)
    with (finished / LOCK).open("ab") as lock:
        if written:
            fcntl.flock(lock, fcntl.LOCK_EX)
        ran = cli("report", finished, "--out", "out", *(() if spoil is failed else ("--no-figures",)))
    assert ran.code == 0, ran.err
    assert not (tmp_path / "out" / "figures").exists()  # of failures there are none
    assert f"one: {state}" in ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"**Not complete:** {state}." in text
    assert state.replace("|", "\\|") in text  # in the list of runs
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert entry["state"] == state
    assert "is not complete:" in (tmp_path / "out" / "tables.tex").read_text()


def test_a_folder_whose_files_would_be_lost(cli: Command, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    assert "is a run directory" in cli("report", finished, "--out", finished).error
    assert contents(finished) == before
    (tmp_path / "file").write_text("mine")
    assert "is a file" in cli("report", finished, "--out", "file").error
    assert (tmp_path / "file").read_text() == "mine"
    assert "Add --out" in cli("report", finished, "--no-figures").error
    assert "Add --out" in cli("report", finished, "--width", "column").error


@pytest.mark.slow
def test_stopped_it_leaves_no_report_with_dead_links(
    cli: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("reports.collection.save_figures", stop)
        assert cli("report", small, "--out", "out").code == 130
    assert not (tmp_path / "out" / "report.md").exists()
    assert not (tmp_path / "out" / "index.html").exists()
    assert (tmp_path / "out" / "summary.csv").exists()
    ran = cli("report", small, "--out", "out")  # and it can be made again in the same place
    assert ran.code == 0, ran.err
    linked = re.findall(r"\((figures/[^)]*)\)", (tmp_path / "out" / "report.md").read_text())
    assert linked
    assert all((tmp_path / "out" / name).exists() for name in linked)


def test_files_of_somebody_else_are_never_replaced(cli: Command, small: Path, tmp_path: Path) -> None:
    for number, (name, text) in enumerate(
        (("report.md", "my thesis"), ("index.html", "<!doctype html><p>mine"), ("figures/mine.svg", "<svg/>"))
    ):
        file = tmp_path / f"mine{number}" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        line = cli("report", small, "--out", f"mine{number}").error
        assert f"mine{number}/{name.partition('/')[0]} is not of a report" in line
        assert contents(tmp_path / f"mine{number}") == {name: text.encode()}


@pytest.mark.slow
def test_trainings_completions_and_published_numbers(cli: Command, small: Path, tmp_path: Path) -> None:
    ran = cli("report", small, SHIPPED / "smollm2-135m", "--out", "out")
    assert ran.code == 0, ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index("## Run small") < text.index("## Trainings behind these runs") < text.index("published numbers")
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("training-smollm2-135m-*.svg")}
    assert {name.rpartition("-")[2] for name in drawn} == {"weights", "loss", "reward", "exits"}
    assert "[Completions of small, token by token](completions-small.html)" in text
    assert "fixed:layer=6" in (tmp_path / "out" / "completions-small.html").read_text()


def test_without_a_folder_what_can_be_read_is_shown_and_the_rest_refused(
    cli: Command, small: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    ran = cli("report", small, "bad", "nowhere")
    assert ran.code == 2
    assert "fixed:layer=6" in ran.out
    lines = ran.err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["left out", "left out", "error"]
    assert "bad" in lines[0]
    assert "nowhere" in lines[1]
    assert lines[2] == "error: 2 of 3 run directories cannot be read (above)."
    assert (small / "report.md").exists()
    (read,) = json.loads(cli("report", "bad", small, "--json").out)
    assert read["rows"]


def test_a_copy_is_not_a_second_run(cli: Command, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "runs" / "twin")
    ran = cli("report", "runs", "--out", "out", "--no-figures")
    assert "1 of 2 runs share windows with others, as twin: a copy of small, not a run of its own." in ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a copy of small, not a run of its own |" in next(row for row in text.splitlines() if "| twin |" in row)
    assert "copy" not in next(row for row in text.splitlines() if "| small |" in row)


def test_a_path_without_permission_is_for_the_reader_to_refuse(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parser would refuse the whole command over one of many paths."""
    (tmp_path / "locked").mkdir()
    access, stat = os.access, os.stat

    def checked(path: Any, *more: Any, **options: Any) -> os.stat_result:
        if "locked/" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied")
        return stat(path, *more, **options)

    monkeypatch.setattr(
        os, "access", lambda path, *more, **how: "locked" not in str(path) and access(path, *more, **how)
    )
    monkeypatch.setattr(os, "stat", checked)
    for arguments in ("report @", "leaderboard @ --out site", "compare @ @", "submit @", "report @ --out out"):
        ran = cli(*arguments.replace("@", "locked").split())
        assert ran.code == 2, arguments
        assert "cannot read locked: Permission denied." in ran.err, arguments
