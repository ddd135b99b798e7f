"""Costs of the parts of decoding on this machine, in seconds: measured when a strategy or a draft rule first asks.

Layers, LM head and what drafting adds (asking the strategy, reading the token that its exit drafts) are timed as the
engine runs them, one row at a time and several rows of one pass, over an empty cache: what keys and values hold takes
no other time. The least of several rounds counts, since whatever else the machine does only adds.
A run states them and goes on with them; where nothing was measured, costs are bytes of weights.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from timeit import timeit

import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, HeadChoice, ModelInfo, Strategy, UnitCosts
from harness.contracts.strategies import plan_of, state_test_of
from harness.decoding.backbone import Backbone
from harness.decoding.exits import ask
from harness.decoding.generation import Generation
from harness.decoding.readings import Heads, best, choices
from harness.decoding.step import TokenPass
from harness.decoding.view import LayerView
from harness.records import DraftTimes, UnitTimes

POSITIONS = 128
"""Positions that timed tokens attend to, where the model has so many."""
ROWS = 5
"""Rows of the pass by which a further row is priced where nothing says how many there are."""
PASSES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 17)
"""Rows of the passes that are timed: kernels take them in blocks, so that some rows are dear and some are free."""
ROUNDS = (3, 9)
"""Rounds at least and at most, besides a first one that does not count."""
ENOUGH_S = 0.12
"""Seconds after which a measurement has had rounds enough."""
PAIRS, PAIRS_ENOUGH_S = (3, 12), 1.0
"""The same where what counts is a small difference."""
PASSES_ROUNDS, PASSES_ENOUGH_S = (1, 9), 1.0
"""The same for all passes: large models, whose passes vary less, have a single round."""


class Timing:
    """Known times of a model, and whether more may be measured.

    Args:
        known: what a run that goes on began with; nothing more is measured then. ``None`` to measure.
        measures: whether to; without it and without known times costs are bytes.
    """

    def __init__(self, known: UnitTimes | None = None, *, measures: bool = True) -> None:
        self.times = known
        self._measures = measures and known is None

    def known(self, bench: Bench, strategy: Strategy | None, head: HeadChoice) -> tuple[UnitTimes, DraftTimes] | None:
        """Return what layers and LM head take, and what drafting adds; ``None`` where a part of it is not known.

        Args:
            bench: what to measure on.
            strategy: is asked at its exit points; ``None`` where nobody is.
            head: reads drafts.
        """
        name = drafter(strategy, head)
        if self._measures and (self.times is None or name not in self.times.drafts):
            with torch.inference_mode():
                times = bench.layers() if self.times is None else self.times
                drafts = {**times.drafts, name: bench.drafting(strategy, head)}
                self.times = times.model_copy(update={"drafts": drafts})
        found = None if self.times is None else self.times.drafts.get(name)
        return None if self.times is None or found is None else (self.times, found)

    def costs(self, bench: Bench, strategy: Strategy | None, head: HeadChoice) -> UnitCosts:
        """Return the costs of a batch: seconds, or bytes of weights where :meth:`known` knows nothing."""
        known = self.known(bench, strategy, head)
        if known is None:
            costs = replace(bench.info, unit_costs=None).costs
            return costs if head.is_full else replace(costs, draft_head=float(bench.heads[head].nbytes))
        times, draft = known
        return times.costs(draft, () if strategy is None else strategy.exit_points(bench.info))


def drafter(strategy: Strategy | None, head: HeadChoice) -> str:
    """Return who drafts, for a table of times: the strategy's class, the heads that it reads, what reads its drafts.

    Other options of a strategy change what it decides, hardly what asking takes.
    """
    asked = "nobody" if strategy is None else "+".join([type(strategy).__name__, *map(str, strategy.cheap_heads())])
    return f"{asked}, drafts by {head}"


@dataclass(frozen=True, slots=True)
class Bench:
    """The model that is measured.

    Attributes:
        info: its facts, as a strategy gets them that must not ask what is being measured.
        token_pass: returns a pass of so many new tokens at the end of so many positions, with the tally it charges.
    """

    backbone: Backbone
    info: ModelInfo
    heads: Heads
    token_pass: Callable[[int, int], tuple[TokenPass, list[Generation]]]

    @property
    def positions(self) -> int:
        """Where the last timed token stands, from 1."""
        return min(POSITIONS, self.info.max_positions)

    def layers(self) -> UnitTimes:
        """Measure layers and LM head, for one row and for several."""
        counts, layers = [count for count in PASSES if count <= self.positions], self.backbone.num_layers

        def once() -> list[float]:
            found = []
            for count in counts:
                current, _ = self.token_pass(count, self.positions)
                started = self._now()
                current.advance(layers)
                ran = self._now()
                states, _ = current.states()
                self._read(self.backbone.logits(states))
                found += [(ran - started) / layers, self._now() - ran]
            return found

        least = _least(once, PASSES_ROUNDS, PASSES_ENOUGH_S)
        measured = dict(zip(counts, zip(least[::2], least[1::2], strict=True), strict=True))
        rows = max(count for count in counts if count <= ROWS)
        (layer, head), (layer_several, head_several), more = measured[1], measured[rows], max(rows - 1, 1)
        # A pass takes no longer than one of more rows: what else the machine does only adds.
        passes = accumulate((layers * one + its_head for one, its_head in reversed(measured.values())), min)
        return UnitTimes(
            positions=self.positions,
            rows=rows,
            layer_s=layer,
            head_s=head,
            layer_row_s=max(layer_several - layer, 0.0) / more,
            head_row_s=max(head_several - head, 0.0) / more,
            pass_s=dict(zip(reversed(counts), passes, strict=True)),
        )

    def drafting(self, strategy: Strategy | None, head: HeadChoice) -> DraftTimes:
        """Measure asking a strategy at each of its exit points, on one token, and reading its drafts there."""
        points = self.info.exit_points if strategy is None else strategy.exit_points(self.info)
        if not points:
            return DraftTimes(check_s=0.0, read_s=0.0)

        batch = Batch((0,), str(self.backbone.device))
        rule: ExitRule = _Silent() if strategy is None else strategy.start(self.info, batch)
        inside, test = self._inside(rule, points), state_test_of(rule, points)
        asks = test is not None and test.asks  # where a token leaves

        def once() -> list[float]:
            asked: ExitRule = _Silent() if strategy is None else strategy.start(self.info, batch)
            current, tally = self.token_pass(1, self.positions)
            previous: LayerView | None = None
            checks = reads = 0.0
            for point in points:
                current.advance(point)
                started = self._now()
                previous = LayerView(self.backbone, current, tally, self.heads, previous)
                if inside is None or asks:
                    ask(asked, previous)
                answered = self._now()
                previous.choose([0], {0: head})
                checks, reads = checks + answered - started, reads + self._now() - answered
            return [checks / len(points), reads / len(points)]

        check, read = _least(once)
        if inside is None:
            return DraftTimes(check_s=0.0 if strategy is None else check, read_s=read)
        return DraftTimes(check_s=inside, read_s=read + check if asks else read)

    def _inside(self, rule: ExitRule, points: Sequence[int]) -> float | None:
        """Return seconds of a check that is made inside the layers or planned, ``None`` where it has to be asked.

        They are those of a token with all checks, less one with none; or its share of making the plan.
        """
        plan = plan_of(rule)
        if plan is not None:
            return timeit(lambda: plan.planned_layer(()), number=100) / 100 / len(points)
        test = state_test_of(rule, points)
        if test is None or self.backbone.compiled is None:
            return None
        never, turn = replace(test, threshold=math.nan), itertools.count()
        if self.token_pass(1, self.positions)[0].ask({0: (never, points)}) is None:
            return None

        def once() -> list[float]:
            found = [0.0, 0.0]
            first = next(turn) % 2
            for which in (first, 1 - first):
                current, _ = self.token_pass(1, self.positions)
                if which:
                    current.ask({0: (never, points)})
                started = self._now()
                current.advance(self.backbone.num_layers)
                found[which] = self._now() - started
            return found

        without, with_checks = _least(once, PAIRS, PAIRS_ENOUGH_S)
        return max(with_checks - without, 0.0) / len(points)

    def _read(self, logits: Tensor) -> None:
        choices(best(logits))

    def _now(self) -> float:
        if self.backbone.device.type == "cuda":
            torch.cuda.synchronize(self.backbone.device)
        return time.perf_counter()


class _Silent:
    """Nobody, who never exits."""

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.zeros_like(view.rows, dtype=torch.bool)


def _least(
    once: Callable[[], list[float]], limits: tuple[int, int] = ROUNDS, enough_s: float = ENOUGH_S
) -> list[float]:
    """Return the least of several rounds of measurements, each of several numbers."""
    once()
    started = time.perf_counter()
    rounds: list[list[float]] = []
    while len(rounds) < limits[0] or (len(rounds) < limits[1] and time.perf_counter() - started < enough_s):
        rounds.append(once())
    return [min(column) for column in zip(*rounds, strict=True)]
