"""How long reading each prompt took, pooled over the operating points of a run, which all did the same work for it.

With a KV cache every operating point of one weights format reads a prompt in one pass at full depth, and no strategy,
draft source or stop rule is asked before the first token. On a shared machine that pass takes up to twice as long by
chance, and it is the larger part of a short request. So where requests are compared, the time of each is the mean time
of its prompt over all these operating points, and what this one took beyond its own.

The mean and not the median: it estimates what each of them estimates alone, however many there are, so that ratios keep
their meaning. Noise that says nothing of an operating point leaves them; blocks stay the independent units, and under
"both are the same" the two sides of a pair may still be swapped.

Pooled is only what is the same work: the same prompt tokens and repeat, one weights format, one request at a time, back
to back, with a cache. Recorded times, and the latencies made of them, stay as they were measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property

from harness.records import SampleRecord, WindowRecord
from reports.statistics.intervals import mean
from reports.summary.measured import Measured

__all__ = ["PromptTimes"]


class PromptTimes:
    """The prompt times of one task.

    Args:
        cells: its operating points.
    """

    def __init__(self, cells: Sequence[Measured]) -> None:
        self._cells = cells

    def request_s(self, cell: Measured, window: WindowRecord) -> float | None:
        """Return what the requests of a window took, each prompt as long as on the average of the same work."""
        spent = cell.request_s(window)
        if spent is None or not _pools(cell):
            return spent
        times = [(sample, _prompt_s(sample)) for sample in cell.whole.get(window.window, ())]
        return spent + sum(self._means[_work(cell, sample)] - own for sample, own in times if own is not None)

    @cached_property
    def _means(self) -> Mapping[Hashable, float]:
        times: dict[Hashable, list[float]] = defaultdict(list)
        for cell in filter(_pools, self._cells):
            for sample in cell.samples.values():
                if (spent := _prompt_s(sample)) is not None:
                    times[_work(cell, sample)].append(spent)
        return {work: found for work, each in times.items() if (found := mean(each)) is not None}


def _pools(cell: Measured) -> bool:
    return cell.conditions.cached and cell.conditions.batch_size == 1 and cell.point.black_box is None


def _prompt_s(sample: SampleRecord) -> float | None:
    return None if sample.arrival_s is not None or sample.latency_s is None else sample.ttft_s


def _work(cell: Measured, sample: SampleRecord) -> Hashable:
    return cell.conditions.weights_format, sample.sample_id, sample.repeat, sample.prompt_ids
