"""A/A self-test: one operating point under two names, compared like any two. Do the error bars cover the truth?

The same samples are decoded twice, sample by sample, in random order, each time in a measured window of its own, with
engine, meter and statistics of a run. If the error bars are right, about 95 % of the intervals cover 1.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from harness.config import RunConfig
from harness.contracts import Meter, Sample
from harness.contracts.recipes import Progress
from harness.decoding.engine import Engine
from harness.errors import DataError
from harness.metering import metered, open_meter
from harness.metering.contamination import LoadWatch
from harness.records.estimate import MISSING, Estimate, Interval, NoInterval
from harness.running.plan import Plan
from harness.running.resolve import resolve
from reports.statistics.intervals import MINIMUM_PAIRS, Pair, median, paired_ratio, ratio_interval
from reports.tables.table import Column, Line, Part, Table

NOMINAL = 0.95
FEWEST_COMPARISONS = 20
"""Comparisons below which nothing can be told."""

WARMUP_WINDOWS = 6
PROMPT_TOKENS = 64
"""Prompts are cut to their last tokens: any work serves that is the same under both names, and a window of a
fifth of a second lets three hundred of them fit into a minute."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often intervals covered the true ratio.

    Attributes:
        pairs: paired windows of a comparison.
        comparisons, covered: comparisons made, and how many of their intervals contain it; share: their quotient.
        share_ci: 95 % interval of the share (Wilson).
        half_width: median of the intervals, the smallest difference that can be seen; ``None`` without an interval.
    """

    pairs: int
    comparisons: int
    covered: int
    share: float
    share_ci: tuple[float, float]
    half_width: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One A/A comparison: time under the first name over that under the second; ``None`` if a clock did not move."""

    ratio: float | None
    interval: Interval | NoInterval


@dataclass(frozen=True, slots=True)
class RealCoverage:
    """The outcome of A/A comparisons.

    Attributes:
        expected: counts between which correct intervals stay 95 % of the time.
        overall: all windows in one comparison. window_s: the median window.
        foreign_share, stolen_share: of the cores' time meanwhile; ``None`` where it is hidden.
    """

    model: str
    coverage: Coverage
    expected: tuple[int, int]
    comparisons: tuple[Comparison, ...]
    overall: Comparison
    window_s: float
    foreign_share: float | None
    stolen_share: float | None


def coverage(pairs: int, intervals: Sequence[Interval | NoInterval], ratio: float = 1.0) -> Coverage:
    """Count the intervals that contain the true ratio; a comparison without one covers nothing."""
    from scipy.stats import binomtest

    there = [interval for interval in intervals if isinstance(interval, tuple)]
    covered = sum(low <= ratio <= high for low, high in there)
    share_ci = binomtest(covered, len(intervals)).proportion_ci(NOMINAL, method="wilson")
    half_width = float(np.median([(high - low) / 2 for low, high in there])) if there else None
    share = covered / len(intervals)
    return Coverage(pairs, len(intervals), covered, share, (float(share_ci.low), float(share_ci.high)), half_width)


def compare_with_itself(config: RunConfig, comparisons: int, windows: int, progress: Progress) -> RealCoverage:
    """Compare full depth with itself, ``windows`` pairs in each comparison."""
    progress.stage("checking the configuration and drawing samples")
    plan = resolve(config.model_copy(update={"limit": windows}))
    samples = plan.tasks[0].data.samples
    if len(samples) < MINIMUM_PAIRS:
        raise DataError(
            f"{len(samples)} samples of {plan.tasks[0].data.source.label} can be used, and a comparison needs "
            f"{MINIMUM_PAIRS}. Use another --source."
        )
    meter, _ = open_meter(config.energy, plan.devices, config.tdp_w)
    try:
        progress.stage(f"loading {plan.model.info.name}")
        loaded = plan.model.load(plan.device, progress.stage)
        engine = Engine(loaded.backbone, loaded.info, config.kv_input)
        progress.stage("warming up")
        for _ in range(WARMUP_WINDOWS):
            _window(engine, plan, meter, samples[0])
        load = LoadWatch()
        measured = _measure(engine, plan, meter, samples, comparisons, progress)
        seen = load.read()
    finally:
        meter.close()
    from scipy.stats import binom

    found = tuple(Comparison(paired_ratio(pairs), ratio_interval(pairs)) for pairs in measured)
    low, high = binom.interval(NOMINAL, len(found), NOMINAL)  # how many intervals cover, 95 % of the time
    everything = [pair for pairs in measured for pair in pairs]
    return RealCoverage(
        model=plan.model.info.name,
        coverage=coverage(len(samples), [one.interval for one in found]),
        expected=(int(low), int(high)),
        comparisons=found,
        overall=Comparison(paired_ratio(everything), ratio_interval(everything)),
        window_s=median([seconds for pair in everything for seconds in (pair.baseline, pair.other)]) or 0.0,
        foreign_share=None if isinstance(seen, str) else seen.foreign_share,
        stolen_share=None if isinstance(seen, str) else seen.stolen_share,
    )


