"""What the completions cost in time: latencies, prefill and decode apart, waiting.

Energy is in :mod:`reports.summary.energy`.

Times come from every repeat. Where requests arrive at a fixed rate, latency and time to the first token count from
the arrival, and waiting is a column of its own; prefill and decode are what remains without it.
"""

from __future__ import annotations

import math

from harness.records import SampleRecord
from reports.statistics.intervals import mean, median, percentile, ratio
from reports.summary.measured import Measured

__all__ = ["timing"]


def timing(cell: Measured) -> dict[str, float | None]:
    """Return latency, its parts, time per later token (all in seconds) and tokens per second.

    Percentiles are over samples, all repeats together; throughput is total tokens over total window time.
    """
    samples = cell.samples.values()
    latencies = [sample.latency_s for sample in samples if sample.latency_s is not None]
    waits = [sample.queue_s for sample in samples if sample.queue_s is not None]
    parts = [part for sample in samples if (part := _prefill_and_decode(sample)) is not None]
    prefill, decode = math.fsum(first for first, _ in parts), math.fsum(rest for _, rest in parts)
    windows = cell.windows.values()
    return {
        "latency_p50_s": percentile(latencies, 50),
        "latency_p90_s": percentile(latencies, 90),
        "latency_p99_s": percentile(latencies, 99),
        "ttft_p50_s": median(sample.ttft_s for sample in samples if sample.ttft_s is not None),
        "tpot_p50_s": median(time for sample in samples if (time := _time_per_later_token(sample)) is not None),
        "prefill_s": mean(first for first, _ in parts),
        "decode_s": mean(rest for _, rest in parts),
        "prefill_share": ratio(prefill, prefill + decode),
        "queue_p50_s": percentile(waits, 50),
        "queue_p99_s": percentile(waits, 99),
        "tokens_per_s": ratio(sum(w.tokens for w in windows), math.fsum(w.duration_s for w in windows)),
    }


def _prefill_and_decode(sample: SampleRecord) -> tuple[float, float] | None:
    """Seconds to the first token, waiting left out, and after it."""
    if sample.ttft_s is None or sample.latency_s is None:
        return None
    return sample.ttft_s - (sample.queue_s or 0.0), sample.latency_s - sample.ttft_s


def _time_per_later_token(sample: SampleRecord) -> float | None:
    times = sample.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) >= 2 else None
