"""``harness calibrate``: a run, a promise, an operating point that a run takes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records.guarantee import CalibratedPoint
from harness.store.record_files import read_document
from reports.recorded import RecordedRun
from tests.calibrating.conftest import SETTINGS
from tests.run_files import cut

Command = Callable[..., Any]


@pytest.fixture
def calibrate(cli: Command, tiny_llama: Path, rows_file: Path) -> Command:
    """``harness calibrate`` on the tiny model and six small documents; further arguments win."""

    def run(*arguments: object) -> Any:
        decoding = () if "--resume" in arguments else (
            *("--model", tiny_llama, "--source", rows_file, "--limit", 6, "--max-new-tokens", 5),
            *("--energy", "none", "--idle-s", 0, "--threads", 1, "--out", "run"),
        )  # fmt: skip
        return cli("calibrate", *decoding, *arguments)

    return run


def test_percentiles_are_observed_on_other_documents_and_a_run_takes_the_point(
    calibrate: Command, tiny_run: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ("--strategy", "confidence:threshold=q99,q50", "--observe", 2, "--target", "agreement=0.2")
    ran = calibrate(*asked, "--confidence", 0.8)
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "at most 0.8 of agreement is lost on average over documents like these, with confidence 0.8" in said
    assert "of 200 random halves of 3 documents" in said
    point, seal = read_document(CalibratedPoint, tmp_path / "run" / "operating-point.json")
    assert seal
    assert point.strategy.startswith("confidence:threshold=0.")
    assert len(point.guarantee.documents) == 6
    # the same documents again, and its two others
    same = tiny_run("--limit", 8, "--max-new-tokens", 5, "--strategy", "@run/operating-point.json", "--out", "same")
    assert same.code == 0, same.err
    assert "was made on 6 of these 8 documents: what is measured on them is no test of it" in caplog.text
    assert "nothing is promised" not in caplog.text
    manifest = json.loads((tmp_path / "same" / "manifest.json").read_text())
    assert manifest["config"]["strategies"] == [point.strategy]
    other = tiny_run("--strategy", "@run/operating-point.json", "--kv", "skip", "--out", "other")
    assert "is of another KV policy (recompute there, skip here): nothing is promised of this run" in caplog.text
    assert "is of another limit of new tokens (5 there, 4 here)" in caplog.text
    assert other.code == 0, other.err
    caplog.clear()
    fewer = tiny_run("--strategy", "@run/operating-point.json", "--exit-points", "4,10", "--out", "fewer")
    assert fewer.code == 0, fewer.err
    assert "is of another choice of exit points ([4, 6, 10] there, [4, 10] here): nothing is promised" in caplog.text


def test_documents_are_told_by_what_they_hold_and_not_by_where_they_lie(
    calibrate: Command, tiny_run: Command, rows_file: Path, documents: list[str], tmp_path: Path, caplog: Any
) -> None:
    def rows(name: str, texts: list[str], first: int = 0) -> Path:
        lines = (json.dumps({"id": f"doc-{number}", "code": text}) for number, text in enumerate(texts, start=first))
        (tmp_path / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        return tmp_path / name

    mine = rows("rows.jsonl", documents)
    asked = ("--strategy", f"{SETTINGS[0]},0.15", "--target", "agreement=0.2", "--confidence", 0.8)
    ran = calibrate(*asked, "--source", mine)
    assert ran.code == 0, ran.err

    def said_of(source: Path) -> str:
        caplog.clear()
        asked = ("--strategy", "@run/operating-point.json", "--limit", 8, "--max-new-tokens", 5, "--source", source)
        ran = tiny_run(*asked, "--out", f"run-{len(list(tmp_path.iterdir()))}")
        assert ran.code == 0, ran.err
        return str(caplog.text)

    elsewhere = said_of(rows("elsewhere.jsonl", documents))
    assert "was made on 6 of these 8 documents" in elsewhere
    assert "nothing is promised" not in elsewhere
    renumbered = said_of(rows("renumbered.jsonl", documents, first=40))  # so another file with the same texts
    assert "is of other documents (py150, green-code, path: rows.jsonl): nothing is promised of" in renumbered
    assert "was made on 6 of these 8 documents" in renumbered
    exchanged = said_of(rows("rows.jsonl", [text.replace("item", "thing") for text in documents]))
    assert "nothing is promised of these, whose rows are others under the same name" in exchanged
    assert "was made on" not in exchanged


def test_a_promise_about_projects(calibrate: Command, documents: list[str], tmp_path: Path, caplog: Any) -> None:
    """Six documents of three projects; and of none, which is refused."""
    rows = [{"id": number, "code": text, "project": f"p{number % 3}"} for number, text in enumerate(documents[:6])]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = ("--target", "agreement=0.2", "--confidence", 0.5)
    source = ("--source", tmp_path / "rows.jsonl", "--strategy", f"{SETTINGS[0]},0.15")
    ran = calibrate(*asked, *source, "--json")
    assert ran.code == 0, ran.err
    assert "6 documents are of 3 projects (2 of p" in caplog.text
    assert CalibratedPoint.model_validate_json(ran.out).guarantee.projects == {"p0": 2, "p1": 2, "p2": 2}
    caplog.clear()
    ran = calibrate("--resume", "run", *asked, "--unit", "project")
    assert ran.code == 0, ran.err
    said = " ".join(ran.out.split())
    assert "on 6 documents of 3 projects" in said
    assert "is lost on average over projects like these" in said
    assert "count as independent" not in caplog.text
    assert "3 projects cannot certify agreement=0.95" in calibrate(
        "--resume", "run", "--target", "agreement=0.95", "--unit", "project"
    ).err.replace("\n", " ")
    assert calibrate(*asked, "--strategy", f"{SETTINGS[0]},0.15", "--out", "bare").code == 0
    refused = calibrate("--resume", "bare", *asked, "--unit", "project").error
    assert "says which project it is of, and --unit project needs that. Give rows with a field 'project'" in refused


def test_a_finished_run_is_calibrated_without_decoding(
    calibrate: Command, decoded: RecordedRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = ("--resume", decoded.directory, "--target", "edit_similarity_loss=0.6", "--file", tmp_path / "point.json")
    ran = calibrate(*asked, "--method", "conformal", "--against", decoded.directory, "--json")
    assert ran.code == 0, ran.err
    assert "windows into" not in ran.err
    point = CalibratedPoint.model_validate_json(ran.out)
    assert point == read_document(CalibratedPoint, tmp_path / "point.json")[0]
    assert point.guarantee.confidence is None
    assert "it was calibrated on 6 of these 6 documents, and is not tested by them" in caplog.text
    assert [one.value for one in point.guarantee.tested] == [0.99, 0.15, 0.05]


def test_a_run_that_was_cut_is_finished_first(calibrate: Command, tmp_path: Path) -> None:
    asked = ("--target", "agreement=0.3", "--confidence", 0.8)
    whole = calibrate(*asked, "--strategy", f"{SETTINGS[0]},0.15")
    assert whole.code == 0, whole.err
    before = (tmp_path / "run" / "operating-point.json").read_bytes()
    cut(tmp_path / "run", -3)
    again = calibrate(*asked, "--resume", "run")
    assert again.code == 0, again.err
    assert "kept" in again.err
    after = (tmp_path / "run" / "operating-point.json").read_bytes()
    tested = [json.loads(each)["guarantee"]["tested"] for each in (before, after)]
    assert tested[0] == tested[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "agreement=0.95"], "there is nothing to calibrate. Give --strategy NAME"),
        (
            ["--target", "agreement=0.95", "--strategy", "confidence"],
            "6 documents cannot certify agreement=0.95 with confidence 0.95: it takes 63 even if none of them loses",
        ),
        (["--target", "agreement=0.95", "--strategy", "confidence", "--method", "conformal"], "it takes 19 even if"),
        (["--target", "agreement=2", "--strategy", "confidence"], "give a value between 0 and 1"),
        (["--target", "agreement=0.999999", "--strategy", "confidence"], "it takes more than 1,000,000 even if none"),
        (["--target", "agreement=0.2", "--strategy", "@point.json"], "@point.json is calibrated: `harness run` takes"),
        (
            ["--target", "agreement=0.2", "--strategy", "confidence", "--confidence", 0.8, "--limit", 8],
            "all 8 documents",
        ),
        (
            ["--target", "agreement=0.2", "--strategy", "confidence", "--task", "py150", "--task", "javacorpus"],
            "has one",
        ),
    ],
)
def test_refusals(calibrate: Command, tmp_path: Path, arguments: list[object], said: str) -> None:
    ran = calibrate(*arguments)
    assert ran.code == 2
    assert said in ran.err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused_before_scores_are_observed(calibrate: Command, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes").touch()
    said = calibrate("--target", "agreement=0.2", "--strategy", "confidence", "--confidence", 0.8).error
    assert "run is not empty" in said


def test_what_a_resumed_calibration_cannot_change(calibrate: Command, decoded: RecordedRun) -> None:
    asked = ("--resume", decoded.directory, "--target")
    assert "has its settings: omit limit" in calibrate(*asked, "agreement=0.5", "--limit", 6).error
    listed = calibrate(*asked, "agreement=0.5", "--strategy", "confidence:threshold=0.15").error
    assert "all are tested: give --strategy confidence alone" in listed
    assert "6 documents cannot certify agreement=0.95" in calibrate(*asked, "agreement=0.95").err
    other = " ".join(calibrate(*asked, "agreement=0.5", "--strategy", "margin").err.split())
    assert "Name one with --strategy, not margin" in other


def test_rows_of_a_run_that_a_certificate_does_not_speak_of_are_passed_over(
    calibrate: Command, tiny_run: Command, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Lossless rows, and those with a stop rule: two of six settings are left."""
    asked = ("--limit", 6, "--strategy", f"{SETTINGS[0]},0.15", "--stop", "none,line", "--decode", "lossy,lossless")
    assert tiny_run(*asked, "--out", "mixed").code == 0
    promise = ("--target", "agreement=0.2", "--confidence", 0.8)
    assert calibrate("--resume", "mixed", *promise).code == 0
    point, _ = read_document(CalibratedPoint, tmp_path / "mixed" / "operating-point.json")
    assert [one.value for one in point.guarantee.tested] == [0.99, 0.15]
    again = tiny_run("--strategy", "@mixed/operating-point.json", "--stop", "line", "--seed", 1, "--out", "stopped")
    assert again.code == 0, again.err
    assert "is of another stop rule (none there, line here): nothing is promised of this run" in caplog.text
    assert tiny_run("--strategy", SETTINGS[1], "--stop", "line", "--out", "rule").code == 0
    said = calibrate("--resume", "rule", *promise).err
    assert "rule decodes nothing lossily and without a stop rule" in " ".join(said.split())


def test_files_that_are_no_operating_point_are_refused(refused: Command, tmp_path: Path) -> None:
    assert "there is no such file. Make it with `harness calibrate`" in refused("--strategy", "@nothing.json")
    (tmp_path / "other.json").write_text("{}")
    assert "it has no schema_version. Make it again with" in refused("--strategy", "@other.json")


def test_what_is_no_file_is_no_operating_point(put: Callable[[Path], str], refused: Command, tmp_path: Path) -> None:
    said = put(tmp_path / "point.json")
    assert said in refused("--strategy", "@point.json")


def test_a_certificate_that_was_changed_is_refused(calibrate: Command, decoded: RecordedRun, refused: Command) -> None:
    file = Path("point.json")
    asked = ("--resume", decoded.directory, "--target", "agreement=0.3", "--confidence", 0.8, "--file", file)
    assert calibrate(*asked).code == 0
    file.write_text(file.read_text().replace('"agreement=0.3"', '"agreement=0.9"'))
    assert "it was changed, or is damaged" in refused("--strategy", f"@{file}")
