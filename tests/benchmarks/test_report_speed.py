"""How long a report of a large run takes: scoring, CodeBLEU included, and all statistics.

One task, 1,000 samples, 20 operating points, made-up records: texts are lines of Python's standard library, each
operating point with other ones changed, so that no score can be taken from another. Figures are printed beside their
targets, not asserted: a shared machine would make such a test lie. Run with ``make bench``.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest

from harness.running.scoring import CorpusScores
from reports.summary.summarise import corpora, summarise
from tests.benchmarks.conftest import report
from tests.made_up_runs import Run, made_up_run

SAMPLES, POINTS = 1_000, 20


@pytest.fixture(scope="module")
def run() -> Run:
    return made_up_run(SAMPLES, POINTS)


def median(benchmark: Any) -> float:
    return statistics.median(benchmark.stats.stats.data)


def test_statistics_alone(benchmark: Any, run: Run) -> None:
    summary = benchmark.pedantic(summarise, (*run, lambda *_: {}), rounds=3, warmup_rounds=1)
    assert len(summary.rows) == POINTS
    report(benchmark, "statistics of 1,000 samples × 20 operating points, s", median(benchmark), "part of 60 s")


def test_scoring_and_statistics(benchmark: Any, run: Run) -> None:
    summary = benchmark.pedantic(lambda: summarise(*run, CorpusScores(corpora(*run))), rounds=2)
    assert all(
        row.value("codebleu") is not None and row.estimate("speedup").p_holm is not None for row in summary.rows[1:]
    )
    report(benchmark, "scoring and statistics, s", median(benchmark), "≤ 60 s")
