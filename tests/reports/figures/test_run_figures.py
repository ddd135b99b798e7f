"""Figures show what was measured, leave out what was not, and say which is which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from harness.errors import StoreError
from harness.records.cost import PARTS, Attribution, OperatingPointCost
from harness.records.estimate import Estimate
from harness.registry import STRATEGIES
from reports.figures import drawing, exit_layers, fixed_exit, fronts, overhead, settings, waiting
from reports.figures.catalogue import OF_ALL_RUNS, OF_ONE_RUN, catalogue
from reports.figures.drawing import Figure, look_of, save_figures, slug
from reports.figures.fronts import GAINS, front_of
from reports.figures.task_table import task_tables
from reports.recorded import RecordedRun
from reports.summary.pareto import coordinates
from tests.reports.figures.on_paper import check_intervals, check_on_paper, drawn

POINTS = ("full", "fixed:layer=5", "rl:threshold=0.5", "rl:threshold=0.9", "oracle")
LONG = "rl:temperature=0.123456789:seed=1234:threshold="
LONG_NAMES = ("full", "fixed:layer=5:seed=123456789", *(f"{LONG}{value}" for value in (0.5, 0.9)), "oracle",
              *(f"{LONG}0.5@lossless+lookup@draft={length}" for length in (2, 4)))  # fmt: skip
QUALITY = {"full": 0.6, "fixed:layer=5": 0.3, "rl:threshold=0.5": 0.45, "rl:threshold=0.9": 0.4, "oracle": 0.58}
LATENCY = {"full": 1.0, "fixed:layer=5": 0.5, "rl:threshold=0.5": 0.75, "rl:threshold=0.9": 0.8, "oracle": 0.4}
LAYERS = {"full": (10, 10), "fixed:layer=5": (5, 5), "rl:threshold=0.5": (5, 8), "rl:threshold=0.9": (8, 10),
          "oracle": (2, 5)}  # fmt: skip
DRAFTED = {"drafted_at": (None, 5, 5), "accepted": (False, True, True), "drafts": 2, "verifications": 1}

Make = Callable[..., RecordedRun]


@pytest.fixture
def make(build: Any) -> Make:
    """A run of some operating points and blocks, with a name; points that are not in the facts above have others."""

    def made(
        name: str = "one",
        *,
        source: str = "estimate",
        energy: bool = True,
        texts: bool = True,
        blocks: int = 6,
        sessions: bool = False,
        **more: Any,
    ) -> Any:
        run = build(**{"points": POINTS, **more})
        for block in range(blocks):
            for point in run.points:
                lossless = "@lossless" in point
                latency, quality = LATENCY.get(point, 0.7), QUALITY.get(point, 0.4)
                run.window(
                    point,
                    {
                        "token_ids": (1, 2, 3) if point == "full" or lossless or block % 2 else (1, 2, 4),
                        "exit_layers": (10, *LAYERS.get(point, (10, 10) if lossless else (5, 8))),
                        "latency_s": latency,
                        "scores": {"edit_similarity": quality, "rouge_l": quality},
                        "token_texts": ("def", " x", " 1") if texts else (),
                        "session": f"document {block}" if sessions else "",
                        **(DRAFTED if lossless else {}),
                    },
                    duration=latency,
                    block=block,
                    energy_source=source if energy else "none",
                    energy_j=10 * latency if energy else None,
                )
        manifest = run.manifest
        points = tuple(
            point.model_copy(
                update={
                    "options": {
                        key: float(value) if "." in value else int(value) for key, value in point.options.items()
                    }
                }
            )
            for point in manifest.operating_points
        )
        manifest = manifest.model_copy(update={"operating_points": points})
        from reports.summary.summarise import summarise

        summary = summarise(manifest, run.windows, run.samples, lambda *_: {})
        return RecordedRun(Path("runs") / name, manifest, tuple(run.windows), tuple(run.samples), summary)

    return made


def test_a_front_by_hand(make: Make) -> None:
    """Other rows than full depth's keep half the text in every other completion: 3 of 4 on the average."""
    run = make(points=(*POINTS, "classifier@lossless"), blocks=8)
    (table,) = task_tables(run)
    front = front_of(table, GAINS[0])
    assert front is not None
    placed = {row.operating_point: coordinates(row, front.gain) for row in front.rows}
    assert placed["rl:threshold=0.5"] == pytest.approx((1 / 0.75, 0.75))
    assert placed["classifier@lossless"] == pytest.approx((1 / 0.7, 1.0))
    on_front = [row.operating_point for row, best in zip(front.rows, front.on_front, strict=True) if best]
    assert on_front == ["fixed:layer=5", "classifier@lossless"]  # the oracle is better and no candidate
    assert on_front == [row.operating_point for row in table.table.rows if row.pareto], "the tables' own"


