"""Who decides where a token stops: one strategy that is asked, a rule per row, or a schedule that is replayed.

A rule per row (:class:`RowExits`) lets requests that exit and draft in different ways decode in one batch, and none
changes another. Rows that have the same rule, as those of a strategy without state do, are asked together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from harness.contracts import Batch, Draft, DraftRule, DraftView, ExitRule, ModelInfo, PlannedRule, StateTest, Strategy
from harness.contracts.asking import ask_rule
from harness.contracts.strategies import plan_of, state_test_of
from harness.decoding.drafting import proposal
from harness.decoding.generation import Generation
from harness.decoding.view import LayerView, described
from harness.errors import OptionError
from harness.registry import package_of, without_exit

T = TypeVar("T")
Tests = dict[int, tuple[StateTest, Sequence[int]]]
"""Rows → test and the exit points at which it is made."""


class Exits(Protocol):
    """Decides, row by row, where tokens stop."""

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """Return the layers to stop at and decide, sorted, for the next token of these rows; once per token."""

    def leaving(self, view: LayerView) -> list[bool]:
        """Return which rows of the view stop here."""

    def state_tests(self, rows: Sequence[int]) -> Tests | None:
        """Return the tests that alone decide about rows, but those without points; ``None``: somebody has to ask."""
        return None

    def answer(self, view: LayerView) -> bool:
        """Return whether a view's one row stops here, about which its test asks; that was the check, and is charged."""
        return self.leaving(view)[0]


def due_layer(plan: PlannedRule, points: Sequence[int], row: Generation) -> int | None:
    """Return the exit point at which a row's next token leaves by a plan, and charge the checks on the way to it.

    ``None``: it passes them all.
    """
    planned = plan.planned_layer((*row.token_ids, *row.draft))
    index = len(points) if planned is None else bisect_left(points, planned)
    row.exit_checks += min(index + 1, len(points))
    return points[index] if index < len(points) else None


class AskedExits(Exits):
    """Asks a strategy's rule, unless that has a plan."""

    def __init__(self, rule: ExitRule, points: Sequence[int], generations: Sequence[Generation]) -> None:
        self._rule, self._points, self._generations = rule, tuple(points), generations
        self._plan, self._due = plan_of(rule), dict[int, int | None]()
        self._tests: list[StateTest | None] = []

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """The strategy's points; of a plan, those where a token leaves."""
        if self._plan is None:
            return self._points
        self._due = {row: due_layer(self._plan, self._points, self._generations[row]) for row in rows}
        return sorted({layer for layer in self._due.values() if layer is not None})

    def leaving(self, view: LayerView) -> list[bool]:
        """Ask, and charge a check to every row; or follow the plan, whose checks are charged."""
        if self._plan is not None:
            return [self._due[row] == view.exit_layer for row in view.row_list]
        for row in view.row_list:
            self._generations[row].exit_checks += 1
        return ask(self._rule, view)

    def state_tests(self, rows: Sequence[int]) -> Tests | None:
        """That of the rule, made once."""
        if not self._tests:
            self._tests.append(state_test_of(self._rule, self._points))
        (test,) = self._tests
        return None if test is None else dict.fromkeys(rows, (test, self._points))

    def answer(self, view: LayerView) -> bool:
        """Ask."""
        return ask(self._rule, view)[0]


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
    package = package_of(type(rule))
    whose = f" of {package}" if package else ""
    raise OptionError(
        f"{type(rule).__name__}.should_exit{whose} returned {described(decided)} at layer {exit_layer}; "
        f"return a bool tensor of shape ({rows},) on {device}, one answer per running row."
    )


class ScheduledExits(Exits):
    """Replays known exit layers, one list per row; nothing is asked and nothing is charged."""

    def __init__(
        self, exit_layers: Sequence[Sequence[int]], num_layers: int, generations: Sequence[Generation]
    ) -> None:
        self._layers, self._num_layers, self._generations = exit_layers, num_layers, generations

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """The layers some row is scheduled to stop at."""
        return sorted({self._due(row) for row in rows} - {self._num_layers})

    def leaving(self, view: LayerView) -> list[bool]:
        """Rows scheduled for this layer."""
        return [self._due(row) == view.exit_layer for row in view.row_list]

    def _due(self, row: int) -> int:
        return self._layers[row][len(self._generations[row].token_ids) + len(self._generations[row].draft)]


class UnlessDue(Exits):
    """Exits of a pass in which some rows go deep whatever their strategies say."""

    def __init__(self, exits: Exits, due: frozenset[int]) -> None:
        self._exits, self._due = exits, due
        self._before: LayerView | None = None

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """Those of the rows that are asked."""
        asked = [row for row in rows if row not in self._due]
        return self._exits.points(asked) if asked else ()

    def leaving(self, view: LayerView) -> list[bool]:
        """Ask about the others."""
        indices = [index for index, row in enumerate(view.row_list) if row not in self._due]
        answer = [False] * len(view.row_list)
        if indices:
            self._before = part = view.part(indices, self._before)
            for index, leaves in zip(indices, self._exits.leaving(part), strict=True):
                answer[index] = leaves
        return answer


@dataclass(frozen=True, slots=True)
class _Asked:
    rule: ExitRule
    points: frozenset[int]
    test: StateTest | None
    plan: PlannedRule | None

    @property
    def key(self) -> tuple[int, frozenset[int]]:
        """Rows with the same one are asked together."""
        return id(self.rule), self.points


