"""What a strategy sees at an exit point; logits and everything derived from them are lazy."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor

from harness.contracts import ExitView, HeadChoice, HeadLogits, Reading
from harness.decoding import certainty
from harness.decoding.backbone import Backbone
from harness.decoding.choice import Best, Scores, best, choices
from harness.decoding.generation import Generation
from harness.decoding.passes import Places, Standing
from harness.decoding.readings import HeadReading, Heads
from harness.decoding.transfer import near, pick, read, upload
from harness.errors import OptionError

__all__ = ["LayerView"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class LayerView:
    """The rows of a pass at one exit point. Implements :class:`harness.contracts.DraftView`.

    Args:
        backbone: the model, for its exit head.
        current: the pass, standing at the exit point.
        tally: counts are charged to these, one per row of the batch.
        previous: view of the exit point before, over the rows of that time.
        places: where these rows stood in ``previous``; ``None`` when none has left since.
        heads: cheap heads that a rule may read.
    """

    __slots__ = (
        *("_answering", "_backbone", "_best", "_compared", "_deep", "_derived", "_exit_state", "_given", "_heads"),
        *(
            "_hidden",
            "_layer",
            "_leaving",
            "_logits",
            "_output",
            "_parts",
            "_pass",
            "_places",
            "_positions",
            "_previous",
        ),
        *("_readings", "_rows", "_stopping", "_tally"),
    )

    def __init__(
        self,
        backbone: Backbone,
        current: Standing,
        tally: Sequence[Generation],
        previous: LayerView | None,
        places: list[int] | None,
        heads: Heads,
    ) -> None:
        self._backbone, self._pass, self._tally, self._heads = backbone, current, tally, heads
        self._previous, self._places = previous, places
        self._rows = list(current.rows)
        self._positions = list(current.positions)
        self._hidden = current.hidden()
        self._layer = current.layer
        self._exit_state: Tensor | None = None
        self._leaving: tuple[list[int], Tensor] | None = None
        self._logits: Tensor | None = None
        self._best: Best | None = None
        self._derived: dict[Hashable, Tensor] = {}
        self._deep: Best | None = None
        self._parts: list[tuple[list[int], LayerView]] = []
        self._output: Tensor | None = None
        self._readings: dict[HeadChoice, HeadReading] = {}
        self._answering: HeadChoice | None = None
        self._given: tuple[Tensor, Tensor] | None = None
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
        made = (self._tally[row] for row in self._rows)
        return [[*one.token_ids, *one.draft] if one.draft else one.token_ids for one in made]

    @property
    def hidden_state(self) -> Tensor:
        """Residual stream before the final norm, ``[n, hidden_size]``."""
        return self._hidden

    @property
    def exit_state(self) -> Tensor:
        """Hidden state through the exit's shortcut, ``[n, hidden_size]``."""
        if self._exit_state is None:
            self._exit_state = self._backbone.exit_state(self._hidden, self._layer)
            self._charge_shortcut(self._rows)
        return self._exit_state

    @property
    def logits(self) -> Tensor:
        """Exit head's logits, ``[n, vocab_size]``."""
        if self._logits is None:
            self._logits = self._backbone.logits(self.exit_state)
            self._charge(self._rows)
        return self._logits

    @property
    def top_token(self) -> Tensor:
        """Arg-max of the logits, ``[n]``."""
        return self.best()[0]

    def best(self) -> Best:
        """Return the LM head's best tokens and their logits, ``[n]`` each, where they are."""
        if self._best is None:
            self._best = best(self.logits)
        return self._best

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self._backbone.lm_head.shape[0]

    @property
    def top_probability(self) -> Tensor:
        """Probability of the best token, ``[n]``."""
        if "view: two best" in self._derived:
            return self._derived["view: two best"][:, 0]
        return self.once("view: best", lambda: certainty.top_probability(self.logits))

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]``."""
        return self.once("view: two best", lambda: certainty.two_best(self.logits))[:, 1]

    @property
    def entropy(self) -> Tensor:
        """Entropy of the exit head's distribution, ``[n]``, nats."""
        return self.once("view: entropy", lambda: certainty.entropy(self.logits))

    def best_tokens(self, count: int) -> Tensor:
        """Best tokens of each row, ``[n, count]``."""
        return self.logits.topk(min(count, self.vocab_size), dim=-1).indices

    def logits_of(self, token_ids: Tensor) -> Tensor:
        """Return the LM head's logits of some tokens of each row, ``[n, k]``."""
        self._refuse_unfit("logits_of", token_ids, (torch.int64,), dims=2)
        logits = self._heads.logits_of(token_ids, self.exit_state)
        for row in self._rows:
            self._tally[row].cheap_head_evaluations += 1
            self._tally[row].cheap_head_bytes += token_ids.shape[1] * self._heads.row_bytes()
        return logits

    def answer_with(self, token_ids: Tensor, probabilities: Tensor) -> None:
        """Let rows that exit here take these tokens."""
        self._refuse_unfit("answer_with", token_ids, (torch.int64,))
        self._refuse_unfit("answer_with", probabilities, _FLOATS)
        self._given = token_ids, probabilities

    def stop(self, rows: Tensor) -> None:
        """End the completions of some of these rows."""
        self._refuse_unfit("stop", rows, (torch.bool,))
        self._stopping = rows

    def stopped(self) -> set[int]:
        """Return the places whose completions a rule ends here."""
        found = set() if self._stopping is None else set(self._stopping.nonzero().flatten().tolist())
        return found.union(*({held[place] for place in part.stopped()} for held, part in self._parts))

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
        return HeadReading(read, lambda key, compute: _once(derived, (head, key), compute))

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
            what = type(given).__name__
            if isinstance(given, Tensor):
                what = f"a tensor of shape {tuple(given.shape)} and {given.dtype} on {given.device}"
            wanted = " or ".join(map(str, dtypes)) if dtypes else "any type"
            raise OptionError(
                f"view.{method} was given {what} at layer {self._layer}; give a tensor of {len(self._rows)} rows, of "
                f"{wanted}, on {self._hidden.device}."
            )

    @property
    def full_depth_token(self) -> Tensor:
        """Token of the last layer from here, ``[n]``; the layers it runs are charged."""
        if self._deep is None:
            earlier = self.previous
            if earlier is not None and earlier._deep is not None:
                self._deep = earlier._deep
            else:
                states = self._pass.rehearse()
                if len(self._rows) < len(self._pass.rows):
                    states = states[[self._pass.rows.index(row) for row in self._rows]]
                self._deep = best(self._backbone.logits(states))
                self._charge(self._rows)
        return self._deep[0]

    @property
    def previous(self) -> LayerView | None:
        """View of the exit point before, over these rows."""
        if self._previous is not None and self._places is not None:
            self._previous = self._previous._narrow(self._places)
            self._places = None
        return self._previous

    def gathered(self, parts: Sequence[tuple[ExitView, Sequence[int]]]) -> LayerView:
        """Return rows of several views as one; each is read through the shortcut of its own exit."""
        chosen = [(view, list(places)) for view, places in parts]
        one = Places(
            [row for view, places in chosen for row in _at(view.rows, places)],
            [position for view, places in chosen for position in _at(view.position, places)],
            self._layer,
            torch.cat([pick(view.hidden_state, places) for view, places in chosen]),
        )
        twin = LayerView(self._backbone, one, self._tally, None, None, self._heads)
        twin._exit_state = torch.cat([pick(view.exit_state, places) for view, places in chosen])
        return twin

    def part(self, places: list[int], before: LayerView | None = None) -> LayerView:
        """Return a view of some of these rows, for a rule of their own; what it computes serves the output too.

        Args:
            places: which.
            before: the view that this rule was asked with at its exit point before, over these rows or more; ``None``
                at the first.
        """
        twin = self._narrow(places)
        twin._previous = before
        there = None if before is None else [before._rows.index(row) for row in twin._rows]
        twin._places = None if before is None or len(before._rows) == len(twin._rows) else there
        self._parts.append((places, twin))
        return twin

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
        if self._logits is not None and not self._derived:
            self.best()  # which makes the token of what leaves, too
        for known in (self._best, self._deep):
            if known is not None:
                yield self._layer, self._rows, known[1] - known[1]  # NaN where it is infinite, too
        for values in self._derived.values():
            if values.is_floating_point() and values.shape[:1] == (len(self._rows),) and values.numel():
                worst = values if values.dim() == 1 else values.flatten(1).amax(1)
                yield self._layer, self._rows, worst.to(self._hidden.device)

    def choices(self, places: list[int]) -> list[tuple[int, float]]:
        """Return the output tokens of the rows at these places, reusing what was asked for.

        Beside each stands a number that is finite where its logits are: the best of them, or its probability.
        """
        deciders = self._deciders(places)
        if not any(view._readings or view._given for view, _ in deciders):
            return self._full_choices(places)
        views = list({id(view): view for view, _ in deciders}.values())
        said = {id(view): view._said() for view in views}
        wanted = [one for view in views for one in said[id(view)]]
        found = dict(zip(map(id, wanted), read(*wanted), strict=True))
        chosen: dict[int, tuple[int, float]] = {}
        for place, (view, row) in zip(places, deciders, strict=True):
            if view._given is not None or view._answering is not None:
                tokens, probabilities = (found[id(one)] for one in said[id(view)][:2])
                chosen[place] = (tokens[row], probabilities[row])
                self._tally[self._rows[place]].cheap_head_tokens += 1
        others = [place for place in places if place not in chosen]
        chosen.update(zip(others, self._full_choices(others) if others else (), strict=True))
        for place, (view, row) in zip(places, deciders, strict=True):
            own = view._given is not None or view._answering is not None
            if any(found[id(one)][row] != chosen[place][0] for one in said[id(view)][2 if own else 0 :]):
                self._tally[self._rows[place]].cheap_head_misses += 1
        return [chosen[place] for place in places]

    def _said(self) -> list[Tensor]:
        """Return the tokens and probabilities that rows take unless from the LM head, and the tokens of heads read."""
        own: list[Tensor] = []
        if self._given is not None:
            own += self._given
        elif self._answering is not None:
            reading = self.read(self._answering)
            own += reading.top_token, reading.top_probability
        return own + [reading.top_token for reading in self._readings.values() if reading.is_made]

    def reads_full(self, place: int, head: HeadChoice) -> bool:
        """Return whether the row at a place drafts by the LM head: evaluated already, or asked for."""
        decider = self._decider(place)[0]
        return head.is_full or decider._logits is not None or decider._given is not None

    def drafts(
        self, places: list[int], head: HeadChoice, *, with_probabilities: bool = False
    ) -> tuple[list[tuple[int, float]], list[float]]:
        """Return the tokens that rows at some places draft by a cheap head, as :meth:`choices` does.

        With their probabilities, if those are wanted; else none.
        """
        found = self._heads.read(head, self.leaving_states(places))
        for place in places:
            self._charge_cheap(self._rows[place], head)
            self._tally[self._rows[place]].cheap_head_tokens += 1
        tokens, logits = best(found.logits)
        made = choices((tokens if found.token_ids is None else found.token_ids[tokens], logits))
        return made, HeadReading.of(found).top_probability.tolist() if with_probabilities else []

    def _charge_cheap(self, row: int, head: HeadChoice) -> None:
        self._tally[row].cheap_head_evaluations += 1
        self._tally[row].cheap_head_bytes += self._heads[head].nbytes

    def probabilities(self, places: list[int]) -> Tensor:
        """Return the probabilities of the tokens that :meth:`choices` returns, under the heads that chose them."""
        deciders = self._deciders(places)
        known: dict[int, Tensor] = {}
        for place, (view, row) in zip(places, deciders, strict=True):
            if view._given is not None:
                known[place] = view._given[1][row]
            elif view._answering is not None:
                known[place] = view.read(view._answering).top_probability[row]
        others = [place for place in places if place not in known]
        if others:
            known.update(zip(others, certainty.top_probability(self.output_logits(others)), strict=True))
        return torch.stack([known[place] for place in places])

    def _deciders(self, places: list[int]) -> list[tuple[LayerView, int]]:
        """Return for each place the view whose rule decided about its row, a part of this or itself, and where."""
        return [self._decider(place) for place in places]

    def _decider(self, place: int) -> tuple[LayerView, int]:
        for held, part in self._parts:
            if place in held:
                return part._decider(held.index(place))
        return self, place

    def _full_choices(self, places: list[int]) -> list[tuple[int, float]]:
        """Return tokens of the LM head and their logits."""
        if self._logits is not None or (len(places) == len(self._rows) and not self._parts):
            every = choices(self.best())
            return [every[place] for place in places]
        return choices(best(self.output_logits(places)))

    def output_logits(self, places: list[int]) -> Tensor:
        """Return the logits that the rows at these places, all that leave, take their tokens from, ``[k, vocab_size]``.

        Logits that were computed already are reused.
        """
        if self._logits is not None:
            return self._logits if len(places) == len(self._rows) else pick(self._logits, places)
        if self._output is None:
            known = self._known(places, "_logits")
            missing = [place for place in places if place not in known]
            if missing:
                self._charge([self._rows[place] for place in missing])
                made = self._backbone.logits(self.leaving_states(missing))
                known.update(zip(missing, made, strict=True))
            self._output = made if len(missing) == len(places) else torch.stack([known[place] for place in places])
        return self._output

    def _known(self, places: list[int], name: str) -> dict[int, Tensor]:
        """Return what rules have computed of these places with views of their own, or with parts of those."""
        found: dict[int, Tensor] = {}
        for held, part in self._parts:
            values, here = getattr(part, name), [place for place in places if place in held and place not in found]
            if values is None:
                below = part._known([held.index(place) for place in here], name)
                found.update({held[row]: value for row, value in below.items()})
            else:
                found.update({place: values[held.index(place)] for place in here})
        return found

    def leaving_states(self, places: list[int]) -> Tensor:
        """Exit states of the rows that leave, ``[len(places), hidden_size]``; the others are not mapped for it."""
        if len(places) == len(self._rows) and not self._parts:
            return self.exit_state
        index = upload(places, self._hidden.device)
        if self._exit_state is not None:
            return self._exit_state[index]
        if self._leaving is None or self._leaving[0] != places:
            known = self._known(places, "_exit_state")
            if self._leaving is not None:
                known.update(zip(*self._leaving, strict=True))
            missing = [place for place in places if place not in known]
            if missing:
                self._charge_shortcut([self._rows[place] for place in missing])
                made = self._backbone.exit_state(pick(self._hidden, missing), self._layer)
                known.update(zip(missing, made, strict=True))
            whole = len(missing) == len(places)
            self._leaving = places, made if whole else torch.stack([known[place] for place in places])
        return self._leaving[1]

    def _charge_shortcut(self, rows: list[int]) -> None:
        if self._layer in self._backbone.shortcuts:
            for row in rows:
                self._tally[row].shortcut_evaluations += 1

    def _charge(self, rows: list[int]) -> None:
        for row in rows:
            self._tally[row].lm_head_evaluations += 1

    def _narrow(self, places: list[int]) -> LayerView:
        """This view over fewer rows; what was computed is kept."""
        index = upload(places, self._hidden.device)
        twin = object.__new__(LayerView)
        twin._backbone, twin._pass, twin._tally, twin._heads = self._backbone, self._pass, self._tally, self._heads
        twin._answering = self._answering
        twin._given = None if self._given is None else (self._given[0][index], self._given[1][index])
        twin._previous, twin._layer = self._previous, self._layer
        twin._places = places if self._places is None else [self._places[place] for place in places]
        twin._rows = [self._rows[place] for place in places]
        twin._positions = [self._positions[place] for place in places]
        twin._hidden = self._hidden[index]
        twin._leaving = twin._output = twin._stopping = twin._compared = None
        twin._parts = []
        twin._exit_state = None if self._exit_state is None else self._exit_state[index]
        twin._logits = None if self._logits is None else self._logits[index]
        twin._best = None if self._best is None else (self._best[0][index], self._best[1][index])
        twin._derived = {key: value[index] for key, value in self._derived.items()}
        twin._deep = None if self._deep is None else (self._deep[0][index], self._deep[1][index])
        twin._readings = {}
        for head, reading in self._readings.items():
            if reading.is_made:
                twin._readings[head] = twin._reading(head, partial(reading.of_rows, index))
        return twin


def _once(derived: dict[Hashable, Tensor], key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
    found = derived.get(key)
    if found is None:
        found = derived[key] = compute()
    return found


def _at(values: Tensor, places: Sequence[int]) -> list[int]:
    every = values.tolist()
    return [every[place] for place in places]