def test_what_was_not_measured_is_not_drawn(make: Make) -> None:
    measured = next(figure for figure in fronts.figures(make(source="rapl", blocks=8)) if "energy" in figure.name)
    assert all("rapl" in axes.get_xlabel() for axes in drawn(measured).axes)
    assert not any("energy" in figure.name for figure in fronts.figures(make())), "an estimate would repeat time"
    run = make(energy=False)
    assert not any("energy" in figure.name for figure in fronts.figures(run))
    figure = settings.thresholds(run)[0]
    assert "Energy was not measured" in figure.caption
    assert "CodeBLEU" in figure.caption.partition("Not measured, so not drawn:")[2]
    (absent,) = catalogue([run]).absent_of_one
    left_out = ["no figure of draft lengths", "no figure of overhead", "no figure of what a user waits for"]
    assert [why.partition(":")[0] for why in absent] == left_out


@pytest.mark.parametrize("figures", [fronts.figures, settings.thresholds], ids=["fronts", "thresholds"])
def test_every_interval_stands_at_its_value_and_holds_it(make: Make, figures: Any) -> None:
    """In the units of the axes: an interval of a share is not one of its complement, its ratio or its hundredth."""
    run = make(source="rapl", blocks=12)
    assert sum(check_intervals(axes) for figure in figures(run) for axes in drawn(figure).axes) > 4


def test_random_weights_have_no_quality(make: Make) -> None:
    run = make(weights="random")
    assert fronts.figures(run) == []
    assert fixed_exit.figures([run]) == []
    (figure,) = settings.thresholds(run)  # resources only
    assert "Random weights" in figure.caption
    assert [axes.get_title("left") for axes in drawn(figure).axes] == ["resources"]


def test_a_marker_per_strategy_and_its_setting_at_the_point(make: Make) -> None:
    canvas = drawn(fronts.figures(make(blocks=9))[0])
    (axes,) = canvas.axes
    assert sorted(text.get_text() for text in axes.texts) == ["0.5", "0.9", "5"]
    assert axes.get_xlabel() == "speed-up of whole requests over full depth (×)"
    assert axes.get_ylabel() == "text kept (exact prefix of full depth's)"
    assert axes.get_title("right") == "n = 9 samples"
    named = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert named == ["full", "fixed: layer", "rl: threshold", "oracle (a bound)", "front (filled: beyond chance)"]
    shipped = [look_of(entry.name) for entry in STRATEGIES.entries() if not entry.is_plugin]
    assert len(set(shipped)) == len(shipped), "two strategies look alike"
    few = fronts.figures(make(blocks=6))[0]  # six blocks tell nothing of four rows: 2 / 2⁶ × 4 is above 0.05
    assert "too few blocks" in few.caption
    assert not [text for text in drawn(few).legends[0].get_texts() if "front" in text.get_text()]


def test_no_two_points_of_a_plot_have_one_label(make: Make) -> None:
    """Issue 62: lossless points of several strategies were all "lossless+suffix"."""
    rules = ("full", "saturation", "rl:threshold=0.5", "rl:threshold=0.9", "confidence:threshold=0.5", "fixed:layer=5",
             f"{'long' * 9}:a={'x' * 20}1{'y' * 20}", f"{'long' * 9}:a={'x' * 20}2{'y' * 20}")  # fmt: skip
    points = [f"{rule}{how}" for rule in rules for how in ("", "@lossless", "@lossless+suffix", "@lossless+lookup")]
    like = make(blocks=1).summary.rows[1]
    rows = [
        like.model_copy(update={"operating_point": point, "strategy": point.partition(":")[0].partition("@")[0]})
        for point in points
    ]
    for seed in range(2, len(rows) + 1):
        some = Random(seed).sample(rows, seed)
        legend, labels = fronts.names_of(some)
        named = [label for label in labels if label]
        assert len(named) == len(set(named)), named
        assert len(set(drawing.told_apart(legend.values()))) == len(legend)
        for row, label in zip(some, labels, strict=True):
            assert row.operating_point.count("@") == 0 or label not in ("lossless", "lossless+suffix"), label
        assert len(set(drawing.told_apart([one.operating_point for one in some], 24))) == len(some)


@pytest.mark.slow
@pytest.mark.parametrize(
    "figures", [figures for figures, _ in OF_ONE_RUN], ids=lambda figures: figures.__module__.rpartition(".")[2]
)
def test_every_figure_of_a_run_stays_on_paper(make: Make, figures: Callable[[RecordedRun], list[Figure]]) -> None:
    run = make(points=LONG_NAMES, blocks=12, sessions=figures is waiting.figures)  # of fewer tokens a kind is not drawn
    found = figures(attributed(run))
    assert found
    for figure in found:
        assert "HV" not in " ".join(check_on_paper(figure, "n = 12 "))


