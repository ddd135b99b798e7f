"""``harness report --out``: one report of whatever can be read, and what is wrong with the rest."""

from __future__ import annotations

import csv
import errno
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

from harness.errors import DEFECT
from harness.models.artefacts import SHIPPED
from harness.store.run_directory import LOCK
from reports.figures.drawing import FORMATS
from tests.run_files import cut, unseal

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


@pytest.mark.slow
def test_a_whole_report(cli: Command, finished: Path, tmp_path: Path) -> None:
    before = contents(finished)
    ran = cli("report", "runs", "--out", "out")
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
    stems = {Path(path).stem for path in drawn}
    assert {"one-py150-front-speedup", "one-py150-front-layers", "one-py150-thresholds-margin", "one-py150-exit-layers",
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


@pytest.mark.slow
def test_a_figure_for_a_column(cli: Command, small: Path, tmp_path: Path) -> None:
    assert cli("report", small, "--out", "out", "--width", "column").code == 0
    figures = list((tmp_path / "out" / "figures").glob("*.svg"))
    assert figures
    assert {re.search(r'width="([\d.]+)pt"', figure.read_text()).group(1) for figure in figures} == {"252"}  # type: ignore[union-attr]


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
    assert "none of 1 run directories, sweeps and trainings can be read" in line
    assert not (tmp_path / "out").exists()


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
    assert "No Pareto fronts: they take several operating points" in (tmp_path / "out" / "report.md").read_text()


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
@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_stopped_it_leaves_no_report_with_dead_links(
    cli: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[BaseException]
) -> None:
    from reports import collection

    def stop(*_: object) -> None:
        raise failure("now")

    with monkeypatch.context() as patched:
        patched.setattr(collection, "save_figures", stop)
        assert cli("report", small, "--out", "out").code == (130 if failure is KeyboardInterrupt else DEFECT)
    assert not (tmp_path / "out" / "report.md").exists()
    assert not (tmp_path / "out" / "index.html").exists()
    assert (tmp_path / "out" / "summary.csv").exists()
    ran = cli("report", small, "--out", "out")  # and it can be made again in the same place
    assert ran.code == 0, ran.err
    linked = re.findall(r"\((figures/[^)]*)\)", (tmp_path / "out" / "report.md").read_text())
    assert linked
    assert all((tmp_path / "out" / name).exists() for name in linked)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report.md", "my thesis"),
        ("report.md", ""),
        ("tables.tex", "\\section{Results}"),
        ("tables-details.tex", "\\section{Results}"),
        ("index.html", "<!doctype html><p>mine"),
        ("summary.csv", "a,b"),
        ("summary.json", "{}"),
        ("completions-one.html", "<p>"),
        ("figures/mine.svg", "<svg/>"),
    ],
)
def test_files_of_somebody_else_are_never_replaced(
    cli: Command, small: Path, tmp_path: Path, name: str, text: str
) -> None:
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    line = cli("report", small, "--out", "mine").error
    assert f"mine/{name.partition('/')[0]} is not of a report" in line
    assert contents(tmp_path / "mine") == {name: text.encode()}


def test_other_files_beside_a_report_stay(cli: Command, small: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("mine")
    assert cli("report", small, "--out", "mine", "--no-figures").code == 0
    assert cli("report", small, "--out", "mine", "--no-figures").code == 0  # a report is replaced
    assert (tmp_path / "mine" / "notes.md").read_text() == "mine"


def test_a_folder_without_a_name(cli: Command, small: Path, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert "--out is empty" in cli("report", small, "--out", "").error
    assert contents(tmp_path) == before


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_training_alone_can_be_reported(cli: Command, tmp_path: Path) -> None:
    ran = cli("report", SHIPPED / "smollm2-135m-shared", "--out", "out")
    assert ran.code == 0, ran.err
    assert "## Trainings" in (tmp_path / "out" / "report.md").read_text()


def test_a_damaged_sweep_costs_the_runs_nothing(cli: Command, small: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "calibration.json").write_text("{")
    ran = cli("report", small, "sweep", "--out", "out", "--no-figures")
    assert ran.code == 0, ran.err
    assert [line for line in ran.err.splitlines() if line.startswith("left out: sweep/calibration.json is no calibr")]
    assert "1 run(s), 1 left out" in ran.out
    text = (tmp_path / "out" / "report.md").read_text()
    assert "## Run small" in text
    assert "- sweep: sweep/calibration.json is no calibration" in text


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


def test_many_that_cannot_be_read_are_few_lines(cli: Command, small: Path, tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / "runs" / f"bad-{number}").mkdir()
        (tmp_path / "runs" / f"bad-{number}" / "manifest.json").write_text("{")
    ran = cli("report", "runs", "--out", "out", "--no-figures")
    assert ran.code == 0
    lines = [line for line in ran.err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 21
    assert lines[-1].startswith("left out: 40 more: ")
    assert "could not be read (60)" in (tmp_path / "out" / "report.md").read_text()


def test_a_copy_is_not_a_second_run(cli: Command, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path / "runs" / "twin")
    ran = cli("report", "runs", "--out", "out", "--no-figures")
    assert "1 of 2 runs share windows with others, as twin: a copy of small, not a run of its own." in ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| a copy of small, not a run of its own |" in next(row for row in text.splitlines() if "| twin |" in row)
    assert "copy" not in next(row for row in text.splitlines() if "| small |" in row)


def test_a_training_of_which_nothing_can_be_read_is_refused(cli: Command, tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "training.jsonl").write_text("{}\n{}\n")
    ran = cli("report", "training", "--out", "out")
    assert "none of 1 run directories, sweeps and trainings can be read" in ran.error
    assert "warning: 2 of 2 lines of training/training.jsonl are damaged and left out." in ran.err
    assert not (tmp_path / "out").exists()


def test_what_is_damaged_in_a_training_is_said_once(cli: Command, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED / "smollm2-135m-shared", tmp_path / "training"))
    with (folder / "training.jsonl").open("a") as file:
        file.write("{}\n")
    ran = cli("report", folder, "--out", "out", "--no-figures")
    assert ran.code == 0
    assert "are damaged and left out." in ran.err
    text = (tmp_path / "out" / "report.md").read_text()
    assert "are damaged and left out.\n" in text
    assert ".." not in text.replace("…", "")


@pytest.mark.parametrize(
    "arguments",
    [("report", "locked"), ("leaderboard", "locked", "--out", "site"), ("compare", "locked", "locked"),
     ("submit", "locked"), ("report", "locked", "--out", "out")],
)  # fmt: skip
def test_a_path_without_permission_is_for_the_reader_to_refuse(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
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
    ran = cli(*arguments)
    assert ran.code == 2
    assert "cannot read locked: Permission denied." in ran.err
