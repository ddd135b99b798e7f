"""Records that cannot count, and numbers that cannot be true, are left out and told; so are flagged windows."""

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
from reports.comparing.compare import compare_runs
from reports.comparing.document import comparison_markdown, tables
from reports.comparing.results import notes
from reports.leaderboard.data import describe_point, entry_of
from reports.leaderboard.site import Site
from reports.recorded import RecordedRun
from reports.summary.admission import drop_implausible
from reports.summary.measured import select
from reports.summary.notes import degenerate
from reports.tables.frame import summary_csv
from reports.tables.report import brief, render, report_markdown
from reports.tables.result import windows_of
from reports.tables.writers import to_terminal

FULL, OTHER = "full", "fixed:layer=5"


def notes_of(run) -> str:
    return "\n".join(run.summary().notes)


def pairs(run, blocks=6):
    for block in range(blocks):
        run.window(FULL, {}, block=block, duration=2.0)
        run.window(OTHER, {}, block=block, duration=1.0)
    return run


@pytest.mark.parametrize(
    ("duration", "why"),
    [(seconds, "a clock that stood still or ran backwards") for seconds in (0.0, float("nan"))]
    + [(seconds, "a number that no machine reaches") for seconds in (1e13, 5e-324)],
)
def test_a_window_whose_time_cannot_be_true_is_left_out_and_counted(build, duration, why) -> None:
    run = pairs(build())
    run.windows[1] = run.windows[1].model_copy(update={"duration_s": duration})
    row = run.row(OTHER)
    assert (row.n, row.value("speedup")) == (5, 2.0)
    for _ in range(2):
        run.idle(energy_j=1.0, duration=1.0, energy_source="rapl")
    assert f"1 of 12 windows left out, with their samples: for {why}" in notes_of(run)
    assert "idle windows" not in notes_of(run)
    run.windows[-1] = run.windows[-1].model_copy(update={"duration_s": duration})
    assert "1 of 2 idle windows left out for a clock" in notes_of(run)
    check(texts_of(run.summary()))


def test_superseded_windows_are_replaced_by_their_repetition_and_counted(build) -> None:
    run = build()
    run.window(FULL, {"scores": {"bleu": 0.1}}, duration=50.0, superseded=True)
    pairs(run)
    assert run.row(FULL).n == 6
    assert run.row(FULL).value("tokens_per_s") == pytest.approx(3 / 2)
    assert (
        "1 window(s), idle ones included, were contaminated () and measured again (--strict); superseded"
        in notes_of(run)
    )
    assert "windows left out" not in notes_of(run)  # counted once


def test_records_of_another_run_are_left_out_and_counted(build) -> None:
    run = pairs(build())
    run.window("somebody else's", {}, {})
    run.window(FULL, {}, task="another task")
    text = notes_of(run)
    assert [row.n for row in run.summary().rows] == [6, 6]
    assert "2 of 14 windows left out, with their samples: for a task or operating point that the manifest" in text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"token_times_s": (0.1, 0.3, 0.2)}, "ran backwards"),
        ({"ttft_s": 0.9}, "ran backwards"),
        ({"queue_s": -0.5}, "ran backwards"),
        ({"latency_s": float("nan")}, "not finite"),
        ({"scores": {"bleu": float("inf")}}, "not finite"),
        ({"exit_layers": (10, 11, 5)}, "an exit layer outside 1…10"),
        ({"exit_layers": (10, 0, 5)}, "an exit layer outside 1…10"),
        ({"latency_s": 1e308, "token_times_s": (1e307, 1e308, 1e308)}, "a number that no machine reaches"),
        ({"scores": {"edit_similarity": 1e308}}, "a number that no machine reaches"),
        ({"token_times_s": ()}, "tokens, exit layers and times that are missing"),
        ({"exit_layers": (10, 10)}, "tokens, exit layers and times that are missing"),
        ({"scores": {"edit_similarity": 5.0, "accepted_prefix": 5.0}}, "edit_similarity outside 0…1"),
    ],
)
def test_a_sample_that_cannot_be_true_is_left_out_and_counted(build, change, why) -> None:
    run = pairs(build())
    run.samples[0] = run.samples[0].model_copy(update=change)
    assert run.row(FULL).n == 5
    assert len(run.summary().rows) == 2
    (note,) = [note for note in run.summary().notes if "sample records left out" in note]
    assert note.startswith("1 of 12 sample records left out for ")
    assert why in note


def test_samples_without_their_window_are_counted(build) -> None:
    run = pairs(build())
    run.windows.pop()
    run.samples[0] = run.samples[0].model_copy(update={"operating_point": OTHER})
    text = notes_of(run)
    assert "1 of 12 sample records left out for a window that was not committed" in text
    assert "1 of 12 sample records left out for a window of another task or operating point" in text


LONGEST_DIGITS = 24
ABSURD_METRICS = ("edit_similarity", "latency_p50_s", "speedup")


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


def test_files_and_the_site_of_a_damaged_run(build: Any, tmp_path: Path) -> None:
    run = made(build)
    for place, change in ((1, {"duration_s": 1e308}), (2, {"energy_j": 1e300}), (3, {"duration_s": 5e-324})):
        run.windows[place] = run.windows[place].model_copy(update=change)
    run.samples[8] = run.samples[8].model_copy(update={"latency_s": 1e308, "token_times_s": (1e308,) * 3})
    run.samples[9] = run.samples[9].model_copy(update={"error": "broke", "latency_s": 1e308, "token_texts": ("a",)})
    one = run.recorded("runs/one")
    write_collection(Collection((one,)), tmp_path / "out", figures=False)
    site = Site(tmp_path / "site")
    site.add(one)
    site.finish()
    written = [path for path in tmp_path.rglob("*") if path.suffix in {".md", ".csv", ".tex", ".html"}]
    assert len(written) >= 6
    check([path.read_text() for path in written])
    other = RecordedRun(
        Path("runs/two"), run.manifest.model_copy(update={"created": "2026"}), one.windows, one.samples, one.summary
    )
    compared = compare_runs(one, other)
    check([printed(to_terminal(tables(compared, details=True))), comparison_markdown(compared, [])])


