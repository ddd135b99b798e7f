"""A strategy's view of traced tokens at an exit point, and the cost that its reads would have had live.

Every traced token is a row, and all rows are shown at every exit point, also past the one where they exited: answers
there are dropped. Since a rule answers each row by itself, the exits are those of asking the remaining rows alone.
State that a rule carries from one token to the next is reset with every token; one that learns so is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from torch import Tensor

from harness.contracts import HeadChoice, ModelInfo, Reading
from harness.errors import ConfigError
from harness.sweep.tokens import TracedTokens

HEAD = "head "
"""Prefix of the charge for readings of a cheap head, whose name follows."""


@dataclass
class Charges:
    """Counts reads, once per exit and token, as live decoding charges them: to the rows still running.

    Attributes:
        running: how many rows have not left yet.
        spent: ``logits``, ``shortcut`` and ``deep`` (running the remaining layers): how many rows each was made for;
            ``deep_layers``: how many layers that took; a cheap head under its name after :data:`HEAD`.
        by_full_head: cheap heads are answered by the LM head, to see what that would decide.
        answering: exit layer → cheap head that rows which exit there take their tokens from.
    """

    running: int
    by_full_head: bool = False
    answering: dict[int, HeadChoice] = field(default_factory=dict)
    spent: Counter[str] = field(default_factory=Counter)
    _seen: set[tuple[str, int]] = field(default_factory=set)
    _recorders: list[set[tuple[str, int]]] = field(default_factory=list)

    def look(self, what: str, layer: int) -> bool:
        """Charge a read; returns whether it was the first one."""
        for recorder in self._recorders:
            recorder.add((what, layer))
        if (what, layer) in self._seen:
            return False
        self._seen.add((what, layer))
        self.spent[what] += self.running
        return True

    def seen(self, what: str, layer: int) -> bool:
        """Whether it was read for the rows that run now."""
        return (what, layer) in self._seen

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, frozenset[tuple[str, int]]]:
        """Return what is computed and everything that was read for it."""
        self._recorders.append(set())
        try:
            value = compute()
        finally:
            looks = self._recorders.pop()
        return value, frozenset(looks)


class ReplayView:
    """Traced tokens at one exit point. Implements :class:`harness.contracts.ExitView`.

    Args:
        name: of the operating point, for refusals.
        tokens: the rows.
        layer: of the exit point.
        previous: the exit point that was asked before.
        model: facts.
        charges: the counter of reads.
    """

    __slots__ = ("_charges", "_layer", "_model", "_name", "_path", "_previous", "_tokens")

    def __init__(
        self,
        name: str,
        tokens: TracedTokens,
        layer: int,
        previous: ReplayView | None,
        model: ModelInfo,
        charges: Charges,
    ) -> None:
        self._name, self._tokens, self._layer, self._previous = name, tokens, layer, previous
        self._model, self._charges = model, charges
        self._path: tuple[int, ...] = (*(previous._path if previous is not None else ()), layer)

    @property
    def exit_layer(self) -> int:
        """Decoder layers executed so far."""
        return self._layer

    @property
    def rows(self) -> Tensor:
        """0…n−1."""
        return self._tokens.rows

    @property
    def position(self) -> Tensor:
        """Position of each token in its document, ``[n]``."""
        return self._tokens.position

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """Tokens generated before each row's."""
        if not self._tokens.generated:
            self._refuse(
                "the tokens generated so far", "Trace what the model generates: `harness trace --new-tokens 15`"
            )
        return self._tokens.generated_before

    @property
    def hidden_state(self) -> Tensor:
        """Residual stream before the final norm, ``[n, hidden_size]`` float32."""
        return self._tokens.hidden(self._layer)

    @property
    def exit_state(self) -> Tensor:
        """Hidden state through the exit's shortcut, ``[n, hidden_size]`` float32."""
        self._map()
        return self._tokens.exit_state(self._layer)

    @property
    def logits(self) -> NoReturn:
        """Not available.

        Raises:
            ConfigError: always.
        """
        self._refuse("logits", "top_token, top_probability, second_probability and entropy are in a trace")

    @property
    def vocab_size(self) -> int:
        """Columns that the logits would have."""
        return self._model.vocab_size

    @property
    def top_token(self) -> Tensor:
        """Token the exit head gives, ``[n]``."""
        self._read_out()
        return self._tokens.top(self._layer)

    @property
    def top_probability(self) -> Tensor:
        """Its probability, ``[n]``."""
        self._read_out()
        return self._tokens.number("top1", self._layer)

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]``."""
        self._read_out()
        return self._tokens.number("top2", self._layer)

    @property
    def entropy(self) -> Tensor:
        """Entropy of the exit head's distribution, ``[n]``, nats."""
        self._read_out()
        return self._tokens.number("entropy", self._layer)

    def read(self, head: HeadChoice) -> Reading:
        """Return what a head says of the traced states; the model's weights are at hand where strategies declare it.

        Raises:
            ConfigError: the strategy did not declare it.
        """
        if head.is_full or self._charges.by_full_head:
            return self
        if self._tokens.heads is None:
            self._refuse(
                f"the head {head}", "Let the strategy name it in cheap_heads(), and the model is loaded for it"
            )
        return _ReplayReading(self, head)

    def answer_by(self, head: HeadChoice) -> None:
        """Let tokens that exit here come from a cheap head."""
        if not head.is_full and not self._charges.by_full_head:
            self._charges.answering[self._layer] = head

    def best_tokens(self, count: int) -> NoReturn:
        """Not available; raises as :attr:`logits`."""
        self._refuse("the best tokens of a head", "top_token is in a trace")

    def logits_of(self, token_ids: Tensor) -> NoReturn:
        """Not available; raises as :attr:`logits`."""
        self._refuse("logits of some tokens", "top_token and top_probability are in a trace")

    def answer_with(self, token_ids: Tensor, probabilities: Tensor) -> NoReturn:
        """Not available; raises as :attr:`logits`."""
        self._refuse("another token than a head's", "answer_by a head can be replayed")

    def stop(self, rows: Tensor) -> NoReturn:
        """Not available; raises as :attr:`logits`."""
        self._refuse("the end of completions", "An exit can be replayed")

    def part(self, places: list[int]) -> NoReturn:
        """Not available; raises as :attr:`logits`."""
        self._refuse("some rows alone", "Rows of a trace are asked together")

    def by_head(self, head: HeadChoice, column: str) -> Tensor:
        """Return a column of :meth:`TracedTokens.by_head`, charged."""
        self._map()
        self._charges.look(f"{HEAD}{head}", self._layer)
        return self._tokens.by_head(head, self._layer)[column]

    @property
    def full_depth_token(self) -> Tensor:
        """Token of the last layer, ``[n]``."""
        if self._charges.look("deep", 0):
            self._charges.spent["deep_layers"] += self._charges.running * (self._model.num_layers - self._layer)
        return self._tokens.final

    @property
    def previous(self) -> ReplayView | None:
        """The exit point asked before."""
        return self._previous

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something once for all operating points that come to this exit by the same ones."""
        memo, place = self._tokens.memo, (key, self._path, self._charges.by_full_head)
        if place not in memo:
            memo[place] = self._charges.record(compute)
        value, looks = memo[place]
        for what, layer in sorted(looks):
            self._charges.look(what, layer)
        return value

    def _map(self) -> None:
        if self._layer in self._tokens.shortcuts:
            self._charges.look("shortcut", self._layer)

    def _read_out(self) -> None:
        self._map()
        self._charges.look("logits", self._layer)

    def _refuse(self, what: str, advice: str) -> NoReturn:
        raise ConfigError(
            f"{self._name} cannot be replayed on this trace: it asks for {what}, which the trace does not hold. "
            f"{advice}; or run it live: `harness run --strategy {self._name}`."
        )


@dataclass(frozen=True, slots=True)
class _ReplayReading:
    """A cheap head's reading of traced tokens. Implements :class:`harness.contracts.Reading`."""

    view: ReplayView
    head: HeadChoice

    @property
    def top_token(self) -> Tensor:
        """Its token, ``[n]``."""
        return self.view.by_head(self.head, "top")

    @property
    def top_probability(self) -> Tensor:
        """That token's probability, ``[n]``."""
        return self.view.by_head(self.head, "top1")

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]``."""
        return self.view.by_head(self.head, "top2")

    @property
    def entropy(self) -> Tensor:
        """Entropy, ``[n]``, nats."""
        return self.view.by_head(self.head, "entropy")

    def best_tokens(self, count: int) -> Tensor:
        """Not available."""
        return self.view.best_tokens(count)
