"""Savings, scores kept, overhead and matched depth, worked out by hand on a 10-layer model."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle
from rich.console import Console

from harness.records import SampleRecord
from harness.records.summary import Summary
from reports.figures.figure import save_figures
from reports.green_code.compare import compare_grid
from reports.green_code.files import grid_csv, grid_json, grid_markdown
from reports.green_code.grid_figure import grid_figures
from reports.green_code.numbers import Estimate, overhead
from reports.green_code.table import GridComparison, GridPoint, GridTable
from reports.green_code.text import render_grid
from reports.green_code.words import caveats, estimate, matched_table, remarks
from reports.recorded import RecordedRun
from tests.reports.conftest import RunBuilder
from tests.reports.figures.on_paper import check_on_paper

NAMES = (
    "full",
    "rl:agent=a|b:threshold=0.6",
    "rl:agent=a|b:threshold=0.9",
    "rl:agent=a|b:threshold=1",
    "fixed:layer=5",
)
UNCACHED_S = (10.0, 4.0, 8.0, 11.0, 5.0)
CACHED_S = (2.0, 1.5, 1.8, 2.2, 1.2)
LAYERS = (10, 4, 8, 10, 5)
ROUGE = (0.8, 0.4, 0.8, 0.8, 0.2)
CHECKS = (0, 3, 8, 9, 3)
BOTH = ("Llama-3.2-3B", "OPT-2.7B")


def recorded(run: RunBuilder, summary: Summary | None = None) -> RecordedRun:
    samples: tuple[SampleRecord, ...] = tuple(run.samples)
    return RecordedRun(Path("made-up"), run.manifest, tuple(run.windows), samples, summary or run.summary())


def measured(blocks: int = 6, energy: float | None = None, weights: str = "tuned", source: str = "nvml") -> RecordedRun:
    """A run: every point uncached and cached, options as the manifest has them, numbers.

    Args:
        blocks: of one sample each.
        energy: watts.
        weights: of the model.
        source: of the first block's energy; the others' is nvml.
    """
    run = RunBuilder(points=tuple(f"{name}@{kv}" for name in NAMES for kv in ("propagate", "none")), weights=weights)
    for block in range(blocks):
        for place, name in enumerate(NAMES):
            for kv, seconds in (("propagate", CACHED_S), ("none", UNCACHED_S)):
                run.window(
                    f"{name}@{kv}",
                    {
                        "exit_layers": (LAYERS[place],) * 3,
                        "scores": {"rouge_l": ROUGE[place]},
                        "exit_checks": CHECKS[place],
                    },
                    duration=seconds[place],
                    block=block,
                    energy_j=None if energy is None else energy * seconds[place],
                    energy_source="none" if energy is None else "nvml" if block else source,
                )
    made = recorded(run, run.summary(lambda *_: {"codebleu": 0.5}))
    points = [
        point.model_copy(update={"options": {k: float(v) if k == "threshold" else v for k, v in point.options.items()}})
        for point in made.manifest.operating_points
    ]
    manifest = made.manifest.model_copy(update={"operating_points": tuple(points)})
    return RecordedRun(made.directory, manifest, made.windows, made.samples, made.summary)


def base() -> RecordedRun:
    run = RunBuilder(points=("full",))
    for block in range(6):
        run.window("full", {"scores": {"rouge_l": 0.6}}, block=block, duration=2.5)
    return recorded(run)


def compared(**options: float | str) -> GridComparison:
    runs = [("tuned", BOTH, measured(**options)), ("base", BOTH, base())]  # type: ignore[arg-type]
    return compare_grid((0.6, 0.8, 0.9), runs)


def table_of(comparison: GridComparison) -> GridTable:
    (table,) = comparison.tables
    return table


def point(table: GridTable, key: str) -> GridPoint:
    (found,) = (one for one in table.points if one.key == key)
    return found


def value(found: Estimate | None) -> float:
    assert found is not None
    return found.value


def test_savings_are_of_full_depth_under_the_same_policy() -> None:
    here = point(table_of(compared()), "0.6")
    assert here.uncached is not None
    assert here.cached is not None
    assert value(here.uncached.time_saving) == pytest.approx(0.6)  # 4 s for 10 s
    assert value(here.cached.time_saving) == pytest.approx(0.25)  # 1.5 s for 2 s
    assert value(here.uncached.layers_skipped) == pytest.approx(0.6)
    assert value(here.uncached.rouge_l_kept) == pytest.approx(0.5)
    assert here.uncached.energy_saving is None  # nothing was read, which is not zero
    assert value(here.uncached.codebleu_kept) == 1.0


def test_overhead_is_the_price_of_a_check_times_the_checks() -> None:
    table = table_of(compared())
    near = point(table, "0.9")
    assert near.uncached is not None
    price = (11.0 - 10.0) / 9
    assert value(near.uncached.overhead_time) == pytest.approx(price * 8 / 8.0)
    assert value(near.uncached.overhead_time_of_full) == pytest.approx(price * 8 / 10.0)
    full, never = point(table, "full"), point(table, "never")
    assert full.uncached is not None
    assert full.uncached.overhead_time is None
    assert never.uncached is not None
    assert value(never.uncached.time_saving) == pytest.approx(-0.1)


def test_the_figure_s_bars_are_of_full_depth_like_its_words() -> None:
    (figure,) = grid_figures(compared())
    assert "relative to the same system's own full depth" in figure.caption
    drawn = figure.draw("text").axes
    titles = {(axes.get_title() or axes.get_title("left")).replace("\n", " "): axes for axes in drawn}
    heights = [bar.get_height() for bar in titles["agent over full depth, time"].patches if isinstance(bar, Rectangle)]
    assert any(height == pytest.approx(100 * (11.0 - 10.0) / 9 * 8 / 10.0) for height in heights)
    assert any(height == pytest.approx(7.94) for height in heights)  # Table IV: Llama, 0.9, over full depth
    assert not any(height == pytest.approx(10.63) for height in heights)  # the same over the run itself


@pytest.mark.parametrize("options", [{}, {"energy": 3.0, "source": "estimate"}])
def test_the_figure_stays_on_paper_and_says_how_much_it_is_of(options: dict[str, float | str]) -> None:
    comparison = compared(**options)
    long = replace(table_of(comparison), model="a-model-of-another-family-instruct-0.5B")
    for one in (comparison, replace(comparison, tables=(long,))):
        (figure,) = grid_figures(one)
        check_on_paper(figure, "n = 6 samples")


def test_words_name_the_exception_and_the_weights() -> None:
    said = caveats(compared(weights="pretrained"))
    assert said[0].startswith("every share but the agent's over own cost is of the same system's own full depth")
    assert "the paper's: tuned; here: pretrained" in said[0]
    assert any("agent over own time" in line and "the operating point's own cost" in line for line in said)
    (figure,) = grid_figures(compared(weights="pretrained"))
    assert "here: pretrained weights" in figure.caption
    assert point(table_of(compared(weights="pretrained")), "full").label == "full depth"
    assert point(table_of(compared()), "full").label == "full depth, tuned"


def test_random_weights_keep_no_score() -> None:
    comparison = compared(weights="random")
    table = table_of(comparison)
    ours = [one for each in table.points for one in (each.uncached, each.cached) if one]
    ours += [one for each in table.matched for one in (each.uncached, each.cached) if one]
    assert ours
    assert {(one.rouge_l, one.rouge_l_kept, one.codebleu, one.codebleu_kept) for one in ours} == {(None,) * 4}
    assert value(ours[0].time_saving) == pytest.approx(-0.25)  # of the untuned run: times mean something
    assert all(" / –" in row[4] for row in matched_table(table).rows)
    assert any("random weights here, so scores mean nothing" in line for line in remarks(table))
    (figure,) = grid_figures(comparison)
    assert "Random weights here, so scores mean nothing" in figure.caption
    assert not any("random weights" in line for line in remarks(table_of(compared())))


def test_joules_of_several_sources_are_not_averaged() -> None:
    comparison = compared(energy=3.0, source="estimate")
    table = table_of(comparison)
    here = point(table, "0.9").uncached
    assert here is not None
    assert (here.energy_source, here.energy_j, here.energy_std_j, here.energy_saving) == ("mixed", None, None, None)
    assert any("several sources" in line for line in remarks(table))
    (figure,) = grid_figures(comparison)
    assert "several sources" in figure.caption


def test_repeats_of_a_block_are_no_further_blocks() -> None:
    """Every block's numbers twice: the same share, and the interval of as many blocks as there were."""

    def share(repeats: int, blocks: int) -> Estimate:
        names = ("full", "rl:threshold=0.9", "rl:threshold=1")
        run = RunBuilder(points=names, kv="none")
        for block in range(blocks):
            for repeat in range(repeats):
                for name, seconds, checks in zip(
                    names, (10.0, 6.0 + block % 4, 11.0 + block % 3), (0, 8, 9), strict=True
                ):
                    run.window(name, {"exit_checks": checks}, duration=seconds, block=block, repeat=repeat)
        full, cell, never = recorded(run).cells.values()
        found = overhead(cell, full, never, "time")
        assert found is not None
        return found

    once, twice = share(1, 8), share(2, 8)
    assert once.low is not None
    assert once.low < once.value
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))
    assert share(2, 4).low is None  # four blocks are too few, however often they ran


