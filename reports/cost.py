"""What the completions cost: time, paired speed-ups, and energy.

Times come from every repeat. Energy is a total over windows and exists only when every window has a number
from one source: a missing reading makes it ``None``, never a smaller total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.records import SampleRecord
from reports.measured import Measured
from reports.statistics import Pair, bootstrap_interval, median, paired_ratio, percentile, ratio

__all__ = ["MIXED", "energy", "speedups", "timing"]

MIXED = "mixed"


def timing(cell: Measured) -> dict[str, float | None]:
    """Return latency, time to first token, time per later token (seconds) and tokens per second.

    Percentiles are over samples, all repeats together; throughput is total tokens over total window time.
    """
    samples = cell.samples.values()
    latencies = [sample.latency_s for sample in samples if sample.latency_s is not None]
    windows = cell.windows.values()
    return {
        "latency_p50_s": percentile(latencies, 50),
        "latency_p90_s": percentile(latencies, 90),
        "latency_p99_s": percentile(latencies, 99),
        "ttft_p50_s": median(sample.ttft_s for sample in samples if sample.ttft_s is not None),
        "tpot_p50_s": median(time for sample in samples if (time := _time_per_later_token(sample)) is not None),
        "tokens_per_s": ratio(sum(w.tokens for w in windows), math.fsum(w.duration_s for w in windows)),
    }


def speedups(cell: Measured, full: Measured) -> dict[str, float | tuple[float, float] | None]:
    """Return the whole-request and the decoding speed-up over full depth, with bootstrap 95 % intervals.

    Full depth itself is the baseline: 1 by definition, without an interval.
    """
    if cell is full:
        one = 1.0 if cell.samples else None
        return {"speedup": one, "speedup_ci": None, "decode_speedup": one, "decode_speedup_ci": None}
    request, decode = cell.window_pairs(full), cell.decode_pairs(full)
    return {**_ratio_with_interval("speedup", request), **_ratio_with_interval("decode_speedup", decode)}


def energy(cell: Measured) -> dict[str, float | str | None]:
    """Return joules in total and per generated token, and where they come from.

    ``None`` when any window lacks a reading, or when the windows' sources differ (then ``mixed``):
    an estimate and a measurement are never added.
    """
    windows = cell.windows.values()
    sources = {window.energy_source for window in windows}
    source = MIXED if len(sources) > 1 else next(iter(sources), "none")
    readings = [window.energy_j for window in windows if window.energy_j is not None]
    if not readings or len(readings) < len(windows) or source == MIXED:
        return {"energy_j": None, "energy_j_per_token": None, "energy_source": source}
    total = math.fsum(readings)
    return {
        "energy_j": total,
        "energy_j_per_token": ratio(total, sum(window.tokens for window in windows)),
        "energy_source": source,
    }


def _time_per_later_token(sample: SampleRecord) -> float | None:
    times = sample.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) >= 2 else None


def _ratio_with_interval(name: str, pairs: Sequence[Pair]) -> dict[str, float | tuple[float, float] | None]:
    return {name: paired_ratio(pairs), f"{name}_ci": bootstrap_interval(pairs)}
