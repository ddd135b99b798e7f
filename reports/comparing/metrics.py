"""What can be compared between two runs, and in which direction each number is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.errors import UnknownNameError

__all__ = ["AGREEMENT", "METRICS", "Metric", "find_metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of an operating point.

    Attributes:
        name: as conditions and files write it.
        title: as tables write it.
        meaning: one phrase.
        kind: ``score`` (needs the same prompts and references), ``agreement`` (needs the same prompts), ``depth``
            (needs nothing), ``cost`` (needs the same machine) or ``energy`` (needs the same source, too).
        better: 1 where more is better, -1 where less is, 0 where neither is.
        unit: of the number itself.
        percentile: for percentiles over requests, which.
        in_run: compared with full depth of its own run, so that a slower machine mostly cancels.
    """

    name: str
    title: str
    meaning: str
    kind: Literal["score", "agreement", "depth", "cost", "energy"]
    better: int
    unit: str = ""
    percentile: float | None = None
    in_run: bool = False

    @property
    def is_cost(self) -> bool:
        """Whether it is written as a relative change."""
        return self.kind in ("cost", "energy")

    @property
    def needed(self) -> int:
        """Prompts below which there is no interval: five of them must lie beyond the percentile."""
        return 5 if self.percentile is None else round(500 / (100 - self.percentile))


METRICS = (
    Metric("edit_similarity", "edit sim.", "edit similarity to the reference, mean over prompts", "score", 1),
    Metric("exact_match", "exact match", "share of completions identical to the reference", "score", 1),
    Metric("token_accuracy", "token acc.", "share of tokens that equal the reference's, mean over prompts", "score", 1),
    Metric("agreement", "A = B", "share of the longer completion's places where both have one token", "agreement", 1),
    Metric("layers_skipped", "layers skipped", "share of the layers that a decoded token did not run", "depth", 0),
    Metric("exit_layer_mean", "layers/token", "layers that a decoded token ran", "depth", 0),
    Metric("latency_p50", "latency p50", "median latency of a request", "cost", -1, "s", 50),
    Metric("latency_p90", "latency p90", "90th percentile of the latency", "cost", -1, "s", 90),
    Metric("latency_p99", "latency p99", "99th percentile of the latency", "cost", -1, "s", 99),
    Metric("ttft_p50", "TTFT p50", "median time to the first token", "cost", -1, "s", 50),
    Metric("tpot_p50", "TPOT p50", "median time per later token", "cost", -1, "s", 50),
    Metric("tokens_per_s", "tokens/s", "all tokens over all time", "cost", 1, "1/s"),
    Metric("energy_per_token", "J/token", "energy over generated tokens, prefill included", "energy", -1, "J"),
    Metric("speedup", "speed-up", "own full depth's time over this one's, whole request", "cost", 1, "×", None, True),
    Metric(
        "decode_speedup", "decoding speed-up", "the same for the time per later token", "cost", 1, "×", None, True
    ),
)  # fmt: skip
"""In the order of tables."""

AGREEMENT = "agreement"
"""The one number that belongs to both runs together, and is no change."""


def find_metric(name: str) -> Metric:
    """Return a metric by name.

    Raises:
        UnknownNameError: there is none; names the closest one.
    """
    found = next((metric for metric in METRICS if metric.name == name), None)
    if found is None:
        raise UnknownNameError("metric", name, [metric.name for metric in METRICS])
    return found
