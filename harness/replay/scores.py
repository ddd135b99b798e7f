"""The score behind a strategy's threshold, as far as its answers show it: for any strategy, without naming one.

The share of answers that say *exit* at a threshold is a quantile of the score; bisection finds the threshold of every
wanted share. A token's score lies between the thresholds at which it exits and the others: its level.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.config import StrategySpec
from harness.config.options import build_strategy, effective_options, option_range
from harness.contracts import ModelInfo
from harness.errors import ConfigError, OptionError
from harness.records.calibration import Calibration, ExitCalibration, ReliabilityBin, ScoreCalibration, TokenGroup
from harness.replay.records import Sweep
from harness.replay.tokens import Charges, TracedTokens, answers
from harness.running.operating_points import OperatingPoint, operating_point
from harness.running.plan import shared_fields
from harness.running.thresholds import THRESHOLD
from reports.statistics.calibration import auroc, auroc_interval, calibration_error, equal_bins, share_intervals

HALVINGS = 40
DIGITS = range(2, 10)
FINEST = 1 / 64
"""Share of an exit point's tokens between neighbouring thresholds at most; and of a probability :data:`WIDEST`."""
WIDEST = 0.01
MOST, DEPTH = 600, 30
"""Levels that resolve any score finely enough, and how often a gap between two is halved at most."""
BINS = 10

Counts = NDArray[np.int64]


class Thresholds:
    """A strategy at many thresholds on some traced tokens, asked once at each.

    ``few`` and ``many`` are the ends of the range, from the fewest exits to the most.
    """

    def __init__(self, spec: StrategySpec, tokens: TracedTokens, model: ModelInfo) -> None:
        self.spec, self._tokens, self._model = spec, tokens, model
        self._seen: dict[str, tuple[OperatingPoint, Tensor, float]] = {}
        limits = option_range(spec.name, THRESHOLD)
        assert limits is not None
        self.few, self.many = sorted(map(repr, limits), key=self.share)

    def point(self, threshold: str) -> OperatingPoint:
        """Return the operating point of a threshold as written."""
        return self._at(threshold)[0]

    def by_exit(self, threshold: str) -> Tensor:
        """Return the share of the tokens that leave, by exit point, ``[exits]`` float32."""
        return self._at(threshold)[1]

    def share(self, threshold: str) -> float:
        """Return the same share over all exit points."""
        return self._at(threshold)[2]

    def nearest(self, target: float, slack: float) -> str:
        """Return the shortest decimal whose share of exits is ``target``, give or take ``slack``."""
        few, many = float(self.few), float(self.many)
        middle = (few + many) / 2
        for _ in range(HALVINGS):
            middle = (few + many) / 2
            here = self.share(repr(middle))
            if abs(here - target) <= slack / 2:
                break
            few, many = (middle, many) if here < target else (few, middle)
        for digits in DIGITS:
            short = f"{middle:.{digits}g}"
            if abs(self.share(short) - self.share(repr(middle))) <= slack:
                return short
        return repr(middle)

    def _at(self, threshold: str) -> tuple[OperatingPoint, Tensor, float]:
        if threshold not in self._seen:
            spec = self.spec.at(THRESHOLD, threshold)
            point = operating_point(spec, build_strategy(spec), self._model)
            decided = [answer for _, answer in answers(point, self._tokens, self._model, Charges())]
            said = torch.stack(decided).float() if decided else torch.zeros(1, 1)
            self._seen[threshold] = point, said.mean(1), said.mean().item()
        return self._seen[threshold]


def at_percentile(spec: StrategySpec, percentile: float, tokens: TracedTokens, model: ModelInfo) -> str:
    """Return the threshold that so many per cent of the scores on some tokens, not those replayed, lie below."""
    asked = _deciding(spec, tokens, model)
    rising = float(asked.many) > float(asked.few)  # else a high score is sure, and the share exits that is above
    return asked.nearest(percentile / 100 if rising else 1 - percentile / 100, 1e-3)


def with_thresholds(
    spec: StrategySpec, count: int, tokens: TracedTokens, model: ModelInfo, *, refuse: bool = True
) -> list[StrategySpec]:
    """Return the spec at thresholds from the fewest exits to the most, with equal shares of the scores between them.

    They are fewer where scores coincide. Where the threshold decides nothing it is refused, or there are none.
    """
    try:
        asked = _deciding(spec, tokens, model)
    except ConfigError:
        if refuse:
            raise
        return []
    fewest, most = asked.share(asked.few), asked.share(asked.many)
    wanted = [fewest + (most - fewest) * place / (count + 1) for place in range(1, count + 1)]
    found = [asked.nearest(share, (most - fewest) / (count + 1) / 10) for share in wanted]
    return [spec.at(THRESHOLD, threshold) for threshold in dict.fromkeys(found)]


