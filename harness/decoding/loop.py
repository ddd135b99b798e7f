"""The one decoding loop: every strategy, KV policy, family and batch size goes through it.

Greedy. Prefill runs all layers and yields the first token; then, for each token, segments between
exit points run and the strategy is asked, in batch, at each of them. Rows that stop take their token
from the exit head, the others run on. Where the KV policy keeps no cache there is no prefill: the whole prefix
runs again for each token, and the strategy is asked for the first one too.

Rows join and leave between tokens, and long prompts are read in pieces between them. What a row yields does not depend
on the others, up to rounding: products of one row and of several differ in their last bits, which in bfloat16 can tip a
near-tie. A prompt that is read in pieces, or whose beginning was read for an earlier one, differs by no more than that.
A row whose logits are not finite fails, and so does one whose strategy compared scores that are none; the others go on.

Rows may decode losslessly beside others: what they exit with is a draft until a pass that goes deep has verified it
(:mod:`harness.decoding.drafting`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness.contracts import DraftRule, Keep, KVPolicy, Leaving, ModelInfo, NamedStop, PromptRule, StopRule
from harness.decoding.backbone import Backbone, pick
from harness.decoding.blocks import Rotary
from harness.decoding.cache import KeptPrompts, KVCache
from harness.decoding.drafting import Drafting, DraftSettings
from harness.decoding.exits import Exits, UnlessDue
from harness.decoding.generation import FinishReason, Generation
from harness.decoding.prompt_exits import PromptMaps, ShallowPrompt, deepen, read_shallow
from harness.decoding.readings import Heads, Scores, best, choices, not_finite, scores, top_probability, undefined
from harness.decoding.step import Pass, PrefixPass, RowSelection, TokenPass
from harness.decoding.view import LayerView
from harness.errors import ModelError, reason
from harness.registry import ran_out_of_memory

if TYPE_CHECKING:
    from harness.decoding.kernels.layers import Asking


PADDED = 64
"""Tokens of a prompt up to which a CPU reads it beside others, all as long as the longest: padding costs what tokens
do, and longer ones gain nothing from company."""


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: Sequence[int]
    limit: int
    stop: StopRule | None
    eos: frozenset[int]
    started: float
    owner: str | None
    rule: NamedStop | None
    scored: bool

    @property
    def reads_states(self) -> bool:
        """Whether its stop rule decides by more than tokens."""
        return self.rule is not None and self.rule.rule.reads_states


class OpenBatch:
    """Rows that decode together. Made by :meth:`harness.decoding.engine.Engine.open`.

    Args:
        info: the model's facts, for prompt rules.
        cache: keys and values of as many rows as there may be at a time; ``None`` to run whole prefixes.
        generations: one per row; replaced when a row joins.
        kept_prompts: free rows whose last prompts are kept, for prompts of the same owner that begin alike.
        keep: what is kept of them, and of their completions.
        prompt_maps: returns what fills the layers above a prompt's exits; asked where a prompt has some.

    Attributes:
        exits: decides where tokens stop; may be another one once no row runs.
        reading: rows whose prompts are not read to their end, as they joined, and the position where each goes on.
        running: rows that make tokens, in order: they have not ended or failed.
        with_log_probabilities: whether to note each token's.
    """

    def __init__(
        self,
        backbone: Backbone,
        info: ModelInfo,
        rotary: Rotary | None,
        cache: KVCache | None,
        policy: KVPolicy | None,
        exits: Exits,
        generations: list[Generation],
        heads: Heads,
        kept_prompts: int = 0,
        keep: Keep = "prompt",
        prompt_maps: Callable[[], PromptMaps] | None = None,
    ) -> None:
        self._backbone, self._rotary, self._cache, self._policy = backbone, rotary, cache, policy
        self.exits, self._generations, self._heads, self._keep = exits, generations, heads, keep
        self._rows: dict[int, _Row] = {}
        self._drafting: dict[int, Drafting] = {}  # rows that decode losslessly
        self._kept = KeptPrompts(kept_prompts)
        self._info, self._prompt_maps = info, prompt_maps
        self._shallow: dict[int, ShallowPrompt] = {}  # what rows hold that read their prompts with exits
        self._deepened: dict[int, int] = {}  # positions, of the completion too, of rows that were made exact
        self._written = [0] * len(generations)  # positions of each row, since wiped
        self.reading: dict[int, int] = {}
        self.running: list[int] = []
        self.with_log_probabilities = False

    def row_for(self, prompt: Sequence[int], owner: str | None, free: Collection[int]) -> int:
        """Return which of the free rows, at least one, a prompt should join: where most of it can be reused."""
        return self._kept.row_for(owner, prompt, free)

    @torch.inference_mode()
    def join(
        self,
        row: int,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        started: float | None = None,
        owner: str | None = None,
        lossless: DraftSettings | None = None,
        rule: NamedStop | None = None,
        prompt_rule: PromptRule | None = None,
        scored: bool = False,
    ) -> int:
        """Put a prompt into a free row. :meth:`prefill` must read it to its end before the row makes more tokens.

        Args:
            row: a row that is neither read nor running.
            prompt: its tokens, at least one; they fit the batch's positions together with the new ones.
            max_new_tokens: its limit.
            stop: ends it when true of the tokens it has generated.
            eos_token_ids: tokens that end it.
            started: when its time began, by ``time.perf_counter``; now when left out.
            owner: prompts of one owner share keys and values where they begin alike; ``None``: with nobody.
            lossless: how it drafts, to yield full depth's tokens; the KV policy must defer.
            rule: its own stop rule, asked after ``stop``.
            prompt_rule: how deep its prompt's new tokens are read; ``None`` for full depth, which a lossless row wants,
                and one without a cache.
            scored: what full depth says of the prompt's tokens is noted. It has no owner, then, and the batch a cache.

        Returns:
            How many of the prompt's tokens are not read again, since a row holds their keys and values.
        """
        prompt, begun = tuple(prompt), None  # rules may be third-party code, and are lent it
        if prompt_rule is not None:
            begun = ShallowPrompt.begun(prompt_rule, prompt, self._info, self._backbone.like)
        reused = self._reuse(row, prompt, owner, begun)
        self._rows[row] = _Row(
            prompt, max_new_tokens, stop, eos_token_ids, time.perf_counter() if started is None else started, owner,
            rule, scored,
        )  # fmt: skip
        made = self._generations[row] = Generation(lossless=lossless is not None, prompt_reused=reused)
        self._drafting.pop(row, None)
        if lossless is not None:
            size = self._backbone.lm_head.shape[0]
            ends = partial(self._would_end, row)
            self._drafting[row] = Drafting(row, prompt, made, max_new_tokens, lossless, size, ends)
        if self._policy is not None:
            self._policy.join(row, len(prompt))
        if self._cache is None:
            self._start([row])
        else:
            self.reading[row] = reused
        return reused

    def _reuse(self, row: int, prompt: Sequence[int], owner: str | None, begun: ShallowPrompt | None) -> int:
        """Give a row the beginning of its prompt from the row that holds most of it, and wipe everything else.

        A masked position counts 0 times, and 0 × NaN is NaN.
        """
        if self._cache is None:
            return 0
        source, length = self._kept.find(owner, prompt, row)
        shallow = self._shallow.get(source)
        if shallow is not None:
            length = shallow.reusable(length, begun)
        before, kept = self._rows.get(row), length if source == row else 0
        if before is not None:
            end = len(before.prompt) + len(self._generations[row].token_ids) + len(self._generations[row].draft)
            self._cache.wipe(row, kept, max(end, self._written[row]))
        if source != row:
            self._cache.copy(source, row, length)
        self._shallow.pop(row, None)
        self._deepened.pop(row, None)
        if begun is not None:
            begun.reuse(length, shallow)
            self._shallow[row] = begun
        self._written[row] = length
        self._kept.forget(row)
        self._kept.hold(row, owner, prompt, length)
        return length

    @torch.inference_mode()
    def prefill(self, rows: Iterable[int], max_tokens: int | None = None) -> None:
        """Read prompts of rows that joined; one that is read to its end makes the row's first token, and the row runs.

        Args:
            rows: those that joined. Without a cache there is nothing to read.
            max_tokens: tokens of each prompt that are read in this call at most, at least 1; all of it when left out.
                What is left is read in pieces of one size, since a few tokens take as long as many.
        """
        waiting = [row for row in rows if row in self.reading]
        whole = [row for row in waiting if max_tokens is None and not self.reading[row] and row not in self._shallow]
        if self._backbone.device.type == "cpu":
            whole = [row for row in whole if len(self._rows[row].prompt) <= PADDED]
        if whole:
            self._read(whole, max_tokens)
        for row in waiting:
            if row not in whole:
                self._read([row], max_tokens)
        self._end_rows()

    def _read(self, rows: list[int], max_tokens: int | None) -> None:
        assert self._cache is not None
        start = self.reading[rows[0]]
        pieces = [_piece(self._rows[row].prompt, start, max_tokens) for row in rows]
        end = start + max(map(len, pieces))
        for row in rows:
            self._written[row] = max(self._written[row], end)
        more = end < max(len(self._rows[row].prompt) for row in rows)
        state = self._read_piece(rows, pieces, start, more, max_tokens)
        if state is None:
            self.reading[rows[0]] = end
            self._kept.hold(rows[0], self._rows[rows[0]].owner, self._rows[rows[0]].prompt, end)
            return
        for row in rows:
            self._count_prompt(row)
            if row in self._shallow and self._shallow[row].is_exact(self._generations[row].prompt_reused):
                del self._shallow[row]
            del self.reading[row]
            self._kept.hold(row, self._rows[row].owner, self._rows[row].prompt, len(self._rows[row].prompt))
        self._start(rows)
        self._read_out(rows, state)

    def _count_prompt(self, row: int) -> None:
        made, shallow, layers = self._generations[row], self._shallow.get(row), self._backbone.num_layers
        depths = [] if shallow is None else shallow.depths[made.prompt_reused :]
        made.prompt_layers_skipped = sum(layers - depth for depth in depths)
        made.prompt_layers = layers * (len(self._rows[row].prompt) - made.prompt_reused) - made.prompt_layers_skipped

    def _read_piece(
        self, rows: Sequence[int], pieces: Sequence[Sequence[int]], start: int, more: bool, max_tokens: int | None
    ) -> Tensor | None:
        """Read pieces of prompts; return the states of their last tokens, ``None`` where more follows."""
        assert self._cache is not None
        shallow = self._shallow.get(rows[0])
        if shallow is not None:
            assert self._prompt_maps is not None
            maps = self._prompt_maps()
            return read_shallow(
                self._backbone, self._rotary, self._cache, maps, rows[0], pieces[0], shallow, max_tokens
            )
        current = PrefixPass(self._backbone, self._rotary, pieces, rows, cache=self._cache, start=start)
        if self._rows[rows[0]].scored:
            current.advance(self._backbone.num_layers)
            behind = self._rows[rows[0]].prompt[start + 1 : start + 1 + len(pieces[0])]
            states = current.states()[0, : len(behind)]
            self._generations[rows[0]].prompt_scores += scores(
                self._backbone, states, behind, self._backbone.num_layers
            )
            return None if more else current.hidden()
        if more:
            current.fill()
            return None
        return current.read()

    def keeps(self, row: int) -> bool:
        """Whether what a row holds may be reused."""
        return row in self._kept

    def shallow(self, row: int) -> int:
        """Return of how many tokens of a row's prompt it holds what is not full depth's, which :meth:`deepen` mends."""
        return len(self._shallow[row].states) if row in self._shallow else 0

    def deepen(self, row: int, max_tokens: int) -> bool:
        """Make some more of a row's prompt exact that was read with exits, and then what was decoded behind it.

        Later prompts that begin alike then reuse what full depth would have left.

        Args:
            row: neither read nor running.
            max_tokens: of its prompt, that are run through the layers above their exit, and then of its completion, at
                most; what is behind those is not kept.

        Returns:
            Whether all is exact now.
        """
        shallow = self._shallow.get(row)
        if shallow is None:
            return True
        assert self._cache is not None
        assert self._prompt_maps is not None
        assert row not in self.running
        assert row not in self.reading
        if len(shallow.states):
            deepen(self._backbone, self._rotary, self._cache, self._prompt_maps(), row, shallow, max_tokens)
        if len(shallow.states):
            return False
        decoded = self._generations[row].token_ids[:-1][:max_tokens]  # nobody has read the last one
        if decoded:
            PrefixPass(self._backbone, self._rotary, [decoded], [row], cache=self._cache, start=shallow.exact).fill()
        del self._shallow[row]
        self._deepened[row] = shallow.exact + len(decoded)  # a prompt may not be read to its end
        self._hold_completion(row)
        return True

    def _start(self, rows: Sequence[int]) -> None:
        self.running = sorted([*self.running, *rows])

    @torch.inference_mode()
    def step(self) -> None:
        """Make one token for every running row: out of as few layers as decided, or of all where a draft is due."""
        fresh: dict[int, tuple[list[int], int]] = {}
        for place, row in enumerate(self.running if self._cache is not None else ()):
            others = sum(len(tokens) for tokens, _ in fresh.values()) + len(self.running) - place - 1
            fresh[row] = self._fresh(row, others)
        named = {row: layers for row in fresh if row in self._drafting and (layers := self._drafting[row].layers())}
        for layers in dict.fromkeys(named.values()):
            self._draft_through(layers, {row: fresh[row] for row in fresh if named.get(row) == layers})
        rows = [row for row in self.running if row not in named]
        if rows:
            current = self._begin(rows, fresh)
            due = frozenset(row for row, drafting in self._drafting.items() if drafting.due and row not in named)
            compared: list[Scores] = []
            self._run_through(current, due, compared)
            for row, layer in undefined(compared):  # whether scores are numbers is asked once, after the token
                self._fail(row, "scores", layer, len(self._generations[row].token_ids))
        self._end_rows()

    def drop(self, row: int) -> None:
        """Take a row out, however far it is. What is read of its prompt is kept, and of its completion what may be."""
        if row not in self.reading and row not in self._shallow:
            self._hold_completion(row)
        self.reading.pop(row, None)
        self.running = [other for other in self.running if other != row]
        self._drafting.pop(row, None)

    def _hold_completion(self, row: int) -> None:
        """Keep what may be kept of a row that holds its prompt."""
        if row in self._kept and self._keep in ("exact", "all"):
            facts, made = self._rows[row], self._generations[row]
            self._kept.hold(row, facts.owner, [*facts.prompt, *made.token_ids], self._held(row))

    def _held(self, row: int) -> int:
        """Return how many of a row's first positions may be kept; its last token has none yet."""
        if row in self._deepened:
            return self._deepened[row]
        prompt, made, policy = len(self._rows[row].prompt), self._generations[row], self._policy
        assert policy is not None
        end = prompt + max(0, len(made.token_ids) - 1)
        shallow = (place for place, layer in enumerate(made.exit_layers[1:]) if layer < self._backbone.num_layers)
        deep = prompt + next(shallow, end - prompt)
        if made.finish_reason == "strategy":  # what went along with its last pass got no further than that
            return deep
        filled = end - 1 if self._keep == "all" and policy.facts.fills else 0  # the last one is filled by the next
        return max(deep, filled, policy.settled(row, end))

    def forget(self, row: int) -> None:
        """Reuse nothing of what a row holds: something went wrong in it."""
        self._kept.forget(row)

    def _end_rows(self) -> None:
        self.running = [
            row
            for row in self.running
            if self._generations[row].finish_reason is None and self._generations[row].failure is None
        ]
        for row in self._drafting.keys() - set(self.running) - self.reading.keys():
            del self._drafting[row]

    def _run_through(self, current: Pass, due: frozenset[int], compared: list[Scores]) -> None:
        """Take one token of every row through the layers, those that are due unasked; gather what exits compared."""
        exits = UnlessDue(self.exits, due) if due else self.exits
        points = exits.points(current.rows)
        watched = self._watched(due) if due else {}
        if isinstance(current, TokenPass) and points and not watched:
            tests = self.exits.state_tests([row for row in current.rows if row not in due])
            asking = None if tests is None else current.ask(tests)
            if asking is not None:
                self._run_asking(current, asking, compared)
                return
        previous: LayerView | None = None
        indices: list[int] | None = None
        for point in sorted({*points, *watched}) if watched else points:
            if due.issuperset(current.rows) and not watched:
                break
            current.advance(point)
            for rule, rows in watched.get(point, ()):
                self._show(current, rule, rows)
            if due.issuperset(current.rows) or point not in points:
                continue
            view = LayerView(self._backbone, current, self._generations, self._heads, previous, indices)
            leaving = exits.leaving(view)
            compared.extend(view.scores())
            previous, indices = view, None
            stopped = self._stopped(view)
            if not any(leaving) and not stopped:
                continue
            going = [index for index, leaves in enumerate(leaving) if leaves and index not in stopped]
            indices = [index for index, leaves in enumerate(leaving) if not leaves and index not in stopped]
            if going:
                self._leave(current, view, going)
            current.leave(indices)
            if not indices:
                return
        current.advance(self._backbone.num_layers)
        self._end(current)

    def _run_asking(self, current: TokenPass, asking: Mapping[int, Asking], compared: list[Scores]) -> None:
        """Take one token of every row through layers that make rules' checks, and stop where one does not let it on."""
        asked: dict[int, LayerView] = {}
        while current.rows:
            current.advance(self._backbone.num_layers)
            checks = [asking.get(row) for row in current.rows]
            reached = {index: one for index, one in enumerate(checks) if one is not None and one.left is not None}
            if not reached:
                self._count_checks(current.rows, asking, compared)
                self._end(current)
                return
            view = LayerView(self._backbone, current, self._generations, self._heads)
            going = [
                index for index, one in reached.items() if not one.test.asks or self._asks(view, index, one, asked)
            ]
            compared.extend(view.scores())
            stopped = self._stopped(view)
            leaving = stopped.union(going)
            self._count_checks([current.rows[index] for index in leaving], asking, compared)
            if not stopped.issuperset(going):
                self._leave(current, view, [index for index in going if index not in stopped])
            if leaving:
                current.leave([index for index in range(len(current.rows)) if index not in leaving])

    def _count_checks(self, rows: Sequence[int], asking: Mapping[int, Asking], compared: list[Scores]) -> None:
        """Charge rows with the checks that layers have made."""
        for row in rows:
            if row in asking:
                one = asking[row]
                self._generations[row].exit_checks += one.made
                made = zip(one.points, one.scores, strict=False)
                compared.extend((point, [row], torch.tensor([score])) for point, score in made if math.isnan(score))

    def _asks(self, view: LayerView, index: int, asking: Asking, asked: dict[int, LayerView]) -> bool:
        """Ask a row's rule because its test says so, with views of the exit points since it was ``asked`` last."""
        row, previous = view.row_list[index], asked.get(view.row_list[index])
        for point, state in zip(asking.points, asking.states[:-1], strict=False):
            if previous is None or point > previous.exit_layer:
                previous = view.before(index, point, state.unsqueeze(0), previous)
        asked[row] = view.part([index], previous)
        return self.exits.answer(asked[row])

    def _end(self, current: Pass) -> None:
        """Take the tokens of the rows that have passed all layers, or verify their drafts."""
        if isinstance(current, TokenPass) and not self._drafting.keys().isdisjoint(current.rows):
            self._verify(current)
            return
        for row in current.rows:
            self._generations[row].lm_head_evaluations += 1
        self._read_out(current.rows, current.hidden())

    def _stopped(self, view: LayerView) -> set[int]:
        """End the rows that a rule stops at an exit, where it may; return their indices."""
        found = set()
        for index in view.stopped():
            row = view.row_list[index]
            if row not in self._drafting and self._generations[row].token_ids:
                self._generations[row].finish_reason = "strategy"
                found.add(index)
        return found

    def _watched(self, due: frozenset[int]) -> dict[int, list[tuple[DraftRule, list[int]]]]:
        """Return the layers at which draft rules watch rows that are due: which rules, and which of their rows."""
        found: dict[int, dict[int, tuple[DraftRule, list[int]]]] = {}
        for row in sorted(due):
            for rule, layers in self._drafting[row].watched():
                for layer in layers:
                    if layer == self._backbone.num_layers:
                        continue  # where drafts are verified
                    found.setdefault(layer, {}).setdefault(id(rule), (rule, []))[1].append(row)
        return {layer: list(rules.values()) for layer, rules in found.items()}

    def _show(self, current: Pass, rule: DraftRule, rows: list[int]) -> None:
        """Show a rule what some rows carry; nothing where that is all on its way already."""
        assert isinstance(current, TokenPass)
        selected = current.select(rows)
        if selected.rows:
            rule.watch(LayerView(self._backbone, selected, self._generations, self._heads))

    def _leave(self, current: Pass, view: LayerView, going: list[int]) -> None:
        """Let some rows of a view leave with their tokens, or with drafts where they decode losslessly."""
        drafting = {index: self._drafting.get(current.rows[index]) for index in going}
        heads = {index: one.head for index, one in drafting.items() if one is not None}
        wanted = {index for index, one in drafting.items() if one is not None and one.needs_probabilities}
        taken = [index for index in going if index not in heads] if heads else going
        if self.with_log_probabilities:
            wanted.update(taken)
        chosen = dict(zip(going, view.choose(going, heads, wanted), strict=True))
        rows, layer = [current.rows[index] for index in taken], view.exit_layer
        states = pick(view.hidden_state, taken) if any(self._rows[row].reads_states for row in rows) else None
        self._record(rows, [chosen[index][:2] for index in taken], layer, states)
        if self.with_log_probabilities:
            self._note(rows, [chosen[index][2] for index in taken])
        for index, one in drafting.items():
            if one is not None:
                token, logit, probability = chosen[index]
                self._draft(current.rows[index], token, logit, layer, probability if one.needs_probabilities else None)
        if isinstance(current, TokenPass) and self._policy is not None:
            self._policy.leave(_leaving(current, view, going))

    def _draft_through(self, layers: tuple[int, ...], fresh: Mapping[int, tuple[list[int], int]]) -> None:
        """Draft a token of some rows by layers that their rules named; nothing joins it, and nothing waits of it."""
        assert self._cache is not None
        assert self._policy is not None
        rows, drafting = list(fresh), [self._drafting[row] for row in fresh]
        current = TokenPass(
            self._backbone, self._rotary, self._cache, KVPolicy(self._policy.batch), rows,
            [tokens[-1:] for tokens, _ in fresh.values()], [position for _, position in fresh.values()],
            self._generations,
        )  # fmt: skip
        current.through(layers)
        view = LayerView(self._backbone, current, self._generations, self._heads)
        places = list(range(len(rows)))
        heads = {place: one.head for place, one in enumerate(drafting)}
        wanted = {place for place, one in enumerate(drafting) if one.needs_probabilities}
        for place, (token, logit, probability) in enumerate(view.choose(places, heads, wanted)):
            given = probability if place in wanted else None
            self._draft(rows[place], token, logit, len(layers), given, named=True)

    def _draft(
        self, row: int, token: int, logit: float, layer: int, probability: float | None, *, named: bool = False
    ) -> None:
        """Draft a token of an exit or of named layers; a row whose logits are not finite fails here as anywhere."""
        one = self._generations[row]
        if not math.isfinite(logit):
            self._fail(row, "logits", layer, len(one.token_ids) + len(one.draft) + 1)
            return
        ends = self._would_end(row, [*one.draft, token])
        self._drafting[row].add(token, layer, probability, ends=ends, named=named)

    def _would_end(self, row: int, drafted: Sequence[int]) -> bool:
        """Return whether a row's completion would end with the last of its drafted tokens."""
        try:
            return _ending([*self._generations[row].token_ids, *drafted], self._rows[row], drafted=True) is not None
        except Exception as error:  # asked again when the token is verified
            if ran_out_of_memory(error):
                raise
            return True

    def _verify(self, current: TokenPass) -> None:
        """Read the last layer at every place of a draft, and accept what full depth agrees with and what follows it.

        Rows without a draft, which may be among them, take their token at the last place.
        """
        states, lengths = current.states()
        ends = list(accumulate(lengths))
        drafted = [bool(self._generations[row].draft) for row in current.rows]
        slots = [
            slot
            for end, length, all_of_them in zip(ends, lengths, drafted, strict=True)
            for slot in range(end - length if all_of_them else end - 1, end)
        ]
        logits = self._backbone.logits(states if len(slots) == len(states) else pick(states, slots))
        found = choices(best(logits))
        probabilities = top_probability(logits) if self.with_log_probabilities else None
        at = 0
        for row, position, length, all_of_them in zip(current.rows, current.positions, lengths, drafted, strict=True):
            count = length if all_of_them else 1
            self._generations[row].lm_head_evaluations += count
            self._written[row] = max(self._written[row], position + 1)
            for rule, layers in self._drafting[row].watched() if row in self._drafting else ():
                if self._backbone.num_layers in layers:
                    here = slice(at, at + count)
                    places = RowSelection(
                        [row] * count, list(range(position - count + 1, position + 1)), self._backbone.num_layers,
                        states[slots[at] : slots[at] + count], current,
                    )  # fmt: skip
                    view = LayerView(self._backbone, places, self._generations, self._heads)
                    rule.watch(view.knowing(logits[here]))
            seen = states[slots[at] : slots[at] + count] if self._rows[row].reads_states else None
            made = self._accept(row, found[at : at + count], seen)
            if probabilities is not None:
                self._note([row] * made, probabilities[at : at + made].tolist())
            at += count

    def _accept(self, row: int, verified: Sequence[tuple[int, float]], states: Tensor | None) -> int:
        """Take the beginning of a row's draft that full depth agrees with, and its own token after it; return how many.

        Args:
            row: of the batch.
            verified: full depth's tokens, and their logits, at the places of the draft and behind it.
            states: the last layer's there, for a stop rule that reads them.
        """
        one, drafting = self._generations[row], self._drafting.get(row)
        now, before, accepted = time.perf_counter(), len(one.token_ids), 0
        for place, (token, logit) in enumerate(verified):
            agrees = one.draft[place : place + 1] == [token]
            layer = None if drafting is None else drafting.drafted_at(place)
            goes_on = agrees and drafting is not None and drafting.goes_on(place) and states is None
            self._take(
                row, token, logit, self._backbone.num_layers, now, layer, accepted=agrees, goes_on=goes_on,
                state=None if states is None else states[place],
            )  # fmt: skip
            accepted += agrees
            if not agrees or one.finish_reason is not None:
                break
        made = len(one.token_ids) - before
        if drafting is not None:
            one.verifications += 1
            one.layers_discarded += (len(verified) - made) * self._backbone.num_layers
            drafting.close(accepted)
        return made

    def _read_out(self, rows: Sequence[int], state: Tensor) -> None:
        logits = self._backbone.logits(state)
        self._record(rows, choices(best(logits)), self._backbone.num_layers, state)
        if self.with_log_probabilities:
            self._note(rows, top_probability(logits).tolist())

    def _record(
        self, rows: Sequence[int], chosen: Sequence[tuple[int, float]], layer: int, states: Tensor | None
    ) -> None:
        """Note tokens with their times, and end rows; a row fails where the best logit is not finite.

        ``states`` are those that the tokens come from; ``None`` where no stop rule reads them.
        """
        now = time.perf_counter()
        for place, (row, (token, logit)) in enumerate(zip(rows, chosen, strict=True)):
            self._take(row, token, logit, layer, now, state=None if states is None else states[place])

    def _take(
        self,
        row: int,
        token: int,
        logit: float,
        layer: int,
        now: float,
        drafted_at: int | None = None,
        *,
        accepted: bool = False,
        goes_on: bool = False,
        state: Tensor | None = None,
    ) -> None:
        """Note a token; ``goes_on`` says that the row is known not to end with it, ``state`` what it comes from."""
        one, facts = self._generations[row], self._rows[row]
        if not math.isfinite(logit):
            self._fail(row, "logits", layer, len(one.token_ids) + 1)
        if one.failure is not None:
            return
        one.token_ids.append(token)
        one.exit_layers.append(layer)
        one.token_times_s.append(now - facts.started)
        if one.lossless:
            one.drafted_at.append(drafted_at)
            one.accepted.append(accepted)
        if goes_on:
            return
        try:
            if facts.rule is not None and facts.reads_states and state is not None:
                facts.rule.rule.see(layer, state)
            ending = _ending(one.token_ids, facts)
            if ending is not None:
                one.finish_reason, one.stopped_by = ending
        except Exception as error:  # a protocol's or the tokenizer's: other rows are decoding
            if ran_out_of_memory(error):
                raise
            one.failure = ModelError(f"cannot say whether it has ended: {reason(error)}.")

    def _fail(self, row: int, what: str, layer: int, token: int) -> None:
        self._kept.forget(row)
        if self._generations[row].failure is None:
            self._generations[row].failure = not_finite(what, layer, token, self._backbone.dtype)

    def _note(self, rows: Sequence[int], probabilities: Sequence[float | None]) -> None:
        logarithms: list[float] = torch.tensor(probabilities).log().tolist()
        for row, value in zip(rows, logarithms, strict=True):
            if self._generations[row].failure is None:
                self._generations[row].log_probabilities.append(value)

    def _begin(self, rows: list[int], fresh: Mapping[int, tuple[list[int], int]]) -> Pass:
        if self._cache is None or self._policy is None:
            prefixes = [[*self._rows[row].prompt, *self._generations[row].token_ids] for row in rows]
            return PrefixPass(self._backbone, self._rotary, prefixes, rows, generations=self._generations)
        return TokenPass(
            self._backbone, self._rotary, self._cache, self._policy, rows,
            [fresh[row][0] for row in rows], [fresh[row][1] for row in rows], self._generations,
        )  # fmt: skip

    def _fresh(self, row: int, beside: int) -> tuple[list[int], int]:
        if row in self._drafting:
            return self._drafting[row].fresh(beside)
        one = self._generations[row]
        return [one.token_ids[-1]], len(self._rows[row].prompt) + len(one.token_ids) - 1


