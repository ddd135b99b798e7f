"""Lossless decoding of one row: what it drafts, when that is verified, and what of it stands.

Tokens that left early wait with their states, under a KV policy that defers, for the next pass that goes deep; that
pass computes what full depth would have said at each of their places. The longest beginning that full depth agrees with
is kept, and the token that full depth says after it. Nothing waits any longer then, and the cache's later positions are
written again. So every strategy drafts, and what comes out is full depth's (LayerSkip, Elhoushi 2024, arXiv 2404.16710,
is the special case of a fixed exit). What named layers drafted (:meth:`harness.contracts.DraftRule.drafting_layers`)
has no state to wait with: verification reads it as if it had been proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.contracts import LM_HEAD, Draft, DraftRule, HeadChoice
from harness.decoding.generation import Generation
from harness.errors import OptionError
from harness.records.work import Discarded, DraftWork


@dataclass(frozen=True, slots=True)
class DraftSettings:
    """How a row drafts."""

    draft_max: int
    rules: Sequence[DraftRule] = ()
    head: HeadChoice = LM_HEAD


class Drafting:
    """The draft of one row.

    Args:
        ends: whether its completion would end with the last of some drafted tokens: what is proposed ends before it,
            since the verification says that token itself.

    Attributes:
        needs_probabilities: whether some rule wants those of the tokens that exits draft.
        due: whether the row's next pass goes deep, whatever its strategy would say.
        ended: whether the last token of the draft ends the completion if it stands, so that none follows it.
    """

    def __init__(
        self, row: int, prompt: Sequence[int], made: Generation, limit: int, settings: DraftSettings, vocab_size: int,
        ends: Callable[[Sequence[int]], bool] = lambda drafted: False,
    ) -> None:  # fmt: skip
        self._made, self._limit, self._vocab_size, self._ends = made, limit, vocab_size, ends
        self._draft_max, self._rules, self.head = settings.draft_max, settings.rules, settings.head
        self._draft = Draft(row, prompt, made.token_ids, made.draft)
        self._work: list[DraftWork] = []  # of the pass that drafted each token; what a source proposes is behind those
        self._done = DraftWork.so_far(made)
        self.needs_probabilities = any(rule.needs_probabilities for rule in settings.rules)
        self._unread = 0  # tokens before the newest that no pass but those of named layers has seen
        self.due = self.ended = False

    def fresh(self, beside: int = 0) -> tuple[list[int], int]:
        """Return the row's newest tokens, which are still to be read, and the position of the last.

        ``beside`` is how many of other rows will be read with them.
        """
        draft, made = self._draft, self._made
        draft.beside = beside
        said = [*made.token_ids[-1:], *made.draft]
        tokens = said[len(said) - 1 - self._unread : len(said) - self.ended]
        if not self.due:
            tokens += self._proposed()
        return tokens, len(draft.prompt) + len(made.token_ids) + len(made.draft) - 1 - self.ended

    def layers(self) -> tuple[int, ...]:
        """Return the layers that alone draft the next token; none where the strategy's exits do, or nothing does."""
        named = () if self.due else (rule.drafting_layers(self._draft) for rule in self._rules)
        return next((tuple(layers) for layers in named if len(layers)), ())

    def _proposed(self) -> Sequence[int]:
        draft, made = self._draft, self._made
        # A pass yields one token more than the draft has.
        limit = min(self._draft_max - len(made.draft), self._limit - len(made.token_ids) - len(made.draft) - 1)
        for rule in self._rules if limit > 0 else ():
            proposed = proposal(rule, draft, limit, self._vocab_size)
            places = range(len(proposed))
            proposed = proposed[: next((at for at in places if self._ends([*made.draft, *proposed[: at + 1]])), None)]
            if not proposed:
                continue
            made.draft += proposed
            draft.layers += [0] * len(proposed)
            made.drafts += len(proposed)
            self.due = True
            return proposed
        return ()

    def add(self, token: int, layer: int, probability: float | None, *, ends: bool, named: bool = False) -> None:
        """Draft a token after so many layers, those of an exit or ``named`` ones.

        ``ends`` says that it would end the completion.
        """
        made = self._made
        made.draft.append(token)
        self._draft.layers.append(layer)
        if probability is not None:
            self._draft.probabilities.append(probability)
        made.drafts += 1
        now = DraftWork.so_far(made)
        self._work.append(now - self._done + DraftWork(passes=1))
        self._done = now
        self.ended, self._unread = ends, self._unread + 1 if named else 0
        self.due = (
            ends or len(made.draft) >= self._draft_max or any(rule.verify_now(self._draft) for rule in self._rules)
        )

    def watched(self) -> Iterator[tuple[DraftRule, Sequence[int]]]:
        """Yield the rules that watch the verification, and at which layers."""
        for rule in self._rules:
            if layers := rule.watched(self._draft):
                yield rule, layers

    def drafted_at(self, place: int) -> int | None:
        """Return the layer after which the draft's token at a place was drafted; ``None`` behind its end."""
        return self._draft.layers[place] if place < len(self._draft.layers) else None

    def goes_on(self, place: int) -> bool:
        """Return whether the draft's token at a place is known not to end the completion."""
        return not (self.ended and place == len(self._draft.layers) - 1)

    def close(self, accepted: int) -> None:
        """Forget the draft, of which so many tokens stand."""
        for rule in self._rules:
            rule.verified(self._draft, accepted)
        made = self._made
        made.drafting = sum(self._work, made.drafting)
        made.rolled_back = sum(self._work[accepted:], made.rolled_back)
        self._work.clear()
        self._done = DraftWork.so_far(made)
        if accepted < len(made.draft):
            place = len(made.token_ids) - (not made.accepted[-1])
            made.discarded.append(Discarded(place, tuple(made.draft[accepted:]), tuple(self._draft.layers[accepted:])))
        made.draft.clear()
        self._draft.layers.clear()
        self._draft.probabilities.clear()
        self._unread, self.due, self.ended = 0, False, False


def proposal(rule: DraftRule, draft: Draft, limit: int, vocab_size: int) -> list[int]:
    """Return what a rule proposes, ``limit`` tokens at most.

    Raises:
        OptionError: one of them is outside the vocabulary.
    """
    proposed = list(rule.propose(draft, limit))[:limit]
    if not all(0 <= token < vocab_size for token in proposed):
        raise OptionError(f"{type(rule).__name__} proposed {proposed}: let it propose ids from 0 to {vocab_size - 1}.")
    return proposed