def test_energy_has_the_same_arithmetic_where_it_was_read() -> None:
    here = point(table_of(compared(energy=3.0)), "0.9")
    assert here.uncached is not None
    assert value(here.uncached.energy_saving) == pytest.approx(0.2)
    assert value(here.uncached.overhead_energy) == pytest.approx(8 / 9 / 8)
    assert here.uncached.energy_j == pytest.approx(24)
    assert here.uncached.energy_source == "nvml"


def test_intervals_need_enough_blocks() -> None:
    few = point(table_of(compared(blocks=4)), "0.6")
    assert few.uncached is not None
    assert few.uncached.time_saving == Estimate(pytest.approx(0.6))  # type: ignore[arg-type]
    enough = point(table_of(compared()), "0.6")
    assert enough.uncached is not None
    assert enough.uncached.time_saving is not None
    assert (enough.uncached.time_saving.low, enough.uncached.time_saving.high) == pytest.approx((0.6, 0.6))


def test_the_untuned_run_is_not_paired() -> None:
    untuned = point(table_of(compared()), "base")
    assert untuned.uncached is None
    assert untuned.cached is not None
    assert untuned.cached.time_saving == Estimate(pytest.approx(-0.25))  # type: ignore[arg-type]
    assert value(untuned.cached.rouge_l_kept) == pytest.approx(0.75)
    assert all(numbers.rouge_l_kept is None for numbers in untuned.published.values())  # Python: other references


