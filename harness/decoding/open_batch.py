"""The one decoding loop: every strategy, KV policy, family and batch size goes through it.

Greedy. Prefill runs all layers and yields the first token; then, for each token, segments between
exit points run and the strategy is asked, in batch, at each of them. Rows that stop take their token
from the exit head, the others run on. Where the KV policy keeps no cache there is no prefill: the whole prefix
runs again for each token, and the strategy is asked for the first one too.

Rows join and leave between tokens; what a row yields does not depend on the others, up to rounding: products of one
row and of several differ in their last bits, which in bfloat16 can tip a near-tie. A row whose logits are not finite
fails, and so does one whose strategy compared scores that are none; the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.contracts import KVPolicy, Leaving, StopRule
from harness.decoding import certainty
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Rotary
from harness.decoding.cache import KVCache
from harness.decoding.choice import Scores, best, choices, not_finite, undefined
from harness.decoding.exits import NO_EXITS, Exits
from harness.decoding.generation import FinishReason, Generation
from harness.decoding.passes import Pass, PrefixPass, TokenPass
from harness.decoding.readings import Heads
from harness.decoding.view import LayerView
from harness.errors import ModelError, is_out_of_memory, reason

__all__ = ["OpenBatch"]


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row came with."""

    prompt: Sequence[int]
    limit: int
    stop: StopRule | None
    eos: frozenset[int]
    started: float


