"""How deep tokens went, what the decisions cost in work, and what the memory bus would allow.

The **roofline** of decoding at batch 1 is bytes moved: each token reads the weights of the layers it runs, the
LM head once per evaluation, the K,V projections of every layer it fills, and the KV cache of the layers it
runs. Full depth's bytes per token over an operating point's bytes per token is the speed-up it would have
if nothing but memory traffic took time. Writes and activations are left out (together below 1 % for
contexts of hundreds of tokens), and the holes of ``skip`` count as if they were read.

Between "so many layers skipped" and the speed-up measured stands a **ladder** of the same bytes, added up in steps:
what the executed layers alone would give (with the one LM head that every token needs), what remains after the LM
heads evaluated to decide, after the exits' shortcut maps, and after KV fills. The last is the roofline. Below it is
what bytes do not explain: the time of asking itself, small operations, cold caches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import accumulate

from harness.contracts import KVFacts, ModelInfo
from harness.records import ModelRecord, SampleRecord
from reports.statistics.intervals import ratio
from reports.summary.measured import Measured, SampleKey

__all__ = ["LADDER", "bytes_by_cause", "decode_bytes", "depth", "oracle_fraction", "roofline", "work"]

LADDER = ("layers_speedup", "heads_speedup", "shortcuts_speedup", "roofline_speedup")
"""Fields of the summary row: decode speed-ups that bytes allow, each with one more cost counted."""


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


def decode_bytes(sample: SampleRecord, model: ModelRecord, kv: KVFacts) -> int:
    """Return the bytes that decoding one sample after its first token moves at batch 1."""
    return sum(_bytes_by_cause(sample, model, kv))


def roofline(
    cell: Measured, full: Measured, model: ModelRecord, bandwidth_bytes_per_s: float | None
) -> dict[str, float | None]:
    """Return the ladder of speed-ups that bytes moved would allow, and the share of the bandwidth that was reached.

    All are ``None`` without a KV cache (every token runs the whole prefix: compute-bound, bytes say
    nothing) and at batch sizes above 1 (rows share weight reads in a way the records do not hold).
    """
    found: dict[str, float | None] = dict.fromkeys((*LADDER, "roofline_fraction"))
    regime = cell.regime
    if not regime.cached or regime.batch_size > 1:
        return found
    timed = [sample for sample in cell.samples.values() if len(sample.token_times_s) >= 2]
    moved = sum(decode_bytes(sample, model, regime.facts) for sample in timed)
    seconds = math.fsum(sample.token_times_s[-1] - sample.token_times_s[0] for sample in timed)
    rate = ratio(moved, seconds)
    if rate is not None and bandwidth_bytes_per_s:
        found["roofline_fraction"] = rate / bandwidth_bytes_per_s
    both = cell.shared(full)
    here, there = _bytes_per_token(cell, both, model), _bytes_per_token(full, both, model)
    if full.regime.cached and here is not None and there is not None:
        found |= {name: there[-1] / bytes_sofar for name, bytes_sofar in zip(LADDER, here, strict=True)}
    return found


def _bytes_by_cause(sample: SampleRecord, model: ModelRecord, kv: KVFacts) -> tuple[int, int, int, int]:
    """Bytes of one sample after its first token, by :func:`bytes_by_cause`.

    Where a KV policy defers the layers an exited token missed, they run in the same pass as the next deeper token's
    own, so that their weights are read once: the layers of each pass count, not layers × tokens.
    """
    layers = sample.exit_layers[1:]
    first = len(sample.prompt_ids) + 1  # positions the second token's pass attends to
    return bytes_by_cause(
        model,
        tokens=len(layers),
        layers=sum(layers) if kv.defers else sample.layers_executed,
        lm_head_evaluations=sample.lm_head_evaluations,
        shortcut_evaluations=sample.shortcut_evaluations,
        kv_fill_layers=sample.kv_fill_layers,
        cache_reads=sum(executed * (first + step) for step, executed in enumerate(layers)),
    )


def bytes_by_cause(
    model: ModelRecord | ModelInfo,
    *,
    tokens: int,
    layers: int,
    lm_head_evaluations: int,
    shortcut_evaluations: int,
    kv_fill_layers: int,
    cache_reads: int,
) -> tuple[int, int, int, int]:
    """Return what so much work reads at batch 1: layers with one LM head a token, further heads, maps, KV fills.

    Args:
        model: whose bytes.
        tokens: how many were decoded.
        layers: layers run for them.
        lm_head_evaluations: of outputs and of checks.
        shortcut_evaluations: maps of exits.
        kv_fill_layers: layers whose K,V were filled.
        cache_reads: positions × layers attended to.
    """
    outputs = min(tokens, lm_head_evaluations)
    return (
        layers * model.layer_bytes + cache_reads * model.kv_entry_bytes + outputs * model.lm_head_bytes,
        (lm_head_evaluations - outputs) * model.lm_head_bytes,
        shortcut_evaluations * model.shortcut_bytes,
        kv_fill_layers * model.kv_projection_bytes,
    )


def _mean_layers(cell: Measured, keys: Iterable[SampleKey]) -> float | None:
    layers = [executed for key in keys for executed in cell.decoded_layers(cell.samples[key])]
    return ratio(sum(layers), len(layers))


def _bytes_per_token(cell: Measured, keys: Iterable[SampleKey], model: ModelRecord) -> list[float] | None:
    """Bytes per decoded token, added up over the causes; the last is all of them."""
    samples = [cell.samples[key] for key in keys]
    tokens = sum(len(cell.decoded_layers(sample)) for sample in samples)
    causes = [_bytes_by_cause(sample, model, cell.regime.facts) for sample in samples]
    total = list(accumulate(map(sum, zip(*causes, strict=True))))
    return [moved / tokens for moved in total] if tokens and total and total[0] else None
