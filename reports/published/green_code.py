"""Measurements by GREEN-CODE's authors: time, energy, depth and scores of their runs, and what their agent cost.

Source: result files of the authors' repository (Large-scale-Sustainable-Computing-LSC/green-code, commit 56981c9),
which the paper's figures 8 to 11 and Table IV are drawn from (Ilager et al., "GREEN-CODE", 2025). Means over their
samples on one Quadro RTX 8000, one run each, no interval; one sensor window per sample. Runs of ``kv`` ``none``
recompute the whole prefix for every token; those of ``propagate`` keep a cache and have a longer context (30 % of the
file, not 20 %), which makes them look more expensive than they would beside the others. ``green-code.csv`` has further
columns that nothing here reads: spread over samples, further scores, throughput, exit histograms.

Three things to know before using a row: the authors' untuned OPT-2.7B "Java" runs with a cache have the number of
samples of the Python set and its scores (ROUGE-L within 0.0002 at every layer), so they are most likely Python's. They
stay in the CSV file, as published, and :func:`green_code` leaves them out. ``exact_match`` was counted on 15 tokens,
not on lines. Thresholds 0.93 and 0.94 are in the files but not in the paper.

The agent's cost was measured with one sensor window inside another, per sample. It comes to about 2.9 ms a check where
the same authors' run that never exits implies 0.2 ms.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

LAYERS = {"Llama-3.2-3B": 28, "OPT-2.7B": 32}
"""The paper's models and how many decoder layers they have."""

THRESHOLDS = (0.6, 0.8, 0.9, 0.91, 0.92)
"""Of the agent, as the paper's figures and Table IV show them."""


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One of the authors' runs. ``None`` where they give no such number.

    Attributes:
        model, language: ``Llama-3.2-3B`` or ``OPT-2.7B``; ``java`` or ``python``.
        kv: ``none`` or ``propagate``.
        weights: ``base`` or ``tuned``.
        strategy: ``full``, ``fixed`` (every token at one layer) or ``rl`` (their agent).
        threshold: the agent's; ``None`` for the others.
        samples: number of samples.
        exit_layer_mean: layers executed per token.
        energy_j, time_s: per sample, prefill included.
        rouge_l, codebleu, exact_match: 0…1.
    """

    model: str
    language: str
    kv: str
    weights: str
    strategy: str
    threshold: float | None
    samples: int
    exit_layer_mean: float
    energy_j: float
    time_s: float
    rouge_l: float | None
    codebleu: float | None
    exact_match: float | None

    @property
    def layers_skipped(self) -> float:
        """1 − layers executed / layers of the model, a fraction."""
        return 1 - self.exit_layer_mean / LAYERS[self.model]


@cache
def green_code() -> tuple[PublishedRun, ...]:
    """Return all runs that are what they claim to be, in the authors' order."""
    read: dict[str, Any] = {"str": str, "int": int, "float": float, "float | None": _number}
    runs = (
        PublishedRun(**{one.name: read[str(one.type)](row[one.name]) for one in fields(PublishedRun)})
        for row in read_rows("green-code.csv")
    )
    mislabelled = ("OPT-2.7B", "java", "propagate", "base")  # as Java, and most likely of the Python set
    return tuple(run for run in runs if (run.model, run.language, run.kv, run.weights) != mislabelled)


def full_depth(run: PublishedRun, kv: str | None = None) -> PublishedRun:
    """Return tuned full depth of the same model and data: what a run's published savings are relative to.

    Args:
        run: which.
        kv: policy of the full depth; the run's own where omitted.
    """
    return next(
        other
        for other in green_code()
        if other.strategy == "full"
        and other.weights == "tuned"
        and (other.model, other.language, other.kv) == (run.model, run.language, kv or run.kv)
    )


def saving(run: PublishedRun, quantity: str) -> float:
    """Return the share of full depth's mean cost that a run saves; below 0 it costs more.

    Args:
        run: which.
        quantity: ``time_s`` or ``energy_j``.
    """
    return 1 - float(getattr(run, quantity)) / float(getattr(full_depth(run), quantity))


@cache
def agent_costs(model: str, language: str, threshold: float) -> dict[str, float | None]:
    """Return what the agent cost at a point of the grid, by column of ``green-code-overhead.csv``.

    ``time_of_run`` and ``energy_of_run`` are its shares of the instrumented run itself, ``…_of_full`` of full depth, as
    in Table IV; ``None`` where there is no such full depth. Empty where the authors did not measure it.
    """
    for row in read_rows("green-code-overhead.csv"):
        here = row["model"], row["language"], float(row["threshold"]), float(row["context"])
        if here == (model, language, threshold, 0.2):  # the grid's context; they tried others
            return {name: _number(text) for name, text in row.items() if name not in ("model", "language")}
    return {}


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of one of this package's CSV files."""
    text = (resources.files("reports.published") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _number(text: str) -> float | None:
    return float(text) if text else None
