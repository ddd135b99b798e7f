"""The one decoding loop: every strategy, KV policy, family and batch size goes through it.

Greedy. Prefill runs all layers and yields the first token; then, for each token, segments between
exit points run and the strategy is asked, in batch, at each of them. Rows that stop take their token
from the exit head, the others run on. Without a cache (``none``) there is no prefill: the whole prefix
runs again for each token, and the strategy is asked for the first one too.

Not promised: sampling, beam search, or a server's continuous batching.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.contracts import Batch, KVInput, KVPolicy, ModelInfo, StopRule, Strategy
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Rotary
from harness.decoding.cache import KVCache
from harness.decoding.exits import AskedExits, Exits, ScheduledExits
from harness.decoding.fill import KVFiller
from harness.decoding.generation import Generation
from harness.decoding.passes import Pass, PrefixPass, Stash, TokenPass
from harness.decoding.view import LayerView
from harness.errors import ModelError

__all__ = ["Engine"]


class Engine:
    """Decodes batches with one model.

    Args:
        backbone: the model's weights and arithmetic.
        info: its facts, handed to strategies.
        kv_input: what skipped layers are filled from under ``propagate``: the exit's ``hidden`` state, or the line from
            there to what its ``shortcut`` makes of it.
    """

    def __init__(self, backbone: Backbone, info: ModelInfo, kv_input: KVInput = "hidden") -> None:
        self.backbone = backbone
        self.info = info
        self.kv_input = kv_input
        self._filler = KVFiller(backbone)
        self._rotary: Rotary | None = None
        self._rotary_reach = 0

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        *,
        kv: KVPolicy,
        max_new_tokens: Sequence[int],
        seeds: Sequence[int] | None = None,
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> list[Generation]:
        """Decode one batch, asking ``strategy`` at its exit points.

        Args:
            prompts: tokens of each row, none empty.
            strategy: decides the exits.
            kv: what happens to keys and values of skipped layers.
            max_new_tokens: limit of each row, at least 1.
            seeds: one per row for random strategies; zeros when left out.
            stop: ends a row when true of the tokens it has generated.
            eos_token_ids: tokens that end a row.

        Raises:
            ModelError: an empty prompt, or one that does not fit the model's positions.
            OptionError: the strategy does not fit the model, or answers in the wrong shape.
        """
        tally = [Generation() for _ in prompts]
        batch = Batch(tuple(seeds if seeds is not None else [0] * len(prompts)), str(self.backbone.device))
        rule = strategy.start(self.info, batch)
        exits = AskedExits(rule, strategy.exit_points(self.info), tally)
        return self._decode(prompts, exits, tally, kv, max_new_tokens, stop, eos_token_ids)

    def replay(
        self,
        prompts: Sequence[Sequence[int]],
        exit_layers: Sequence[Sequence[int]],
        *,
        kv: KVPolicy,
        max_new_tokens: Sequence[int],
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> list[Generation]:
        """Decode one batch with known exit layers; arguments as :meth:`decode`."""
        tally = [Generation() for _ in prompts]
        exits = ScheduledExits(exit_layers, self.info.num_layers)
        return self._decode(prompts, exits, tally, kv, max_new_tokens, stop, eos_token_ids)

    @torch.inference_mode()
    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        exits: Exits,
        tally: list[Generation],
        kv: KVPolicy,
        max_new_tokens: Sequence[int],
        stop: StopRule | None,
        eos_token_ids: frozenset[int],
    ) -> list[Generation]:
        reach = self._check(prompts, max_new_tokens)
        clock = _Clock(tally, max_new_tokens, stop, eos_token_ids)
        state = _State(self, prompts, kv, reach, tally)
        running = list(range(len(prompts)))
        step = 0
        while running:
            current, asked = state.begin(running, step)
            self._carry_through(current, exits if asked else _NEVER, step, clock, state, charge=asked)
            running = [row for row in running if tally[row].finish_reason is None]
            step += 1
        return tally

    def _carry_through(
        self, current: Pass, exits: Exits, step: int, clock: _Clock, state: _State, *, charge: bool
    ) -> None:
        """Take one token of every running row through the layers, out of as few of them as decided."""
        previous: LayerView | None = None
        places: list[int] | None = None
        for point in exits.points(current.rows, step):
            current.advance(point)
            view = LayerView(self.backbone, current, clock.tally, previous, places)
            leaving = exits.leaving(view, step)
            previous, places = view, None
            if not any(leaving):
                continue
            going = [place for place, leaves in enumerate(leaving) if leaves]
            places = [place for place, leaves in enumerate(leaving) if not leaves]
            clock.record([current.rows[place] for place in going], view.tokens(going), point)
            state.note_exits(current, going, view)
            current.leave(places)
            if not places:
                return
        current.advance(self.info.num_layers)
        tokens: list[int] = self.backbone.logits(current.hidden()).argmax(-1).tolist()
        if charge:
            for row in current.rows:
                clock.tally[row].lm_head_evaluations += 1
        clock.record(current.rows, tokens, self.info.num_layers)

    @torch.inference_mode()
    def read(self, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
        """Run one sequence once and return its hidden states after each of ``layers``, ``[tokens, hidden_size]``.

        Raises:
            ModelError: no token, or more than the model's positions.
        """
        self._check([token_ids], [0])
        current = PrefixPass(self.backbone, self.rotary(len(token_ids)), [token_ids], [0])
        states = []
        for layer in layers:
            current.advance(layer)
            states.append(current.states()[0])
        return states

    def rotary(self, positions: int) -> Rotary | None:
        """Return position tables for at least so many positions, made once and grown on demand."""
        if self.backbone.rotary is not None and positions > self._rotary_reach:
            self._rotary_reach = min(max(2 * positions, 512), self.info.max_positions)
            self._rotary = self.backbone.rotary(self._rotary_reach)
        return self._rotary

    def fill(
        self,
        cache: KVCache,
        layer: int,
        rows: list[int],
        positions: list[int],
        hidden: Tensor,
        final: Tensor | None = None,
    ) -> None:
        """Fill keys and values from ``layer`` on, see :class:`KVFiller`."""
        self._filler.fill(cache, self._rotary, layer, rows, positions, hidden, final)

    def _check(self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> int:
        reach = 0
        for prompt, limit in zip(prompts, max_new_tokens, strict=True):
            if not prompt:
                raise ModelError("a prompt has no tokens.")
            reach = max(reach, len(prompt) + limit)
        if reach > self.info.max_positions:
            raise ModelError(
                f"prompt and completion need {reach} positions, {self.info.name} has {self.info.max_positions}."
            )
        return reach


class _Never:
    """No exit points: prefill."""

    def points(self, rows: Sequence[int], step: int) -> Sequence[int]:
        return ()

    def leaving(self, view: LayerView, step: int) -> list[bool]:
        return [False] * len(view.row_list)


_NEVER = _Never()


class _Clock:
    """Records tokens with their times and ends rows."""

    def __init__(
        self,
        tally: list[Generation],
        max_new_tokens: Sequence[int],
        stop: StopRule | None,
        eos_token_ids: frozenset[int],
    ) -> None:
        self.tally = tally
        self._limits, self._stop, self._eos = max_new_tokens, stop, eos_token_ids
        self._start = time.perf_counter()

    def record(self, rows: Sequence[int], tokens: Sequence[int], layer: int) -> None:
        now = time.perf_counter() - self._start
        for row, token in zip(rows, tokens, strict=True):
            one = self.tally[row]
            one.token_ids.append(token)
            one.exit_layers.append(layer)
            one.token_times_s.append(now)
            if token in self._eos:
                one.finish_reason = "eos"
            elif self._stop is not None and self._stop(one.token_ids):
                one.finish_reason = "stop"
            elif len(one.token_ids) >= self._limits[row]:
                one.finish_reason = "length"


class _State:
    """What a batch carries from token to token under a KV policy."""

    def __init__(
        self, engine: Engine, prompts: Sequence[Sequence[int]], kv: KVPolicy, reach: int, tally: list[Generation]
    ) -> None:
        self._engine, self._prompts, self._kv, self._tally = engine, prompts, kv, tally
        self._rotary = engine.rotary(reach)
        self._stash, self._seen = Stash(len(prompts)), set[int]()
        self._owed: list[tuple[int, list[int], list[int], Tensor, Tensor | None]] = []
        backbone = engine.backbone
        self._cache: KVCache | None = None
        if kv is not KVPolicy.NONE:
            weight = backbone.lm_head.weight
            self._cache = KVCache(backbone.num_layers, len(prompts), reach, backbone.heads, weight)
            for row, prompt in enumerate(prompts):
                self._cache.depth[row, : len(prompt)] = backbone.num_layers

    def begin(self, rows: list[int], step: int) -> tuple[Pass, bool]:
        """Return the pass of the next token, and whether the strategy is asked in it."""
        backbone = self._engine.backbone
        if self._cache is None:
            prefixes = [[*self._prompts[row], *self._tally[row].token_ids] for row in rows]
            return PrefixPass(backbone, self._rotary, prefixes, rows, tally=self._tally), True
        if step == 0:
            return PrefixPass(backbone, self._rotary, self._prompts, rows, cache=self._cache), False
        self._settle(rows)
        tokens = [self._tally[row].token_ids[-1] for row in rows]
        positions = [len(self._prompts[row]) + step - 1 for row in rows]
        return (
            TokenPass(
                backbone, self._rotary, self._cache, self._kv, rows, tokens, positions, self._tally,
                self._stash, self._seen,
            ),
            True,
        )  # fmt: skip

    def note_exits(self, current: Pass, going: list[int], view: LayerView) -> None:
        """Remember what exited rows owe the deeper layers under ``propagate``."""
        if self._kv is not KVPolicy.PROPAGATE:
            return
        positions = current.positions
        hidden = view.hidden_state
        final = view.leaving_states(going) if self._engine.kv_input == "shortcut" else None
        if len(going) < len(positions):
            hidden = hidden[torch.tensor(going, device=hidden.device)]
        rows = [current.rows[place] for place in going]
        self._owed.append((view.exit_layer, rows, [positions[place] for place in going], hidden, final))

    def _settle(self, running: list[int]) -> None:
        """Fill what the last token left open, for rows that go on."""
        for layer, rows, positions, states, finals in self._owed:
            staying = [place for place, row in enumerate(rows) if row in running]
            if not staying:
                continue
            hidden, final = states, finals
            if len(staying) < len(rows):
                index = torch.tensor(staying, device=states.device)
                hidden, final = states[index], None if finals is None else finals[index]
            kept = [rows[place] for place in staying]
            assert self._cache is not None
            self._engine.fill(self._cache, layer, kept, [positions[place] for place in staying], hidden, final)
            for row in kept:
                self._tally[row].kv_fill_layers += self._engine.info.num_layers - layer
        self._owed.clear()
