"""What GREEN-CODE's authors measured: time, energy, depth and scores of their runs.

Source: result files of the authors' repository (Large-scale-Sustainable-Computing-LSC/green-code, commit 56981c9),
which the paper's figures are drawn from (Ilager et al., "GREEN-CODE", 2025). Means over their samples on one Quadro
RTX 8000, one run each, no interval; one sensor window per sample. Runs of ``kv`` ``none`` recompute the whole prefix
for every token; those of ``propagate`` keep a cache and have a longer context (30 % of the file, not 20 %), which makes
them look dearer than they would beside the others. Depth is in layers executed.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources

from harness.contracts import KVPolicy

__all__ = ["PublishedRun", "green_code"]


@dataclass(frozen=True, slots=True)
class PublishedRun:
    """One of the authors' runs.

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
        rouge_l, codebleu, exact_match: 0…1; ``None`` where not published.
    """

    model: str
    language: str
    kv: KVPolicy
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


@cache
def green_code() -> tuple[PublishedRun, ...]:
    """Return all of them, in the authors' order."""
    text = (resources.files("reports.published") / "green-code.csv").read_text(encoding="utf-8")
    return tuple(_run(row) for row in csv.DictReader(text.splitlines()))


def _run(row: dict[str, str]) -> PublishedRun:
    return PublishedRun(
        model=row["model"],
        language=row["language"],
        kv=KVPolicy(row["kv"]),
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
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
