"""The byte model: speed-ups predicted from bytes read.

At batch 1 each token reads the weights of the layers it runs, the LM head once per evaluation, the K,V projections
of every layer it fills, and the KV cache of the layers it runs. Full depth's bytes per token over an operating
point's bytes per token is the speed-up it would have if every byte took the same time and nothing else took any. That
is a prediction and no bound: matrices stream at speeds of their own, and what stays in a cache is read faster. Writes
and activations are left out (together below 1 % for contexts of hundreds of tokens), and the holes of ``skip`` count
as if they were read.

Between "so many layers skipped" and the speed-up measured stands a **ladder** of the same bytes, added up in steps:
what the executed layers alone would give (with the one LM head that every token needs), what remains after the LM
heads evaluated to decide, or the cheap heads in their place, after the exits' shortcut maps, and after KV fills. The
last is the byte model's speed-up. Between it and the measured one stands what bytes do not explain: the time of asking
itself, small operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Any

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


@lru_cache(maxsize=8)
def _ladder(point: Point) -> tuple[float | None, ...]:
    """The speed-ups that bytes read predict, each with one more cause counted.

    All are ``None`` without a KV cache (every token runs the whole prefix: compute-bound, bytes say nothing) and at
    batch sizes above 1 (rows share weight reads in a way the records do not hold).
    """
    cell, full = point.cell, point.own_full
    if _moves_bytes(point) and full.conditions.cached:
        both = cell.shared(full)
        here, there = _bytes_per_token(cell, both, point.model), _bytes_per_token(full, both, point.model)
        if here is not None and there is not None:
            return tuple(there[-1] / bytes_sofar for bytes_sofar in here)
    return (None,) * 4


def _achieved(point: Point) -> float | None:
    """Decoding speed-up over what the byte model predicts."""
    predicted = _ladder(point)[-1]
    full = point.own_full
    reached = 1.0 if point.cell is full and point.samples else paired_ratio(point.cell.decode_pairs(full))
    return None if predicted is None or reached is None else reached / predicted


def _bandwidth_share(point: Point) -> float | None:
    """Bytes moved per second over the measured bandwidth."""
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

    Where a KV policy defers the layers an exited token missed, they run in the same pass as the next deeper token's
    own, so that their weights are read once: the layers of each pass count, not layers × tokens. Lossless decoding
    counts them itself, since all of its tokens end at full depth.
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


def _rung(step: int, **facts: Any) -> Metric:
    """Declare a speed-up that bytes read predict, with so many further causes counted."""
    return Metric(
        compute=lambda point: _ladder(point)[step],
        sections={BYTE_MODEL: step + 1},
        kind="work",
        form="ratio",
        unit="×",
        better="higher",
        **facts,
    )


LAYERS_SPEEDUP = _rung(
    0,
    name="layers_speedup",
    header="layers\nonly",
    meaning="decoding speed-up predicted from the executed layers' bytes alone",
)
HEADS_SPEEDUP = _rung(
    1,
    name="heads_speedup",
    header="after\nheads",
    meaning="the same with the LM heads evaluated to decide",
)
SHORTCUTS_SPEEDUP = _rung(
    2,
    name="shortcuts_speedup",
    header="after\nmaps",
    meaning="and with the exits' shortcut maps",
)
BYTE_MODEL_SPEEDUP = _rung(
    3,
    name="byte_model_speedup",
    header="byte\nmodel",
    meaning="and with KV fills: decoding speed-up predicted from all bytes read; no bound",
)
BYTE_MODEL_ACHIEVED = Metric(
    name="byte_model_achieved",
    header="of byte\nmodel",
    meaning="measured decoding speed-up over the byte model's",
    compute=_achieved,
    form="percent",
    better="higher",
    sections={BYTE_MODEL: 6},
)
BANDWIDTH_SHARE = Metric(
    name="bandwidth_share",
    header="of band-\nwidth",
    meaning="bytes moved per second over the measured bandwidth",
    compute=_bandwidth_share,
    form="percent",
    better="higher",
    sections={DEPTH: 6},
)
