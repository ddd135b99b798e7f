"""A/A self-test: one operating point under two names, compared like any two. Do the error bars cover the truth?

Real comparisons decode the same samples twice, sample by sample, in random order, each time in a measured window of its
own; engine, meter and statistics are those of a run and of its tables, prompts are cut short, and there is no scoring
and no run directory. If the error bars are right, about 95 % of the intervals cover 1.

Synthetic times say the same of many kinds of noise. A block's time is its size × noise, for full depth and for the
other operating point, as a run measures them. Cases are **regular** where noise is near normal: intervals must cover 93
to 97 % there, and a test fails otherwise (``tests/reports/statistics/test_coverage.py``). Heavy tails, spikes and
heavy-tailed documents are simulated to be reported.

Found with 20,000 comparisons each, % covered for 5, 8, 16 and 50 pairs (``harness doctor --aa --simulated 20000``):

=========================  ======================
equal blocks, noise 5 %    95.0  94.9  95.1  95.0
σ 0.3 blocks, noise 5 %    95.0  94.6  94.7  94.8
σ 0.8 blocks, noise 5 %    95.1  94.1  93.8  94.0
drift, noise 2 %           94.8  94.6  94.4  94.4
speed-up varies by prompt  94.5  94.3  94.2  94.5
unequal token counts       95.4  94.4  93.9  94.0
four samples a window      94.9  94.9  95.0  95.0
(log-normal noise 40 %)    95.1  93.9  93.6  93.8
(t₃ noise 2 %)             95.9  95.9  95.4  95.2
(small spikes, 2 %)        95.5  95.6  96.2  96.8
(large spikes, 5 %)        96.7  97.3  98.4  97.7
(lengths log-normal, 1)    89.7  89.5  90.1  91.8
(lengths log-normal, 1.5)  84.1  83.9  85.0  87.4
(lengths Pareto, α 1.5)    79.0  75.9  74.6  75.4
(Pareto, cut at 10×)       88.2  87.8  89.0  92.8
=========================  ======================

Sizes of blocks are log-normal with σ = 0.8 under log-normal noise, 0.5 under drift and where speed-ups vary or samples
share windows, else 0.3; lengths are Pareto where token counts differ. In the last four, the longer a document the more
it gains; what the longest would have added is missing in most samples, which no interval can tell: a jackknife,
leverage corrections and a bootstrap-t cover 1 to 6 points more, BCa fewer.

Not promised: that a machine's noise is like any of them; that is what the real comparison is for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from harness.config import RunConfig
from harness.contracts import Meter, Sample
from harness.contracts.recipes import Progress
from harness.decoding.engine import Engine
from harness.errors import DataError
from harness.metering import metered, open_meter
from harness.metering.contamination import LoadReading, LoadWatch
from harness.records.estimate import MISSING, Estimate, Interval, NoInterval
from harness.running.plan import Plan
from harness.running.resolve import resolve
from reports.statistics.intervals import MINIMUM_PAIRS, Pair, median, paired_ratio, ratio_interval
from reports.tables.table import Column, Line, Part, Table

NUMBERS_OF_PAIRS = (5, 8, 16, 50)
COMPARISONS = 2_000
NOMINAL = 0.95
COVERAGE_BOUNDS = 0.93, 0.97

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of noise."""

    name: str
    draw: Callable[[np.random.Generator, int], list[Pair]]
    ratio: float = 1.0
    regular: bool = False
    heavy: bool = False


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often intervals covered the true ratio."""

    pairs: int
    comparisons: int
    covered: int
    share: float
    share_ci: tuple[float, float]
    half_width: float | None


@dataclass(frozen=True, slots=True)
class CaseCoverage:
    """The coverage of one case, for each number of pairs."""

    case: str
    regular: bool
    coverages: tuple[Coverage, ...]


def simulate_coverage(
    cases: Sequence[Case] | None = None,
    numbers_of_pairs: Sequence[int] = NUMBERS_OF_PAIRS,
    comparisons: int = COMPARISONS,
    seed: int = 0,
    step: Callable[[int], None] = lambda done: None,
) -> tuple[CaseCoverage, ...]:
    """Compare synthetic times, through the statistics that tables use."""
    found, done = [], 0
    for case in CASES if cases is None else cases:
        counted = []
        for pairs in numbers_of_pairs:
            generator = np.random.default_rng([seed, pairs])
            intervals = [ratio_interval(case.draw(generator, pairs)) for _ in range(comparisons)]
            counted.append(coverage(pairs, intervals, case.ratio))
            done += comparisons
            step(done)
        found.append(CaseCoverage(case.name, case.regular, tuple(counted)))
    return tuple(found)


def coverage(pairs: int, intervals: Sequence[Interval | NoInterval], ratio: float = 1.0) -> Coverage:
    """Count the intervals that contain the true ratio; a comparison without one covers nothing."""
    from scipy.stats import binomtest

    there = [interval for interval in intervals if isinstance(interval, tuple)]
    covered = sum(low <= ratio <= high for low, high in there)
    share_ci = binomtest(covered, len(intervals)).proportion_ci(NOMINAL, method="wilson")
    return Coverage(
        pairs=pairs,
        comparisons=len(intervals),
        covered=covered,
        share=covered / len(intervals),
        share_ci=(float(share_ci.low), float(share_ci.high)),
        half_width=float(np.median([(high - low) / 2 for low, high in there])) if there else None,
    )


def _times(noise: Callable[[np.random.Generator, tuple[int, int]], Floats], spread: float) -> Callable[..., list[Pair]]:
    """Draw times of blocks whose sizes are log-normal with σ = ``spread``, the same under both names."""

    def draw(generator: np.random.Generator, pairs: int) -> list[Pair]:
        sizes = np.exp(generator.normal(0, spread, (pairs, 1)))
        return _paired(sizes * noise(generator, (pairs, 2)))

    return draw


def _normal(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return 1 + generator.normal(0, 0.05, shape)


def _lognormal(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.exp(generator.normal(0, 0.4, shape))


def _heavy_tails(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    return np.exp(0.02 * generator.standard_t(3, shape))


def _spikes(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """2 % of the windows take 1 + Exp(0.25) times as long."""
    hit = generator.random(shape) < 0.02
    return (1 + hit * generator.exponential(0.25, shape)) * np.exp(generator.normal(0, 0.02, shape))


def _large_spikes(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """5 % of the windows take 1 + Exp(1) times as long."""
    hit = generator.random(shape) < 0.05
    return (1 + hit * generator.exponential(1, shape)) * np.exp(generator.normal(0, 0.02, shape))


def _drifting(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """The machine's speed is a random walk from window to window, and which name runs first is drawn."""
    times = np.exp(np.cumsum(generator.normal(0, 0.005, shape)).reshape(shape) + generator.normal(0, 0.02, shape))
    return np.where(generator.random((shape[0], 1)) < 0.5, times, times[:, ::-1])