def test_every_figure_of_all_runs_stays_on_paper(make: Make) -> None:
    runs = [make(points=LONG_NAMES, blocks=12), make("tuned", weights="tuned")]
    for figures, _ in OF_ALL_RUNS:
        found = figures(runs)
        assert found
        for figure in found:
            check_on_paper(figure, "n = 12 samples or n = 6 samples")


def attributed(run: RecordedRun) -> RecordedRun:
    """The run as if time and energy of its requests had been taken apart."""
    cost: Any = {"total": 0.7, "parts": dict.fromkeys(PARTS, Estimate(value=0.1)),
                 "overhead_of_full": Estimate(value=0.05, low=0.02, high=0.08)}  # fmt: skip
    rows = tuple(OperatingPointCost(operating_point=row.operating_point, **cost) for row in run.summary.rows)
    shared: Any = {"task": "py150", "blocks": 12, "residual": 0.02, "unit_costs": {}, "rows": rows, "checks": ()}
    found = (
        Attribution(quantity="time", source="clock", **shared),
        Attribution(quantity="energy", source="estimate", measured=False, **shared),
    )
    return replace(run, summary=run.summary.model_copy(update={"attributions": found}))


def test_bars_of_thresholds_by_hand(make: Make) -> None:
    (figure,) = settings.thresholds(make())
    assert figure.name == "one-py150-thresholds-rl"
    (table,) = task_tables(make())
    points = [row for row in table.rows if row.strategy == "rl"]
    skipped, time, energy = settings.resources(table, points)
    assert [bar.value for bar in skipped.bars if bar] == pytest.approx([0.35, 0.1])
    assert [bar.value for bar in time.bars if bar] == pytest.approx([0.75, 0.8])
    assert energy.estimated
    assert not time.estimated
    canvas = drawn(figure)
    assert [label.get_text() for label in canvas.axes[-1].get_xticklabels()] == ["0.5", "0.9"]
    assert all(axes.get_ylim()[0] == 0 for axes in canvas.axes)


def test_base_and_tuned_are_lines_of_one_figure(make: Make) -> None:
    base, tuned, again = make("base"), make("tuned", weights="tuned"), make("again", weights="tuned")
    (figure,) = fixed_exit.figures([base, tuned, again])
    assert "1 further curves of the same kinds are left out" in figure.caption
    assert "published results of GREEN-CODE's authors, not measured here" in figure.caption
    panels = {axes.get_ylabel(): axes for axes in drawn(figure).axes}
    lines = {line.get_label(): line for line in panels["edit similarity"].get_lines()}
    how = "shared head, kv propagate, float32, batch 1"
    assert set(lines) == {f"base weights, {how}", f"tuned weights, {how}"}
    assert [list(line.get_xdata()) for line in lines.values()] == [[5, 10]] * 2
    assert [list(line.get_ydata()) for line in lines.values()] == [[0.3, 0.6]] * 2
    published = [line.get_label() for line in panels["ROUGE-L"].get_lines() if "published" in str(line.get_label())]
    assert len(published) == 4
    assert "CodeBLEU" not in panels


def test_curves_of_other_numbers_and_batches_are_other_lines(make: Make) -> None:
    runs = [make("own"), make("int4", formats=("int4",)), make("pairs", batch_size=2), make("again")]
    (figure,) = fixed_exit.figures(runs)
    panel = next(axes for axes in drawn(figure).axes if axes.get_ylabel() == "edit similarity")
    told = [str(line.get_label()).partition("propagate, ")[2] for line in panel.get_lines()]
    assert told == ["float32, batch 1", "int4 weights, float32 activations, batch 1", "float32, batch 2"]
    assert "1 further curves of the same kinds are left out" in figure.caption


def test_full_depth_ends_the_curve_of_another_policy(make: Make) -> None:
    """By default full depth runs under recompute and fixed exits under propagate."""
    run = make()
    rows = tuple(
        row.model_copy(update={"kv": "recompute"}) if row.strategy == "full" else row for row in run.summary.rows
    )
    (figure,) = fixed_exit.figures([replace(run, summary=run.summary.model_copy(update={"rows": rows}))])
    panel = next(axes for axes in drawn(figure).axes if axes.get_ylabel() == "edit similarity")
    line, *_ = panel.get_lines()
    assert list(line.get_xdata()) == [5, 10]


