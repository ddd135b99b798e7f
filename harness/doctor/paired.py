"""A/A comparisons of real work: one operating point under two names, compared like any two.

Every comparison decodes the same samples twice, sample by sample, in random order, each time in a measured
window of its own; its interval comes from the statistics of the tables. If the error bars are right,
about 95 % of the intervals cover 1. Engine and meter are those of a run; prompts are cut short, and there is no
scoring and no run directory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol
from zlib import crc32

from harness.config import RunConfig
from harness.contracts import Meter, Sample
from harness.decoding.engine import Engine
from harness.doctor.simulated import NOMINAL, Coverage, coverage
from harness.errors import DataError
from harness.metering import metered, open_meter
from harness.metering.cpu_load import LoadReading, LoadWatch
from harness.records.estimate import Interval, NoInterval
from harness.running.plan import Plan
from harness.running.resolve import resolve
from reports.statistics.intervals import MINIMUM_PAIRS, Pair, median, paired_ratio, ratio_interval

WARMUP_WINDOWS = 6
PROMPT_TOKENS = 64
"""Prompts are cut to their last tokens: any work serves that is the same under both names, and a window of a
fifth of a second lets three hundred of them fit into a minute."""


class Progress(Protocol):
    """Receives the progress of the comparisons."""

    def stage(self, text: str) -> None:
        """A slow stage begins."""

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """A count of steps begins."""

    def step(self, done: int, note: str = "") -> None:
        """The number of steps done so far."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One A/A comparison.

    Attributes:
        ratio: time under the first name over time under the second; ``None`` if a clock did not move.
        interval: its 95 % interval, or why there is none.
    """

    ratio: float | None
    interval: Interval | NoInterval


@dataclass(frozen=True, slots=True)
class RealCoverage:
    """The outcome of real A/A comparisons.

    Attributes:
        model: as asked for.
        coverage: how many intervals cover 1.
        expected: counts between which correct intervals stay 95 % of the time.
        comparisons: every one of them.
        overall: all windows in one comparison.
        window_s: median window.
        foreign_share, stolen_share: of the cores' time during the comparisons; ``None`` where it is hidden.
    """

    model: str
    coverage: Coverage
    expected: tuple[int, int]
    comparisons: tuple[Comparison, ...]
    overall: Comparison
    window_s: float
    foreign_share: float | None
    stolen_share: float | None


def compare_with_itself(config: RunConfig, comparisons: int, windows: int, progress: Progress) -> RealCoverage:
    """Compare full depth with itself.

    Args:
        config: model, task and decoding; its ``limit`` is the number of windows.
        comparisons: A/A comparisons.
        windows: paired windows of each, at least ``MINIMUM_PAIRS``.
        progress: receives the progress.

    Raises:
        HarnessError: the model or the samples are unavailable.
    """
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
        pairs = _measure(engine, plan, meter, samples, comparisons, progress)
        return _result(plan, pairs, load.read())
    finally:
        meter.close()


def _measure(
    engine: Engine, plan: Plan, meter: Meter, samples: tuple[Sample, ...], comparisons: int, progress: Progress
) -> list[list[Pair]]:
    """Return the pairs of every comparison; each pair's order is drawn."""
    order = random.Random(f"{plan.config.seed} order")
    total = comparisons * len(samples)
    progress.begin("A/A windows", 2 * total)
    measured: list[list[Pair]] = []
    for number in range(comparisons):
        pairs = []
        for place, sample in enumerate(samples):
            first, second = _window(engine, plan, meter, sample), _window(engine, plan, meter, sample)
            if order.random() < 0.5:
                first, second = second, first
            pairs.append(Pair(first, second))
            progress.step(2 * (number * len(samples) + place + 1))
        measured.append(pairs)
    return measured


def _window(engine: Engine, plan: Plan, meter: Meter, sample: Sample) -> float:
    """Decode one sample at full depth inside a measured window and return its seconds."""
    config = plan.config
    with metered(meter) as window:
        engine.decode(
            [sample.prompt_ids[-PROMPT_TOKENS:]],
            plan.points[0].strategy,
            kv=plan.points[0].kv,
            max_new_tokens=[sample.max_new_tokens],
            seeds=[config.seed + crc32(sample.sample_id.encode())],
            stop=plan.tasks[0].stop,
            eos_token_ids=plan.model.tokenizer.eos_token_ids,
        )
    assert window.reading is not None
    return window.reading.duration_s


def _result(plan: Plan, measured: list[list[Pair]], load: LoadReading | str) -> RealCoverage:
    from scipy.stats import binom

    found = tuple(Comparison(paired_ratio(pairs), ratio_interval(pairs)) for pairs in measured)
    low, high = binom.interval(NOMINAL, len(found), NOMINAL)  # how many intervals cover, 95 % of the time
    everything = [pair for pairs in measured for pair in pairs]
    times = [seconds for pair in everything for seconds in (pair.baseline, pair.other)]
    seen = None if isinstance(load, str) else load
    return RealCoverage(
        model=plan.model.info.name,
        coverage=coverage(len(measured[0]), [one.interval for one in found]),
        expected=(int(low), int(high)),
        comparisons=found,
        overall=Comparison(paired_ratio(everything), ratio_interval(everything)),
        window_s=median(times) or 0.0,
        foreign_share=None if seen is None else seen.foreign_share,
        stolen_share=None if seen is None else seen.stolen_share,
    )
