"""``harness report --out``: one report of whatever can be read, and what is wrong with the rest."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.artefacts import SHIPPED
from harness.store import LOCK
from reports.figures.figure import FORMATS

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's run is kept, made once."""
    return tmp_path_factory.mktemp("kept") / "one"


@pytest.fixture
def finished(tiny_run: Command, tmp_path: Path, kept: Path) -> Path:
    """A finished run of four operating points, in ``runs/one``."""
    if not kept.exists():
        ran = tiny_run(
            "--strategy", "fixed:layer=6", "--strategy", "margin:threshold=0.1,0.4", "--limit", 6, "--out", kept
        )
        assert ran.code == 0
    return Path(shutil.copytree(kept, tmp_path / "runs" / "one"))


@pytest.fixture
def small(tiny_run: Command, tmp_path: Path) -> Path:
    """A finished run of two operating points and one sample, in ``runs/small``."""
    folder = tmp_path / "runs" / "small"
    assert tiny_run("--strategy", "fixed:layer=6", "--limit", 1, "--out", folder).code == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_whole_report(cli: Command, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    ran = cli("report", "runs", "--out", "out")
    assert ran.code == 0, ran.err
    assert "out/report.md" in ran.out
    assert contents(finished) == before  # the run is only read
    text = (tmp_path / "out" / "report.md").read_text()
    linked = set(re.findall(r"\((figures/[^)]*)\)", text))
    drawn = {f"figures/{path.name}" for path in (tmp_path / "out" / "figures").iterdir()}
    assert linked == drawn
    assert {Path(path).suffix[1:] for path in drawn} == set(FORMATS)
    stems = {Path(path).stem for path in drawn}
    assert {"one-py150-front-latency", "one-py150-front-layers", "one-py150-thresholds-margin", "one-py150-exit-layers",
            } <= stems  # fmt: skip
    assert any(stem.endswith("fixed-exit") for stem in stems)
    assert "one-py150-front-energy" not in stems  # not measured
    assert "No front of energy" in text
    assert "Dominated hypervolume" in text
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
    ran = cli("report", "runs", "nowhere", "--out", "out", "--no-figures", "--json")
    assert ran.code == 0
    assert [line.partition(":")[0] for line in ran.err.splitlines() if "left out" in line] == ["left out"] * 2
    text = (tmp_path / "out" / "report.md").read_text()
    assert "could not be read (2)" in text
    assert "not JSON" in text
    assert not (tmp_path / "out" / "figures").exists()
    read, *refused = json.loads(ran.out)
    assert read["summary"]["rows"]
    assert [entry["summary"] for entry in refused] == [None, None]
    assert "does not exist" in refused[1]["refused"]


def test_nothing_that_can_be_read_is_refused(cli: Command, tmp_path: Path) -> None:
    line = next(line for line in cli("report", "nowhere", "--out", "out").err.splitlines() if line.startswith("error:"))
    assert "none of 1 run directories can be read" in line
    assert not (tmp_path / "out").exists()


def unfinished(run: Path) -> None:
    file = run / "windows.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-3]))


def failed(run: Path) -> None:
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
        ran = cli("report", finished, "--out", "out", "--no-figures")
    assert ran.code == 0, ran.err
    assert f"one: {state}" in ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert f"**Not complete:** {state}." in text
    assert state.replace("|", "\\|") in text  # in the list of runs
    (entry,) = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert entry["state"] == state
    assert "is not complete:" in (tmp_path / "out" / "tables.tex").read_text()


def test_a_run_of_failures_has_no_figure(cli: Command, finished: Path, tmp_path: Path) -> None:
    failed(finished)
    assert cli("report", finished, "--out", "out").code == 0
    assert not (tmp_path / "out" / "figures").exists()
    assert "no operating point finished a sample" in (tmp_path / "out" / "report.md").read_text()


def test_a_folder_whose_files_would_be_lost(cli: Command, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    assert "is a run directory" in cli("report", finished, "--out", finished).error
    assert contents(finished) == before
    (tmp_path / "file").write_text("mine")
    assert "is a file" in cli("report", finished, "--out", "file").error
    assert (tmp_path / "file").read_text() == "mine"
    assert "Add --out" in cli("report", finished, "--no-figures").error


def test_hundreds_of_runs(cli: Command, small: Path, tmp_path: Path) -> None:
    for number in range(300):
        copy = tmp_path / "many" / f"{number % 150:03d}" / ("a" if number < 150 else "b")
        copy.mkdir(parents=True)
        for name in ("manifest.json", "samples.jsonl", "windows.jsonl"):
            os.link(small / name, copy / name)
    begun = time.monotonic()
    ran = cli("report", "many", "--out", "out")
    assert ran.code == 0, ran.err
    assert time.monotonic() - begun < 120
    assert "300 run(s), 1 figure(s)" in ran.out
    assert "300 of 300" in ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("## Run many/") == 300
    assert "Draw them with --figures" in text
    with (tmp_path / "out" / "summary.csv").open() as file:
        assert len({row["run"] for row in csv.DictReader(file)}) == 300  # folders of one name are told apart


def test_a_further_page_is_written_and_linked(
    cli: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reports import collection
    from reports.figures.catalogue import Page

    monkeypatch.setattr(
        collection, "pages", lambda named: [Page("more.html", "all [of] it", lambda: f"<p>{len(named)}</p>")]
    )
    assert cli("report", "runs", "--out", "out", "--no-figures").code == 0
    assert (tmp_path / "out" / "more.html").read_text() == "<p>1</p>"
    assert "(more.html)" in (tmp_path / "out" / "report.md").read_text()


def test_no_torch(small: Path, tmp_path: Path) -> None:
    probe = (
        "import sys; sys.argv = ['harness', 'report', 'runs', '--out', 'out']\n"
        "from harness.cli import main\n"
        "try: main()\nexcept SystemExit as left: assert left.code == 0, left.code\n"
        "assert 'matplotlib' in sys.modules\n"
        "print(sorted({'torch', 'transformers', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=tmp_path, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_trainings_completions_and_published_numbers(cli: Command, small: Path, tmp_path: Path) -> None:
    ran = cli("report", small, SHIPPED / "smollm2-135m", "--out", "out")
    assert ran.code == 0, ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.index("## Run small") < text.index("## Trainings behind these runs") < text.index("published numbers")
    drawn = {path.stem for path in (tmp_path / "out" / "figures").glob("training-smollm2-135m-*.svg")}
    assert {name.rpartition("-")[2] for name in drawn} == {"weights", "loss", "reward", "exits"}
    assert "[Completions of small, token by token](completions-small.html)" in text
    assert "fixed:layer=6" in (tmp_path / "out" / "completions-small.html").read_text()


def test_a_training_alone_can_be_reported(cli: Command, tmp_path: Path) -> None:
    ran = cli("report", SHIPPED / "smollm2-135m-shared", "--out", "out")
    assert ran.code == 0, ran.err
    assert "## Trainings" in (tmp_path / "out" / "report.md").read_text()
