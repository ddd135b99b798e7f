"""Losses of documents, the order of settings, what is chosen, and whether it holds on other halves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.calibrating.checks import ROUNDS, held_out_check, split_check
from harness.calibrating.options import CalibrateOptions
from harness.calibrating.promise import (
    Settings,
    by_project,
    calibrated,
    certified,
    least_documents,
    settings_of,
)
from harness.calibrating.targets import document_losses, parse_target
from harness.errors import ConfigError, DataError, HarnessError
from harness.records.guarantee import shared_projects
from reports.recorded import RecordedRun
from tests.calibrating.conftest import SETTINGS
from tests.run_files import samples

ROW = np.zeros(6)


def options(target: str = "agreement=0.6", **more: object) -> CalibrateOptions:
    return CalibrateOptions.build({"target": target, "confidence": 0.9, **more})


def with_losses(settings: Settings, losses: list[list[float]]) -> Settings:
    """The settings with other losses."""
    table = np.array(losses)
    return replace(settings, losses=table, documents={f"d{place}": "" for place in range(table.shape[1])})


@pytest.mark.parametrize(
    ("text", "name", "risk", "of_score"),
    [
        ("agreement=0.95", "agreement", 0.05, False),
        ("exact_prefix=0.9", "exact_prefix", 0.1, False),
        ("edit_similarity_loss=0.02", "edit_similarity", 0.02, True),
    ],
)
def test_a_target_is_read(text: str, name: str, risk: float, of_score: bool) -> None:
    target = parse_target(text)
    assert (target.name, target.risk, target.of_score) == (name, pytest.approx(risk), of_score)


@pytest.mark.parametrize(
    ("text", "said"),
    [
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
    ],
)
def test_other_targets_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_target(text)


def test_losses_are_those_of_the_records(decoded: RecordedRun) -> None:
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


def test_a_document_that_failed_lost_everything_and_one_without_full_depth_is_left_out(decoded: RecordedRun) -> None:
    point = decoded.point("py150", SETTINGS[0])
    (first, one), (second, _), *_ = point.cell.samples.items()
    assert first[0] != second[0]
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


def test_settings_of_equal_depth_are_warned_of(decoded: RecordedRun, caplog: pytest.LogCaptureFixture) -> None:
    first, *_, last = (point for point in decoded.manifest.operating_points if point.strategy == "confidence")
    twin = first.model_copy(update={"options": last.options | {"threshold": 0.5}})
    manifest = decoded.manifest.model_copy(update={"operating_points": (first, twin)})
    settings_of(decoded, parse_target("agreement=0.5"))
    assert not caplog.records
    settings_of(replace(decoded, manifest=manifest), parse_target("agreement=0.5"))
    assert "so that which is strict is not known" in caplog.text


def test_a_row_with_a_trained_strategy_s_own_threshold_is_no_value(decoded: RecordedRun) -> None:
    """Its record has none: it is refused, whatever stands before it."""
    points = decoded.manifest.operating_points
    default = points[-1].model_copy(update={"name": "confidence", "options": {**points[-1].options, "threshold": None}})
    manifest = decoded.manifest.model_copy(update={"operating_points": (*points[:-1], default)})
    with pytest.raises(ConfigError, match="no values of one numeric option"):
        settings_of(replace(decoded, manifest=manifest), parse_target("agreement=0.6"), "confidence")


def test_documents_that_share_a_project_are_warned_of() -> None:
    assert not shared_projects({})
    assert not shared_projects({"a": 1, "b": 1})
    assert shared_projects({"a": 1, "b": 5}) == (
        "6 documents are of 2 projects (5 of b) and count as independent: the promise may break for new projects. "
        "--unit project makes one about those."
    )


def test_losses_of_a_project_are_the_mean_of_its_documents() -> None:
    losses = np.array([[0.0, 0.2, 1.0, 0.4], [1.0, 0.0, 0.5, 0.5]])
    assert by_project(losses, ["b", "a", "b", "c"]).tolist() == [[0.5, 0.2, 0.4], [0.75, 0.0, 0.5]]


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


@pytest.mark.parametrize("method", ["learn-then-test", "conformal"])
def test_what_documents_cannot_certify_is_refused(decoded: RecordedRun, method: str) -> None:
    target = parse_target("agreement=0.9")
    chosen = CalibrateOptions.build({"target": target.text, "method": method})
    settings = settings_of(decoded, target)
    with pytest.raises(DataError, match=r"40 documents do not .* loses 0.500, and at most 0.1 may be lost"):
        calibrated(with_losses(settings, [[0.5] * 40] * 3), target, chosen)
    rows = [[0.095] * 40] * 3
    with pytest.raises(DataError, match=r"loses 0.095 of 0.1 allowed. It would take about \d+ that") as refused:
        calibrated(with_losses(settings, rows), target, chosen)
    needed = int(str(refused.value).partition("about ")[2].partition(" ")[0])
    count = certified(chosen, target.risk)
    assert count(np.full((1, needed), 0.095)) == 1
    assert count(np.full((1, needed - 1), 0.095)) == 0


def test_how_many_documents_a_promise_takes() -> None:
    assert least_documents(options("agreement=0.95", confidence=0.95, p_value="hoeffding-bentkus"), 0.05) == 59
    assert least_documents(CalibrateOptions(target="agreement=0.95", method="conformal"), 0.05) == 19


def test_halves_keep_the_promise(decoded: RecordedRun) -> None:
    """A lax setting that is as bad as allowed, with losses of all or nothing: certified by chance, 1 in 10 at most."""
    target = parse_target("agreement=0.8")
    generator = np.random.default_rng(3)
    table = np.zeros((3, 200))
    table[1:] = generator.permutation(np.arange(200) < 60)  # 30 % of the documents
    settings = with_losses(settings_of(decoded, target), table.tolist())
    found = split_check(settings.losses, target.risk, certified(options(), target.risk))
    assert (found.rounds, found.documents, found.certified) == (ROUNDS, 100, ROUNDS)
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tasks": ("py150", "javacorpus")}, "a calibration has one"),
        ({"kv": "recompute,skip"}, "a calibration has one"),
        ({"weights_format": "fp16,int8"}, "a calibration has one"),
        ({"strategies": ("confidence", "margin")}, "a calibration has one"),
        ({"decode": "lossless"}, "decode"),
        ({"repeats": 2}, "repeats"),
        ({"method": "conformal"}, "--confidence and --p-value belong to learn-then-test"),
        ({"confidence": 1}, "confidence"),
        ({"confidence": 0.9999999999999}, "confidence"),
        ({"confidence": 1e-13}, "confidence"),
    ],
)
def test_options_that_make_no_calibration_are_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(HarnessError, match=said):
        options(**given)


def test_the_run_has_the_options_of_a_run(tmp_path: Path) -> None:
    run = options(strategies=("confidence",), kv="skip", out=tmp_path, limit=0).as_run(SETTINGS)
    assert (run.strategies, run.kv, run.out, run.limit) == (SETTINGS, "skip", tmp_path, None)
    assert options().as_run(SETTINGS).limit == 200
    assert not hasattr(run, "target")
