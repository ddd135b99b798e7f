"""Who decides where a token stops: a strategy that is asked, or a schedule that is replayed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from harness.contracts import ExitRule, PlannedRule, StateTest
from harness.contracts.asking import ask_rule
from harness.contracts.plans import plan_of
from harness.contracts.state_tests import state_test_of
from harness.decoding.generation import Generation
from harness.decoding.view import LayerView
from harness.errors import OptionError
from harness.registry import package_of

__all__ = ["AskedExits", "Exits", "ScheduledExits", "ask", "checked", "due_layer"]


class Exits(Protocol):
    """Decides, row by row, where tokens stop."""

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """Return the layers to stop at and decide, sorted, for the next token of these rows; once per token."""

    def leaving(self, view: LayerView) -> list[bool]:
        """Return which rows of the view stop here."""

    def state_test(self, row: int) -> StateTest | None:
        """Return the test that alone decides about a row at its points; ``None`` where somebody has to ask."""


def due_layer(plan: PlannedRule, points: Sequence[int], row: Generation) -> int | None:
    """Return the exit point at which a row's next token leaves by a plan, and charge the checks on the way to it.

    ``None``: it passes them all.
    """
    planned = plan.planned_layer([*row.token_ids, *row.draft] if row.draft else row.token_ids)
    place = len(points) if planned is None else bisect_left(points, planned)
    row.exit_checks += min(place + 1, len(points))
    return points[place] if place < len(points) else None


class AskedExits:
    """Asks a strategy's rule, unless that has a plan.

    Args:
        rule: per-batch decision maker.
        points: layers at which it wants to be asked.
        tally: exit checks are charged to these.
    """

    def __init__(self, rule: ExitRule, points: Sequence[int], tally: Sequence[Generation]) -> None:
        self._rule, self._points, self._tally = rule, tuple(points), tally
        self._plan, self._due = plan_of(rule), dict[int, int | None]()

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """The strategy's points; of a plan, those where a token leaves."""
        if self._plan is None:
            return self._points
        self._due = {row: due_layer(self._plan, self._points, self._tally[row]) for row in rows}
        return sorted({layer for layer in self._due.values() if layer is not None})

    def leaving(self, view: LayerView) -> list[bool]:
        """Ask, and charge a check to every row; or follow the plan, whose checks are charged."""
        if self._plan is not None:
            return [self._due[row] == view.exit_layer for row in view.row_list]
        for row in view.row_list:
            self._tally[row].exit_checks += 1
        return ask(self._rule, view)

    def state_test(self, row: int) -> StateTest | None:
        """That of the rule, made once."""
        return self._test

    @cached_property
    def _test(self) -> StateTest | None:
        return state_test_of(self._rule, self._points)


def ask(rule: ExitRule, view: LayerView) -> list[bool]:
    """Return which rows of a view a rule stops; what it compared comes to the host with its answer.

    Raises:
        OptionError: it does not answer with one bool per row.
    """
    return view.answered(checked(rule, ask_rule(rule, view), view.exit_layer, len(view.row_list), view.device))


def checked(rule: ExitRule, decided: object, exit_layer: int, rows: int, device: torch.device) -> Tensor:
    """Return a rule's answer if it is one bool per row, on the host or where the view is.

    Raises:
        OptionError: it is not; names the rule, and a plug-in's package.
    """
    if (
        isinstance(decided, Tensor)
        and decided.dtype is torch.bool
        and decided.shape == (rows,)
        and (decided.is_cpu or decided.device == device)
        and decided.layout is torch.strided
    ):
        return decided
    what = type(decided).__name__
    if isinstance(decided, Tensor):
        what = f"a {decided.layout} tensor of shape {tuple(decided.shape)} and {decided.dtype} on {decided.device}"
        what = what.replace("torch.strided ", "")
    package = package_of(type(rule))
    whose = f" of {package}" if package else ""
    raise OptionError(
        f"{type(rule).__name__}.should_exit{whose} returned {what} at layer {exit_layer}; "
        f"return a bool tensor of shape ({rows},) on {device}, one answer per running row."
    )


class ScheduledExits:
    """Replays known exit layers, one list per row; nothing is asked and nothing is charged.

    Args:
        exit_layers: for each row of the batch, the exit layer of each token.
        num_layers: decoder layers of the model.
        tally: says how many tokens a row has.
    """

    def __init__(self, exit_layers: Sequence[Sequence[int]], num_layers: int, tally: Sequence[Generation]) -> None:
        self._layers, self._num_layers, self._tally = exit_layers, num_layers, tally

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """The layers some row is scheduled to stop at."""
        return sorted({self._due(row) for row in rows} - {self._num_layers})

    def leaving(self, view: LayerView) -> list[bool]:
        """Rows scheduled for this layer."""
        return [self._due(row) == view.exit_layer for row in view.row_list]

    def state_test(self, row: int) -> StateTest | None:
        """None."""
        return None

    def _due(self, row: int) -> int:
        return self._layers[row][len(self._tally[row].token_ids) + len(self._tally[row].draft)]
