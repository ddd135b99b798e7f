"""Which columns stand together in a report, and what question each group answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reports.tables.columns import Column

__all__ = ["DETAILS", "HEADLINE", "Section", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Section:
    """Columns that belong together.

    Attributes:
        title: what they answer.
        keys: fields of the summary row, in reading order. One may stand in several sections.
    """

    title: str
    keys: tuple[str, ...]

    def filled(self, columns: Mapping[str, Column]) -> list[Column]:
        """Return its columns that have a value in some row."""
        return [columns[key] for key in self.keys if not columns[key].empty]


HEADLINE = Section(
    "What each operating point gives and saves",
    (
        "n",
        "errors",
        "edit_similarity",
        "agreement",
        "layers_skipped",
        "oracle_fraction",
        "speedup",
        "latency_p50_s",
        "energy_j_per_token",
    ),
)
DETAILS = (
    Section(
        "Against full depth",
        (
            "decode_speedup",
            "speedup",
            "energy_ratio",
            "edit_similarity_difference",
            "exact_match_difference",
            "codebleu_difference",
            "verdict",
        ),
    ),
    Section(
        "Expected and realised decoding speed-up",
        (
            "layers_speedup",
            "heads_speedup",
            "shortcuts_speedup",
            "roofline_speedup",
            "decode_speedup",
            "roofline_achieved",
            "oracle_fraction",
        ),
    ),
    Section(
        "Time of a request",
        (
            "latency_p50_s",
            "latency_p90_s",
            "latency_p99_s",
            "queue_p50_s",
            "queue_p99_s",
            "ttft_p50_s",
            "tpot_p50_s",
            "tokens_per_s",
            "prefill_s",
            "decode_s",
            "prefill_share",
        ),
    ),
    Section(
        "Energy and power",
        (
            "energy_j_per_token",
            "energy_j_per_request",
            "energy_net_j_per_token",
            "mean_power_w",
            "idle_power_w",
            "energy_ratio",
            "energy_net_ratio",
            "energy_j",
        ),
    ),
    Section(
        "Depth and work",
        (
            "exit_layer_mean",
            "layers_skipped",
            "exit_checks_per_token",
            "lm_head_per_token",
            "kv_fill_layers_per_token",
            "roofline_fraction",
        ),
    ),
    Section(
        "Against fixed exit at the same mean depth",
        ("agreement_over_fixed", "edit_similarity_over_fixed"),
    ),
    Section(
        "Scores",
        (
            "exact_match",
            "edit_similarity",
            "token_accuracy",
            "agreement",
            "bleu",
            "rouge_l",
            "codebleu",
            "syntax",
            "dataflow",
            "dataflow_defined",
            "chrf",
        ),
    ),
)


def unmeasured(columns: Mapping[str, Column], sections: Sequence[Section]) -> str:
    """Return the sentence that names the columns left out because no row has a value; empty if there are none."""
    keys = dict.fromkeys(key for section in sections for key in section.keys)
    names = [columns[key].term for key in keys if columns[key].empty]
    return f"No row has a value, so no column: {', '.join(names)}." if names else ""