class RowExits(Exits):
    """Exits of an open batch.

    Attributes:
        failures: row → what its strategy or its draft source raised; its tokens from there on mean nothing.
    """

    def __init__(self, info: ModelInfo, device: str, generations: Sequence[Generation]) -> None:
        self._info, self._device, self._generations = info, device, generations
        self._asked: dict[int, _Asked] = {}
        self._before: dict[tuple[int, frozenset[int]], LayerView] = {}
        self._one: _Asked | None = None
        self._due: dict[int, int | None] = {}
        self.failures: dict[int, Exception] = {}

    def join(self, row: int, strategy: Strategy, seed: int, facts: ModelInfo | None = None) -> tuple[Batch, ExitRule]:
        """Let a strategy decide for a row from its next token on; return its rule and what that knows of the batch.

        Args:
            row: of the batch.
            strategy: decides.
            seed: of a random one.
            facts: the model's, with costs; those of all rows when left out.

        Raises:
            HarnessError: it does not fit the model, or a file it needs is missing.
        """
        self.failures.pop(row, None)
        points = frozenset(strategy.exit_points(self._info))
        batch = Batch((seed,) * len(self._generations), self._device)
        rule = strategy.start(facts or self._info, batch)
        self._asked[row] = _Asked(rule, points, state_test_of(rule, sorted(points)), plan_of(rule))
        return batch, rule

    def guarded(self, rules: Sequence[DraftRule]) -> tuple[DraftRule, ...]:
        """Return draft rules that fail their row alone: what one raises is noted, and it says nothing more."""
        return tuple(_Guarded(rule, self.failures, self._info.vocab_size) for rule in rules)

    def points(self, rows: Sequence[int]) -> Sequence[int]:
        """The layers at which some of these rows is asked, or leaves as planned."""
        self._before.clear()
        self._due = {row: self._due_layer(row) for row in rows if self._asked[row].plan is not None}
        asked = [self._asked[row] for row in rows if row not in self._due]
        alike = len(asked) == len(rows) and all(other.key == asked[0].key for other in asked)
        self._one = asked[0] if alike else None
        due = {layer for layer in self._due.values() if layer is not None}
        return sorted(due.union(*(one.points for one in asked)))

    def leaving(self, view: LayerView) -> list[bool]:
        """Ask each rule about its rows, and charge a check to each."""
        if self._one is not None:
            self._charge(view)
            return self._answer(self._one.rule, view)
        groups: dict[tuple[int, frozenset[int]], list[int]] = {}
        for index, row in enumerate(view.row_list):
            if row not in self._due and view.exit_layer in self._asked[row].points:
                groups.setdefault(self._asked[row].key, []).append(index)
        answer = [self._due.get(row) == view.exit_layer for row in view.row_list]
        for key, indices in groups.items():
            part = self._before[key] = view.part(indices, self._before.get(key))
            self._charge(part)
            rule = self._asked[part.row_list[0]].rule
            for index, leaves in zip(indices, self._answer(rule, part), strict=True):
                answer[index] = leaves
        return answer

    def state_tests(self, rows: Sequence[int]) -> Tests | None:
        """Those of their rules."""
        found: Tests = {}
        for row in rows:
            one = self._asked[row]
            if one.test is not None:
                found[row] = one.test, sorted(one.points)
            elif one.points:
                return None
        return found

    def answer(self, view: LayerView) -> bool:
        """Ask the row's rule."""
        return self._answer(self._asked[view.row_list[0]].rule, view)[0]

    def _due_layer(self, row: int) -> int | None:
        """Ask a row's plan; where that fails, the row leaves at once."""
        plan, points = self._asked[row].plan, sorted(self._asked[row].points)
        assert plan is not None
        try:
            with without_exit():
                return due_layer(plan, points, self._generations[row])
        except Exception as error:  # strategies may be third-party code, and a failure must not reach the other rows
            self.failures[row] = error
            return points[0] if points else None

    def _charge(self, view: LayerView) -> None:
        for row in view.row_list:
            self._generations[row].exit_checks += 1

    def _answer(self, rule: ExitRule, view: LayerView) -> list[bool]:
        """Ask; where that fails, ask about each row, so that only those fail that it fails on."""
        try:
            return ask(rule, view)
        except Exception as error:  # strategies may be third-party code, and a failure must not reach the other rows
            if len(view.row_list) > 1:
                alone = [view.part([index], view.previous) for index in range(len(view.row_list))]
                return [self._answer(rule, part)[0] for part in alone]
            self.failures[view.row_list[0]] = error
            return [True]


class _Guarded(DraftRule):
    """A draft rule, which may be third-party code, whose failure must not reach the other rows."""

    def __init__(self, rule: DraftRule, failures: dict[int, Exception], vocab_size: int) -> None:
        self._rule, self._failures, self._vocab_size = rule, failures, vocab_size
        self.needs_probabilities = rule.needs_probabilities  # type: ignore[misc]  # a rule's own, not this class's

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        return self._unless_failed(draft.row, lambda: proposal(self._rule, draft, max_tokens, self._vocab_size), [])

    def drafting_layers(self, draft: Draft) -> Sequence[int]:
        return self._unless_failed(draft.row, lambda: self._rule.drafting_layers(draft), ())

    def verify_now(self, draft: Draft) -> bool:
        return self._unless_failed(draft.row, lambda: self._rule.verify_now(draft), True)

    def watched(self, draft: Draft) -> Sequence[int]:
        return self._unless_failed(draft.row, lambda: self._rule.watched(draft), ())

    def watch(self, view: DraftView) -> None:
        self._unless_failed(int(view.rows[0]), lambda: self._rule.watch(view), None)

    def verified(self, draft: Draft, accepted: int) -> None:
        self._unless_failed(draft.row, lambda: self._rule.verified(draft, accepted), None)

    def _unless_failed(self, row: int, ask: Callable[[], T], otherwise: T) -> T:
        if row in self._failures:
            return otherwise
        try:
            return ask()
        except Exception as error:  # a rule may be third-party code, and a failure must not reach the other rows
            self._failures[row] = error
            return otherwise