def _measure(
    engine: Engine, plan: Plan, meter: Meter, samples: Sequence[Sample], comparisons: int, progress: Progress
) -> list[list[Pair]]:
    order = random.Random(f"{plan.config.seed} order")
    progress.begin("A/A windows", 2 * comparisons * len(samples))
    measured: list[list[Pair]] = [[] for _ in range(comparisons)]
    for number, pairs in enumerate(measured):
        for place, sample in enumerate(samples):
            first, second = _window(engine, plan, meter, sample), _window(engine, plan, meter, sample)
            if order.random() < 0.5:
                first, second = second, first
            pairs.append(Pair(first, second))
            progress.step(2 * (number * len(samples) + place + 1))
    return measured


def _window(engine: Engine, plan: Plan, meter: Meter, sample: Sample) -> float:
    """Decode one sample at full depth inside a measured window and return its seconds."""
    with metered(meter) as window:
        engine.decode(
            [sample.prompt_ids[-PROMPT_TOKENS:]],
            plan.points[0].strategy,
            kv=plan.points[0].kv,
            max_new_tokens=[sample.max_new_tokens],
            seeds=[plan.config.seed + crc32(sample.sample_id.encode())],
            stop=plan.tasks[0].stop,
            eos_token_ids=plan.model.tokenizer.eos_token_ids,
        )
    assert window.reading is not None
    return window.reading.duration_s


def real(found: RealCoverage) -> Iterator[Part]:
    """Yield how often intervals of the same work under two names cover 1."""
    one, both = found.coverage, found.overall
    notes = []
    if both.ratio is not None and isinstance(both.interval, tuple):
        together = Estimate.of(both.ratio, both.interval).text("{:.4f}")
        chance = "" if both.interval[0] <= 1 <= both.interval[1] else " It does not cover 1, as 1 in 20 does by chance."
        notes.append(f"All windows together: ratio {together}.{chance}")
    if found.foreign_share is not None and found.stolen_share is not None:
        notes.append(
            f"Meanwhile other processes took {found.foreign_share:.1%} of the cores' time, "
            f"the hypervisor {found.stolen_share:.1%}."
        )
    half_width = MISSING if one.half_width is None else f"±{one.half_width:.1%}"
    expected = f"{found.expected[0]} to {found.expected[1]}"
    yield Table.of_rows(
        f"Real A/A comparisons: {found.model} at full depth",
        [Column(header=header) for header in ("pairs", "comparisons", "cover 1", "expected", "half-width", "window")],
        [(str(one.pairs), str(one.comparisons), str(one.covered), expected, half_width, f"{found.window_s:.2f} s")],
        notes=tuple(notes),
    )
    yield Line("")
    yield Line(real_verdict(found))


def real_verdict(found: RealCoverage) -> str:
    """Return in words whether this machine's error bars can be trusted."""
    covered, total = found.coverage.covered, found.coverage.comparisons
    low, high = found.expected
    counted = f"{covered} of {total} intervals cover 1; correct ones stay between {low} and {high} (95 %)."
    if covered < low:
        return (
            f"{counted} The error bars are too narrow here: windows of the same work differ by more than chance. "
            "Stop other processes, use longer windows or more --repeats, and do not publish small differences."
        )
    if total < FEWEST_COMPARISONS:
        return f"{counted} Too few comparisons to tell; use --pairs {FEWEST_COMPARISONS} or more."
    return f"{counted} The error bars of windows measured next to each other can be trusted on this machine."
