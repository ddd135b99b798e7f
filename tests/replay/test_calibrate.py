"""``harness calibrate``: losses, the order of settings, the promise, whether it holds, and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.errors import ConfigError, DataError, HarnessError
from harness.records.guarantee import CalibratedPoint, shared_projects
from harness.replay.calibrate import (
    ROUNDS,
    Settings,
    by_project,
    calibrated,
    certified,
    document_losses,
    held_out_check,
    parse_target,
    settings_of,
    split_check,
)
from harness.replay.options import CalibrateOptions
from harness.store.record_files import read_document
from reports.recorded import RecordedRun
from tests.replay.conftest import SETTINGS
from tests.run_files import cut, samples

Command = Callable[..., Any]


def options(target: str = "agreement=0.6", **more: object) -> CalibrateOptions:
    return CalibrateOptions.build({"target": target, "confidence": 0.9, **more})


def with_losses(settings: Settings, losses: list[list[float]]) -> Settings:
    """The settings with other losses."""
    table = np.array(losses)
    return replace(settings, losses=table, documents={f"d{place}": "" for place in range(table.shape[1])})


def test_targets_are_read_and_others_refused() -> None:
    for text, name, risk, of_score in (
        ("agreement=0.95", "agreement", 0.05, False),
        ("exact_prefix=0.9", "exact_prefix", 0.1, False),
        ("edit_similarity_loss=0.02", "edit_similarity", 0.02, True),
    ):
        target = parse_target(text)
        assert (target.name, target.risk, target.of_score) == (name, pytest.approx(risk), of_score)
    for text, said in (
        ("agreement", "give a value between 0 and 1, as in agreement=0.95"),
        ("agreement=1", "between 0 and 1"),
        ("agreement=nan", "between 0 and 1"),
        ("agreement=0.9999999999999", "between 0 and 1"),  # whose loss would be rounded to 0
        ("agreement=1e-13", "1e-06 from either end"),
        ("agrement=0.9", "Did you mean 'agreement'"),
        ("edit_similarity=0.9", "A score's fall is edit_similarity_loss"),
        ("nothing_loss=0.9", "no score 'nothing'"),
        ("accepted_prefix_loss=0.5", "no score of single documents between 0 and 1"),
        ("acceptance=0.9", "no agreement 'acceptance'"),
    ):
        with pytest.raises(ConfigError, match=said):
            parse_target(text)


def test_losses_are_those_of_the_records_and_a_document_that_failed_lost_everything(decoded: RecordedRun) -> None:
    recorded = samples(decoded.directory)
    for name in SETTINGS:
        point = decoded.point("py150", name)
        kept = document_losses(point, parse_target("agreement=0.5"))
        fallen = document_losses(point, parse_target("edit_similarity_loss=0.5"))
        assert len(kept) == len(fallen) == 6
        for sample_id, full in recorded["full"].items():
            mine = recorded[name][sample_id]
            decided = [one["token_ids"][1:] for one in (mine, full)]  # prefill's runs all layers under any setting
            same = sum(a == b for a, b in zip(*decided, strict=False))
            assert kept[sample_id] == pytest.approx(1 - same / len(decided[1]))
            fall = full["scores"]["edit_similarity"] - mine["scores"]["edit_similarity"]
            assert fallen[sample_id] == pytest.approx(max(0, fall))
    assert any(kept.values())
    point = decoded.point("py150", SETTINGS[0])
    (first, one), (second, _), *_ = point.cell.samples.items()
    cell = replace(
        point.cell,
        samples={key: each for key, each in point.cell.samples.items() if key != first},
        failed={first: one.model_copy(update={"error": "it broke"})},
    )
    full = replace(point.full, samples={key: each for key, each in point.full.samples.items() if key != second})
    for text in ("agreement=0.5", "exact_line=0.5", "edit_similarity_loss=0.5"):
        losses = document_losses(replace(point, cell=cell, cells=(full, *point.cells[1:])), parse_target(text))
        assert losses == {key[0]: float(key == first) for key in point.full.samples if key != second}


def test_settings_stand_from_strict_to_lax(decoded: RecordedRun) -> None:
    settings = settings_of(decoded, parse_target("agreement=0.5"))
    assert settings.option == "threshold"
    assert [point.name for point in settings.points] == list(SETTINGS)
    assert settings.losses.shape == (3, 6)
    assert not settings.losses[0].any()  # it never exits
    assert settings.losses[2].mean() > 0.2
    with pytest.raises(ConfigError, match=r"decodes confidence lossily .* --strategy, not margin"):
        settings_of(decoded, parse_target("agreement=0.5"), "margin")


def test_settings_that_cannot_be_ordered_are_warned_of_or_refused(
    decoded: RecordedRun, caplog: pytest.LogCaptureFixture
) -> None:
    target, manifest = parse_target("agreement=0.5"), decoded.manifest
    first, *_, last = (point for point in manifest.operating_points if point.strategy == "confidence")

    def run_of(threshold: float | None) -> RecordedRun:
        other = first.model_copy(update={"options": last.options | {"threshold": threshold}})
        return replace(decoded, manifest=manifest.model_copy(update={"operating_points": (first, other)}))

    settings_of(decoded, target)
    assert not caplog.records
    settings_of(run_of(0.5), target)
    assert "so that which is strict is not known" in caplog.text
    with pytest.raises(ConfigError, match="no values of one numeric option"):  # a trained strategy's own threshold
        settings_of(run_of(None), target)


def test_losses_of_a_project_are_the_mean_of_its_documents() -> None:
    losses = np.array([[0.0, 0.2, 1.0, 0.4], [1.0, 0.0, 0.5, 0.5]])
    assert by_project(losses, ["b", "a", "b", "c"]).tolist() == [[0.5, 0.2, 0.4], [0.75, 0.0, 0.5]]
    assert not shared_projects({"a": 1, "b": 1})
    assert "6 documents are of 2 projects (5 of b) and count as independent" in shared_projects({"a": 1, "b": 5})


def test_a_promise_about_projects_holds_for_new_ones_where_one_about_documents_breaks() -> None:
    """Losses that are a project's: 20 documents of each of 70 projects, and 7 of 100 projects lose everything.

    The lax setting loses .07 on average, where .05 is allowed: whatever certifies it is wrong.
    """
    generator, target = np.random.default_rng(5), parse_target("agreement=0.95")
    count = certified(CalibrateOptions(target=target.text), target.risk)
    projects, wrong = [str(number) for number in range(70) for _ in range(20)], {"document": 0, "project": 0}
    for _ in range(100):
        bad = generator.random(70) < 0.07
        losses = np.stack([np.zeros(1400), np.repeat(bad, 20).astype(float)])
        losses = losses[:, order := generator.permutation(1400)]
        for unit, table in (("document", losses), ("project", by_project(losses, [projects[at] for at in order]))):
            wrong[unit] += count(table) == 2
    assert wrong["project"] <= 5
    assert wrong["document"] > 7


def test_the_laxest_setting_that_passes_in_order_is_chosen(decoded: RecordedRun) -> None:
    target = parse_target("agreement=0.6")
    settings = with_losses(settings_of(decoded, target), [[0.0] * 40, [0.1, 0.0] * 20, [1.0] * 40])
    point = calibrated(settings, target, options())
    assert point.strategy == SETTINGS[1]
    promised = point.guarantee
    assert [one.passed for one in promised.tested] == [True, True, False]
    assert promised.tested[1].risk == pytest.approx(0.05)
    assert (
        promised.promise == "at most 0.4 of agreement is lost on average over documents like these, with confidence 0.9"
    )
    assert (promised.risk, promised.confidence, len(promised.documents)) == (0.4, 0.9, 40)
    assert promised.task == decoded.manifest.tasks[0]
    assert promised.records == decoded.summary.records
    again = calibrated(with_losses(settings, [[0.0] * 40, [1.0] * 40, [0.0] * 40]), target, options())
    assert again.strategy == SETTINGS[0]  # what comes behind a failure is not tested
    assert [one.p_value is None for one in again.guarantee.tested] == [False, False, True]


def test_an_expectation_is_promised_without_confidence(decoded: RecordedRun) -> None:
    target = parse_target("agreement=0.6")
    settings = with_losses(settings_of(decoded, target), [[0.0] * 9, [0.3] * 9, [0.5] * 9])
    promised = calibrated(settings, target, CalibrateOptions(target=target.text, method="conformal")).guarantee
    assert [one.bound for one in promised.tested] == pytest.approx([0.1, 0.37, 0.55])
    assert [one.passed for one in promised.tested] == [True, True, False]
    assert (promised.confidence, promised.p_value) == (None, None)


def test_what_documents_cannot_certify_is_refused(decoded: RecordedRun) -> None:
    target = parse_target("agreement=0.9")
    settings = settings_of(decoded, target)
    for method in ("learn-then-test", "conformal"):
        chosen = CalibrateOptions.build({"target": target.text, "method": method})
        with pytest.raises(DataError, match=r"40 documents do not .* loses 0.500, and at most 0.1 may be lost"):
            calibrated(with_losses(settings, [[0.5] * 40] * 3), target, chosen)
        with pytest.raises(DataError, match=r"loses 0.095 of 0.1 allowed. It would take about \d+ that") as refused:
            calibrated(with_losses(settings, [[0.095] * 40] * 3), target, chosen)
        needed = int(str(refused.value).partition("about ")[2].partition(" ")[0])
        count = certified(chosen, target.risk)
        assert [count(np.full((1, documents), 0.095)) for documents in (needed - 1, needed)] == [0, 1]


def test_halves_keep_the_promise(decoded: RecordedRun) -> None:
    """A lax setting that is as bad as allowed, with losses of all or nothing: certified by chance, 1 in 10 at most."""
    target = parse_target("agreement=0.8")
    generator = np.random.default_rng(3)
    table = np.zeros((3, 200))
    table[1:] = generator.permutation(np.arange(200) < 60)  # 30 % of the documents
    settings = with_losses(settings_of(decoded, target), table.tolist())
    found = split_check(settings.losses, target.risk, certified(options(), target.risk))
    assert (found.documents, found.certified) == (100, ROUNDS)
    assert found.violated <= 0.1 * ROUNDS
    reckless = split_check(settings.losses, target.risk, lambda losses: 3)
    assert reckless.violated > 0.9 * ROUNDS
    assert reckless.risk == pytest.approx(0.3, abs=0.01)


def test_a_promise_is_held_against_other_documents(decoded: RecordedRun) -> None:
    target = parse_target("agreement=0.6")
    settings = with_losses(settings_of(decoded, target), [[0.0] * 40, [0.1, 0.0] * 20, [1.0] * 40])
    worse = with_losses(settings, [[0.0] * 10, [0.5] * 10, [1.0] * 10])
    found = held_out_check(settings, worse, 1, target.risk, certified(options(), target.risk))
    assert (found.documents, found.risk.value) == (10, 0.5)
    assert (found.halves.certified, found.halves.violated) == (ROUNDS, ROUNDS)
    other = replace(worse, points=worse.points[:1])
    with pytest.raises(ConfigError, match=f"lacks {SETTINGS[1]}, {SETTINGS[2]}. Run the same settings there"):
        held_out_check(settings, other, 1, target.risk, len)


def test_options_that_make_no_calibration_are_refused() -> None:
    cases: tuple[tuple[dict[str, object], str], ...] = (
        ({"tasks": ("py150", "javacorpus")}, "a calibration has one"),
        ({"kv": "recompute,skip"}, "a calibration has one"),
        ({"weights_format": "fp16,int8"}, "a calibration has one"),
        ({"strategies": ("confidence", "margin")}, "a calibration has one"),
        ({"decode": "lossless"}, "decode"),
        ({"repeats": 2}, "repeats"),
        ({"method": "conformal"}, "--confidence and --p-value belong to learn-then-test"),
        ({"confidence": 1}, "confidence"),
        ({"confidence": 1e-13}, "confidence"),
    )
    for given, said in cases:
        with pytest.raises(HarnessError, match=said):
            options(**given)


# ---------------------------------------------------------------------------------------- the command


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


@pytest.mark.slow
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
    # a run that was cut is finished first
    before = (tmp_path / "run" / "operating-point.json").read_bytes()
    cut(tmp_path / "run", -3)
    again = calibrate(*asked[2:], "--resume", "run")
    assert again.code == 0, again.err
    assert "kept" in again.err
    after = (tmp_path / "run" / "operating-point.json").read_bytes()
    tested = [json.loads(each)["guarantee"]["tested"] for each in (before, after)]
    assert tested[0] == tested[1]

    def said_of(source: Path) -> str:
        caplog.clear()
        asked = ("--strategy", "@run/operating-point.json", "--limit", 8, "--max-new-tokens", 2, "--source", source)
        ran = tiny_run(*asked, "--out", f"run-{len(list(tmp_path.iterdir()))}")
        assert ran.code == 0, ran.err
        return str(caplog.text)

    elsewhere = said_of(rows("elsewhere.jsonl", documents))
    assert "was made on 6 of these 8 documents" in elsewhere
    assert "is of other documents" not in elsewhere
    exchanged = said_of(rows("rows.jsonl", [text.replace("item", "thing") for text in documents]))
    assert "nothing is promised of these, whose rows are others under the same name" in exchanged
    assert "was made on" not in exchanged


@pytest.mark.slow
def test_a_promise_about_projects(calibrate: Command, documents: list[str], tmp_path: Path, caplog: Any) -> None:
    """Six documents of three projects; and of none, which is refused."""
    rows = [{"id": number, "code": text, "project": f"p{number % 3}"} for number, text in enumerate(documents[:6])]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    asked = ("--target", "agreement=0.2", "--confidence", 0.5)
    source = ("--source", tmp_path / "rows.jsonl", "--strategy", f"{SETTINGS[0]},0.15")
    ran = calibrate(*asked, *source, "--max-new-tokens", 3, "--json")
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


def test_refusals(calibrate: Command, tmp_path: Path) -> None:
    one = ("--strategy", "confidence")
    for arguments, said in (
        (["--target", "agreement=0.95"], "there is nothing to calibrate. Give --strategy NAME"),
        (
            ["--target", "agreement=0.95", *one],
            "6 documents cannot certify agreement=0.95 with confidence 0.95: it takes 63 even if none of them loses",
        ),
        (["--target", "agreement=0.95", *one, "--method", "conformal"], "it takes 19 even if"),
        (["--target", "agreement=2", *one], "give a value between 0 and 1"),
        (["--target", "agreement=0.999999", *one], "it takes more than 1,000,000 even if none"),
        (["--target", "agreement=0.2", "--strategy", "@point.json"], "unknown strategy '@point.json'"),
        (["--target", "agreement=0.2", *one, "--confidence", 0.8, "--limit", 8], "all 8 documents"),
    ):
        assert said in calibrate(*arguments).error.replace("\n", " ")
        assert not (tmp_path / "run").exists()


def test_what_a_resumed_calibration_cannot_change(calibrate: Command, decoded: RecordedRun) -> None:
    asked = ("--resume", decoded.directory, "--target")
    assert "has its settings: omit limit" in calibrate(*asked, "agreement=0.5", "--limit", 6).error
    listed = calibrate(*asked, "agreement=0.5", "--strategy", "confidence:threshold=0.15").error
    assert "all are tested: give --strategy confidence alone" in listed
    assert "6 documents cannot certify agreement=0.95" in calibrate(*asked, "agreement=0.95").err
    other = " ".join(calibrate(*asked, "agreement=0.5", "--strategy", "margin").err.split())
    assert "Name one with --strategy, not margin" in other


@pytest.mark.slow
def test_rows_of_a_run_that_a_certificate_does_not_speak_of_are_passed_over(
    calibrate: Command, tiny_run: Command, tmp_path: Path
) -> None:
    """Lossless rows, and those with a stop rule: two of six settings are left."""
    asked = ("--limit", 6, "--strategy", f"{SETTINGS[0]},0.15", "--stop", "none,line", "--decode", "lossy,lossless")
    assert tiny_run(*asked, "--out", "mixed").code == 0
    promise = ("--target", "agreement=0.2", "--confidence", 0.8)
    assert calibrate("--resume", "mixed", *promise).code == 0
    point, _ = read_document(CalibratedPoint, tmp_path / "mixed" / "operating-point.json")
    assert [one.value for one in point.guarantee.tested] == [0.99, 0.15]
    assert tiny_run("--strategy", SETTINGS[1], "--stop", "line", "--out", "rule").code == 0
    said = calibrate("--resume", "rule", *promise).err
    assert "rule decodes nothing lossily and without a stop rule" in " ".join(said.split())


@pytest.mark.slow
def test_a_certificate_speaks_of_prompts_as_they_were_read(
    calibrate: Command, tiny_run: Command, prompt_maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a run reads prompts in both ways, of those that are read whole."""
    asked = ("--limit", 6, "--strategy", f"{SETTINGS[0]},0.15", "--artefacts", prompt_maps, "--prompt-exit")
    promise, shallow = ("--target", "agreement=0.05", "--confidence", 0.6), "layer=6:tail=8"
    for name, rules, read in (("both", f"none,{shallow}", ""), ("shallow", shallow, f"tail:{shallow}")):
        ran = tiny_run(*asked, rules, "--out", name)
        assert ran.code == 0, ran.err
        ran = calibrate("--resume", name, *promise)
        assert ran.code == 0, ran.err
        assert (f"prompt {read}" in " ".join(ran.out.split())) == bool(read)
        point, _ = read_document(CalibratedPoint, tmp_path / name / "operating-point.json")
        assert (point.guarantee.prompt_exit, "@" in point.strategy) == (read, False)
        for rule in ("none", shallow):
            caplog.clear()
            again = ("--strategy", f"@{name}/operating-point.json", "--artefacts", prompt_maps, "--prompt-exit", rule)
            ran = tiny_run(*again, "--out", f"{name}-{rule[:4]}")
            assert ran.code == 0, ran.err
            assert ("is of another exit for the prompt" in caplog.text) == ((rule == "none") == bool(read))


def test_what_is_no_operating_point_or_was_changed_is_refused(
    calibrate: Command, decoded: RecordedRun, refused: Command, tmp_path: Path
) -> None:
    assert "there is no such file. Make it with `harness calibrate`" in refused("--strategy", "@nothing.json")
    (tmp_path / "other.json").write_text("{}")
    assert "it has no schema_version. Make it again with" in refused("--strategy", "@other.json")
    file = Path("point.json")
    asked = ("--resume", decoded.directory, "--target", "agreement=0.3", "--confidence", 0.8, "--file", file)
    assert calibrate(*asked).code == 0
    file.write_text(file.read_text().replace('"agreement=0.3"', '"agreement=0.9"'))
    assert "it was changed, or is damaged" in refused("--strategy", f"@{file}")