def test_published_numbers_stand_beside_and_are_never_filled_in() -> None:
    table = table_of(compared())
    published = point(table, "0.8").published
    assert value(published["Llama-3.2-3B"].layers_skipped) == pytest.approx(0.65854, abs=1e-4)
    assert value(published["Llama-3.2-3B"].energy_saving) == pytest.approx(0.514757, abs=1e-4)
    assert value(published["OPT-2.7B"].time_saving) == pytest.approx(0.543261, abs=1e-4)
    assert value(published["OPT-2.7B"].rouge_l_kept) == pytest.approx(0.302755 / 0.365494, abs=3e-4)
    assert published["OPT-2.7B"].energy_std_j == pytest.approx(267.61)
    assert point(table, "0.8").uncached is None  # this run did not measure it
    assert point(table, "never").published == {}  # the paper has no such run on Python


def test_matched_depth_takes_whatever_is_nearest_and_says_when_it_is_not_near() -> None:
    table = table_of(compared())
    matched = {(one.paper_model, one.threshold): one for one in table.matched}
    deep = matched["Llama-3.2-3B", 0.6]  # skips 79 %; here 60 % at most
    assert (deep.operating_point, deep.near) == ("rl:agent=a|b:threshold=0.6", False)
    half = matched["Llama-3.2-3B", 0.9]  # skips 51 %
    assert (half.operating_point, half.near) == ("fixed:layer=5", True)
    assert half.cached is not None
    assert value(half.cached.time_saving) == pytest.approx(0.4)
    assert table.thresholds_differ
    rows = {row[0]: row for row in matched_table(table).rows}
    assert rows["Llama-3.2-3B, 0.6"][1] == "a|b 0.6 ≠"
    assert rows["Llama-3.2-3B, 0.9"][2] == "50.6 / 50.0"


def test_what_the_cache_saves_is_said_of_both() -> None:
    table = table_of(compared())
    assert value(table.cache[0]) == pytest.approx(0.8)
    assert table.published_cache["OPT-2.7B"][0] == pytest.approx(1 - 0.509647 / 2.794933, abs=1e-4)


@pytest.mark.parametrize("width", [80, 120, 160])
def test_a_terminal_shows_every_point_within_its_width(width: int) -> None:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(render_grid(compared(), width))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for words in (
        "threshold 0.8",
        "60.0 [60, 60]" if width < 96 else "60.0 [60.0, 60.0]",
        "At matched depth",
        "stands in: tiny for Llama-3.2-3B and OPT-2.7B",
    ):
        assert words in text
    assert ("Absolute" in text) == (width == 160)


def test_files_say_the_same_and_escape_names(tmp_path: Path) -> None:
    comparison = compared()
    text = grid_markdown(comparison)
    assert r"| threshold 0.6 | 79.1 | 69.9 | 60.0 \[60.0, 60.0] | 60.0 \[60.0, 60.0] |" in text
    assert "a\\|b 0.6" in text
    rows = list(csv.DictReader(io.StringIO(grid_csv(comparison))))
    (row,) = (
        row
        for row in rows
        if (row["setting"], row["side"], row["kv"], row["quantity"]) == ("0.6", "measured", "none", "time_saving")
    )
    assert float(row["value"]) == pytest.approx(0.6)
    assert {row["paper_model"] for row in rows if row["side"] == "measured"} == {""}
    assert not [row for row in rows if row["quantity"] == "energy_saving" and row["side"] == "measured"]
    assert json.loads(grid_json(comparison))["tables"][0]["points"][0]["uncached"] is None
    (figure,) = grid_figures(comparison)
    assert "Energy was not measured here." in figure.caption
    assert [path.name for path in save_figures([figure], tmp_path)] == [
        "grid-1-python.svg", "grid-1-python.pdf", "grid-1-python.png"
    ]  # fmt: skip


def test_cells_show_missing_as_missing_and_zero_as_zero() -> None:
    assert estimate(None) == "–"
    assert estimate(Estimate(0.0)) == "0.0"
    assert estimate(Estimate(-0.125, -0.2, 0.05), mark="~") == "~−12.5 [−20.0, 5.0]"
