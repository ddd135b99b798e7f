"""``harness leaderboard`` over many directories, most of them broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.running.reading import read_run
from reports.leaderboard.site import read_script
from reports.recorded import RecordedRun
from tests.run_files import unseal

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this module's run is kept, made once."""
    return tmp_path_factory.mktemp("kept") / "good"


@pytest.fixture
def runs(tiny_run: Command, tmp_path: Path, kept: Path) -> Path:
    """A folder with one good run, whatever else this machine did meanwhile."""
    if not kept.exists():
        assert tiny_run("--out", kept).code == 0
        unseal(kept)
        windows = kept / "windows.jsonl"
        windows.write_text(flagged(windows.read_text()))
    shutil.copytree(kept, tmp_path / "runs" / "good")
    return tmp_path / "runs"


def flagged(text: str, *flags: str) -> str:
    return "".join(json.dumps(json.loads(line) | {"flags": flags}) + "\n" for line in text.splitlines())


def remade(runs: Path, name: str) -> None:
    """Make a run another one than that it was copied from."""
    file = runs / name / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"created": f"2026-01-01T00:00:00Z, {name}"}))


def broken(runs: Path, name: str, file: str, change: Callable[[str], str]) -> None:
    """Copy the good run with one file changed."""
    shutil.copytree(runs / "good", runs / name)
    path = runs / name / file
    path.write_text(change(path.read_text()))


def without_last_line(text: str) -> str:
    return "".join(text.splitlines(keepends=True)[:-1])


def all_failed(text: str) -> str:
    return "".join(json.dumps(json.loads(line) | {"error": "out of luck"}) + "\n" for line in text.splitlines())


def test_the_good_ones_are_published_and_each_other_has_a_line(cli: Command, runs: Path, tmp_path: Path) -> None:
    broken(runs, "unfinished", "windows.jsonl", without_last_line)
    remade(runs, "unfinished")
    broken(runs, "unreadable", "manifest.json", lambda _: "{")
    broken(runs, "foreign", "manifest.json", lambda text: text.replace('"schema_version": 1', '"schema_version": 9', 1))
    broken(runs, "failed", "samples.jsonl", all_failed)
    broken(runs, "empty", "windows.jsonl", lambda _: "")
    (tmp_path / "loop").symlink_to("loop")
    ran = cli("leaderboard", runs, tmp_path / "nowhere", tmp_path / "loop", "--out", tmp_path / "site")
    assert ran.code == 0, ran
    assert "2 run(s) with 2 operating points, 1 marked and not ranked, 6 left out" in ran.out
    (marked,) = (line for line in ran.err.splitlines() if line.startswith("not ranked: "))
    remedy = f"Continue it with `harness run --resume {runs / 'unfinished'}`."
    assert marked == f"not ranked: not finished: 2 of 3 windows. {remedy}"
    lines = [line for line in ran.err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == 6
    for name, said in {
        "unreadable": "not JSON",
        "foreign": "schema_version 9 and this harness reads 1",
        "failed": "every sample failed, the first with: out of luck",
        "empty": "windows.jsonl was cut or lost",
        "nowhere": "does not exist",
        "loop": "symbolic links",
    }.items():
        assert [line for line in lines if name in line and said in line], (name, lines)


def test_what_submit_refuses_is_marked_and_not_ranked(cli: Command, runs: Path, tmp_path: Path) -> None:
    broken(runs, "loud", "windows.jsonl", lambda text: flagged(text, "foreign-cpu"))
    remade(runs, "loud")
    refused = cli("submit", runs / "loud")
    ran = cli("leaderboard", runs, "--out", tmp_path / "site", "--strict")
    assert ran.code == 1
    assert "2 run(s) with 2 operating points, 1 marked and not ranked." in ran.out
    (line,) = (line for line in ran.err.splitlines() if line.startswith("not ranked: "))
    reason = "3 of 3 windows that count are contaminated (foreign-cpu). Free the machine and run again with --strict."
    assert line == f"not ranked: {runs / 'loud'}: {reason}"
    assert reason in refused.out
    index = read_script(tmp_path / "site" / "data" / "index.js", "index")
    points = [dict(zip(index["fields"], point, strict=True)) for point in index["points"]]
    marks = {index["runs"][point["run"]][1]: (index["runs"][point["run"]][4], point["ranks"]) for point in points}
    assert marks["good"][0] == []
    assert marks["good"][1][0] == 1
    assert marks["loud"] == ([reason.partition(". ")[0]], [None] * len(index["criteria"]))


def test_a_pull_request_s_archives_pass_as_the_workflow_checks_them(
    cli: Command, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(__file__).resolve().parents[2] / ".github" / "workflows" / "submissions.yml"
    (job,) = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values()
    (command,) = (step["run"] for step in job["steps"] if step.get("run", "").startswith("harness "))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "submissions").mkdir()
    assert cli("report", runs / "good").code == 0
    assert cli("submit", runs / "good", "--out", "submissions/good.tar.gz").code == 0
    ran = cli(*command.split()[1:])
    assert ran.code == 0, ran.err
    assert "1 run(s) with 1 operating points" in ran.out


def test_nothing_to_publish_is_refused(cli: Command, tmp_path: Path) -> None:
    ran = cli("leaderboard", tmp_path / "nowhere", "--out", tmp_path / "site")
    assert ran.code == 2
    assert "no run to publish" in ran.err.splitlines()[-1]
    assert not (tmp_path / "site").exists()


def test_a_defect_met_by_one_run_is_named_and_the_rest_is_published(
    cli: Command, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(runs, "odd", "manifest.json", str)

    def read(path: Path, **options: Any) -> RecordedRun:
        if path.name == "odd":
            raise ZeroDivisionError("division\nby zero")
        return read_run(path, **options)

    monkeypatch.setattr("harness.running.reading.read_run", read)
    ran = cli("leaderboard", runs, "--out", tmp_path / "site")
    assert ran.code == 0, ran
    assert "1 run(s) with 1 operating points, 1 left out" in ran.out
    (line,) = (line for line in ran.err.splitlines() if line.startswith("left out: "))
    said = "cannot be understood (ZeroDivisionError: division by zero); leave it out, and report it as a defect"
    assert line == f"left out: {runs / 'odd'} {said}"


def test_a_site_loses_no_run_that_was_not_given_again_and_merging_adds(
    cli: Command, tiny_run: Command, runs: Path, tmp_path: Path
) -> None:
    assert cli("leaderboard", runs, "--out", tmp_path / "site").code == 0
    assert tiny_run("--out", tmp_path / "more", "--strategy", "fixed:layer=6").code == 0
    ran = cli("leaderboard", tmp_path / "more", "--out", tmp_path / "site")
    assert ran.code == 2
    assert "1 run(s) that were not given again" in ran.err
    assert "Add --merge to keep them, or use another --out" in ran.err
    assert len(list((tmp_path / "site" / "data" / "runs").iterdir())) == 1
    ran = cli("leaderboard", tmp_path / "more", "--out", tmp_path / "site", "--merge")
    assert "2 run(s) with 3 operating points, 1 new" in ran.out
    again = cli("leaderboard", tmp_path / "more", "--out", tmp_path / "site", "--merge")
    assert "2 run(s) with 3 operating points, 0 new, 1 given twice or there already" in again.out
