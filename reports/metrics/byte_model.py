"""The byte model: speed-ups predicted from bytes read, as a ladder from layers alone to everything.

At batch 1 each token reads the weights of the layers it runs, the LM head once per evaluation, the K,V projections of
every layer it fills, and the KV cache of the layers it runs. Full depth's bytes per token over an operating point's is
the speed-up if every byte took the same time and nothing else took any: a prediction and no bound. Writes and
activations are left out (below 1 % for contexts of hundreds of tokens); holes of ``skip`` count as if they were read.

A prompt is arithmetic, each of its tokens a product with every weight that a token's pass would read: the same prices,
attention left out, over what its tokens ran.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from itertools import accumulate

from harness.contracts import KVFacts, Metric, price
from harness.records import ModelRecord, SampleRecord
from harness.records.work import bytes_read
from reports.metrics.point import Point
from reports.metrics.vocabulary import BYTE_MODEL, DEPTH
from reports.statistics.intervals import paired_ratio, ratio
from reports.summary.measured import Measured, SampleKey, after_first


def decode_bytes(sample: SampleRecord, model: ModelRecord, kv: KVFacts) -> float:
    """Return the bytes that decoding one sample after its first token moves at batch 1."""
    return sum(_bytes_by_cause(sample, model, kv))


def _rung(step: int, point: Point) -> float | None:
    """The speed-up that bytes read predict with so many further causes counted.

    ``None`` without a KV cache (every token runs the whole prefix: compute-bound, bytes say nothing) and at batch sizes
    above 1 (rows share weight reads in a way the records do not hold).
    """
    cell, full = point.cell, point.own_full
    if not _moves_bytes(point) or not full.conditions.cached:
        return None
    both = cell.shared(full)
    here, there = _bytes_per_token(cell, both, point.model), _bytes_per_token(full, both, point.model)
    return None if here is None or there is None else there[-1] / here[step]


def _prompt_speedup(point: Point) -> float | None:
    if not point.cell.point.prompt_exit:
        return None
    costs, read = bytes_read(point.model), [sample.prompt_amounts for sample in point.samples]
    return ratio(sum(sum(one.values()) for one in read) * costs["layer step"], sum(price(one, costs) for one in read))


def _achieved(point: Point) -> float | None:
    predicted = _rung(-1, point)
    full = point.own_full
    reached = 1.0 if point.cell is full and point.samples else paired_ratio(point.cell.decode_pairs(full))
    return None if predicted is None or reached is None else reached / predicted


def _bandwidth_share(point: Point) -> float | None:
    if not _moves_bytes(point):
        return None
    timed = [(sample, later[0]) for sample in point.samples if (later := after_first(sample)) is not None]
    moved = sum(decode_bytes(sample, point.model, point.cell.conditions.kv_facts) for sample, _ in timed)
    rate = ratio(moved, math.fsum(seconds for _, seconds in timed))
    bandwidth = point.manifest.bandwidth_bytes_per_s
    return rate / bandwidth if rate is not None and bandwidth else None


def _moves_bytes(point: Point) -> bool:
    return point.cell.conditions.cached and point.cell.conditions.batch_size == 1


def _bytes_by_cause(sample: SampleRecord, model: ModelRecord, kv: KVFacts) -> tuple[float, float, float, float]:
    """Bytes of one sample after its first token: layers with one LM head a token, further heads, maps, KV fills.

    Layers that a KV policy defers run in the same pass as the next deeper token's own, so that their weights are read
    once: the layers of each pass count, not layers × tokens. Lossless decoding counts them itself.
    """
    amounts, costs, layers = sample.decode_amounts(), bytes_read(model), sample.exit_layers[1:]
    if kv.defers and not sample.verifications:
        amounts["layer step"] = sum(layers)
    heads = amounts["LM head"]
    needed = min(sample.verifications or len(layers), heads)
    return (
        price({"LM head": needed} | {unit: amounts[unit] for unit in ("layer step", "attended position")}, costs),
        price({"LM head": heads - needed, "cheap head byte": amounts["cheap head byte"]}, costs),
        price({"shortcut": amounts["shortcut"]}, costs),
        price({"KV fill": amounts["KV fill"]}, costs),
    )


def _bytes_per_token(cell: Measured, keys: Iterable[SampleKey], model: ModelRecord) -> list[float] | None:
    """Bytes per decoded token, added up over the causes; the last is all of them."""
    samples = [cell.samples[key] for key in keys]
    tokens = sum(len(cell.decoded_layers(sample)) for sample in samples)
    causes = [_bytes_by_cause(sample, model, cell.conditions.kv_facts) for sample in samples]
    total = list(accumulate(map(sum, zip(*causes, strict=True))))
    return [moved / tokens for moved in total] if tokens and total and total[0] else None


LAYERS_SPEEDUP, HEADS_SPEEDUP, SHORTCUTS_SPEEDUP, BYTE_MODEL_SPEEDUP = (
    Metric(
        name,
        header,
        meaning,
        compute=partial(_rung, step),
        sections={BYTE_MODEL: step + 1},
        kind="work",
        form="ratio",
        unit="×",
        better="higher",
    )
    for step, (name, header, meaning) in enumerate(
        (
            ("layers_speedup", "layers\nonly", "decoding speed-up predicted from the executed layers' bytes alone"),
            ("heads_speedup", "after\nheads", "the same with the LM heads evaluated to decide"),
            ("shortcuts_speedup", "after\nmaps", "and with the exits' shortcut maps"),
            (
                "byte_model_speedup",
                "byte\nmodel",
                "and with KV fills: decoding speed-up predicted from all bytes read; no bound",
            ),
        )
    )
)
"""decoding speed-up predicted from the executed layers' bytes alone
the same with the LM heads evaluated to decide
and with the exits' shortcut maps
and with KV fills: decoding speed-up predicted from all bytes read; no bound
"""
PROMPT_SPEEDUP = Metric(
    "prompt_speedup",
    "prompt\narithmetic",
    "speed-up of reading the prompt predicted from the products of its tokens with weights; no bound",
    compute=_prompt_speedup,
    kind="work",
    form="ratio",
    unit="×",
    better="higher",
    sections={BYTE_MODEL: 5},
)
BYTE_MODEL_ACHIEVED = Metric(
    "byte_model_achieved",
    "of byte\nmodel",
    "measured decoding speed-up over the byte model's",
    compute=_achieved,
    form="percent",
    better="higher",
    sections={BYTE_MODEL: 6},
)
BANDWIDTH_SHARE = Metric(
    "bandwidth_share",
    "of band-\nwidth",
    "bytes moved per second over the measured bandwidth",
    compute=_bandwidth_share,
    form="percent",
    better="higher",
    sections={DEPTH: 6},
)
