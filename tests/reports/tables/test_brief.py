"""What a run ends with: which operating point its two sentences name, and on what grounds."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import SummaryRow
from reports.tables.report import in_two_sentences
from reports.tables.result import ResultTable

SURE, UNSURE = 0.01, 0.6


def row(name: str, speedup: Any = None, edit: Any = None, **more: Any) -> SummaryRow:
    """Value, low, high and corrected p of speed-up and of the difference in edit similarity."""
    found = {"speedup": speedup, "edit_similarity_difference": edit}
    metrics = {key: Estimate.of(one[0], (one[1], one[2]), p=one[3], p_holm=one[3]) for key, one in found.items() if one}
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
            "Fastest without a loss of edit similarity that can be told from chance: safe (words of safe). "
            "Fastest of all: bold (words of bold).",
        ),
        (
            [SAFE, EXACT],
            "Fastest with full depth's own text: exact (words of exact). It is the fastest of all 2.",
        ),
        (
            [CUT, DIFFERS],
            "No operating point that is faster beyond chance is known to keep full depth's edit similarity. "
            "Fastest of all: cut (words of cut).",
        ),
        (
            [BOLD, SLOW],
            "No operating point that is faster beyond chance is known to keep full depth's edit similarity. "
            "Fastest of all: bold (words of bold).",
        ),
        (
            [UNTRIED, SLOW],
            "No operating point that is faster beyond chance is known to keep full depth's edit similarity. "
            "Fastest of all: untried (words of untried).",
        ),
        (
            [SLOW, CHANCE],
            "None of 2 operating points is faster than full depth beyond chance. That does not make them equal: more "
            "samples (--limit) tell smaller differences.",
        ),
        (
            [SLOWEST, SLOW, ORACLE],
            "None of 2 operating points is faster than full depth: each is slower beyond chance. "
            "Fastest of all: slow (words of slow).",
        ),
        ([ORACLE], "Nothing was compared with full depth. Name strategies with --strategy."),
    ],
)
def test_two_sentences(rows: list[SummaryRow], said: str) -> None:
    assert in_two_sentences(ResultTable((FULL, *rows), "a machine")) == said


def test_too_few_samples_tell_nothing() -> None:
    estimate = Estimate.of(1.9, NoInterval.FEW_PAIRS)
    few = row("fast").model_copy(update={"metrics": {"speedup": estimate}})
    assert "60 samples are too few to tell" in in_two_sentences(ResultTable((FULL, few), "a machine"))


def test_few_blocks_of_many_samples_are_counted_as_blocks() -> None:
    few = row("fast").model_copy(update={"metrics": {"speedup": Estimate.of(1.9, NoInterval.FEW_PAIRS, n=4)}})
    said = in_two_sentences(ResultTable((FULL.model_copy(update={"n": 64}), few), "a machine"))
    assert "64 samples, measured in 4 blocks, are too few" in said
    assert "--limit 80 or more" in said


def test_a_run_without_times_has_none_to_compare() -> None:
    said = in_two_sentences(ResultTable((FULL, row("fixed")), "a machine"))
    assert said == "There are no times to compare with full depth's; the report has what was scored."


def test_without_full_depth_there_is_nothing_to_compare_with() -> None:
    said = in_two_sentences(ResultTable((FULL.model_copy(update={"n": 0}), SAFE), "a machine"))
    assert said.startswith("Full depth finished no sample")


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
    said = in_two_sentences(ResultTable((FULL, slow, depth, fast), "a machine"))
    assert "a@fp16 (words of a@fp16). It is the fastest of all 2." in said
