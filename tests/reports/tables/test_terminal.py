"""Reports in a terminal: nothing is cut, nothing is claimed beyond the summary; and the two sentences of a run."""

from __future__ import annotations

import io
import re
from math import exp
from random import Random
from typing import Any

import pytest
from rich.console import Console
from scipy.special import stdtrit

from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import Summary, SummaryRow
from reports.statistics.intervals import Pair
from reports.statistics.significance import LEVEL, ratio_p
from reports.tables.conclusion import conclusion
from reports.tables.report import brief, render
from reports.tables.result import ResultTable, columns_of, headline_columns, split_tables
from reports.tables.run_tables import HEADLINE
from reports.tables.table import Column

POINTS = ("full", "fixed:layer=5", "confidence:threshold=0.95", "oracle")


@pytest.fixture
def summary(build) -> Summary:
    run = build(points=POINTS, bandwidth=1e4)
    for block in range(7):
        for index, point in enumerate(POINTS):
            layers = (10, 10 - index, 10 - index)
            scores = {"edit_similarity": 0.5 - 0.1 * index, "exact_match": 0.0}
            sample = {"exit_layers": layers, "scores": scores, "latency_s": 1.0 - 0.2 * index}
            run.window(point, sample, block=block, duration=1.0 - 0.2 * index, energy_j=1.0, energy_source="estimate")
    return run.summary()


def printed(summary: Summary, width: int, shown=render) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(shown(summary))
    return console.file.getvalue()


def columns_by_name(summary: Summary) -> dict[str, Column]:
    return {column.name: column for column in columns_of(summary.rows).values()}


