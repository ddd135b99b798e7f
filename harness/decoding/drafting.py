"""Lossless decoding of one row: what it drafts, when that is verified, and what of it stands.

Tokens that left early wait with their states, under a KV policy that defers, for the next pass that goes deep; that
pass computes what full depth would have said at each of their places. The longest beginning that full depth agrees with
is kept, and the token that full depth says after it. Nothing waits any longer then, and the cache's later positions are
written again. So every strategy drafts, and what comes out is full depth's (LayerSkip, Elhoushi 2024, arXiv 2404.16710,
is the special case of a fixed exit). What named layers drafted (:meth:`harness.contracts.DraftRule.drafting_layers`)
has no state to wait with: verification reads it as if it had been proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import TypeVar

from harness.contracts import LM_HEAD, Batch, Draft, DraftRule, DraftSource, DraftView, HeadChoice, ModelInfo
from harness.contracts.asking import is_foreign, lent
from harness.decoding.generation import Generation
from harness.decoding.view import described
from harness.errors import OptionError
from harness.records.work import Discarded, DraftWork
from harness.registry import package_of, without_exit

T = TypeVar("T")


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
        self._layers: list[int] = []  # after which each token of the draft was drafted
        self._probabilities: list[float] = []
        self._draft = Draft(row, tuple(prompt), made.token_ids, made.draft, self._layers, self._probabilities)
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
        return next((tuple(layers) for layers in named if layers), ())

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
            self._layers += [0] * len(proposed)
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
        self._layers.append(layer)
        if probability is not None:
            self._probabilities.append(probability)
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
        return self._layers[place] if place < len(self._layers) else None

    def goes_on(self, place: int) -> bool:
        """Return whether the draft's token at a place is known not to end the completion."""
        return not (self.ended and place == len(self._layers) - 1)

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
            made.discarded.append(Discarded(place, tuple(made.draft[accepted:]), tuple(self._layers[accepted:])))
        made.draft.clear()
        self._layers.clear()
        self._probabilities.clear()
        self._unread, self.due, self.ended = 0, False, False


def proposal(rule: DraftRule, draft: Draft, limit: int, vocab_size: int) -> list[int]:
    """Return what a rule proposes, ``limit`` tokens at most.

    Raises:
        OptionError: one of them is outside the vocabulary.
    """
    proposed = list(rule.propose(draft, limit)[:limit])
    if not all(0 <= token < vocab_size for token in proposed):
        raise OptionError(f"{named(rule)} proposed {proposed}: let it propose ids from 0 to {vocab_size - 1}.")
    return proposed


def draft_rules(
    sources: Iterable[DraftSource], model: ModelInfo, batch: Batch, own: object = None
) -> tuple[DraftRule, ...]:
    """Return what decides about the drafts of a batch: its sources, and a strategy's own rule where that does, too.

    A plug-in's is lent drafts that cannot be written, and its answers are checked.

    Raises:
        OptionError: a source starts no draft rule.
    """
    rules = []
    for source in sources:
        rule = source.start(model, batch)
        if not isinstance(rule, DraftRule):
            raise OptionError(
                f"{named(source, '.start')} returned {described(rule)}; return a harness.contracts.DraftRule."
            )
        rules.append(rule)
    rules += [own] if isinstance(own, DraftRule) else []
    return tuple(_Foreign(rule, model.num_layers) if is_foreign(type(rule)) else rule for rule in rules)


def named(rule: object, method: str = "") -> str:
    """Return the class of a rule, or of a source of rules, with a method of it and a plug-in's package."""
    kind = type(rule.of if isinstance(rule, _Foreign) else rule)
    package = package_of(kind)
    return f"{kind.__name__}{method}{f' of {package}' if package else ''}"


class _Foreign(DraftRule):
    """A plug-in's draft rule."""

    def __init__(self, rule: DraftRule, num_layers: int) -> None:
        self.of, self._num_layers = rule, num_layers
        self.needs_probabilities = rule.needs_probabilities  # type: ignore[misc]  # a rule's own, not this class's
        self.knows_drafts_alone = rule.knows_drafts_alone  # type: ignore[misc]

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        with without_exit():
            return self._read("propose", self.of.propose(_unwritable(draft), max_tokens), _whole_numbers)[:max_tokens]

    def drafting_layers(self, draft: Draft) -> Sequence[int]:
        with without_exit():
            layers = self._read("drafting_layers", self.of.drafting_layers(_unwritable(draft)), _whole_numbers)
        if layers != sorted(set(layers) & set(range(self._num_layers))):
            raise OptionError(
                f"{named(self)} named the layers {layers}; name some of 0 to {self._num_layers - 1}, ascending."
            )
        return layers

    def verify_now(self, draft: Draft) -> bool:
        with without_exit():
            return self._read("verify_now", self.of.verify_now(_unwritable(draft)), bool)

    def watched(self, draft: Draft) -> Sequence[int]:
        with without_exit():
            layers = self._read("watched", self.of.watched(_unwritable(draft)), _whole_numbers)
        for layer in layers:
            if not 0 < layer <= self._num_layers:
                raise OptionError(f"{named(self)} watches layer {layer}; the model has {self._num_layers}.")
        return layers

    def watch(self, view: DraftView) -> None:
        with without_exit():
            self.of.watch(lent(self.of, view))

    def verified(self, draft: Draft, accepted: int) -> None:
        with without_exit():
            self.of.verified(_unwritable(draft), accepted)

    def _read(self, method: str, answer: object, as_: Callable[[object], T]) -> T:
        try:
            return as_(answer)
        except (TypeError, ValueError, RuntimeError) as error:
            wanted = "true or false" if as_ is bool else "a list or a tuple of whole numbers"
            raise OptionError(f"{named(self, f'.{method}')} returned {described(answer)}; return {wanted}.") from error


def _unwritable(draft: Draft) -> Draft:
    """Return a draft to lend: what is written into it changes nothing, and its tokens cannot be."""
    return Draft(
        draft.row, draft.prompt, tuple(draft.token_ids), tuple(draft.tokens), tuple(draft.layers),
        tuple(draft.probabilities), draft.beside,
    )  # fmt: skip


def _whole_numbers(answer: object) -> list[int]:
    """Return the numbers of a sequence; a generator is none, and may have no end."""
    if not isinstance(answer, Sequence):
        raise TypeError
    return [index(number) for number in answer]
