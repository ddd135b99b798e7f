"""Finite numbers that cannot be true are left out wherever they would be shown, with one note; nothing overflows."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest

from harness.appearance.terminal import Console
from harness.records.cost import PARTS, Attribution, OperatingPointCost
from harness.records.estimate import Estimate
from harness.records.summary import Summary
from reports.collection import Collection, write_collection
from reports.comparing.compare import Wanted, compare_runs
from reports.comparing.document import comparison_markdown, tables
from reports.leaderboard.site import Site
from reports.recorded import RecordedRun
from reports.statistics.plausible import LARGEST
from reports.summary.admission import drop_implausible
from reports.tables.frame import summary_csv
from reports.tables.report import render, report_markdown
from reports.tables.writers import to_terminal

FULL, OTHER = "full", "fixed:layer=5"
LONGEST_DIGITS = 24
ABSURD_METRICS = ("edit_similarity", "latency_p50_s", "speedup")
ABSURD = (1e308, 1e300, 1e13, 5e-324)


def made(build: Any) -> Any:
    run = build()
    for block in range(6):
        for point, seconds in ((FULL, 2.0), (OTHER, 1.0)):
            run.window(point, {"scores": {"edit_similarity": 0.5}}, block=block, duration=seconds, energy_j=seconds,
                       energy_source="rapl")  # fmt: skip
    return run


def texts_of(summary: Summary) -> list[str]:
    return [printed(render(summary)), report_markdown(summary), summary_csv(summary)]


def printed(what: Any) -> str:
    file = io.StringIO()
    Console(width=200, file=file).print(what)
    return file.getvalue()


def check(texts: list[str]) -> None:
    for text in texts:
        assert not re.findall(rf"\d{{{LONGEST_DIGITS},}}", re.sub(r"[0-9a-f]{32,}", "", text))
        assert not re.findall(r"\b(?:inf|nan)\b", text)


@pytest.mark.parametrize("absurd", ABSURD)
def test_a_windows_time_is_left_out_with_one_note(build: Any, absurd: float) -> None:
    run = made(build)
    run.windows[1] = run.windows[1].model_copy(update={"duration_s": absurd})
    summary = run.summary()
    assert (summary.rows[1].n, summary.rows[1].value("speedup")) == (5, 2.0)
    assert len([note for note in summary.notes if "a number that no machine reaches" in note]) == 1
    check(texts_of(summary))


@pytest.mark.parametrize("absurd", [1e308, 1e300, 1e13, 1e-300])
def test_an_energy_is_no_reading(build: Any, absurd: float) -> None:
    run = made(build)
    run.windows[1] = run.windows[1].model_copy(update={"energy_j": absurd})
    summary = run.summary()
    assert summary.rows[1].value("energy_j") is None
    assert len([note for note in summary.notes if "no energy reading" in note]) == 1
    check(texts_of(summary))


@pytest.mark.parametrize("field", ["latency_s", "ttft_s", "queue_s", "token_times_s", "scores"])
def test_a_sample_is_left_out(build: Any, field: str) -> None:
    run = made(build)
    times = {"latency_s": 1e308, "ttft_s": 1e307, "token_times_s": (1e307, 1e308, 1e308), "queue_s": 1e308}
    changes: dict[str, Any] = {"scores": {"edit_similarity": 1e308}} if field == "scores" else {
        key: value for key, value in times.items() if key == field or (field != "queue_s" and key != "queue_s")
    }  # fmt: skip
    run.samples[1] = run.samples[1].model_copy(update=changes)
    summary = run.summary()
    assert summary.rows[1].n == 5
    assert len([note for note in summary.notes if "a number that no machine reaches" in note]) == 1
    check(texts_of(summary))


def test_a_score_that_none_can_be_is_left_out_with_its_sample(build: Any) -> None:
    run = made(build)
    run.samples[1] = run.samples[1].model_copy(update={"scores": {"edit_similarity": 5.0, "accepted_prefix": 5.0}})
    summary = run.summary()
    assert (summary.rows[1].n, summary.rows[1].value("edit_similarity")) == (5, 0.5)
    (note,) = (note for note in summary.notes if "left out" in note)
    assert note.startswith("1 of 12 sample records left out for edit_similarity outside 0…1")


def test_numbers_that_are_nearly_nothing_have_few_digits(build: Any) -> None:
    run = made(build)
    summary = run.summary()
    tiny = Estimate(value=1e-300)
    rows = tuple(row.model_copy(update={"metrics": {**row.metrics, "energy_j": tiny}}) for row in summary.rows)
    check(texts_of(summary.model_copy(update={"rows": rows}))[:2])


def foreign(build: Any) -> Summary:
    """A stored summary with numbers that only a text editor makes."""
    summary = made(build).summary()
    first, second = summary.rows
    absurd = {"speedup": Estimate(value=2.0, low=-1e308, high=1e300), "latency_p50_s": Estimate(value=1e308)}
    absurd["edit_similarity"] = Estimate(value=5.0)
    part = Estimate(value=1e308)
    parts = dict.fromkeys(PARTS, part)
    cost = OperatingPointCost(operating_point=FULL, total=1e308, parts=parts, overhead=part)
    attribution = Attribution(task="py150", quantity="time", source="clock", blocks=6, residual=1e300, unit_costs={},
                              rows=(cost,), checks=())  # fmt: skip
    return summary.model_copy(
        update={
            "rows": (first, second.model_copy(update={"metrics": {**second.metrics, **absurd}})),
            "attributions": (attribution,),
        }
    )


def test_a_foreign_summary_loses_them_with_one_note(build: Any) -> None:
    summary = foreign(build)
    found = drop_implausible(summary)
    assert found.rows[0] == summary.rows[0]
    assert summary.rows[1].metrics.keys() - found.rows[1].metrics.keys() == {*ABSURD_METRICS}
    assert found.attributions == ()
    (note,) = set(found.notes) - set(summary.notes)
    assert "4 number(s) are left out" in note
    assert f"{', '.join(ABSURD_METRICS)}, where the time goes" in note
    assert drop_implausible(found) is found
    check(texts_of(found))


def test_a_summary_of_true_numbers_is_left_alone(build: Any) -> None:
    summary = made(build).summary()
    assert drop_implausible(summary) is summary


def test_files_figures_and_the_site_of_a_damaged_run(build: Any, tmp_path: Path) -> None:
    run = made(build)
    for place, change in ((1, {"duration_s": 1e308}), (2, {"energy_j": 1e300}), (3, {"duration_s": 5e-324})):
        run.windows[place] = run.windows[place].model_copy(update=change)
    run.samples[8] = run.samples[8].model_copy(update={"latency_s": 1e308, "token_times_s": (1e308,) * 3})
    run.samples[9] = run.samples[9].model_copy(update={"error": "broke", "latency_s": 1e308, "token_texts": ("a",)})
    one = RecordedRun(Path("runs/one"), run.manifest, tuple(run.windows), tuple(run.samples), run.summary())
    write_collection(Collection((one,)), tmp_path / "out", figures=True)
    site = Site(tmp_path / "site")
    site.add(one)
    site.finish()
    written = [path for path in tmp_path.rglob("*") if path.suffix in {".md", ".csv", ".tex", ".html"}]
    assert len(written) >= 6
    check([path.read_text() for path in written])
    other = RecordedRun(
        Path("runs/two"), run.manifest.model_copy(update={"created": "2026"}), one.windows, one.samples, one.summary
    )
    compared = compare_runs(one, other, Wanted())
    check([printed(to_terminal(tables(compared, details=True))), comparison_markdown(compared, [])])


def test_the_bound_is_far_from_anything_real() -> None:
    assert LARGEST > 1e6 * 3600 * 24  # a megawatt for a day, in joules
