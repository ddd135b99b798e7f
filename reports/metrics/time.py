"""The time that completions take: latencies, prefill and decode apart, waiting, throughput.

Where requests arrive at a fixed rate, latency and time to the first token count from the arrival; prefill and decode
are what remains without waiting.
"""

from __future__ import annotations

import math
from functools import partial
from operator import attrgetter

from harness.contracts import Metric, Wording
from harness.records import SampleRecord
from reports.metrics.point import Point, Units, blocks, tokens
from reports.metrics.vocabulary import HEADLINE, TIME
from reports.statistics.intervals import ratio
from reports.summary.measured import after_first

_seconds = partial(Metric, unit="s", form="seconds", better="lower", kind="cost", black_box=True)


def total_s(point: Point) -> float:
    """Return the seconds of its windows, which were timed, without those in which a sample failed."""
    return math.fsum(window.duration_s for window in point.cell.whole_windows if window.duration_s is not None)


_latency, _ttft, _queue, _duration = map(attrgetter, ("latency_s", "ttft_s", "queue_s", "duration_s"))


def _tpot(sample: SampleRecord) -> float | None:
    later = after_first(sample)
    return None if later is None else later[0] / later[1]


def _prefill(sample: SampleRecord) -> float | None:
    timed = sample.ttft_s is not None and sample.latency_s is not None
    return (sample.ttft_s or 0.0) - (sample.queue_s or 0.0) if timed else None


def _decode(sample: SampleRecord) -> float | None:
    return None if sample.ttft_s is None or sample.latency_s is None else sample.latency_s - sample.ttft_s


def _prefill_share(point: Point) -> float | None:
    prefill = math.fsum(seconds for sample in point.samples if (seconds := _prefill(sample)) is not None)
    decode = math.fsum(seconds for sample in point.samples if (seconds := _decode(sample)) is not None)
    return ratio(prefill, prefill + decode)


def _throughput(point: Point) -> float | None:
    made = tokens(point.cell)
    return None if made is None else ratio(made, total_s(point))


def _throughput_units(point: Point) -> Units:
    spent = blocks(point.cell, _duration, per_token=True)
    return {key: (made, seconds) for key, (seconds, made) in spent.items()}


LATENCY_P50 = _seconds(
    "latency_p50_s",
    "p50",
    "median latency of a request",
    title="latency p50",
    of_sample=_latency,
    percentile=50,
    sections={HEADLINE: 7, TIME: 1},
    priority=6,
    change=Wording("requests {} faster", "requests {} slower"),
)
LATENCY_P90, LATENCY_P99, QUEUE_P50, QUEUE_P99, TTFT_P50 = (
    _seconds(name, header, meaning, title=title, of_sample=of_sample, percentile=percent, sections={TIME: place})
    for place, (name, header, title, meaning, of_sample, percent) in enumerate(
        (
            ("latency_p90_s", "p90", "latency p90", "90th percentile of the latency", _latency, 90),
            ("latency_p99_s", "p99", "latency p99", "99th percentile of the latency", _latency, 99),
            ("queue_p50_s", "wait\np50", "", "median wait before a request began", _queue, 50),
            ("queue_p99_s", "wait\np99", "", "99th percentile of that wait", _queue, 99),
            ("ttft_p50_s", "TTFT", "TTFT p50", "median time to the first token", _ttft, 50),
        ),
        2,
    )
)
"""90th percentile of the latency
99th percentile of the latency
median wait before a request began
99th percentile of that wait
median time to the first token
"""
TPOT_P50 = _seconds(
    "tpot_p50_s",
    "TPOT",
    "median time per later token",
    title="TPOT p50",
    of_sample=_tpot,
    black_box=False,
    percentile=50,
    sections={TIME: 7},
    change=Wording("decodes {} faster", "decodes {} slower"),
)
TOKENS_PER_S = Metric(
    "tokens_per_s",
    "tokens\nper s",
    "all tokens over all time",
    title="tokens/s",
    compute=_throughput,
    units=_throughput_units,
    black_box=True,
    better="higher",
    unit="1/s",
    sections={TIME: 8},
)
PREFILL = _seconds(
    "prefill_s", "prefill", "mean time to the first token, waiting left out", of_sample=_prefill, sections={TIME: 9}
)
DECODE = _seconds(
    "decode_s", "decode", "mean time of a request after the first token", of_sample=_decode, sections={TIME: 10}
)
PREFILL_SHARE = Metric(
    "prefill_share",
    "prompt\nshare",
    "time to the first token, waiting left out, over all time of a request",
    compute=_prefill_share,
    black_box=True,
    form="percent",
    sections={HEADLINE: 6.5, TIME: 11},
    priority=7,
)
