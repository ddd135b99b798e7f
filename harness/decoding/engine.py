"""Decodes with one model: closed batches for measurement, and open ones that rows join and leave for a server.

Both go through one loop, :class:`OpenBatch`. Greedy; not promised: sampling or beam search.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal

import torch
from torch import Tensor

from harness.config.decode import check_defers
from harness.contracts import (
    LM_HEAD,
    Batch,
    ExitRule,
    HeadChoice,
    Keep,
    KVBatch,
    KVInput,
    KVPolicy,
    Lossless,
    ModelInfo,
    NamedStop,
    Prefetch,
    PromptRule,
    StopRule,
    Strategy,
)
from harness.decoding.backbone import Backbone, KVFiller
from harness.decoding.blocks import Rotary
from harness.decoding.cache import KVCache
from harness.decoding.drafting import DraftSettings, draft_rules
from harness.decoding.exits import AskedExits, Exits, RowExits, ScheduledExits
from harness.decoding.generation import Generation
from harness.decoding.graphs import Recorder, StaticCaches, recorder_for
from harness.decoding.idle import IdleWork
from harness.decoding.loop import OpenBatch
from harness.decoding.prompt_exits import KIND, PromptMaps
from harness.decoding.readings import Heads
from harness.decoding.step import PrefixPass, TokenPass
from harness.decoding.unit_costs import Bench, Timing
from harness.errors import ModelError
from harness.records import DraftTimes, UnitTimes
from harness.registry import KV_POLICIES


class Engine:
    """Decodes batches with one model.

    Args:
        info: its facts, handed to strategies.
        kv_input: what KV policies that fill skipped layers fill them from: the exit's ``hidden`` state, or the line
            from there to what its ``shortcut`` makes of it.
        timing: what its parts are known to cost here, and whether to measure it when somebody asks; bytes of weights
            when left out.
        recorder: records segments between exits to run them again; ``None`` runs them kernel by kernel. ``"auto"``
            records CUDA graphs on CUDA devices, and nothing elsewhere.
    """

    def __init__(
        self,
        backbone: Backbone,
        info: ModelInfo,
        kv_input: KVInput = "hidden",
        timing: Timing | None = None,
        recorder: Recorder | Literal["auto"] | None = "auto",
    ) -> None:
        self.backbone = backbone
        self.timing = timing or Timing(measures=False)
        self.info = info
        self.kv_input = kv_input
        self._filler = KVFiller(backbone)
        self._heads = Heads(backbone)
        self._rotary: Rotary | None = None
        self._rotary_reach = 0
        recorder = recorder_for(backbone) if recorder == "auto" else recorder
        self._static = None if recorder is None else StaticCaches(backbone, recorder)

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        strategy: Strategy,
        *,
        kv: str,
        max_new_tokens: Sequence[int],
        seeds: Sequence[int] | None = None,
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        lossless: Lossless | None = None,
        rules: Sequence[NamedStop | None] | None = None,
        prompt_rule: PromptRule | None = None,
    ) -> list[Generation]:
        """Decode one batch, asking ``strategy`` at its exit points; a row that could not go on says why it failed.

        Args:
            prompts: tokens of each row, none empty.
            strategy: decides the exits.
            kv: name of the KV policy: what happens to keys and values of skipped layers.
            max_new_tokens: limit of each row, at least 1.
            seeds: one per row for random strategies; zeros when left out.
            stop: ends a row when true of the tokens it has generated.
            eos_token_ids: tokens that end a row.
            lossless: let exits draft, and yield full depth's tokens; ``None`` takes what they say.
            rules: a stop rule for each row, or ``None``, asked after ``stop``.
            prompt_rule: how deep the tokens of a prompt are read; ``None`` for full depth, which lossless decoding
                wants, and what keeps no cache.

        Raises:
            ArtefactError: a prompt exit has no map.
            ModelError: an empty prompt, a token id outside the vocabulary, or more than its positions.
            OptionError: the strategy does not fit the model, or answers in the wrong shape; or the KV policy does not
                defer what lossless decoding is to verify.
            UnknownNameError: the KV policy is not registered.
        """
        generations = [Generation() for _ in prompts]
        batch = Batch(tuple(seeds if seeds is not None else [0] * len(prompts)), str(self.backbone.device))
        rule = strategy.start(self.facts(strategy, lossless), batch)
        exits = AskedExits(rule, strategy.exit_points(self.info), generations)
        drafts = self.drafts(lossless, batch, kv, strategy, rule)
        return self._decode(
            prompts, exits, generations, kv, max_new_tokens, stop, eos_token_ids, drafts, rules, prompt_rule
        )

    def facts(self, strategy: Strategy | None, lossless: Lossless | None) -> ModelInfo:
        """Return the model's facts for a strategy and the draft rules beside it, with what they may ask the cost of.

        Args:
            strategy: is asked; ``None`` where its exits are known, and for one that decided before.
            lossless: how it drafts.
        """
        return replace(self.info, unit_costs=lambda: self.timing.costs(*self._drafter(strategy, lossless)))

    def times(self, strategy: Strategy, lossless: Lossless | None) -> tuple[UnitTimes, DraftTimes] | None:
        """Return what parts of decoding take with a strategy; ``None`` where it is not known, nor to be measured."""
        return self.timing.known(*self._drafter(strategy, lossless))

    def _drafter(
        self, strategy: Strategy | None, lossless: Lossless | None
    ) -> tuple[Bench, Strategy | None, HeadChoice]:
        asked = None if strategy is None or strategy.upper_bound else strategy
        bench = Bench(self.backbone, self.info, self._heads, self._timed_pass)
        return bench, asked, LM_HEAD if lossless is None else lossless.head

    def _timed_pass(self, count: int, positions: int) -> tuple[TokenPass, list[Generation]]:
        """Return a pass of one row's last tokens over an empty cache."""
        generations = [Generation()]
        cache = self.cache(1, positions)
        make: type[KVPolicy] = KV_POLICIES.load(Strategy.default_kv)
        policy = make(self.kv_batch(cache, positions, generations))
        policy.join(0, positions - count)
        tokens = [[place % self.info.vocab_size for place in range(count)]]
        rotary = self.rotary(positions)
        return TokenPass(self.backbone, rotary, cache, policy, [0], tokens, [positions - 1], generations), generations

    def drafts(
        self,
        lossless: Lossless | None,
        batch: Batch,
        kv: str,
        strategy: Strategy | None = None,
        rule: ExitRule | None = None,
    ) -> DraftSettings | None:
        """Return how the rows of a batch draft.

        Args:
            lossless: how they decode; ``None`` for lossy decoding, which drafts nothing.
            batch: rows and seeds.
            kv: name of the KV policy.
            strategy: is asked; ``None`` where its exits are known.
            rule: the strategy's; it is asked as well where it is a draft rule.

        Raises:
            OptionError: the KV policy does not keep what is to be verified.
        """
        if lossless is None:
            return None
        check_defers(kv)
        rules = draft_rules(lossless.sources, self.facts(strategy, lossless), batch, rule)
        return DraftSettings(lossless.draft_max, rules, lossless.head)

    def replay(
        self,
        prompts: Sequence[Sequence[int]],
        exit_layers: Sequence[Sequence[int]],
        *,
        kv: str,
        max_new_tokens: Sequence[int],
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        lossless: Lossless | None = None,
        rules: Sequence[NamedStop | None] | None = None,
        prompt_rule: PromptRule | None = None,
    ) -> list[Generation]:
        """Decode one batch with known exit layers; arguments as :meth:`decode`."""
        generations = [Generation() for _ in prompts]
        exits = ScheduledExits(exit_layers, self.info.num_layers, generations)
        batch = Batch((0,) * len(prompts), str(self.backbone.device))
        drafts = self.drafts(lossless, batch, kv)
        return self._decode(
            prompts, exits, generations, kv, max_new_tokens, stop, eos_token_ids, drafts, rules, prompt_rule
        )

    def open(
        self,
        rows: int,
        positions: int,
        kv: str,
        exits: Exits,
        generations: list[Generation],
        kept_prompts: int = 0,
        keep: Keep = "prompt",
    ) -> OpenBatch:
        """Return an empty batch that rows may join and leave between tokens.

        Args:
            rows: how many there may be at a time.
            positions: longest prompt and completion of a row, together.
            kv: name of the KV policy.
            exits: decides where tokens stop.
            generations: one per row, filled while they run; a row that joins gets a new one.
            kept_prompts: free rows whose last prompts are kept, for prompts of the same owner that begin alike.
            keep: what is kept of them, and of their completions.

        Raises:
            ModelError: the model has fewer positions.
            UnknownNameError: the KV policy is not registered.
        """
        self._check_reach(positions)
        make: type[KVPolicy] = KV_POLICIES.load(kv)
        cache = self.cache(rows, positions) if make.facts.keeps_cache else None
        policy = None if cache is None else make(self.kv_batch(cache, positions, generations))
        return OpenBatch(
            self.backbone, self.info, self.rotary(positions), cache, policy, exits, generations, self._heads,
            kept_prompts, keep, lambda: self.prompt_maps,
        )  # fmt: skip

    @cached_property
    def prompt_maps(self) -> PromptMaps:
        """What fills the layers above a prompt's exits; raises ``ArtefactError`` where nothing was trained."""
        return PromptMaps(self.backbone, self.backbone.trained(KIND))

    def prepare(self, heads: Iterable[HeadChoice]) -> None:
        """Make cheap heads before they are needed: one takes as long as a completion.

        Raises:
            UnknownNameError, ArtefactError: one cannot be had.
        """
        for choice in heads:
            if not choice.is_full:
                self._heads[choice]

    def cache(self, rows: int, positions: int) -> KVCache:
        """Return an empty cache."""
        if self._static is not None:
            reach = self.info.max_positions
            return self._static.take(rows, positions, lambda positions: self.rotary(min(positions, reach)))
        return KVCache(self.backbone.num_layers, rows, positions, self.backbone.heads, self.backbone.like)

    def kv_batch(self, cache: KVCache, positions: int, generations: Sequence[Generation]) -> KVBatch:
        """Return what a KV policy acts on; what it fills is charged to the rows' generations."""
        rotary, num_layers = self.rotary(positions), self.backbone.num_layers

        def fill(
            layer: int, rows: Sequence[int], positions: Sequence[int], hidden: Tensor, final: Tensor | None = None
        ) -> None:
            self._filler.fill(cache, rotary, layer, rows, positions, hidden, final)
            for row in rows:
                generations[row].kv_fill_layers += num_layers - layer

        return KVBatch(num_layers, cache.entries.shape[1], positions, self.kv_input, cache.entries, fill)

    def _decode(
        self,
        prompts: Sequence[Sequence[int]],
        exits: Exits,
        generations: list[Generation],
        kv: str,
        max_new_tokens: Sequence[int],
        stop: StopRule | None,
        eos_token_ids: frozenset[int],
        lossless: DraftSettings | None,
        rules: Sequence[NamedStop | None] | None,
        prompt_rule: PromptRule | None,
    ) -> list[Generation]:
        batch = self.open(len(prompts), self.check(prompts, max_new_tokens), kv, exits, generations)
        started = time.perf_counter()
        for row, (prompt, limit) in enumerate(zip(prompts, max_new_tokens, strict=True)):
            rule = None if rules is None else rules[row]
            batch.join(
                row, prompt, limit, stop, eos_token_ids, started, lossless=lossless, rule=rule, prompt_rule=prompt_rule
            )
        batch.prefill(range(len(prompts)))
        while batch.running:
            batch.step()
        return generations

    @torch.inference_mode()
    def read(self, token_ids: Sequence[int], layers: Sequence[int]) -> list[Tensor]:
        """Run one sequence once and return its hidden states after each of ``layers``, ``[tokens, hidden_size]``.

        Raises:
            ModelError: no token, one outside the vocabulary, or more than its positions.
        """
        self.check([token_ids], [0])
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

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> int:
        """Return how many positions the longest prompt and completion take together.

        Raises:
            ModelError: an empty prompt, a token id outside the vocabulary, or more positions than it has.
        """
        reach, size = 0, self.info.vocab_size
        for prompt, limit in zip(prompts, max_new_tokens, strict=True):
            if not prompt:
                raise ModelError("a prompt has no tokens. Give at least one.")
            if min(prompt) < 0 or max(prompt) >= size:
                wrong = next(token for token in prompt if not 0 <= token < size)
                raise ModelError(f"token id {wrong} is outside the vocabulary of {self.info.name} (size {size}).")
            reach = max(reach, len(prompt) + limit)
        self._check_reach(reach)
        return reach

    def _check_reach(self, positions: int) -> None:
        if positions > self.info.max_positions:
            raise ModelError(
                f"prompt and completion need {positions} positions, {self.info.name} has {self.info.max_positions}."
            )


