"""What a run ends with: which operating point its two sentences name, and on what grounds."""

from __future__ import annotations

from typing import Any

import pytest

from harness.records.estimate import Estimate, NoInterval
from harness.records.summary import SummaryRow
from reports.tables.brief import in_two_sentences
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
