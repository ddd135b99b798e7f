"""A rule per row: requests that exit and draft in different ways decode in one batch, and none changes another.

Rows that have the same rule, as those of a strategy without state do, are asked together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from harness.contracts import Batch, Draft, DraftRule, DraftView, ExitRule, ModelInfo, PlannedRule, StateTest, Strategy
from harness.contracts.asking import lent
from harness.contracts.plans import plan_of
from harness.contracts.state_tests import state_test_of
from harness.decoding.drafting import proposal
from harness.decoding.exits import ask, due_layer
from harness.decoding.generation import Generation
from harness.decoding.view import LayerView
from harness.registry import without_exit

__all__ = ["RowExits"]

T = TypeVar("T")


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


class RowExits:
    """Exits of an open batch. Implements :class:`harness.decoding.exits.Exits`.

    Args:
        info: the model.
        device: of its tensors.
        tally: one per row; exit checks are charged to these.

    Attributes:
        failures: row → what its strategy or its draft source raised; its tokens from there on mean nothing.
    """

    def __init__(self, info: ModelInfo, device: str, tally: Sequence[Generation]) -> None:
        self._info, self._device, self._tally = info, device, tally
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
        batch = Batch((seed,) * len(self._tally), self._device)
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
        for place, row in enumerate(view.row_list):
            if row not in self._due and view.exit_layer in self._asked[row].points:
                groups.setdefault(self._asked[row].key, []).append(place)
        answer = [self._due.get(row) == view.exit_layer for row in view.row_list]
        for key, places in groups.items():
            part = self._before[key] = view.part(places, self._before.get(key))
            self._charge(part)
            rule = self._asked[part.row_list[0]].rule
            for place, leaves in zip(places, self._answer(rule, part), strict=True):
                answer[place] = leaves
        return answer

    def state_test(self, row: int) -> StateTest | None:
        """That of its rule."""
        return self._asked[row].test

    def _due_layer(self, row: int) -> int | None:
        """Ask a row's plan; where that fails, the row leaves at once."""
        plan, points = self._asked[row].plan, sorted(self._asked[row].points)
        assert plan is not None
        try:
            with without_exit():
                return due_layer(plan, points, self._tally[row])
        except Exception as error:  # strategies may be third-party code, and a failure must not reach the other rows
            self.failures[row] = error
            return points[0] if points else None

    def _charge(self, view: LayerView) -> None:
        for row in view.row_list:
            self._tally[row].exit_checks += 1

    def _answer(self, rule: ExitRule, view: LayerView) -> list[bool]:
        """Ask; where that fails, ask about each row, so that only those fail that it fails on."""
        try:
            return ask(rule, view)
        except Exception as error:  # strategies may be third-party code, and a failure must not reach the other rows
            if len(view.row_list) > 1:
                alone = [view.part([place], view.previous) for place in range(len(view.row_list))]
                return [self._answer(rule, part)[0] for part in alone]
            self.failures[view.row_list[0]] = error
            return [True]


class _Guarded(DraftRule):
    """A draft rule, which may be third-party code, whose failure must not reach the other rows."""

    def __init__(self, rule: DraftRule, failures: dict[int, Exception], vocab_size: int) -> None:
        self._rule, self._failures, self._vocab_size = rule, failures, vocab_size
        self.needs_probabilities = rule.needs_probabilities  # type: ignore[misc]  # a rule's own, not this class's

    def propose(self, draft: Draft, most: int) -> Sequence[int]:
        """Ask the rule."""
        return self._unless_failed(draft.row, lambda: proposal(self._rule, draft, most, self._vocab_size), [])

    def verify_now(self, draft: Draft) -> bool:
        """Ask the rule."""
        return self._unless_failed(draft.row, lambda: self._rule.verify_now(draft), True)

    def watched(self, draft: Draft) -> Sequence[int]:
        """Ask the rule."""
        return self._unless_failed(draft.row, lambda: self._rule.watched(draft), ())

    def watch(self, view: DraftView) -> None:
        """Show it to the rule, which is of one row."""
        self._unless_failed(int(view.rows[0]), lambda: self._rule.watch(lent(self._rule, view)), None)

    def verified(self, draft: Draft, accepted: int) -> None:
        """Tell the rule."""
        self._unless_failed(draft.row, lambda: self._rule.verified(draft, accepted), None)

    def _unless_failed(self, row: int, ask: Callable[[], T], otherwise: T) -> T:
        if row in self._failures:
            return otherwise
        try:
            with without_exit():
                return ask()
        except Exception as error:  # a rule may be third-party code, and a failure must not reach the other rows
            self._failures[row] = error
            return otherwise