class EngineSession:
    """Requests one after another, which leave keys and values to those that begin alike.

    Args:
        engine: decodes.
        positions: longest prompt and completion, together.
        kv: name of the KV policy.
        keep: which keys and values a request leaves to the next.
        prefetch: what :meth:`prefetch` does.

    Raises:
        ModelError: the model has fewer positions.
        UnknownNameError: the KV policy is not registered.

    Attributes:
        idle: what is known of earlier requests, and what was done between them.
    """

    ROWS = 2
    """Prompts that are kept: a cursor that jumps away and back finds both places."""
    PIECE = 128
    """Tokens of a prompt that are read before time is looked at again."""

    def __init__(self, engine: Engine, positions: int, kv: str, keep: Keep, prefetch: Prefetch = "none") -> None:
        self._engine, self._kv, self._keeps = engine, kv, keep != "none"
        self._made = [Generation() for _ in range(self.ROWS)]
        nobody = ScheduledExits([], engine.info.num_layers, self._made)
        self._batch = engine.open(self.ROWS, positions, kv, nobody, self._made, kept_prompts=self.ROWS, keep=keep)
        self.idle = IdleWork(self._batch, self._made, positions, prefetch)

    def decode(
        self,
        owner: str,
        prompt: Sequence[int],
        strategy: Strategy,
        *,
        max_new_tokens: int,
        seed: int = 0,
        stop: StopRule | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        lossless: Lossless | None = None,
        rule: NamedStop | None = None,
        exit_layers: Sequence[int] | None = None,
        prompt_rule: PromptRule | None = None,
        within_s: float | None = None,
    ) -> Generation:
        """Decode a request.

        Args:
            owner: prompts of one owner share keys and values.
            prompt: its tokens, at least one.
            strategy: decides the exits.
            max_new_tokens: limit, at least 1.
            seed: of a random strategy.
            stop: ends it when true of the tokens it has generated.
            eos_token_ids: tokens that end it.
            lossless: let exits draft, and yield full depth's tokens.
            rule: a stop rule, asked after ``stop``.
            exit_layers: replayed, in place of asking the strategy.
            prompt_rule: how deep its prompt's new tokens are read; ``None`` for full depth.
            within_s: seconds after which it is cancelled, between two tokens or two pieces of its prompt; it then has
                no reason to have ended.
        """
        batch, kept_for = self._batch, owner if self._keeps else None
        self._engine.check([prompt], [max_new_tokens])
        begin = partial(self._begin, kept_for, strategy, seed, eos_token_ids, lossless)
        started = time.perf_counter()
        self.idle.begin()
        row = batch.row_for(prompt, kept_for, range(self.ROWS))
        self.idle.begin(row)
        begin(row, prompt, max_new_tokens, stop, rule, exit_layers, prompt_rule, started)
        piece, end = (None, math.inf) if within_s is None else (self.PIECE, started + within_s)
        while row in batch.reading and time.perf_counter() < end:
            batch.prefill([row], piece)
        while batch.running and time.perf_counter() < end:
            batch.step()
        batch.drop(row)
        if within_s is None:
            self._made[row].prefetch_used = self.idle.used(kept_for, prompt, self._made[row])
        waited = within_s is None and exit_layers is None  # drafts behind overtaken requests gain little more
        drafts = waited and lossless is not None and any(source.recalls for source in lossless.sources)
        self.idle.answered(row, kept_for, prompt, partial(begin, row) if drafts else None)
        return self._made[row]

    def _begin(
        self,
        owner: str | None,
        strategy: Strategy,
        seed: int,
        eos_token_ids: frozenset[int],
        lossless: Lossless | None,
        row: int,
        prompt: Sequence[int],
        max_new_tokens: int,
        stop: StopRule | None = None,
        rule: NamedStop | None = None,
        exit_layers: Sequence[int] | None = None,
        prompt_rule: PromptRule | None = None,
        started: float | None = None,
    ) -> None:
        """Let a request join the batch, where no row runs."""
        engine, batch = self._engine, self._batch
        known = Batch((seed,) * self.ROWS, str(engine.backbone.device), self.idle.known(owner))
        if exit_layers is None:
            asked = strategy.start(engine.facts(strategy, lossless), known)
            drafts = engine.drafts(lossless, known, self._kv, strategy, asked)
            batch.exits = AskedExits(asked, strategy.exit_points(engine.info), self._made)
        else:
            drafts = engine.drafts(lossless, known, self._kv)
            batch.exits = ScheduledExits([exit_layers] * self.ROWS, engine.info.num_layers, self._made)
        batch.join(row, prompt, max_new_tokens, stop, eos_token_ids, started, owner, drafts, rule, prompt_rule)

    def prefetch(self, within_s: float) -> float:
        """Work for the next request while there is time; return the seconds spent."""
        started = time.perf_counter()
        while time.perf_counter() - started < within_s and self.idle.piece():
            pass
        return time.perf_counter() - started

    def forget(self) -> None:
        """Keep nothing of what came before."""
        self.idle.forget()
        for row in range(self.ROWS):
            self._batch.forget(row)


