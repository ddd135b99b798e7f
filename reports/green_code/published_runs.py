"""Measurements by GREEN-CODE's authors: time, energy, depth and scores of their runs.

Source: result files of the authors' repository (Large-scale-Sustainable-Computing-LSC/green-code, commit 56981c9),
which the paper's figures 8 to 11 are drawn from (Ilager et al., "GREEN-CODE", 2025). Means over their samples on one
Quadro RTX 8000, one run each, no interval; one sensor window per sample. Runs of ``kv`` ``none`` recompute the whole
prefix for every token; those of ``propagate`` keep a cache and have a longer context (30 % of the file, not 20 %),
which makes them look more expensive than they would beside the others. Depth is in layers executed.

Three things to know before using a row: the authors' untuned OPT-2.7B "Java" runs with a cache have the number of
samples of the Python set and its scores (ROUGE-L within 0.0002 at every layer), so they are most likely Python's. They
stay in the CSV file, as published, and :func:`green_code` leaves them out. ``exact_match`` was counted on 15 tokens,
not on lines. Thresholds 0.93 and 0.94 are in the files but not in the paper.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

__all__ = ["LAYERS", "THRESHOLDS", "PublishedRun", "full_depth", "green_code", "read_rows", "saving"]

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
        context: share of the file that is the prompt.
        samples: number of samples.
        exit_layer_mean: layers executed per token.
        energy_j, time_s: per sample, prefill included.
        energy_std_j, time_std_s: standard deviation over the samples (not of the mean).
        rouge_l, codebleu, exact_match, bleu, chrf, syntax, dataflow: 0…1.
        tokens_per_s: total tokens over total time.
        tokens_per_s_mean_of_ratios: the paper's throughput: mean of each sample's tokens over its time.
        mean_power_w: total energy over total time.
        exit_histogram: layers executed → tokens; empty where no exits were logged.
    """

    model: str
    language: str
    kv: str
    weights: str
    strategy: str
    threshold: float | None
    context: float
    samples: int
    exit_layer_mean: float
    energy_j: float
    time_s: float
    rouge_l: float | None
    codebleu: float | None
    exact_match: float | None
    energy_std_j: float | None = None
    time_std_s: float | None = None
    bleu: float | None = None
    chrf: float | None = None
    syntax: float | None = None
    dataflow: float | None = None
    tokens_per_s: float | None = None
    tokens_per_s_mean_of_ratios: float | None = None
    mean_power_w: float | None = None
    exit_histogram: Mapping[int, int] | None = None

    @property
    def layers_skipped(self) -> float:
        """1 − layers executed / layers of the model, a fraction."""
        return 1 - self.exit_layer_mean / LAYERS[self.model]


@cache
def green_code() -> tuple[PublishedRun, ...]:
    """Return all runs that are what they claim to be, in the authors' order."""
    return tuple(run for run in map(_run, read_rows("green-code.csv")) if not _mislabelled(run))


def full_depth(run: PublishedRun) -> PublishedRun:
    """Return what a run's published savings are relative to: tuned, every layer, the same model, data and KV policy."""
    return next(
        other
        for other in green_code()
        if other.strategy == "full"
        and other.weights == "tuned"
        and (other.model, other.language, other.kv) == (run.model, run.language, run.kv)
    )


def saving(run: PublishedRun, quantity: str) -> float:
    """Return the share of full depth's mean cost that a run saves; below 0 it costs more.

    Args:
        run: which.
        quantity: ``time_s`` or ``energy_j``.
    """
    return 1 - float(getattr(run, quantity)) / float(getattr(full_depth(run), quantity))


def read_rows(name: str) -> list[dict[str, str]]:
    """Return the rows of one of this package's CSV files."""
    text = (resources.files("reports.published") / name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def _mislabelled(run: PublishedRun) -> bool:
    """Whether a run is labelled Java and most likely of the Python set."""
    return (run.model, run.language, run.kv, run.weights) == ("OPT-2.7B", "java", "propagate", "base")


def _run(row: dict[str, str]) -> PublishedRun:
    return PublishedRun(
        model=row["model"],
        language=row["language"],
        kv=row["kv"],
        weights=row["weights"],
        strategy=row["strategy"],
        threshold=_number(row["threshold"]),
        context=float(row["context"]),
        samples=int(row["samples"]),
        exit_layer_mean=float(row["exit_layer_mean"]),
        energy_j=float(row["energy_j"]),
        time_s=float(row["time_s"]),
        rouge_l=_number(row["rouge_l"]),
        codebleu=_number(row["codebleu"]),
        exact_match=_number(row["exact_match"]),
        energy_std_j=_number(row["energy_std_j"]),
        time_std_s=_number(row["time_std_s"]),
        bleu=_number(row["bleu"]),
        chrf=_number(row["chrf"]),
        syntax=_number(row["syntax"]),
        dataflow=_number(row["dataflow"]),
        tokens_per_s=_number(row["tokens_per_s"]),
        tokens_per_s_mean_of_ratios=_number(row["tokens_per_s_mean_of_ratios"]),
        mean_power_w=_number(row["mean_power_w"]),
        exit_histogram=_histogram(row["exit_histogram"]),
    )


def _number(text: str) -> float | None:
    return float(text) if text else None


def _histogram(text: str) -> dict[int, int] | None:
    """Read ``4:10663;6:231`` (layers executed, tokens)."""
    pairs = (part.split(":") for part in text.split(";")) if text else ()
    return {int(layer): int(tokens) for layer, tokens in pairs} or None
