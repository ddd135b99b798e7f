"""A token as one recorded piece of work, whose exit is decided on the device. An experiment: ``--graphs conditional``.

Segments that are recorded one by one leave each check a read, since the host must know whether to go on. Here all
segments and checks of a token are recorded together. A segment is a conditional node of the CUDA graph, which runs
where no check before it has let the token go; the host reads once per token: layer, token and logit. (``torch.cond``
stands on the same nodes. They are used as they are, since it compiles its branches and copies what they change.)

For one row that decodes lossily, by a rule whose checks can be recorded
(:attr:`harness.contracts.Strategy.capturable`); all else goes segment by segment. Under ``recompute`` what waits has a
slot from the first layer on. Until the layer where it joins, the slot computes nothing that anybody reads.

Never run on a GPU by its authors: tests replay it by a recorder of their own (``tests/decoding/test_conditional.py``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from harness.contracts import ExitRule, Waiting
from harness.decoding.choice import Best, Scores, best
from harness.decoding.exits import AskedExits, Exits, decision
from harness.decoding.generation import Generation
from harness.decoding.graphs import WIDTHS, Buffers, Segments
from harness.decoding.passes import Places, TokenPass
from harness.decoding.readings import Heads
from harness.decoding.transfer import read, upload
from harness.decoding.view import LayerView
from harness.errors import OptionError

__all__ = ["Decided", "carry"]

MOST = 16
"""Recorded tokens of a cache, each of which may take a GPU's memory by the gigabyte; the oldest goes for another."""