def _ending(token_ids: Sequence[int], facts: _Row, *, drafted: bool = False) -> tuple[FinishReason, str] | None:
    """Say why a row ends with the last of its tokens, and the name of its rule if that is why; ``None``: it goes on.

    Of drafted tokens a rule that reads states is not asked: it will see those of full depth.
    """
    if token_ids[-1] in facts.eos:
        return "eos", ""
    token_ids = tuple(token_ids)  # a rule may be third-party code, and is lent nothing that it could write
    if facts.stop is not None and facts.stop(token_ids):
        return "stop", ""
    if facts.rule is not None and not (drafted and facts.reads_states) and facts.rule.rule.over(token_ids):
        return "stop", facts.rule.name
    return ("length", "") if len(token_ids) >= facts.limit else None


def _leaving(current: TokenPass, view: LayerView, indices: list[int]) -> Leaving:
    all_rows = len(indices) == len(current.rows)
    return Leaving(
        layer=current.layer,
        rows=[current.rows[index] for index in indices],
        positions=[current.positions[index] for index in indices],
        hidden=lambda: view.hidden_state if all_rows else pick(view.hidden_state, indices),
        estimates=lambda: view.leaving_states(indices),
        runs=lambda: current.runs(indices),
    )


def _piece(prompt: Sequence[int], start: int, max_tokens: int | None) -> Sequence[int]:
    """Return the next tokens of a prompt that are to be read, so that none of the pieces to come is much shorter."""
    left = len(prompt) - start
    size = left if max_tokens is None or not left else math.ceil(left / math.ceil(left / max_tokens))
    return prompt[start : start + size]