class OpenBatch:
    """Rows that decode together. Made by :meth:`harness.decoding.engine.Engine.open`.

    Args:
        backbone: the model.
        rotary: position tables long enough, or ``None``.
        cache: keys and values of as many rows as there may be at a time; ``None`` to run whole prefixes.
        policy: what exits leave in the cache; ``None`` without one.
        exits: decides where tokens stop.
        tally: one per row; replaced when a row joins.
        heads: cheap heads that strategies may read.

    Attributes:
        running: rows that have not ended or failed, in order.
        with_log_probabilities: whether to note each token's.
    """

    def __init__(
        self,
        backbone: Backbone,
        rotary: Rotary | None,
        cache: KVCache | None,
        policy: KVPolicy | None,
        exits: Exits,
        tally: list[Generation],
        heads: Heads,
    ) -> None:
        self._backbone, self._rotary, self._cache, self._policy = backbone, rotary, cache, policy
        self._exits, self._tally, self._heads = exits, tally, heads
        self._rows: dict[int, _Row] = {}
        self.running: list[int] = []
        self.with_log_probabilities = False

    @torch.inference_mode()
    def join(
        self,
        row: int,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        started: float | None = None,
    ) -> None:
        """Put a prompt into a free row. :meth:`prefill` must follow before the next :meth:`step`.

        Args:
            row: a row that is not running.
            prompt: its tokens, at least one; they fit the batch's positions together with the new ones.
            max_new_tokens: its limit.
            stop: ends it when true of the tokens it has generated.
            eos_token_ids: tokens that end it.
            started: when its time began, by ``time.perf_counter``; now when left out.
        """
        self._clear(row)
        self._rows[row] = _Row(
            prompt, max_new_tokens, stop, eos_token_ids, time.perf_counter() if started is None else started
        )
        self._tally[row] = Generation()
        if self._policy is not None:
            self._policy.join(row, len(prompt))
        self.running = sorted([*self.running, row])

    def _clear(self, row: int) -> None:
        """Wipe what the row's last occupant left: a masked position counts 0 times, and 0 × NaN is NaN."""
        before = self._rows.get(row)
        if before is not None and self._cache is not None:
            self._cache.entries[:, row, :, : len(before.prompt) + len(self._tally[row].token_ids)] = 0

    @torch.inference_mode()
    def prefill(self, rows: Iterable[int]) -> None:
        """Run the prompts of rows that just joined and make their first tokens. Without a cache: nothing to do."""
        if self._cache is None:
            return
        new = list(rows)
        prompts = [self._rows[row].prompt for row in new]
        current = PrefixPass(self._backbone, self._rotary, prompts, new, cache=self._cache)
        self._carry_through(current, NO_EXITS, charge=False)
        self._end_rows()

    @torch.inference_mode()
    def step(self) -> None:
        """Make one token for every running row."""
        self._carry_through(self._begin(self.running), self._exits, charge=True)
        self._end_rows()

    def drop(self, row: int) -> None:
        """Take a row out; nothing happens when it has ended."""
        self.running = [other for other in self.running if other != row]

    def _end_rows(self) -> None:
        self.running = [
            row for row in self.running if self._tally[row].finish_reason is None and self._tally[row].failure is None
        ]

    def _carry_through(self, current: Pass, exits: Exits, *, charge: bool) -> None:
        """Take one token of every row of a pass through the layers, out of as few of them as decided."""
        compared: list[Scores] = []
        self._run_through(current, exits, compared, charge=charge)
        for row, layer in undefined(compared):
            self._fail(row, "scores", layer, len(self._tally[row].token_ids))

    def _run_through(self, current: Pass, exits: Exits, compared: list[Scores], *, charge: bool) -> None:
        """Do so, and gather what exits compared; whether those are numbers is read once, after the token."""
        previous: LayerView | None = None
        places: list[int] | None = None
        for point in exits.points(current.rows):
            current.advance(point)
            view = LayerView(self._backbone, current, self._tally, previous, places, self._heads)
            leaving = exits.leaving(view)
            compared.extend(view.scores())
            previous, places = view, None
            if not any(leaving):
                continue
            going = [place for place, leaves in enumerate(leaving) if leaves]
            places = [place for place, leaves in enumerate(leaving) if not leaves]
            rows = [current.rows[place] for place in going]
            self._record(rows, view.choices(going), point)
            if self.with_log_probabilities:
                self._note(rows, view.probabilities(going))
            if isinstance(current, TokenPass) and self._policy is not None:
                self._policy.leave(_leaving(current, view, going))
            current.leave(places)
            if not places:
                return
        current.advance(self._backbone.num_layers)
        logits = self._backbone.logits(current.hidden())
        if charge:
            for row in current.rows:
                self._tally[row].lm_head_evaluations += 1
        self._record(current.rows, choices(best(logits)), self._backbone.num_layers)
        if self.with_log_probabilities:
            self._note(current.rows, certainty.top_probability(logits))

    def _record(self, rows: Sequence[int], chosen: Sequence[tuple[int, float]], layer: int) -> None:
        """Note tokens with their times, and end rows; a row fails where the best logit is not finite."""
        now = time.perf_counter()
        for row, (token, logit) in zip(rows, chosen, strict=True):
            one, facts = self._tally[row], self._rows[row]
            if not math.isfinite(logit):
                self._fail(row, "logits", layer, len(one.token_ids) + 1)
            if one.failure is None:
                one.token_ids.append(token)
                one.exit_layers.append(layer)
                one.token_times_s.append(now - facts.started)
                one.finish_reason = self._ending(one, facts)

    def _ending(self, one: Generation, facts: _Row) -> FinishReason | None:
        """Say why a row ends with its last token; ``None`` where it goes on."""
        if one.token_ids[-1] in facts.eos:
            return "eos"
        try:
            if facts.stop is not None and facts.stop(one.token_ids):
                return "stop"
        except Exception as error:  # a protocol's or the tokenizer's: other rows are decoding
            if is_out_of_memory(error):
                raise
            one.failure = ModelError(f"whether it has ended cannot be told: {reason(error)}.")
        return "length" if len(one.token_ids) >= facts.limit else None

    def _fail(self, row: int, what: str, layer: int, token: int) -> None:
        if self._tally[row].failure is None:
            self._tally[row].failure = not_finite(what, layer, token, self._backbone.lm_head.weight.dtype)

    def _note(self, rows: Sequence[int], probabilities: Tensor) -> None:
        logarithms: list[float] = probabilities.log().tolist()
        for row, value in zip(rows, logarithms, strict=True):
            if self._tally[row].failure is None:
                self._tally[row].log_probabilities.append(value)

    def _begin(self, rows: list[int]) -> Pass:
        """Return the pass of the next token."""
        if self._cache is None or self._policy is None:
            prefixes = [[*self._rows[row].prompt, *self._tally[row].token_ids] for row in rows]
            return PrefixPass(self._backbone, self._rotary, prefixes, rows, tally=self._tally)
        tokens = [self._tally[row].token_ids[-1] for row in rows]
        positions = [len(self._rows[row].prompt) + len(self._tally[row].token_ids) - 1 for row in rows]
        return TokenPass(self._backbone, self._rotary, self._cache, self._policy, rows, tokens, positions, self._tally)


def _leaving(current: TokenPass, view: LayerView, places: list[int]) -> Leaving:
    """Tell the KV policy which rows of a pass stop here."""
    all_rows = len(places) == len(current.rows)
    return Leaving(
        layer=current.layer,
        rows=[current.rows[place] for place in places],
        positions=[current.positions[place] for place in places],
        hidden=lambda: view.hidden_state if all_rows else view.hidden_state[places],
        estimates=lambda: view.leaving_states(places),
        runs=lambda: current.runs(places),
    )