_UNSEEN = "a capturable rule cannot see {}. Let it say capturable = False."


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of a token.

    Attributes:
        choice: the token and its logit.
        compared: NaN for each check that compared something that is no number.
    """

    choice: tuple[int, float]
    compared: list[Scores]


def carry(current: TokenPass, exits: Exits, heads: Heads, tally: Sequence[Generation]) -> Decided | None:
    """Take a token of one row out of as few layers as its rule decides; ``None`` where that cannot be recorded.

    Args:
        current: the pass, at its beginning; it stands at the token's layer afterwards.
        exits: decide.
        heads: of the model.
        tally: what is computed is charged to the row.

    Raises:
        OptionError: a rule that says that its checks can be recorded does more than answer.
    """
    segments, rule = current.segments, exits.capturable if isinstance(exits, AskedExits) else None
    if segments is None or segments.rows > 1 or not segments.recorder.conditional:
        return None
    if rule is None or not _is_hashable(rule):
        return None
    points, ahead = tuple(exits.points(current.rows)), current.ahead()
    waiting = sorted(ahead, key=lambda one: one[1].start)  # oldest first
    count = 1 + sum(len(one.hidden) for _, one in waiting)
    width = next((width for width in WIDTHS if count <= width), None)
    if width is None or not points or not {depth for depth, _ in waiting}.issubset(points):
        return None
    key = (width, rule, points)
    token = segments.tokens.get(key)
    if token is None:
        made = _Buffers.of(segments, width, len(points))
        _load(made, segments, current, waiting)
        if len(segments.tokens) >= MOST:
            del segments.tokens[next(iter(segments.tokens))]
        token = segments.tokens[key] = _record(segments, width, rule, points, heads, made)
    else:
        _load(token.buffers, segments, current, waiting)
    token.again()
    return _found(token, points, current, count, tally)


def _is_hashable(rule: ExitRule) -> bool:
    """Ask the rule: a frozen dataclass looks as if it were, and is not with a list in it."""
    try:
        hash(rule)
    except TypeError:
        return False
    return True


def _load(buffers: _Buffers, segments: Segments, current: TokenPass, waiting: Sequence[tuple[int, Waiting]]) -> None:
    """Put the newest token into the first slot and what waits into those behind it."""
    positions, joins = list(current.positions), [0]
    for depth, one in waiting:
        positions += range(one.start, one.start + len(one.hidden))
        joins += [depth] * len(one.hidden)
    free = buffers.numbers.shape[1] - len(joins)
    spare, never = segments.length - 1, segments.backbone.num_layers
    numbers = [positions + [0] * free, positions + [spare] * free, joins + [never] * free]
    buffers.numbers.copy_(upload(numbers, buffers.numbers.device))
    states = [current.states()[0], *(one.hidden for _, one in waiting)]
    buffers.slots.state[: len(joins)].copy_(torch.cat(states))


def _found(
    token: _Token, points: Sequence[int], current: TokenPass, count: int, tally: Sequence[Generation]
) -> Decided:
    """Read where the token left, stand there, and charge what has run."""
    buffers, row = token.buffers, current.rows[0]
    (layer,), (chosen,), (logit,), wrong = read(buffers.layer, buffers.token, buffers.logit, buffers.undefined)
    asked = sum(point <= layer for point in points)
    one = tally[row]
    one.exit_checks += asked
    for cost in [*token.checks[:asked], token.answers[asked - 1 if layer in points else -1]]:
        one.lm_head_evaluations += cost.lm_head_evaluations
        one.shortcut_evaluations += cost.shortcut_evaluations
    states = buffers.slots.after
    current.land(layer, states[:1], states[1:count])
    number = torch.tensor([torch.nan])
    return Decided((chosen, logit), [(point, [row], number) for point, nan in zip(points, wrong, strict=True) if nan])


class _Cost(NamedTuple):
    lm_head_evaluations: int
    shortcut_evaluations: int


@dataclass(slots=True, eq=False)
class _Buffers:
    """What the recorded token of one width reads and writes; the newest is in the first of ``S`` slots."""

    slots: Buffers
    numbers: Tensor  # [3, S]: positions seen from, positions written, and layers from which a slot holds anything
    going: Tensor  # [1] bool: no check has let the token go
    leaves: Tensor  # [1] bool: the last one just has
    layer: Tensor  # [1] int64, executed
    token: Tensor  # [1] int64
    logit: Tensor  # [1]
    undefined: Tensor  # [checks] bool: compared what is no number

    @property
    def joins(self) -> Tensor:
        return self.numbers[2]

    @classmethod
    def of(cls, segments: Segments, width: int, checks: int) -> _Buffers:
        slots = segments.make(width)
        numbers = torch.zeros((3, width), dtype=torch.int64, device=slots.state.device)
        slots.positions = numbers[:2]
        whole, flag = partial(numbers.new_zeros, 1), partial(numbers.new_zeros, dtype=torch.bool)
        logit = segments.backbone.like.new_zeros(1, dtype=torch.float32)
        return cls(slots, numbers, flag(1), flag(1), whole(), whole(), logit, flag(checks))


@dataclass(frozen=True, slots=True, eq=False)
class _Token:
    """A recorded token.

    Attributes:
        buffers: what it reads and writes.
        again: does it.
        checks: what each check evaluates.
        answers: what the token of each check evaluates beside that, and last that of the last layer.
    """

    buffers: _Buffers
    again: Callable[[], None]
    checks: Sequence[_Cost]
    answers: Sequence[_Cost]


def _record(
    segments: Segments, width: int, rule: ExitRule, points: Sequence[int], heads: Heads, buffers: _Buffers
) -> _Token:
    work = _Work(segments, width, rule, points, heads, buffers)
    again = segments.recorder.record(work)
    return _Token(buffers, again, work.checks, work.answers)


@dataclass(eq=False)
class _Work:
    """What is recorded; may be done several times."""

    segments: Segments
    width: int
    rule: ExitRule
    points: Sequence[int]
    heads: Heads
    buffers: _Buffers
    checks: list[_Cost] = field(default_factory=list)
    answers: list[_Cost] = field(default_factory=list)
    view: _RecordedView | None = None
    tally: Generation = field(default_factory=Generation)

    def __call__(self) -> None:
        buffers, when = self.buffers, self.segments.recorder.when
        self.checks, self.answers, self.view, self.tally = [], [], None, Generation()
        self.segments.begin(self.width, buffers.slots)
        buffers.going.fill_(1)
        buffers.leaves.zero_()
        buffers.undefined.zero_()
        first = 0
        for place, point in enumerate(self.points):
            ask = partial(self._ask, place, first, point)
            if first:
                when(buffers.going, ask)
            else:
                ask()
            when(buffers.leaves, partial(self._leave, point))
            first = point
        when(buffers.going, partial(self._end, first))
        self.view = None

    def _run(self, first: int, last: int) -> None:
        """Take the slots through some layers; those that hold nothing yet write nothing that is read."""
        buffers, slots = self.buffers, self.buffers.slots
        before = slots.after if first else torch.zeros_like(slots.state)
        state = torch.where((buffers.joins == first).unsqueeze(1), slots.state, before)
        written = slots.positions[1].masked_fill(buffers.joins > first, self.segments.length - 1)
        slots.after.copy_(self.segments.layers(self.width, first, last, slots, state, written))

    def _ask(self, place: int, first: int, point: int) -> None:
        self._run(first, point)
        state = self.buffers.slots.after[:1].clone()  # the rule may look back
        backbone = self.segments.backbone
        view = _RecordedView(backbone, Places([0], [0], point, state), [self.tally], self.view, None, self.heads)
        answer = decision(self.rule, view)
        scores = [numbers.isnan() for _, _, numbers in view.scores()]
        if not view.only_answers or answer.device != state.device:
            raise OptionError(
                f"{type(self.rule).__name__} says that it is capturable, and does more than answer on the device."
            )
        if scores:
            self.buffers.undefined[place : place + 1].copy_(torch.stack(scores).any(0))
        self.buffers.leaves.copy_(answer)
        self.buffers.going.copy_(answer.logical_not())
        self.view = view
        self.checks.append(self._cost())

    def _leave(self, point: int) -> None:
        assert self.view is not None
        # A later check that looks back must not find what is computed only where the token leaves here.
        self._choose(copy.copy(self.view).best(), point)
        self.buffers.leaves.zero_()

    def _end(self, first: int) -> None:
        backbone = self.segments.backbone
        self._run(first, backbone.num_layers)
        self.tally.lm_head_evaluations += 1
        self._choose(best(backbone.logits(self.buffers.slots.after[:1])), backbone.num_layers)

    def _choose(self, found: Best, layer: int) -> None:
        token, logit = found
        self.buffers.token.copy_(token)
        self.buffers.logit.copy_(logit)
        self.buffers.layer.fill_(layer)
        self.answers.append(self._cost())

    def _cost(self) -> _Cost:
        """Return what was evaluated since this was asked last."""
        done = [*self.checks, *self.answers]
        return _Cost(
            self.tally.lm_head_evaluations - sum(one.lm_head_evaluations for one in done),
            self.tally.shortcut_evaluations - sum(one.shortcut_evaluations for one in done),
        )


class _RecordedView(LayerView):
    """What a check sees while it is recorded; it knows nothing that the next token will change on the host."""

    __slots__ = ()

    @property
    def rows(self) -> Tensor:
        """The one row."""
        return torch.zeros(1, dtype=torch.int64, device=self.hidden_state.device)

    @property
    def position(self) -> Tensor:
        """Refuse."""
        raise OptionError(_UNSEEN.format("positions, which the host knows"))

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """Refuse."""
        raise OptionError(_UNSEEN.format("tokens, which the host knows"))

    def logits_of(self, token_ids: Tensor) -> Tensor:
        """Refuse."""
        raise OptionError(_UNSEEN.format("logits of some tokens alone"))

    @property
    def full_depth_token(self) -> Tensor:
        """Refuse."""
        raise OptionError(_UNSEEN.format("the last layer"))