def _deciding(spec: StrategySpec, tokens: TracedTokens, model: ModelInfo) -> Thresholds:
    asked = Thresholds(spec, tokens, model)
    few, many = asked.few, asked.many
    if asked.share(few) == asked.share(many):
        raise ConfigError(
            f"{spec} decides alike at {THRESHOLD}={few} and {THRESHOLD}={many} on this trace; name values to sweep: "
            f"--strategy '{spec}:{THRESHOLD}=VALUE,VALUE'."
        )
    return asked


# ---------------------------------------------------------------------------------- levels of a score


@dataclass(eq=False)
class ScoreTally:
    """How often each level of a score was right.

    Attributes:
        thresholds: from that with the most exits to that with the fewest. A token's level is at how many of them it
            leaves, 0…``len(thresholds)``; higher is more certain.
        points: the strategy at each of them.
        ascending: whether higher thresholds let fewer tokens exit.
        documents: numbers of the trace's documents that are counted, ascending, ``[documents]`` int64.
        right, tokens: by exit point, document and level, ``[exits, documents, levels]`` int32.
    """

    spec: StrategySpec
    thresholds: tuple[float, ...]
    points: tuple[OperatingPoint, ...]
    ascending: bool
    documents: Tensor
    right: Tensor
    tokens: Tensor
    seconds: float = field(default=0.0)

    @property
    def exit_points(self) -> tuple[int, ...]:
        """Layers at which the strategy is asked."""
        return self.points[0].record.exit_points

    def add(self, tokens: TracedTokens, model: ModelInfo) -> None:
        """Count some more tokens."""
        began = time.perf_counter()
        levels = torch.zeros(len(self.exit_points), len(tokens), dtype=torch.int64)
        for point in self.points:
            for place, (_, decided) in enumerate(answers(point, tokens, model, Charges())):
                levels[place] += decided
        _, documents, width = self.tokens.shape
        rows = torch.searchsorted(self.documents, tokens.document) * width
        for place, layer in enumerate(self.exit_points):
            cell = rows + levels[place]
            right = tokens.column("top", layer) == tokens.final
            self.tokens[place] += torch.bincount(cell, minlength=documents * width).view(documents, width)
            self.right[place] += torch.bincount(cell[right], minlength=documents * width).view(documents, width)
        self.seconds += time.perf_counter() - began


def find_tallies(
    specs: Iterable[StrategySpec], observed: Callable[[], TracedTokens], model: ModelInfo, documents: Tensor
) -> tuple[list[ScoreTally], dict[str, str]]:
    """Return counters for the score of each strategy, without its threshold, and why the others have none."""
    tallies, left_out = list[ScoreTally](), dict[str, str]()
    for spec in dict.fromkeys(spec.without(THRESHOLD) for spec in specs):
        if option_range(spec.name, THRESHOLD) is None:
            left_out[str(spec)] = f"it has no option {THRESHOLD} with a range"
            continue
        try:
            with torch.inference_mode():
                tally = find_levels(spec, observed(), model, documents)
        except OptionError as error:  # whole numbers, for example
            left_out[str(spec)] = f"a {THRESHOLD} between its ends is refused: {error}"
            continue
        if tally is None:
            left_out[str(spec)] = "it decides alike at both ends of its threshold"
        else:
            tallies.append(tally)
    return tallies, left_out


def find_levels(spec: StrategySpec, observed: TracedTokens, model: ModelInfo, documents: Tensor) -> ScoreTally | None:
    """Return a strategy's levels, laid on some tokens, nothing counted yet; ``None`` if it always says the same."""
    began = time.perf_counter()
    asked = Thresholds(spec, observed, model)
    few, many = float(asked.few), float(asked.many)
    laid = dict.fromkeys((few, many))

    def exits(threshold: float) -> Tensor:
        laid[threshold] = None
        return asked.by_exit(repr(threshold))

    if torch.equal(exits(few), exits(many)):
        return None
    probability = asked.point(asked.few).strategy.probabilistic
    gaps = [(few, many, 0)]
    while gaps and len(laid) < MOST:
        low, high, depth = gaps.pop(0)  # the widest first
        between = float((exits(high) - exits(low)).abs().max())
        if depth == DEPTH or not between or (between <= FINEST and not (probability and abs(high - low) > WIDEST)):
            continue
        middle = (low + high) / 2
        gaps += [(low, middle, depth + 1), (middle, high, depth + 1)]
    ordered = sorted(laid, reverse=few < many)
    thresholds = [  # of neighbours that decide alike, the outermost: the closest to the levels outside
        here
        for before, here, after in zip([None, *ordered], ordered, [*ordered[1:], None], strict=False)
        if before is None
        or after is None
        or not (torch.equal(exits(before), exits(here)) and torch.equal(exits(before), exits(after)))
    ]
    points = tuple(asked.point(repr(threshold)) for threshold in thresholds)
    shape = (len(points[0].record.exit_points), len(documents), len(thresholds) + 1)
    right, tokens = torch.zeros(2, *shape, dtype=torch.int32)
    tally = ScoreTally(spec, tuple(thresholds), points, few > many, documents, right, tokens)
    tally.seconds = time.perf_counter() - began
    return tally