@pytest.mark.parametrize("width", [60, 120])
def test_every_cell_note_and_verdict_is_whole_and_no_line_longer_than_the_terminal(summary, width) -> None:
    text = printed(summary, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name, column in columns_by_name(summary).items():
        for cell in column.texts if not column.empty else ():
            assert re.search(rf"(^|\s){re.escape(cell)}(\s|$)", text, re.MULTILINE), f"{name}: {cell} at {width}"
    lines = text.partition("Against full depth, in words\n")[2].partition("\n\n")[0].splitlines()
    start = lines[0].index("in words")
    words = " ".join(" ".join(line[start:] for line in lines[2:]).split())
    assert all(row.verdict and row.verdict in words for row in summary.rows)
    flat = " ".join(text.split())
    assert all(said in flat for said in (*summary.notes, "full", "fixed:layer=5", "oracle"))
    absent = flat.partition("No row has a value, so no column: ")[2].partition("━")[0]
    for term in ("chrF", "idle W", "net J/token", "wait p99"):
        assert f" {term}," in f" {absent}" or f" {term}." in absent
    assert "Δ edit sim." not in absent


def test_every_row_names_its_kv_policy(summary) -> None:
    rows = (*summary.rows[:3], summary.rows[3].model_copy(update={"kv": "recompute"}))
    mixed = summary.model_copy(update={"rows": rows})
    (table,) = split_tables(mixed)
    assert "float32, kv propagate, recompute, batch 1" in dict(table.facts)["decoding"]
    (policies,) = [column for column in headline_columns(table.rows, counts=False) if column.term == "KV"]
    assert policies.cells == ("propagate", "propagate", "propagate", "recompute")
    for width in (60, 120):
        (line,) = [line for line in printed(mixed, width).splitlines() if line.startswith("◇ D")][:1]
        assert "recompute" in line.split()
    (policies,) = [column for column in headline_columns(summary.rows, counts=False) if column.term == "KV"]
    assert policies.cells == ("propagate",) * 4


def test_full_depth_comes_first_and_marks_do_not_need_colour(summary) -> None:
    lines = printed(summary, 120).splitlines()
    rows = [line for line in lines if re.match(r"[●◇ ] [A-D]  ", line)]
    assert rows[0].startswith("  A  full")
    assert rows[2].startswith("● C  confidence"), "the fastest that keeps all text"
    assert rows[3].startswith("◇ D  oracle")
    header = next(index for index, line in enumerate(lines) if "J/token" in line)
    assert "estimate" in lines[header + 1]


def test_random_weights_and_errors_are_said_where_the_scores_are(build, summary) -> None:
    text = printed(summary, 120)
    assert "errors" not in text
    for fact in ("path: shared/data", "n = 7 samples × 1 repeat", "tiny", "pretrained weights", "Test CPU"):
        assert fact in text
    run = build(weights="random", tasks=("py150", "javacorpus"))
    run.window("full", {}, {"error": "broken"})
    run.window("full", {}, task="javacorpus")
    text = printed(run.summary(), 80)
    for words in ("random weights (accuracy columns mean nothing)", "No Pareto front: random weights.", "errors",
                  "py150 · green-code", "javacorpus · green-code"):  # fmt: skip
        assert words in text
    assert "no window has finished yet" in printed(build().summary(), 80)


def test_quality_and_speed_are_shown_whatever_a_name_is_as_long_as(build) -> None:
    long = f"my_package.strategies.{'Long' * 12}:threshold=0.123456789@lossless+{'source' * 9}"
    run = build(points=("full", long), bandwidth=1e4)
    for block in range(6):
        for point in ("full", long):
            sample = {"scores": {"edit_similarity": 0.5, "exact_match": 0.0}, "latency_s": 1.0 + block / 9}
            run.window(point, sample, block=block, duration=1.0 + block / 9)
    run.window(long, {"error": "broken"}, block=6)
    summary = run.summary()
    for text in (printed(summary, 80, brief), printed(summary, 80)):
        assert max(map(len, text.splitlines())) <= 80
        assert "…" not in text
        header = text[text.index(HEADLINE) : text.index("─")]
        assert {"sim.", "speed-up"} <= set(header.split()), text


def test_rows_that_may_not_be_compared_stand_in_different_tables(summary) -> None:
    assert len(split_tables(summary)) == 1
    for change in (
        {"task": "javacorpus"}, {"protocol": "codexglue-line"}, {"source": "hub"}, {"model": "other"},
        {"weights": "random"}, {"dtype": "bfloat16"}, {"batch_size": 2},
    ):  # fmt: skip
        rows = (summary.rows[0], summary.rows[1].model_copy(update=change), *summary.rows[2:])
        sizes = [len(table.rows) for table in split_tables(summary.model_copy(update={"rows": rows}))]
        assert sizes == [3, 1], change


SURE, UNSURE = 0.01, 0.6


def row(name: str, speedup: Any = None, edit: Any = None, **more: Any) -> SummaryRow:
    """Value, low, high and corrected p of speed-up and of the difference in edit similarity."""
    found = {"speedup": speedup, "edit_similarity_difference": edit}
    metrics = {
        key: Estimate.of(one[0], (one[1], one[2]), p=one[3], p_holm=one[3], n=60) for key, one in found.items() if one
    }
    given = {
        "strategy": name, "options": {}, "task": "py150", "language": "python", "protocol": "green-code", "source": "s",
        "model": "tiny", "weights": "pretrained", "kv": "recompute", "batch_size": 1, "dtype": "float32", "n": 60,
        "errors": 0, "repeats": 1, "verdict": f"words of {name}",
    }  # fmt: skip
    return SummaryRow(operating_point=name, metrics=metrics, **{**given, **more})


FULL = row("full", verdict="the baseline")
BOLD = row("bold", (1.8, 1.6, 2.0, SURE), (-0.2, -0.3, -0.1, SURE))
SAFE = row("safe", (1.2, 1.1, 1.3, SURE), (-0.01, -0.05, 0.03, UNSURE))
SLOW = row("slow", (0.8, 0.7, 0.9, SURE), (0.0, -0.1, 0.1, UNSURE))
SLOWEST = row("slowest", (0.5, 0.4, 0.6, SURE), (0.0, -0.1, 0.1, UNSURE))
CHANCE = row("chance", (1.4, 0.9, 2.0, UNSURE), (0.0, -0.1, 0.1, UNSURE))
ALIKE = row("alike", (0.99, 0.9, 1.1, UNSURE), (0.0, -0.1, 0.1, UNSURE))
UNTRIED = row("untried", (1.5, 1.4, 1.6, SURE))
UNTRIED = UNTRIED.model_copy(
    update={"metrics": {**UNTRIED.metrics, "edit_similarity_difference": Estimate.of(-0.1, NoInterval.FEW_PAIRS)}}
)
EXACT = row("exact", (1.3, 1.2, 1.4, SURE), decode="lossless")
EXACT = EXACT.model_copy(update={"metrics": {**EXACT.metrics, "exact_prefix": Estimate(value=1.0)}})
CUT = EXACT.model_copy(update={"operating_point": "cut", "verdict": "words of cut", "stop": "statement"})
DIFFERS = row("differs", (1.3, 1.2, 1.4, SURE), decode="lossless")  # full depth's own texts are not what came out
ORACLE = row("oracle", (3.0, 2.9, 3.1, SURE), (0.0, -0.1, 0.1, UNSURE), rehearsed=True)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [BOLD, SAFE, SLOW, CHANCE, ORACLE],
            "Use safe: words of safe; no measurable loss of edit similarity. "
            "The fastest of all is bold (words of bold).",
        ),
        (
            [SAFE, EXACT],
            "Use exact: words of exact. It is the fastest of all 2.",
        ),
        (
            [CUT, DIFFERS],
            "Use full depth where its text counts: nothing that is faster is known to keep its edit similarity. "
            "The fastest of all is cut (words of cut).",
        ),
        (
            [BOLD, SLOW],
            "Use full depth where its text counts: nothing that is faster is known to keep its edit similarity. "
            "The fastest of all is bold (words of bold).",
        ),
        (
            [UNTRIED, SLOW],
            "Use full depth where its text counts: nothing that is faster is known to keep its edit similarity. "
            "The fastest of all is untried (words of untried).",
        ),
        (
            [SLOW, CHANCE],
            "Use full depth until more is known. The best candidate of 2 is chance, 1.40× [0.90, 2.00]: its interval "
            "includes 1, so it may not be faster at all. If it is as fast as that, about 210 samples would tell "
            "(--limit 210).",
        ),
        (
            [SLOW, ALIKE],
            "Use full depth: none of 2 operating points was measured as faster. The fastest of them is alike "
            "(words of alike).",
        ),
        (
            [SLOWEST, SLOW, ORACLE],
            "Use full depth: each of 2 operating points is slower beyond chance. "
            "The fastest of them is slow (words of slow).",
        ),
        ([ORACLE], "Nothing was compared with full depth. Name strategies with --strategy."),
    ],
)
def test_what_a_table_comes_to(rows: list[SummaryRow], said: str) -> None:
    assert conclusion(ResultTable((FULL, *rows), "a machine")) == said


