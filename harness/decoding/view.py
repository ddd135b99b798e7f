"""A strategy's view of an exit point; logits and everything derived from them are lazy."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from harness.contracts import ExitView, HeadChoice, HeadLogits, Reading
from harness.decoding.backbone import Backbone, near, pick, read, upload
from harness.decoding.generation import Generation
from harness.decoding.readings import (
    Best,
    HeadReading,
    Heads,
    Scores,
    best,
    choices,
    entropy,
    once,
    top_probability,
    two_best,
)
from harness.decoding.step import PassState, RowSelection, TokenPass
from harness.errors import OptionError

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Choice(NamedTuple):
    """The token of a row that leaves.

    Attributes:
        token: its token, or its draft.
        logit: a number that is finite where its logits are: the token's logit or its probability.
        probability: of the token under the head that chose it; ``None`` unless asked for.
    """

    token: int
    logit: float
    probability: float | None


class LayerView:
    """The rows of a pass at one exit point. Implements :class:`harness.contracts.DraftView`.

    Args:
        current: the pass, standing at the exit point.
        previous: view of the exit point before, over the rows of that time.
        indices: where these rows stood in ``previous``; ``None`` when none has left since.
    """

    __slots__ = (
        *("_answering", "_backbone", "_compared", "_derived", "_heads", "_hidden", "_indices", "_known", "_layer"),
        *("_leaving", "_parts", "_pass", "_positions", "_previous", "_readings", "_rows", "_stopping", "_generations"),
    )

    def __init__(
        self,
        backbone: Backbone,
        current: PassState,
        generations: Sequence[Generation],
        heads: Heads,
        previous: LayerView | None = None,
        indices: list[int] | None = None,
    ) -> None:
        self._backbone, self._pass, self._generations, self._heads = backbone, current, generations, heads
        self._previous, self._indices = previous, indices
        self._rows = list(current.rows)
        self._positions = list(current.positions)
        self._hidden = current.hidden()
        self._layer = current.layer
        self._known: dict[str, tuple[Tensor, ...]] = {}  # of these rows: exit state, logits, best, full depth's, given
        self._derived: dict[Hashable, Tensor] = {}  # of these rows, by :meth:`once`
        self._readings: dict[HeadChoice, HeadReading] = {}
        self._parts: list[tuple[list[int], LayerView]] = []
        self._leaving: dict[int, Tensor] = {}  # exit states of rows that leave, where not all rows' are known
        self._answering: HeadChoice | None = None
        self._stopping: Tensor | None = None
        self._compared: list[Scores] | None = None

    @property
    def exit_layer(self) -> int:
        """Decoder layers executed so far for this token."""
        return self._layer

    @property
    def row_list(self) -> list[int]:
        """Rows of the batch, as a list."""
        return self._rows

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self._hidden.device

    @property
    def rows(self) -> Tensor:
        """Rows of the batch, ``[n]``."""
        return upload(self._rows, self._hidden.device)

    @property
    def position(self) -> Tensor:
        """Position of the token being processed, ``[n]``."""
        return upload(self._positions, self._hidden.device)

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """Tokens generated so far by each row, drafts included."""
        made = (self._generations[row] for row in self._rows)
        return [[*one.token_ids, *one.draft] if one.draft else one.token_ids for one in made]

    @property
    def hidden_state(self) -> Tensor:
        """Residual stream before the final norm, ``[n, hidden_size]``."""
        return self._hidden

    @property
    def exit_state(self) -> Tensor:
        """Hidden state through the exit's shortcut, ``[n, hidden_size]``."""
        known = self._known.get("exit state")
        if known is None:
            known = self._known["exit state"] = (self._backbone.exit_state(self._hidden, self._layer),)
            self._charge_shortcut(self._rows)
        return known[0]

    @property
    def logits(self) -> Tensor:
        """Exit head's logits, ``[n, vocab_size]``."""
        known = self._known.get("logits")
        if known is None:
            known = self._known["logits"] = (self._backbone.logits(self.exit_state),)
            self._charge(self._rows)
        return known[0]

    @property
    def top_token(self) -> Tensor:
        """Arg-max of the logits, ``[n]``."""
        return self.best()[0]

    def best(self) -> Best:
        """Return the LM head's best tokens and their logits, ``[n]`` each, where they are."""
        known = self._known.get("best")
        if known is None:
            known = self._known["best"] = best(self.logits)
        return cast("Best", known)

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._backbone.lm_head.shape[0]

    @property
    def top_probability(self) -> Tensor:
        """Probability of the best token, ``[n]``."""
        if "view: two best" in self._derived:
            return self._derived["view: two best"][:, 0]
        return self.once("view: best", lambda: top_probability(self.logits))

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]``."""
        return self.once("view: two best", lambda: two_best(self.logits))[:, 1]

    @property
    def entropy(self) -> Tensor:
        """Entropy of the exit head's distribution, ``[n]``, nats."""
        return self.once("view: entropy", lambda: entropy(self.logits))

    def best_tokens(self, count: int) -> Tensor:
        """Best tokens of each row, ``[n, count]``."""
        return self.logits.topk(min(count, self.vocab_size), dim=-1).indices

    def logits_of(self, token_ids: Tensor) -> Tensor:
        """Return the LM head's logits of some tokens of each row, ``[n, k]``."""
        self._refuse_unfit("logits_of", token_ids, (torch.int64,), dims=2)
        logits = self._heads.logits_of(token_ids, self.exit_state)
        for row in self._rows:
            self._generations[row].cheap_head_evaluations += 1
            self._generations[row].cheap_head_bytes += token_ids.shape[1] * self._heads.row_bytes()
        return logits

    def answer_with(self, token_ids: Tensor, probabilities: Tensor) -> None:
        """Let rows that exit here take these tokens."""
        self._refuse_unfit("answer_with", token_ids, (torch.int64,))
        self._refuse_unfit("answer_with", probabilities, _FLOATS)
        self._known["given"] = token_ids, probabilities

    def stop(self, rows: Tensor) -> None:
        """End the completions of some of these rows."""
        self._refuse_unfit("stop", rows, (torch.bool,))
        self._stopping = rows

    def stopped(self) -> set[int]:
        """Return the indices of the rows whose completions a rule ends here."""
        found = set() if self._stopping is None else set(self._stopping.nonzero().flatten().tolist())
        return found.union(*({held[index] for index in part.stopped()} for held, part in self._parts))

    def read(self, head: HeadChoice) -> Reading:
        """Return what a head says of these rows; ``full`` is this view."""
        if head.is_full:
            return self
        found = self._readings.get(head)
        if found is None:
            found = self._readings[head] = self._reading(head, partial(self._read_by, head))
        return found

    def answer_by(self, head: HeadChoice) -> None:
        """Let rows that exit here take their tokens from a head that was read."""
        self._answering = None if head.is_full else head

    def _reading(self, head: HeadChoice, read: Callable[[], HeadLogits]) -> HeadReading:
        derived = self._derived  # not the view, which holds the reading, and the pass with its cache
        return HeadReading(read, lambda key, compute: once(derived, (head, key), compute))

    def _read_by(self, head: HeadChoice) -> HeadLogits:
        for row in self._rows:
            self._charge_cheap(row, head)
        return self._heads.read(head, self.exit_state)

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something once for these rows, or for those of them that are left later."""
        found = self._derived.get(key)
        if found is None:
            found = compute()
            self._refuse_unfit("once", found, None, dims=None)
            self._derived[key] = found
        return found

    def _refuse_unfit(
        self, method: str, given: object, dtypes: Sequence[torch.dtype] | None, dims: int | None = 1
    ) -> None:
        """Refuse what a rule gives a method of the view and cannot be of its rows: where it is read, none would know.

        Raises:
            OptionError: it is no tensor of a row each, of so many dimensions, of one of these types, and on its device.
        """
        fits = (
            isinstance(given, Tensor)
            and given.shape[:1] == (len(self._rows),)
            and dims in (None, given.dim())
            and (dtypes is None or given.dtype in dtypes)
            and (given.is_cpu or given.device == self._hidden.device)
        )
        if not fits:
            wanted = " or ".join(map(str, dtypes)) if dtypes else "any type"
            raise OptionError(
                f"view.{method} was given {described(given)} at layer {self._layer}; "
                f"give a tensor of {len(self._rows)} rows, of {wanted}, on {self._hidden.device}."
            )

    @property
    def full_depth_token(self) -> Tensor:
        """Token of the last layer from here, ``[n]``; the layers it runs are charged."""
        if "full depth" not in self._known:
            earlier = self.previous
            if earlier is not None and "full depth" in earlier._known:
                self._known["full depth"] = earlier._known["full depth"]
            else:
                states = self._pass.rehearse()
                if len(self._rows) < len(self._pass.rows):
                    states = states[[self._pass.rows.index(row) for row in self._rows]]
                self._known["full depth"] = best(self._backbone.logits(states))
                self._charge(self._rows)
        return self._known["full depth"][0]

    @property
    def previous(self) -> LayerView | None:
        """View of the exit point before, over these rows."""
        if self._previous is not None and self._indices is not None:
            self._previous = self._previous._narrow(self._indices)
            self._indices = None
        return self._previous

    def gathered(self, parts: Sequence[tuple[ExitView, Sequence[int]]]) -> LayerView:
        """Return rows of several views as one; each is read through the shortcut of its own exit."""
        chosen = [(view, list(indices)) for view, indices in parts]
        one = RowSelection(
            [row for view, indices in chosen for row in _at(view.rows, indices)],
            [position for view, indices in chosen for position in _at(view.position, indices)],
            self._layer,
            torch.cat([pick(view.hidden_state, indices) for view, indices in chosen]),
            self._source,
        )
        twin = LayerView(self._backbone, one, self._generations, self._heads)
        twin._known["exit state"] = (torch.cat([pick(view.exit_state, indices) for view, indices in chosen]),)
        return twin

    def knowing(self, logits: Tensor) -> LayerView:
        """Return it, at the last layer, with the logits ``[n, vocab_size]`` that its verification read."""
        self._known |= {"exit state": (self._hidden,), "logits": (logits,)}
        return self

    def through(self, layers: Sequence[int], states: Tensor | None = None) -> LayerView:
        """Return these rows after further layers alone, each by itself."""
        given = self._hidden if states is None else states
        found = self._source.beside(layers, self._rows, self._positions, given)
        one = RowSelection(self._rows, self._positions, self._backbone.num_layers, found, self._source)
        return LayerView(self._backbone, one, self._generations, self._heads)

    @property
    def _source(self) -> TokenPass:
        """The pass, in lossless decoding."""
        assert isinstance(self._pass, TokenPass | RowSelection)
        return self._pass if isinstance(self._pass, TokenPass) else self._pass.source

    def part(self, indices: list[int], before: LayerView | None = None) -> LayerView:
        """Return a view of some of these rows, for a rule of their own; what it computes serves the output too.

        Args:
            indices: which.
            before: the view that this rule was asked with at its exit point before, over these rows or more; ``None``
                at the first.
        """
        twin = self._narrow(indices)
        twin._previous = before
        there = None if before is None else [before._rows.index(row) for row in twin._rows]
        twin._indices = None if before is None or len(before._rows) == len(twin._rows) else there
        self._parts.append((indices, twin))
        return twin

    def before(self, index: int, layer: int, state: Tensor, previous: LayerView | None) -> LayerView:
        """Return the view of one of these rows that an exit point before would have been, by its state there.

        Args:
            index: which.
            layer: the exit point.
            state: ``[1, hidden_size]``.
            previous: view of the exit point before that one.
        """
        one = RowSelection([self._rows[index]], [self._positions[index]], layer, state, self._source)
        return LayerView(self._backbone, one, self._generations, self._heads, previous)

    def answered(self, decided: Tensor) -> list[bool]:
        """Return a rule's answer ``[n]``; what it compared comes along if the host has to wait for that."""
        if decided.device.type == "cpu":
            return cast("list[bool]", decided.tolist())
        compared = list(self.scores())
        answer, *numbers = near(decided, *(of_rows for _, _, of_rows in compared))
        self._compared = [(layer, rows, own) for (layer, rows, _), own in zip(compared, numbers, strict=True)]
        return cast("list[bool]", answer.tolist())

    def scores(self) -> Iterator[Scores]:
        """Yield what a rule compared: NaN where it was no number, so that the rule answered and did not decide.

        That is what was computed of logits or by :meth:`once`, and else the best logit of rules that look at tokens or
        at logits themselves.
        """
        if self._compared is not None:
            yield from self._compared
            return
        for _, part in self._parts:
            yield from part.scores()
        if "logits" in self._known and not self._derived:
            self.best()  # which makes the token of what leaves, too
        for name in ("best", "full depth"):
            if name in self._known:
                logits = self._known[name][1]
                yield self._layer, self._rows, logits - logits  # NaN where they are infinite, too
        for values in self._derived.values():
            if values.is_floating_point() and values.shape[:1] == (len(self._rows),) and values.numel():
                worst = values if values.dim() == 1 else values.flatten(1).amax(1)
                yield self._layer, self._rows, worst.to(self._hidden.device)

    def choose(
        self, indices: list[int], heads: Mapping[int, HeadChoice] | None = None, wanted: Collection[int] = ()
    ) -> list[Choice]:
        """Return what rows that leave say, reusing what was asked for.

        Args:
            indices: of all rows that leave.
            heads: of those that draft, what reads the draft unless the LM head was evaluated or a rule gave a token.
            wanted: indices of rows whose probability is wanted, among those that share a head at least.
        """
        chosen: dict[int, Choice] = {}
        cheap: dict[HeadChoice, list[int]] = {}
        for index, head in heads.items() if heads else ():
            decider, _ = self._decider(index)
            if not head.is_full and "logits" not in decider._known and "given" not in decider._known:
                cheap.setdefault(head, []).append(index)
        for head, some in cheap.items():
            chosen.update(zip(some, self._choose_cheap(some, head, any(one in wanted for one in some)), strict=True))
        others = [index for index in indices if index not in chosen] if cheap else indices
        if others:
            made = self._choose_full(others, any(index in wanted for index in others) if wanted else False)
            if not chosen:
                return made
            chosen.update(zip(others, made, strict=True))
        return [chosen[index] for index in indices]

    def _choose_cheap(self, indices: list[int], head: HeadChoice, wanted: bool) -> Iterator[Choice]:
        found = self._heads.read(head, self.leaving_states(indices))
        for index in indices:
            self._charge_cheap(self._rows[index], head)
            self._generations[self._rows[index]].cheap_head_tokens += 1
        tokens, logits = best(found.logits)
        made = choices((tokens if found.token_ids is None else found.token_ids[tokens], logits))
        known = HeadReading.of(found).top_probability.tolist() if wanted else [None] * len(made)
        return (Choice(*one, probability) for one, probability in zip(made, known, strict=True))

    def _choose_full(self, indices: list[int], wanted: bool) -> list[Choice]:
        """Take the tokens that rules gave or a cheap head that they answer by, and else the LM head's."""
        deciders = [self._decider(index) for index in indices]
        if not any(view._readings or "given" in view._known for view, _ in deciders):
            return self._choose_by_lm_head(indices, wanted)
        views = list({id(view): view for view, _ in deciders}.values())
        told = {id(view): view._told() for view in views}
        tensors = [one for view in views for one in told[id(view)]]
        found = dict(zip(map(id, tensors), read(*tensors), strict=True))
        chosen: dict[int, Choice] = {}
        for index, (view, row) in zip(indices, deciders, strict=True):
            if view._answers:
                token, probability = (found[id(one)][row] for one in told[id(view)][:2])
                chosen[index] = Choice(token, probability, probability if wanted else None)
                self._generations[self._rows[index]].cheap_head_tokens += 1
        others = [index for index in indices if index not in chosen]
        if others:
            chosen.update(zip(others, self._choose_by_lm_head(others, wanted), strict=True))
        for index, (view, row) in zip(indices, deciders, strict=True):
            if any(found[id(one)][row] != chosen[index].token for one in told[id(view)][2 if view._answers else 0 :]):
                self._generations[self._rows[index]].cheap_head_misses += 1
        return [chosen[index] for index in indices]

    @property
    def _answers(self) -> bool:
        """Whether a rule says itself which tokens rows take."""
        return self._answering is not None or "given" in self._known

    def _told(self) -> list[Tensor]:
        """Return the tokens and probabilities that rows take unless from the LM head, and the tokens of heads read."""
        own = list(self._known.get("given", ()))
        if not own and self._answering is not None:
            reading = self.read(self._answering)
            own = [reading.top_token, reading.top_probability]
        return own + [reading.top_token for reading in self._readings.values() if reading.is_made]

    def _charge_cheap(self, row: int, head: HeadChoice) -> None:
        self._generations[row].cheap_head_evaluations += 1
        self._generations[row].cheap_head_bytes += self._heads[head].nbytes

    def _decider(self, index: int) -> tuple[LayerView, int]:
        """Return the view whose rule decided about a row, a part of this or itself, and where the row is there."""
        for held, part in self._parts:
            if index in held:
                return part._decider(held.index(index))
        return self, index

    def _choose_by_lm_head(self, indices: list[int], wanted: bool) -> list[Choice]:
        whole = len(indices) == len(self._rows)
        if "logits" in self._known or (whole and not self._parts):
            every = choices(self.best())
            found = every if whole else [every[index] for index in indices]
            logits = self.logits if whole or not wanted else pick(self.logits, indices)
        else:
            logits = self._output_logits(indices)
            found = choices(best(logits))
        known = top_probability(logits).tolist() if wanted else [None] * len(found)
        return [Choice(*one, probability) for one, probability in zip(found, known, strict=True)]

    def _output_logits(self, indices: list[int]) -> Tensor:
        """Return the logits that rows take their tokens from, ``[k, vocab_size]``; what rules computed is reused."""
        known = self._found(indices, "logits")
        missing = [index for index in indices if index not in known]
        if missing:
            self._charge([self._rows[index] for index in missing])
            made = self._backbone.logits(self.leaving_states(missing))
            if len(missing) == len(indices):
                return made
            known.update(zip(missing, made, strict=True))
        return torch.stack([known[index] for index in indices])

    def _found(self, indices: list[int], name: str) -> dict[int, Tensor]:
        """Return what rules have computed of some rows with views of their own, or with parts of those."""
        found: dict[int, Tensor] = {}
        for held, part in self._parts:
            here = [index for index in indices if index in held and index not in found]
            if name in part._known:
                values = part._known[name][0]
                found.update({index: values[held.index(index)] for index in here})
            else:
                below = part._found([held.index(index) for index in here], name)
                found.update({held[row]: value for row, value in below.items()})
        return found

    def leaving_states(self, indices: list[int]) -> Tensor:
        """Exit states of rows that leave, ``[len(indices), hidden_size]``; the others are not mapped for it."""
        if len(indices) == len(self._rows) and not self._parts:
            return self.exit_state
        if "exit state" in self._known:
            return pick(self.exit_state, indices)
        known = {**self._found(indices, "exit state"), **self._leaving}
        missing = [index for index in indices if index not in known]
        if missing:
            self._charge_shortcut([self._rows[index] for index in missing])
            made = self._backbone.exit_state(pick(self._hidden, missing), self._layer)
            self._leaving.update(zip(missing, made, strict=True))
            if len(missing) == len(indices):
                return made
            known.update(self._leaving)
        return torch.stack([known[index] for index in indices])

    def _charge_shortcut(self, rows: list[int]) -> None:
        if self._layer in self._backbone.shortcuts:
            for row in rows:
                self._generations[row].shortcut_evaluations += 1

    def _charge(self, rows: list[int]) -> None:
        for row in rows:
            self._generations[row].lm_head_evaluations += 1

    def _narrow(self, indices: list[int]) -> LayerView:
        """This view over fewer rows; what was computed is kept."""
        index = upload(indices, self._hidden.device)
        twin = copy.copy(self)
        twin._rows = [self._rows[each] for each in indices]
        twin._positions = [self._positions[each] for each in indices]
        twin._hidden = self._hidden[index]
        twin._indices = indices if self._indices is None else [self._indices[each] for each in indices]
        twin._known = {name: tuple(one[index] for one in known) for name, known in self._known.items()}
        twin._derived = {key: value[index] for key, value in self._derived.items()}
        twin._parts, twin._leaving, twin._stopping, twin._compared = [], {}, None, None
        twin._readings = {}
        for head, reading in self._readings.items():
            if reading.is_made:
                twin._readings[head] = twin._reading(head, partial(reading.of_rows, index))
        return twin


def described(given: object) -> str:
    """Return words for what a rule gave in place of what it should have."""
    if not isinstance(given, Tensor):
        return type(given).__name__
    layout = "" if given.layout is torch.strided else f"{given.layout} "
    return f"a {layout}tensor of shape {tuple(given.shape)} and {given.dtype} on {given.device}"


def _at(values: Tensor, indices: Sequence[int]) -> list[int]:
    every = values.tolist()
    return [every[index] for index in indices]