SAME = [{"token_ids": (7,) * length} for length in (2, 3, 5, 2)]
LOST = "logits of layer 10 are not finite at token 1: weights or activations overflow in bfloat16."


def of(run: Any) -> str | None:
    return degenerate(run.manifest, select(run.manifest, run.windows, run.samples).values())


def measured(build: Any, *full: dict[str, Any], tasks: tuple[str, ...] = ("py150",), **more: Any) -> Any:
    """A run whose full depth made this on its last task; everything else is sound."""
    run = build(tasks=tasks, **more)
    sound = {"scores": {"edit_similarity": 0.5}}
    for task in tasks:
        here = full if task == tasks[-1] else [{}] * len(full)
        run.window(FULL, *({**sound, **one} for one in here), task=task)
        run.window(OTHER, *[sound] * len(full), task=task, duration=0.5)
    return run


@pytest.mark.parametrize(
    "full",
    [
        SAME[:3],  # three may be chance
        [*SAME[:3], {"token_ids": (7,)}],  # a single token is no text
        [*SAME, {"token_ids": (7, 7, 8)}],
        [*SAME, {"token_ids": (8,)}],
        [{"token_ids": (one,) * 4} for one in (1, 2, 3, 4)],  # each repeats itself, and no two are alike
        [{}, {"error": LOST}],
        [],
    ],
)
def test_full_depth_that_says_something(build: Any, full: list[dict[str, Any]]) -> None:
    run = measured(build, *full)
    assert of(run) is None
    assert not run.summary().notes[0].startswith("full depth")


def test_one_token_over_and_over(build: Any) -> None:
    run = measured(build, *SAME)
    assert of(run) == "full depth on py150 makes token 7 and no other, in all of its 4 completions"
    summary = run.summary()
    assert summary.notes[0].startswith("full depth on py150 makes token 7 and no other, in all of its 4 completions: ")
    assert "never ranked" in summary.notes[0]
    varied = measured(build, *SAME[:3], {"token_ids": (7, 8)})
    for each, marked in ((run, False), (varied, True)):
        for block in range(1, 8):  # enough to tell
            each.window(FULL, {"token_ids": (7, 7)}, block=block)
            each.window(OTHER, {"token_ids": (7, 7)}, block=block, duration=0.5)
        assert any(row.pareto for row in each.summary().rows) is marked


def test_every_sample_failed(build: Any) -> None:
    run = measured(build, {"error": LOST, "prompt_ids": (1,)}, {"error": "another", "prompt_ids": (1,)})
    assert of(run) == f"full depth on py150 failed on every sample (the first one: {LOST[:-1]})"
    assert run.summary().notes[0].startswith("full depth on py150 failed on every sample")
    assert not any(row.pareto for row in run.summary().rows)


DEEP = "fixed:layer=22"
SAID = "2 of 24 flagged; speed-up without them: fixed:layer=22 1.00× (0.75× with them)"


def disturbed_run(build: Any, **flags: tuple[int, ...]) -> RecordedRun:
    """A run of 12 blocks; in two of them something else ran, and the exit's requests took three times as long."""
    run = build(points=(FULL, DEEP))
    for block in range(12):
        run.window(FULL, {}, block=block, flags=("short-window",))
        slow = block in flags.get("foreign", ())
        run.window(DEEP, {}, block=block, duration=3.0 if slow else 1.0, flags=("foreign-cpu",) if slow else ())
    return run.recorded("runs/one")


@pytest.fixture
def disturbed(build: Any) -> RecordedRun:
    return disturbed_run(build, foreign=(3, 7))


def test_a_row_knows_its_flagged_windows_and_its_speed_up_without(build: Any, disturbed: RecordedRun) -> None:
    full, other = disturbed.summary.rows
    assert (full.windows, full.flagged, full.speedup_unflagged) == (12, 0, None)
    assert (other.windows, other.flagged) == (12, 2)
    assert other.value("speedup") == pytest.approx(12 / 16)
    assert other.speedup_unflagged == pytest.approx(1.0)
    quiet, hopeless = disturbed_run(build).summary.rows, disturbed_run(build, foreign=tuple(range(8))).summary.rows
    assert windows_of(quiet) == "none of 24 flagged"
    assert hopeless[1].speedup_unflagged is None, "four blocks are left"
    assert windows_of([row.model_copy(update={"windows": 0}) for row in quiet]) == "", "an older summary"


def test_every_table_says_so(disturbed: RecordedRun, tmp_path: Path) -> None:
    for shown in (brief(disturbed.summary), render(disturbed.summary)):
        console = Console(width=130, record=True, file=io.StringIO())
        console.print(shown)
        assert SAID in console.export_text()
    write_collection(Collection((disturbed,)), tmp_path / "report", figures=False)
    for name in ("index.html", "report.md", "tables.tex"):
        assert "2 of 24 flagged; speed-up without them" in (tmp_path / "report" / name).read_text(), name
    for name in ("summary.csv", "summary.json"):
        assert "speedup_unflagged" in (tmp_path / "report" / name).read_text()
    entry = entry_of(disturbed, "0" * 16, ())
    settings = dict(describe_point(disturbed, entry, entry.points[1], 1)["settings"])
    assert settings["measured windows"].startswith("2 of 12 flagged")
    assert any(SAID in note for note in notes(disturbed, disturbed, (), interleaved=True)), "compare"
