"""Kinds of noise under which intervals are tried: a block's time is its size × noise, for two operating points.

**Regular** is noise near normal. The last four are heavy: the longer a document the more it gains, and what the longest
would have added is missing in most samples, which no interval can tell.

% of 20,000 comparisons covered, for 5, 8, 16 and 50 pairs (``covered(case, pairs, 20_000)``):

=========================  ======================
equal blocks, noise 5 %    95.0  94.9  95.1  95.0
σ 0.3 blocks, noise 5 %    95.0  94.6  94.7  94.8
σ 0.8 blocks, noise 5 %    95.1  94.1  93.8  94.0
drift, noise 2 %           94.8  94.6  94.4  94.4
speed-up varies by prompt  94.5  94.3  94.2  94.5
unequal token counts       95.4  94.4  93.9  94.0
four samples a window      94.9  94.9  95.0  95.0
log-normal noise 40 %      95.1  93.9  93.6  93.8
t₃ noise 2 %               95.9  95.9  95.4  95.2
small spikes, 2 %          95.5  95.6  96.2  96.8
large spikes, 5 %          96.7  97.3  98.4  97.7
lengths log-normal, 1      89.7  89.5  90.1  91.8
lengths log-normal, 1.5    84.1  83.9  85.0  87.4
lengths Pareto, α 1.5      79.0  75.9  74.6  75.4
Pareto, cut at 10×         88.2  87.8  89.0  92.8
=========================  ======================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reports.statistics.intervals import Pair, ratio_interval

NUMBERS_OF_PAIRS = (5, 8, 16, 50)

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of noise."""

    name: str
    draw: Callable[[np.random.Generator, int], list[Pair]]
    ratio: float = 1.0
    regular: bool = False
    heavy: bool = False


def covered(case: Case, pairs: int, comparisons: int) -> float:
    """Return which share of some comparisons' intervals contains the true ratio."""
    generator = np.random.default_rng([0, pairs])
    found = [ratio_interval(case.draw(generator, pairs)) for _ in range(comparisons)]
    return sum(isinstance(one, tuple) and one[0] <= case.ratio <= one[1] for one in found) / comparisons


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