def decode_in_turn(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    strategy: Strategy,
    *,
    rows: int,
    kv: str,
    max_new_tokens: Sequence[int],
    seeds: Sequence[int],
    stop: StopRule | None = None,
    eos_token_ids: frozenset[int] = frozenset(),
    lossless: Lossless | None = None,
    prompt_rule: PromptRule | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Decode prompts, so many at a time; yields each one's place and what it made, as they end.

    What a prompt yields is what :meth:`Engine.decode` makes of it alone, up to rounding.

    Args:
        engine: decodes.
        prompts: tokens of each request, none empty; they join in this order.
        strategy: decides the exits.
        rows: decoded together at most. One at a time is a closed batch of one.
        kv: name of the KV policy.
        max_new_tokens: limit of each prompt, at least 1.
        seeds: one per prompt, for random strategies.
        stop: ends a request when true of the tokens it has generated.
        eos_token_ids: tokens that end one.
        lossless: let exits draft, and yield full depth's tokens.
        prompt_rule: how deep prompts are read; ``None`` for full depth.

    Raises:
        Exception: those of :meth:`Engine.decode`, and what a strategy raises.
    """
    reach = engine.check(prompts, max_new_tokens)
    if rows == 1:
        for place, (prompt, limit, seed) in enumerate(zip(prompts, max_new_tokens, seeds, strict=True)):
            (made,) = engine.decode(
                [prompt], strategy, kv=kv, max_new_tokens=[limit], seeds=[seed], stop=stop,
                eos_token_ids=eos_token_ids, lossless=lossless, prompt_rule=prompt_rule,
            )  # fmt: skip
            yield place, made
        return
    generations = [Generation() for _ in range(min(rows, len(prompts)))]
    exits = RowExits(engine.info, str(engine.backbone.device), generations)
    batch = engine.open(len(generations), reach, kv, exits, generations)
    facts = engine.facts(strategy, lossless)
    waiting = deque(range(len(prompts)))
    decoding: dict[int, int] = {}
    while waiting or decoding:
        joined = [row for row in range(len(generations)) if row not in decoding][: len(waiting)]
        for row in joined:
            place = decoding[row] = waiting.popleft()
            known, rule = exits.join(row, strategy, seeds[place], facts)
            drafts = engine.drafts(lossless, known, kv, strategy, rule)
            batch.join(
                row, prompts[place], max_new_tokens[place], stop, eos_token_ids, lossless=drafts,
                prompt_rule=prompt_rule,
            )  # fmt: skip
        if joined:
            batch.prefill(joined)
        else:
            batch.step()
        for failure in exits.failures.values():
            raise failure
        for row in decoding.keys() - set(batch.running):
            yield decoding.pop(row), generations[row]
