"""How deep tokens went, what the decisions cost in work, and what the memory bus would allow.

The **roofline** of decoding at batch 1 is bytes moved: each token reads the weights of the layers it runs, the
LM head once per evaluation, the K,V projections of every layer it fills, and the KV cache of the layers it
runs. Full depth's bytes per token over an operating point's bytes per token is the speed-up it would have
if nothing but memory traffic took time. Writes and activations are left out (together below 1 % for
contexts of hundreds of tokens), and the holes of ``skip`` count as if they were read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from harness.contracts import KVPolicy, ModelInfo
from harness.records import ModelRecord, SampleRecord
from reports.measured import Measured, SampleKey
from reports.statistics import ratio

__all__ = ["bytes_moved", "decode_bytes", "depth", "oracle_fraction", "roofline", "work"]


def depth(cell: Measured, num_layers: int) -> dict[str, float | None]:
    """Return the mean layers executed per decoded token and the fraction skipped, weighted by tokens."""
    executed = _mean_layers(cell, cell.samples)
    return {
        "exit_layer_mean": executed,
        "layers_skipped": None if executed is None else 1 - executed / num_layers,
    }


def oracle_fraction(cell: Measured, oracle: Measured | None, num_layers: int) -> float | None:
    """Return layers skipped here over layers the oracle skipped, on the samples both finished.

    ``None`` when the run has no oracle, or when it skipped nothing.
    """
    if oracle is None:
        return None
    both = cell.shared(oracle)
    here, best = _mean_layers(cell, both), _mean_layers(oracle, both)
    return None if here is None or best is None else ratio(1 - here / num_layers, 1 - best / num_layers)


def work(cell: Measured) -> dict[str, float | None]:
    """Return exit checks, LM-head evaluations and KV fills per decoded token, totals over totals."""
    samples = cell.samples.values()
    tokens = sum(len(cell.decoded_layers(sample)) for sample in samples)
    return {
        "exit_checks_per_token": ratio(sum(sample.exit_checks for sample in samples), tokens),
        "lm_head_per_token": ratio(sum(sample.lm_head_evaluations for sample in samples), tokens),
        "kv_fill_layers_per_token": ratio(sum(sample.kv_fill_layers for sample in samples), tokens),
    }


def decode_bytes(sample: SampleRecord, model: ModelRecord, kv: KVPolicy) -> int:
    """Return the bytes that decoding one sample after its first token moves at batch 1.

    With ``recompute`` the layers an exited token missed run in the same pass as the next deeper token's
    own, so that their weights are read once: the layers of each pass count, not layers × tokens.
    """
    layers = sample.exit_layers[1:]
    weight_reads = sum(layers) if kv is KVPolicy.RECOMPUTE else sample.layers_executed
    first = len(sample.prompt_ids) + 1  # positions the second token's pass attends to
    cache_reads = sum(executed * (first + step) for step, executed in enumerate(layers))
    return bytes_moved(
        model,
        layers=weight_reads,
        lm_head_evaluations=sample.lm_head_evaluations,
        shortcut_evaluations=sample.shortcut_evaluations,
        kv_fill_layers=sample.kv_fill_layers,
        cache_reads=cache_reads,
    )


def bytes_moved(
    model: ModelRecord | ModelInfo,
    *,
    layers: int,
    lm_head_evaluations: int,
    shortcut_evaluations: int,
    kv_fill_layers: int,
    cache_reads: int,
) -> int:
    """Return the bytes that so much work reads at batch 1; ``cache_reads`` counts positions × layers attended to."""
    return (
        layers * model.layer_bytes
        + lm_head_evaluations * model.lm_head_bytes
        + shortcut_evaluations * model.shortcut_bytes
        + kv_fill_layers * model.kv_projection_bytes
        + cache_reads * model.kv_entry_bytes
    )


def roofline(
    cell: Measured, full: Measured, model: ModelRecord, bandwidth_bytes_per_s: float | None
) -> dict[str, float | None]:
    """Return the speed-up that bytes moved would allow, and the share of the bandwidth that was reached.

    Both are ``None`` without a KV cache (every token runs the whole prefix: compute-bound, bytes say
    nothing) and at batch sizes above 1 (rows share weight reads in a way the records do not hold).
    """
    regime = cell.regime
    if not regime.cached or regime.batch_size > 1:
        return {"roofline_speedup": None, "roofline_fraction": None}
    both = cell.shared(full)
    here, there = _bytes_per_token(cell, both, model), _bytes_per_token(full, both, model)
    timed = [sample for sample in cell.samples.values() if len(sample.token_times_s) >= 2]
    moved = sum(decode_bytes(sample, model, regime.kv) for sample in timed)
    seconds = math.fsum(sample.token_times_s[-1] - sample.token_times_s[0] for sample in timed)
    rate = ratio(moved, seconds)
    return {
        "roofline_speedup": there / here if here and there is not None else None,
        "roofline_fraction": rate / bandwidth_bytes_per_s if rate is not None and bandwidth_bytes_per_s else None,
    }


def _mean_layers(cell: Measured, keys: Iterable[SampleKey]) -> float | None:
    layers = [executed for key in keys for executed in cell.decoded_layers(cell.samples[key])]
    return ratio(sum(layers), len(layers))


def _bytes_per_token(cell: Measured, keys: Iterable[SampleKey], model: ModelRecord) -> float | None:
    samples = [cell.samples[key] for key in keys]
    moved = sum(decode_bytes(sample, model, cell.regime.kv) for sample in samples)
    return ratio(moved, sum(len(cell.decoded_layers(sample)) for sample in samples))