def test_published_curves_are_of_the_same_language_and_score(make: Make) -> None:
    """OPT-2.7B has no untuned Java runs with a cache, and the authors' CodeBLEU is not the one of this harness."""
    run = make("base")
    rows = tuple(
        row.model_copy(update={"language": "java", "metrics": {**row.metrics, "codebleu": Estimate(value=0.4)}})
        for row in run.summary.rows
    )
    java = replace(run, summary=run.summary.model_copy(update={"rows": rows}))
    (figure,) = fixed_exit.figures([java])
    assert "not measured here: Llama-3.2-3B on one Quadro" in figure.caption
    assert "Their CodeBLEU is not drawn" in figure.caption
    published = {
        axes.get_ylabel(): [line for line in axes.get_lines() if "published" in str(line.get_label())]
        for axes in drawn(figure).axes
    }
    assert [line.get_label() for line in published["ROUGE-L"]] == ["published (GREEN-CODE): Llama-3.2-3B, base"]
    assert published["CodeBLEU"] == []


def test_exit_layers_by_place_and_kind(make: Make) -> None:
    (table,) = task_tables(make())
    row = next(row for row in table.rows if row.operating_point == "rl:threshold=0.5")
    places, kinds = (exit_layers.by_group(table, row, kinds=kinds) for kinds in (False, True))
    assert dict(places.counts) == {(2, 5): 6, (3, 8): 6}
    assert dict(kinds.counts) == {("identifier", 5): 6, ("number", 8): 6}
    assert places.means[3][1].value == 8.0
    (figure,) = exit_layers.figures(make())
    assert len(drawn(figure).axes) == 3 * 2 + 1  # three that decide, two halves, one scale
    (older,) = exit_layers.figures(make(texts=False))
    assert "no token texts" in older.caption
    assert len(drawn(older).axes) == 3 + 1


def test_an_attribution_adds_up_to_the_measured_total(make: Make) -> None:
    run = make()
    parts = dict.fromkeys(PARTS, Estimate(value=0.0)) | {"layers": Estimate(value=0.7), "rest": Estimate(value=-0.1)}
    row = OperatingPointCost(operating_point="rl:threshold=0.5", total=0.6, parts=parts,
                             overhead_of_full=Estimate(value=0.05, low=0.02, high=0.08))  # fmt: skip
    one = Attribution(task="py150", quantity="energy", source="estimate", measured=False, blocks=6, residual=0.02,
                      unit_costs={}, rows=(row,), checks=())  # fmt: skip
    assert overhead.figures(run) == []
    run = RecordedRun(
        run.directory, run.manifest, run.windows, run.samples, run.summary.model_copy(update={"attributions": (one,)})
    )
    (figure,) = overhead.figures(run)
    assert "estimated from CPU time" in figure.caption
    bars, points = drawn(figure).axes
    ends = [patch.get_x() + patch.get_width() for patch in bars.patches]
    assert ends == pytest.approx([700, -100])  # mJ, to both sides of zero
    assert "estimated" in bars.get_xlabel()
    assert "estimated" in points.get_xlabel()


def test_a_report_has_no_two_figures_of_one_name(make: Make) -> None:
    runs = [make("same"), make("same"), make("Same!")]
    names = [figure.name for figure in catalogue(runs).figures]
    assert len(names) == len(set(names)) > 3 * 4
    assert all(name == slug(name)[:48] or set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)
    assert catalogue(runs, each=False).of_one == ((), (), ())


def line(label: str) -> Any:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(4, 3))
    axes = canvas.subplots()
    axes.plot([0, 1], [0, 1], label=label)
    axes.legend()
    return canvas


def test_three_formats_of_the_same_bytes_every_time(tmp_path: Path) -> None:
    figure = Figure("a-line", "A line", "Made up.", lambda _: line("$\\frac$ <b>"))  # a name, and no formula
    first = {path.name: path.read_bytes() for path in save_figures([figure], tmp_path / "a")}
    again = {path.name: path.read_bytes() for path in save_figures([figure], tmp_path / "b")}
    assert sorted(first) == ["a-line.pdf", "a-line.png", "a-line.svg"]
    assert first == again
    assert {path.name for path in (tmp_path / "a").iterdir()} == set(first)
    assert first["a-line.svg"].startswith(b"<?xml")
    assert first["a-line.pdf"].startswith(b"%PDF")


def test_a_figure_that_cannot_be_written_leaves_no_part(tmp_path: Path) -> None:
    figure = Figure("a-line", "A line", "Made up.", lambda _: line("rl"))
    (tmp_path / "a-line.svg").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*a-line\.svg"):
        save_figures([figure], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a-line.svg"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Use another --out"):
        save_figures([figure], tmp_path / "file" / "x")
