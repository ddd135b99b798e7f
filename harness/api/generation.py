"""A completion in the making: its tokens as they are decoded or verified, and then all of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from harness.api.columns import GENERATED, frame
from harness.appearance.visible_text import visible
from harness.config.rules import start_stop
from harness.contracts import Batch, Cursor
from harness.decoding.engine import Engine
from harness.decoding.exits import AskedExits
from harness.decoding.generation import FinishReason, Generation, Token, Transcript
from harness.models.tokenizer import TransformersTokenizer
from harness.records import Work
from harness.running.operating_points import OperatingPoint

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False, repr=False)
class Completion:
    """Text that a model generated.

    Attributes:
        text: all of it, without the text that stopped it.
        steps: its tokens, the same objects that a stream yields.
        finish_reason: ``stop`` (a stop text or rule), ``eos`` (the model's end token), ``length`` or ``strategy``.
        stop_rule: name of the stop rule that ended it; empty for anything else.
        strategy: the operating point.
        kv: what happened to keys and values of skipped layers.
        decode: ``lossy``, or ``lossless`` with its draft source.
        num_layers: decoder layers of the model.
        prompt_tokens: tokens that were read.
        work: layers executed, LM heads evaluated, drafts and so on.
    """

    text: str
    steps: tuple[Token, ...]
    finish_reason: FinishReason
    stop_rule: str
    strategy: str
    kv: str
    decode: str
    num_layers: int
    prompt_tokens: int
    work: Work

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per token; :func:`harness.columns` says what its columns mean."""
        return frame(GENERATED, self.steps)

    @property
    def counts(self) -> dict[str, int]:
        """Every counter of its work by name."""
        return self.work.counts

    @property
    def drafts(self) -> Work | None:
        """The work of lossless decoding, which says what became of its drafts; ``None`` of lossy decoding."""
        return self.work if self.work.lossless else None

    def __repr__(self) -> str:
        depth = sum(token.exit_layer for token in self.steps) / len(self.steps)
        what = f"{depth:.1f} of {self.num_layers} layers on average, {self.strategy}"
        if self.work.lossless:
            each = self.work.tokens_per_verification
            accepted = f"{self.work.accepted_tokens} of {self.work.drafts} drafted tokens accepted"
            drafted = "nothing drafted" if each is None else f"{each:.1f} tokens per verification, {accepted}"
            what = f"{drafted}, {self.strategy}, {self.decode}"
        return (
            f"{visible(self.text)}\n[{len(self.steps)} tokens in {self.steps[-1].time_s:.2f} s, {what}, kv {self.kv}, "
            f"ended by {self.stop_rule or self.finish_reason}]"
        )


class Stream(Iterator[Token]):
    """Yields tokens as they are decoded; :meth:`completion` is all of them.

    Greedy, one row. The engine's own loop makes the tokens, so they are those of a run and of the server. Those of
    lossless decoding come when they are verified, several at once. Where a strategy ends a completion without a token,
    text that was held back until then is in :meth:`completion` alone. Made by :meth:`harness.api.model.Model.stream`.

    Raises:
        HarnessError: the prompt is too long, or what the strategy runs on is missing. While iterating: logits or scores
            are not finite, or the tokenizer cannot spell a token.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TransformersTokenizer,
        prompt: Sequence[int],
        point: OperatingPoint,
        max_new_tokens: int,
        stop: Sequence[str],
        seed: int,
    ) -> None:
        self._engine, self._prompt, self._point = engine, prompt, point
        self._transcript = Transcript(tokenizer, stop, silent=tokenizer.special_ids, after=prompt)
        self._tally = [Generation()]
        strategy = point.strategy
        batch = Batch((seed,), str(engine.backbone.device))
        rule = strategy.start(engine.facts(strategy, point.lossless), batch)
        self._drafts = engine.drafts(point.lossless, batch, point.kv, strategy, rule)
        exits = AskedExits(rule, strategy.exit_points(engine.info), self._tally)
        self._batch = engine.open(1, len(prompt) + max_new_tokens, point.kv, exits, self._tally)
        self._batch.with_log_probabilities = True
        self._limit, self._eos = max_new_tokens, tokenizer.eos_token_ids
        self._steps: list[Token] = []
        cursor = Cursor(prompt, tokenizer, "", engine.info, batch.device)
        self._rule = start_stop(point.stop, cursor)

    def __next__(self) -> Token:
        if not self._steps:
            self._begin()
        while len(self._made.token_ids) == len(self._steps) and self._batch.running:
            self._batch.step()
        if self._made.failure is not None:
            raise self._made.failure
        if len(self._made.token_ids) == len(self._steps):
            raise StopIteration
        ended = self._made.finish_reason is not None and len(self._made.token_ids) == len(self._steps) + 1
        token = self._transcript.read(self._made, last=ended)
        if ended:
            self._transcript.finish()
            token = replace(token, text=token.text + self._transcript.rest())
        self._steps.append(token)
        return token

    def completion(self) -> Completion:
        """Decode what is left, and return all of it."""
        for _ in self:
            pass
        made = self._made
        assert made.finish_reason is not None
        if made.finish_reason == "strategy":  # when its last token was made, nobody knew that it was
            self._transcript.finish()
            last = self._steps[-1]
            self._steps[-1] = replace(last, text=last.text + self._transcript.rest(), last=True)
        return Completion(
            text=self._transcript.text,
            steps=tuple(self._steps),
            finish_reason=made.finish_reason,
            stop_rule=made.stopped_by,
            strategy=self._point.name,
            kv=self._point.kv,
            decode=self._point.record.decode,
            num_layers=self._engine.info.num_layers,
            prompt_tokens=len(self._prompt),
            work=Work.of(made),
        )

    @property
    def _made(self) -> Generation:
        return self._tally[0]

    def _begin(self) -> None:
        """Run the prompt; without a cache that yields no token yet."""
        started = time.perf_counter()
        exits = self._point.prompt
        self._batch.join(
            0, self._prompt, self._limit, self._transcript.follow, self._eos, started, lossless=self._drafts,
            rule=self._rule, prompt_rule=None if exits is None else exits.rule,
        )  # fmt: skip
        self._batch.prefill([0])
