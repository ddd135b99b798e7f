"""Savings, scores kept, the agent's cost and matched depth, worked out by hand on a 10-layer model."""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path

import pytest
from matplotlib.patches import Rectangle

from harness.records.estimate import NoInterval
from harness.records.summary import Summary
from reports.published.against import (
    Comparison,
    Row,
    against_green_code,
    comparison_csv,
    comparison_figures,
    comparison_tables,
)
from reports.recorded import RecordedRun
from reports.tables.writers import to_markdown
from tests.reports.conftest import RunBuilder
from tests.reports.figures.on_paper import check_intervals, check_on_paper

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


def recorded(run: RunBuilder, summary: Summary | None = None) -> RecordedRun:
    return RecordedRun(Path("made-up"), run.manifest, tuple(run.windows), tuple(run.samples), summary or run.summary())


def measured(
    blocks: int = 6, energy: float | None = None, weights: str = "tuned", source: str = "nvml", repeats: int = 1
) -> RecordedRun:
    """A run: every point uncached and cached, options as the manifest has them, numbers.

    Args:
        blocks: of one sample each.
        energy: watts.
        weights: of the model.
        source: of the first block's energy; the others' is nvml.
        repeats: of every window.
    """
    run = RunBuilder(points=tuple(f"{name}@{kv}" for name in NAMES for kv in ("propagate", "none")), weights=weights)
    for block, repeat in ((block, repeat) for block in range(blocks) for repeat in range(repeats)):
        for place, name in enumerate(NAMES):
            for kv, seconds in (("propagate", CACHED_S), ("none", UNCACHED_S)):
                took = seconds[place] * (1.0 if place == 0 else 1 + 0.01 * (block % 3))
                sample = {
                    "exit_layers": (LAYERS[place],) * 3, "scores": {"rouge_l": ROUGE[place]},
                    "exit_checks": CHECKS[place],
                }  # fmt: skip
                run.window(
                    f"{name}@{kv}", sample, duration=took, block=block, repeat=repeat,
                    energy_j=None if energy is None else energy * took,
                    energy_source="none" if energy is None else "nvml" if block else source,
                )  # fmt: skip
    made = recorded(run, run.summary(lambda *_: {"codebleu": 0.5}))
    points = [
        point.model_copy(update={"options": {k: float(v) if k == "threshold" else v for k, v in point.options.items()}})
        for point in made.manifest.operating_points
    ]
    manifest = made.manifest.model_copy(update={"operating_points": tuple(points)})
    return RecordedRun(made.directory, manifest, made.windows, made.samples, made.summary)


def untuned() -> RecordedRun:
    run = RunBuilder(points=("full",))
    for block in range(6):
        run.window("full", {"scores": {"rouge_l": 0.6}}, block=block, duration=2.5)
    return recorded(run)


@cache
def compared(**options: float | str) -> Comparison:
    (found,) = against_green_code([measured(**options), untuned()])  # type: ignore[arg-type]
    return found


def row(comparison: Comparison, setting: str, kv: str = "none", paper: str = "") -> Row:
    (found,) = (one for one in comparison.rows if (one.setting, one.kv, one.paper_model) == (setting, kv, paper))
    return found


def value(of: Row, name: str) -> float:
    return of.values[name].value


def test_savings_are_of_full_depth_under_the_same_policy_and_shares_of_full_depth_without_a_cache() -> None:
    comparison = compared()
    uncached, cached = row(comparison, "threshold 0.6"), row(comparison, "threshold 0.6", "propagate")
    mean = 1.01  # of 1, 1.01 and 1.02, which the blocks take in turns
    assert value(uncached, "time_saving") == pytest.approx(1 - 0.4 * mean)  # 4 s for 10 s
    assert value(cached, "time_saving") == pytest.approx(1 - 0.75 * mean)  # 1.5 s for 2 s
    assert value(uncached, "time_of_uncached") == pytest.approx(0.4 * mean)
    assert value(cached, "time_of_uncached") == pytest.approx(0.15 * mean)
    assert value(row(comparison, "full depth", "propagate"), "time_of_uncached") == pytest.approx(0.2)
    assert value(uncached, "layers_skipped") == pytest.approx(0.6)
    assert value(uncached, "rouge_l_kept") == pytest.approx(0.5)
    assert value(uncached, "codebleu_kept") == 1.0
    assert "energy_saving" not in uncached.values  # nothing was read, which is not zero
    low, high = uncached.values["time_saving"].interval or (0, 0)
    assert low < value(uncached, "time_saving") < high


def test_the_agents_cost_is_the_price_of_a_check_times_the_checks() -> None:
    comparison = compared()
    price = (11.0 * 1.01 - 10.0) / 9
    assert value(row(comparison, "threshold 0.9"), "agent_time") == pytest.approx(price * 8 / 10.0)
    assert "agent_time" not in row(comparison, "full depth").values
    assert value(row(comparison, "asked, never exits"), "time_saving") == pytest.approx(1 - 1.1 * 1.01)
    energy = compared(energy=3.0)
    assert value(row(energy, "threshold 0.9"), "agent_energy") == pytest.approx(price * 8 / 10.0)


def test_repeats_of_a_block_are_no_further_blocks() -> None:
    once, twice = (row(compared(repeats=repeats), "threshold 0.9").values["agent_time"] for repeats in (1, 2))
    assert once.low is not None
    assert once.low < once.value
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))
    few = row(compared(blocks=4, repeats=2), "threshold 0.9")
    assert few.values["agent_time"].no_interval is NoInterval.FEW_PAIRS
    assert few.values["time_saving"].no_interval is NoInterval.FEW_PAIRS