# ------------------------------------------------------------------------------------ calibration.json

_NOTES = (
    "Scores of every traced token at every exit point, also past the one where a rule would have exited; a token is "
    "right where the exit's token is the last layer's, whatever the text says.",
    "A score is known only as far as thresholds resolve it: learned scores below the lowest threshold count as "
    "ties. Intervals resample documents, 95 %. Over all exit points, deeper exits are right more often, so a score "
    "that grows with depth ranks better there than at any single one.",
    f"Expected calibration error: {BINS} bins of about equal size, only for scores that are the strategy's own "
    "estimate of the probability that an exit is right.",
)


def describe_scores(
    sweep: Sweep,
    tallies: Sequence[ScoreTally],
    left_out: Mapping[str, str],
    groups: Iterable[TokenGroup] = (),
    *,
    generated: bool,
) -> Calibration:
    """Return the calibration of the scores of a sweep; ``generated``: the traced tokens are the model's own."""
    began = time.perf_counter()
    scores = tuple(map(_score, tallies))
    seconds = time.perf_counter() - began + sum(tally.seconds for tally in tallies)
    own = {"schema_version", "measurement", "notes"}
    return Calibration(
        **{name: value for name, value in shared_fields(sweep, Calibration).items() if name not in own},
        generated=generated,
        notes=(*sweep.notes, *_NOTES),
        scores=scores,
        left_out=dict(left_out),
        groups=tuple(groups),
        seconds=round(seconds, 3),
    )


def _score(tally: ScoreTally) -> ScoreCalibration:
    point = tally.points[0]
    probability = point.strategy.probabilistic
    right, tokens = tally.right.numpy().astype(np.int64), tally.tokens.numpy().astype(np.int64)
    values = np.array(tally.thresholds)
    each = [
        _exit(layer, right[place], tokens[place], values, probability) for place, layer in enumerate(tally.exit_points)
    ]
    return ScoreCalibration(
        score=str(tally.spec),
        strategy=tally.spec.name,
        options={name: value for name, value in effective_options(point.strategy).items() if name != THRESHOLD},
        artefacts=point.record.artefacts,
        probability=probability,
        ascending=tally.ascending,
        levels=len(values) + 1,
        pooled=_exit(None, right.sum(0), tokens.sum(0), values, probability),
        exits=tuple(each),
    )


def _exit(
    layer: int | None, right: Counts, tokens: Counts, thresholds: NDArray[np.float64], probability: bool
) -> ExitCalibration:
    """Return one exit point's part; counts are ``[documents, levels]``."""
    wrong = tokens - right
    bins = tuple(_bins(right, tokens, thresholds))
    count = int(tokens.sum())
    error = calibration_error([b.score for b in bins], [b.agreement for b in bins], [b.tokens for b in bins])
    return ExitCalibration(
        exit_layer=layer,
        tokens=count,
        documents=len(tokens),
        agreement=int(right.sum()) / count,
        auroc=auroc(right.sum(0), wrong.sum(0)),
        auroc_ci=auroc_interval(right, wrong),
        ece=error if probability else None,
        bins=bins,
    )


def _bins(right: Counts, tokens: Counts, thresholds: NDArray[np.float64]) -> Iterator[ReliabilityBin]:
    by_level = tokens.sum(0)
    edges = np.concatenate((thresholds[:1], thresholds, thresholds[-1:]))  # level k lies between edges k and k + 1
    middles = (edges[:-1] + edges[1:]) / 2
    runs = equal_bins(by_level, BINS)
    here = np.stack([right[:, run].sum(1) for run in runs], axis=1)
    there = np.stack([tokens[:, run].sum(1) for run in runs], axis=1)
    below, count = 0, int(by_level.sum())
    for place, (run, interval) in enumerate(zip(runs, share_intervals(here, there), strict=True)):
        size = int(there[:, place].sum())
        used = np.flatnonzero(by_level[run]) + run.start
        yield ReliabilityBin(
            scores=(float(edges[used[0]]), float(edges[used[-1] + 1])),
            score=float((middles[run] * by_level[run]).sum() / size),
            quantiles=(below / count, (below + size) / count),
            tokens=size,
            agreement=int(here[:, place].sum()) / size,
            agreement_ci=interval,
        )
        below += size
