"""What a run directory's ``summary.json`` holds: one row per task × operating point, and what to know beside them.

Versioned with the other files (:mod:`harness.records`). ``None`` always means "not measured" or "not defined".
"""

from __future__ import annotations

from typing import Any

from harness.contracts import Weights
from harness.records.cost import Attribution
from harness.records.record import Record

__all__ = ["Summary", "SummaryRow"]


class SummaryRow(Record):
    """One operating point on one task. Medians, totals over totals, and paired ratios to full depth.

    ``…_ci`` is a bootstrap 95 % interval, ``…_p`` the p-value of a paired permutation test of "no difference", and
    ``…_p_holm`` the same after Holm's correction over the operating points of the table.

    Attributes:
        operating_point, strategy, options, task, language, protocol, source, model, weights, exit_head, kv,
            batch_size, dtype: what ran.
        n: samples scored. errors: samples that failed. repeats: repetitions timed.
        exit_layer_mean: layers executed per decoded token (the token that prefill yields is left out).
        layers_skipped: 1 − exit_layer_mean / num_layers, a fraction.
        agreement: share of tokens equal to full depth's at the same place of the same sample.
        token_accuracy: share of tokens equal to the reference's at the same place.
        exact_match, edit_similarity, bleu, rouge_l, codebleu, syntax, dataflow, chrf: task scores, 0…1.
        dataflow_defined: share of samples whose reference has any data flow.
        energy_j: total over the windows, idle power included. energy_source: where it comes from.
        energy_j_per_token, energy_j_per_request: that total over all tokens, and over all finished samples.
        mean_power_w: that total over the windows' time.
        idle_power_w: of the idle windows of the run; ``None`` without them, and for estimates.
        energy_net_j_per_token: energy minus idle power times time, over all tokens; ``None`` without idle power.
        energy_ratio: energy of full depth over this one's, whole request, paired.
        energy_net_ratio: the same net of idle.
        latency_p50_s, latency_p90_s, latency_p99_s: per sample, whole request, from its arrival where there is one.
        ttft_p50_s, tpot_p50_s: first token; time per later token.
        prefill_s, decode_s: mean time of a request to its first token (waiting left out), and after it.
        prefill_share: prefill over prefill and decode, totals over totals.
        queue_p50_s, queue_p99_s: waiting before a request began; ``None`` back to back.
        tokens_per_s: total tokens over total window time.
        speedup_pairs: blocks that both finished whole, the units of the speed-up.
        speedup_range, decode_speedup_range: smallest and largest ratio over the repeats, each of a process of its own;
            ``None`` with a single one.
        speedup: time of full depth over this one's, whole request, paired.
        decode_speedup: the same for the time per token after the first.
        layers_speedup: decode speed-up that the skipped layers alone would give, counted in bytes moved per token.
        heads_speedup: what is left of it after the LM heads that were evaluated to decide.
        shortcuts_speedup: what is left after the exits' shortcut maps, too.
        roofline_speedup: what is left after KV fills, too: all bytes moved, to compare with decode_speedup.
        roofline_achieved: decode_speedup over roofline_speedup.
        roofline_fraction: bytes moved per second of decoding over the measured bandwidth.
        oracle_fraction: layers skipped over the layers the oracle skipped on the same samples.
        edit_similarity_difference, exact_match_difference, codebleu_difference: mean difference to full depth, paired
            by sample; ``None`` for a score that samples do not have one by one.
        verdict: the comparison with full depth in words; ``None`` when one of them has no finished sample.
        agreement_over_fixed, edit_similarity_over_fixed: difference to fixed exit at the same mean depth, per sample;
            ``None`` where the run has no fixed exit at least as shallow.
        exit_checks_per_token, lm_head_per_token, kv_fill_layers_per_token: cost counts per decoded token.
        rehearsed: it saw the answer outside the measured window: an upper bound, never on the front.
        pareto: on the front of (quality up, cost down) among the rows of its table.
    """

    operating_point: str
    strategy: str
    options: dict[str, Any]
    task: str
    language: str
    protocol: str
    source: str
    model: str
    weights: Weights
    exit_head: str = "shared"
    kv: str
    batch_size: int
    dtype: str
    n: int
    errors: int
    repeats: int
    exit_layer_mean: float | None = None
    layers_skipped: float | None = None
    agreement: float | None = None
    token_accuracy: float | None = None
    exact_match: float | None = None
    edit_similarity: float | None = None
    bleu: float | None = None
    rouge_l: float | None = None
    codebleu: float | None = None
    syntax: float | None = None
    dataflow: float | None = None
    dataflow_defined: float | None = None
    chrf: float | None = None
    energy_j: float | None = None
    energy_j_per_token: float | None = None
    energy_j_per_request: float | None = None
    energy_source: str = "none"
    mean_power_w: float | None = None
    idle_power_w: float | None = None
    energy_net_j_per_token: float | None = None
    energy_ratio: float | None = None
    energy_ratio_ci: tuple[float, float] | None = None
    energy_ratio_p: float | None = None
    energy_ratio_p_holm: float | None = None
    energy_net_ratio: float | None = None
    energy_net_ratio_ci: tuple[float, float] | None = None
    energy_net_ratio_p: float | None = None
    energy_net_ratio_p_holm: float | None = None
    latency_p50_s: float | None = None
    latency_p90_s: float | None = None
    latency_p99_s: float | None = None
    ttft_p50_s: float | None = None
    tpot_p50_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    prefill_share: float | None = None
    queue_p50_s: float | None = None
    queue_p99_s: float | None = None
    tokens_per_s: float | None = None
    speedup_pairs: int | None = None
    speedup_range: tuple[float, float] | None = None
    decode_speedup_range: tuple[float, float] | None = None
    speedup: float | None = None
    speedup_ci: tuple[float, float] | None = None
    speedup_p: float | None = None
    speedup_p_holm: float | None = None
    decode_speedup: float | None = None
    decode_speedup_ci: tuple[float, float] | None = None
    decode_speedup_p: float | None = None
    decode_speedup_p_holm: float | None = None
    layers_speedup: float | None = None
    heads_speedup: float | None = None
    shortcuts_speedup: float | None = None
    roofline_speedup: float | None = None
    roofline_achieved: float | None = None
    roofline_fraction: float | None = None
    oracle_fraction: float | None = None
    edit_similarity_difference: float | None = None
    edit_similarity_difference_ci: tuple[float, float] | None = None
    edit_similarity_difference_p: float | None = None
    edit_similarity_difference_p_holm: float | None = None
    exact_match_difference: float | None = None
    exact_match_difference_ci: tuple[float, float] | None = None
    exact_match_difference_p: float | None = None
    exact_match_difference_p_holm: float | None = None
    codebleu_difference: float | None = None
    codebleu_difference_ci: tuple[float, float] | None = None
    codebleu_difference_p: float | None = None
    codebleu_difference_p_holm: float | None = None
    verdict: str | None = None
    agreement_over_fixed: float | None = None
    agreement_over_fixed_ci: tuple[float, float] | None = None
    edit_similarity_over_fixed: float | None = None
    edit_similarity_over_fixed_ci: tuple[float, float] | None = None
    exit_checks_per_token: float | None = None
    lm_head_per_token: float | None = None
    kv_fill_layers_per_token: float | None = None
    rehearsed: bool = False
    pareto: bool = False


class Summary(Record):
    """``summary.json``: one row per task × operating point, and what a reader must know beside them.

    Attributes:
        schema_version: of this file.
        machine: one line that describes where it was measured.
        notes: sentences a table must carry (random weights, tokenizer stand-in, estimated energy …).
        rows: the results.
        attributions: where time and energy went, per task and quantity; empty without probes (``--attribute``).
    """

    schema_version: int
    machine: str
    notes: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    attributions: tuple[Attribution, ...] = ()