def _speedup_varies(generator: np.random.Generator, pairs: int) -> list[Pair]:
    """Prompts differ in their speed-up, σ of the log 0.2; the ratio of totals is that of the expectations."""
    times = np.exp(generator.normal(0, 0.5, (pairs, 1))) * np.exp(generator.normal(0, 0.02, (pairs, 2)))
    times[:, 0] *= 1.3 * np.exp(generator.normal(0, 0.2, pairs) - 0.02)
    return _paired(times)


def _unequal_tokens(generator: np.random.Generator, pairs: int) -> list[Pair]:
    """Completions of Pareto lengths, which differ between the operating points by a factor with σ = 0.2."""
    tokens = 8 + np.round(8 * generator.pareto(2, (pairs, 1)) * np.exp(generator.normal(0, 0.2, (pairs, 2))))
    return _paired(tokens * np.exp(generator.normal(0, 0.05, (pairs, 2))) * (1.15, 1.0), tokens)


def _documents(lengths: Callable[[np.random.Generator, int], Floats], mean: float) -> dict[str, Any]:
    """Return how to draw whole requests whose decoding, of a document's length, is 1.5 times as fast, and the ratio.

    Prompt and the rest take 1, so that longer documents gain more: what the longest would have added is in no sample
    without one.
    """

    def draw(generator: np.random.Generator, pairs: int) -> list[Pair]:
        decoding = lengths(generator, pairs)[:, None] / (1.5, 1.0)
        return _paired((1 + decoding[:, ::-1]) * np.exp(generator.normal(0, 0.03, (pairs, 2))))

    return {"draw": draw, "ratio": (1 + mean) / (1 + mean / 1.5)}