def test_the_best_candidate_is_told_with_what_it_lacks_beside_six_intervals_above_1() -> None:
    """Issue 62: none passes the test corrected for six, and no sentence may deny the intervals in the column."""
    rows = [row(f"rule{place}", (1.09, 1.01, 1.18, p)) for place, p in enumerate((0.3, 0.3, 0.13, 0.2, 0.3, 0.3))]
    said = conclusion(ResultTable((FULL, *rows), "a machine"))
    assert "rule2, 1.09× [1.01, 1.18]" in said
    assert "corrected for 6 p is 0.13, above 0.05" in said
    assert "beyond chance" not in said


@pytest.mark.parametrize("tests", [1, 6])
def test_as_many_samples_as_are_named_would_tell_four_times_in_five(tests: int) -> None:
    """Simulated runs of that size, with the gain and scatter of the first, pass as the clearest of so many tests."""
    generator, gain, scatter = Random(1), 1.03, 0.1
    half = stdtrit(59, 0.975) * scatter * (2 / 60) ** 0.5
    seen = (gain, gain * exp(-half), gain * exp(half), 0.3)  # what a run of 60 samples would show
    said = conclusion(ResultTable((FULL, *(row(f"rule{place}", seen) for place in range(tests))), "a machine"))
    named = re.search(r"--limit (\d+)\)", said)
    assert named is not None
    runs = (
        [Pair(gain * generator.gauss(1, scatter), generator.gauss(1, scatter)) for _ in range(int(named[1]))]
        for _ in range(100)
    )
    passed = sum((ratio_p(pairs) or 1.0) * tests <= LEVEL for pairs in runs)
    assert 68 <= passed <= 92  # three standard deviations around 80


def test_what_cannot_be_compared_is_told_why() -> None:
    def said(*rows: SummaryRow) -> str:
        return conclusion(ResultTable(rows, "a machine"))

    few = [
        row("fast").model_copy(update={"metrics": {"speedup": Estimate.of(1.9, NoInterval.FEW_PAIRS, n=n)}})
        for n in (None, 4)
    ]
    assert "60 samples are too few to tell" in said(FULL, few[0])
    told = said(FULL.model_copy(update={"n": 64}), few[1])
    assert "64 samples, measured in 4 blocks, are too few" in told
    assert "--limit 80 or more" in told
    timeless = "There are no times to compare with full depth's; the report has what was scored."
    assert said(FULL, row("fixed")) == timeless
    assert said(FULL.model_copy(update={"n": 0}), SAFE).startswith("Full depth finished no sample")


def over_fastest(name: str, own: Any, fastest: Any, **more: Any) -> SummaryRow:
    made = row(name, own, (0.0, -0.1, 0.1, UNSURE), **more)
    value, low, high, p = fastest
    there = Estimate(value=1.0) if low is None else Estimate.of(value, (low, high), p=p, p_holm=p)
    return made.model_copy(update={"metrics": {**made.metrics, "speedup_over_fastest": there}})


def test_rows_of_several_formats_are_held_against_the_fastest_full_depth() -> None:
    """Not each against its own: 1.4 over a slow full depth is slower than 1.2 over one that is twice as fast."""
    slow = over_fastest("a@float32", (1.4, 1.3, 1.5, SURE), (0.7, 0.6, 0.8, SURE), weights_format="float32")
    fast = over_fastest("a@fp16", (1.2, 1.1, 1.3, SURE), (1.2, 1.1, 1.3, SURE), weights_format="fp16")
    depth = over_fastest("full@fp16", (1.0, 0.9, 1.1, 1.0), (1.0, None, None, None), weights_format="fp16").model_copy(
        update={"strategy": "full"}
    )
    said = conclusion(ResultTable((FULL, slow, depth, fast), "a machine"))
    assert said.startswith("Use a@fp16: words of a@fp16; no measurable loss")
    assert said.endswith("It is the fastest of all 2.")