def test_energy_has_the_same_arithmetic_where_it_was_read_from_one_source() -> None:
    here = row(compared(energy=3.0), "threshold 0.9")
    assert value(here, "energy_saving") == pytest.approx(1 - 0.8 * 1.01)
    assert value(here, "energy_j") == pytest.approx(24 * 1.01)
    mixed = row(compared(energy=3.0, source="estimate"), "threshold 0.9")
    assert not {"energy_saving", "energy_of_uncached", "agent_energy", "energy_j"} & mixed.values.keys()


def test_random_weights_keep_no_score() -> None:
    comparison = compared(weights="random")
    ours = [one for one in comparison.rows if not one.paper_model]
    assert not any({"rouge_l_kept", "codebleu_kept"} & one.values.keys() for one in ours)
    assert any("random weights here, so scores mean nothing" in note for note in comparison.notes)
    assert "random weights" not in " ".join(compared().notes)


def test_the_untuned_run_is_not_paired() -> None:
    here = row(compared(), "full depth, untuned", "propagate")
    assert value(here, "time_saving") == pytest.approx(-0.25)
    assert here.values["time_saving"].interval is None
    assert value(here, "rouge_l_kept") == pytest.approx(0.75)
    theirs = row(compared(), "full depth, untuned", paper="OPT-2.7B")
    assert "rouge_l_kept" not in theirs.values  # Python: other references


def test_published_numbers_stand_beside_and_are_never_filled_in() -> None:
    comparison = compared()
    llama, opt = (row(comparison, "threshold 0.8", paper=name) for name in ("Llama-3.2-3B", "OPT-2.7B"))
    assert value(llama, "layers_skipped") == pytest.approx(0.65854, abs=1e-4)
    assert value(llama, "energy_saving") == pytest.approx(0.514757, abs=1e-4)
    assert value(opt, "time_saving") == pytest.approx(0.543261, abs=1e-4)
    assert value(opt, "rouge_l_kept") == pytest.approx(0.302755 / 0.365494, abs=3e-4)
    assert value(row(comparison, "threshold 0.9", paper="Llama-3.2-3B"), "agent_time") == pytest.approx(0.0794)
    assert value(row(comparison, "full depth", "propagate", "OPT-2.7B"), "time_of_uncached") == pytest.approx(
        0.509647 / 2.794933, abs=1e-4
    )
    assert {one.paper_model for one in comparison.rows if one.setting == "asked, never exits"} == {""}  # Java alone


def test_matched_depth_takes_whatever_is_nearest_and_says_when_it_is_not_near() -> None:
    matched = {(paper.paper_model, paper.threshold): ours for paper, ours in compared().matched}
    assert matched["Llama-3.2-3B", 0.6].point == "rl:agent=a|b:threshold=0.6"  # skips 79 %; here 60 % at most
    assert matched["Llama-3.2-3B", 0.9].point == "fixed:layer=5"  # skips 51 %
    _, table = comparison_tables(compared())
    named = dict(zip(table.columns[0].texts, table.columns[1].texts, strict=True))
    assert named["Llama-3.2-3B, 0.6"] == "rl:agent=a|b:threshold=0.6 ≠"
    assert named["Llama-3.2-3B, 0.9"] == "fixed:layer=5"
    assert any("same thresholds are not the same settings" in note for note in compared().notes)


def test_files_say_the_same_and_escape_names() -> None:
    comparison = compared()
    text = "\n".join(to_markdown(comparison_tables(comparison)))
    assert "rl:agent=a\\|b:threshold=0.6" in text
    rows = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    (found,) = (one for one in rows if (one["setting"], one["kv"], one["point"]) == (
        "threshold 0.6", "none", "rl:agent=a|b:threshold=0.6"))  # fmt: skip
    assert float(found["time_saving"]) == pytest.approx(1 - 0.4 * 1.01)
    assert found["paper_model"] == ""
    assert float(found["time_saving_low"]) < float(found["time_saving"])


def test_the_figures_bars_are_the_tables_numbers() -> None:
    grid, cache = comparison_figures(compared())
    panels = {(ax.get_title() or ax.get_title("left")).replace("\n", " "): ax for ax in grid.draw("text").axes}
    heights = [bar.get_height() for bar in panels["agent's time of full depth"].patches if isinstance(bar, Rectangle)]
    assert any(height == pytest.approx(100 * (11.0 * 1.01 - 10.0) / 9 * 8 / 10.0) for height in heights)
    assert any(height == pytest.approx(7.94) for height in heights)  # Table IV: Llama, 0.9, over full depth
    panels = {(ax.get_title() or ax.get_title("left")).replace("\n", " "): ax for ax in cache.draw("text").axes}
    heights = [bar.get_height() for bar in panels["time of uncached"].patches if isinstance(bar, Rectangle)]
    assert any(height == pytest.approx(20) for height in heights)  # our full depth with a cache
    assert sum(check_intervals(ax) for figure in (grid, cache) for ax in figure.draw("text").axes)


@pytest.mark.slow
def test_the_figures_stay_on_paper_and_say_how_much_they_are_of() -> None:
    for figure in comparison_figures(compared(energy=3.0, source="estimate")):
        check_on_paper(figure, "n = 6 samples")