def _shared_windows(generator: np.random.Generator, pairs: int) -> list[Pair]:
    """Blocks of four samples that share 5 % of noise, with 1 % of their own; added up by block."""
    samples = np.exp(generator.normal(0, 0.5, (pairs, 4, 1))) * (1 + generator.normal(0, 0.01, (pairs, 4, 2)))
    return _paired(samples.sum(1) * (1 + generator.normal(0, 0.05, (pairs, 2))))


def _paired(times: Floats, tokens: Floats | None = None) -> list[Pair]:
    rows = np.hstack([times, np.ones_like(times) if tokens is None else tokens])
    return [Pair(*row) for row in rows.tolist()]


CASES = (
    Case("equal blocks, noise 5 %", _times(_normal, 0.0), regular=True),
    Case("σ 0.3 blocks, noise 5 %", _times(_normal, 0.3), regular=True),
    Case("σ 0.8 blocks, noise 5 %", _times(_normal, 0.8), regular=True),
    Case("drift, noise 2 %", _times(_drifting, 0.5), regular=True),
    Case("speed-up varies by prompt", _speedup_varies, ratio=1.3, regular=True),
    Case("unequal token counts", _unequal_tokens, ratio=1.15, regular=True),
    Case("four samples a window", _shared_windows, regular=True),
    Case("log-normal noise 40 %", _times(_lognormal, 0.8)),
    Case("t₃ noise 2 %", _times(_heavy_tails, 0.3)),
    Case("small spikes, 2 %", _times(_spikes, 0.3)),
    Case("large spikes, 5 %", _times(_large_spikes, 0.3)),
    Case("lengths log-normal, σ 1", **_documents(lambda g, n: g.lognormal(0, 1, n), math.exp(0.5)), heavy=True),
    Case("lengths log-normal, σ 1.5", **_documents(lambda g, n: g.lognormal(0, 1.5, n), math.exp(1.125)), heavy=True),
    Case("lengths Pareto, α 1.5", **_documents(lambda g, n: 1 + g.pareto(1.5, n), 3), heavy=True),
    Case(
        "lengths Pareto, cut at 10×",
        **_documents(lambda g, n: np.minimum(1 + g.pareto(1.5, n), 10), 3 - 2 / math.sqrt(10)),
        heavy=True,
    ),
)


WARMUP_WINDOWS = 6
PROMPT_TOKENS = 64
"""Prompts are cut to their last tokens: any work serves that is the same under both names, and a window of a
fifth of a second lets three hundred of them fit into a minute."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One A/A comparison."""

    ratio: float | None
    interval: Interval | NoInterval


@dataclass(frozen=True, slots=True)
class RealCoverage:
    """The outcome of real A/A comparisons."""

    model: str
    coverage: Coverage
    expected: tuple[int, int]
    comparisons: tuple[Comparison, ...]
    overall: Comparison
    window_s: float
    foreign_share: float | None
    stolen_share: float | None


def compare_with_itself(config: RunConfig, comparisons: int, windows: int, progress: Progress) -> RealCoverage:
    """Compare full depth with itself."""
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


FEWEST_COMPARISONS = 20
"""Real comparisons below which nothing can be told."""


def real(found: RealCoverage) -> Iterator[Part]:
    """Yield how often real intervals of the same work under two names cover 1."""
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


def simulated(found: Sequence[CaseCoverage]) -> Iterator[Part]:
    """Yield how often intervals of synthetic times cover, case by case."""
    first = found[0].coverages
    least, most = COVERAGE_BOUNDS
    yield Table.of_rows(
        "Simulated comparisons",
        (
            Column(header="% that cover, by pairs", kind="text"),
            *(Column(header=str(one.pairs), form=".1f", scale=100) for one in first),
            Column(header="", kind="text"),
        ),
        [
            (
                case.case if case.regular else f"({case.case})",
                *(one.share for one in case.coverages),
                simulated_verdict(case),
            )
            for case in found
        ],
        notes=(
            f"{first[0].comparisons:,} comparisons each; {100 * least:.0f} to {100 * most:.0f} % is as promised. In "
            "brackets: noise with heavy tails or spikes, where intervals may be wider.",
        ),
    )


def simulated_verdict(found: CaseCoverage) -> str:
    """Return the verdict on the simulated coverages of one case in words."""
    least, most = COVERAGE_BOUNDS
    if any(one.share_ci[1] < least for one in found.coverages):
        return "too narrow"
    if any(one.share_ci[0] > most for one in found.coverages):
        return "wider than necessary"
    return "as promised"
