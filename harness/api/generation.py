"""A completion in the making: its tokens as they are decoded or verified, and then all of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from harness.api.columns import GENERATED, frame
from harness.appearance.pages import TOKEN_CSS, escape_html
from harness.appearance.visible_text import visible
from harness.config.rules import start_stop
from harness.contracts import Batch, Cursor
from harness.decoding.engine import Engine
from harness.decoding.exits import AskedExits
from harness.decoding.generation import FinishReason, Generation, Token, Transcript
from harness.models.tokenizer import TransformersTokenizer
from harness.records import SampleRecord, Work
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
        return f"{visible(self.text)}\n{self._what}"

    def _repr_html_(self) -> str:
        """Show every token on the colour of its depth, as a notebook does."""
        from reports.completions.page import coloured_tokens

        ids, texts = zip(*((step.token_id, step.text) for step in self.steps), strict=True)
        discarded = [replace(one, token_texts=("",) * len(one.token_ids)) for one in self.work.discarded]
        sample = SampleRecord.model_validate(
            {**vars(self.work), "discarded": discarded}
            | {"window": 0, "operating_point": self.strategy, "task": "", "sample_id": ""}
            | {"token_ids": ids, "token_texts": texts}
        )
        tokens = coloured_tokens(sample, self.num_layers, None, cached=self.kv != "none")
        return f"<style>{TOKEN_CSS}</style>{tokens}<p><small>{escape_html(self._what)}</small></p>"

    @property
    def _what(self) -> str:
        depth = sum(token.exit_layer for token in self.steps) / len(self.steps)
        what = f"{depth:.1f} of {self.num_layers} layers on average, {self.strategy}"
        if self.work.lossless:
            each = self.work.tokens_per_verification
            accepted = f"{self.work.accepted_tokens} of {self.work.drafts} drafted tokens accepted"
            drafted = "nothing drafted" if each is None else f"{each:.1f} tokens per verification, {accepted}"
            what = f"{drafted}, {self.strategy}, {self.decode}"
        return (
            f"[{len(self.steps)} tokens in {self.steps[-1].time_s:.2f} s, {what}, kv {self.kv}, "
            f"ended by {self.stop_rule or self.finish_reason}]"
        )


class Requests:
    """Prompts that are decoded together, greedily: each row's tokens as they come, and then its completion.

    The engine's own loop makes the tokens, so that they are those of a run and of the server. Made by
    :class:`harness.api.model.Model`.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: TransformersTokenizer,
        prompts: Sequence[Sequence[int]],
        point: OperatingPoint,
        max_new_tokens: int,
        stop: Sequence[str],
        seed: int,
    ) -> None:
        self._engine, self._prompts, self._point = engine, prompts, point
        self._transcripts = [
            Transcript(tokenizer, stop, silent=tokenizer.special_ids, after=prompt) for prompt in prompts
        ]
        self._made = [Generation() for _ in prompts]
        strategy = point.strategy
        batch = Batch((seed,) * len(prompts), str(engine.backbone.device))  # as each would be alone
        rule = strategy.start(engine.facts(strategy, point.lossless), batch)
        self._drafts = engine.drafts(point.lossless, batch, point.kv, strategy, rule)
        exits = AskedExits(rule, strategy.exit_points(engine.info), self._made)
        positions = max(map(len, prompts)) + max_new_tokens
        self._batch = engine.open(len(prompts), positions, point.kv, exits, self._made)
        self._batch.with_log_probabilities = True
        self._limit, self._eos = max_new_tokens, tokenizer.eos_token_ids
        self._steps: list[list[Token]] = [[] for _ in prompts]
        self._rules = [
            start_stop(point.stop, Cursor(prompt, tokenizer, "", engine.info, batch.device)) for prompt in prompts
        ]
        self._begun = False

    def next(self, row: int) -> Token | None:
        """Decode until a row has one token more, and return it; ``None`` at its end."""
        if not self._begun:
            self._begin()
        steps, made = self._steps[row], self._made[row]
        while len(made.token_ids) == len(steps) and row in self._batch.running:
            self._batch.step()
        if made.failure is not None:
            raise made.failure
        if len(made.token_ids) == len(steps):
            return None
        ended = made.finish_reason is not None and len(made.token_ids) == len(steps) + 1
        transcript = self._transcripts[row]
        token = transcript.read(made, last=ended)
        if ended:
            transcript.finish()
            token = replace(token, text=token.text + transcript.rest())
        steps.append(token)
        return token

    def completion(self, row: int) -> Completion:
        """Decode what is left of a row, and return all of it."""
        while self.next(row) is not None:
            pass
        made, steps, transcript = self._made[row], self._steps[row], self._transcripts[row]
        assert made.finish_reason is not None
        if made.finish_reason == "strategy":  # when its last token was made, nobody knew that it was
            transcript.finish()
            steps[-1] = replace(steps[-1], text=steps[-1].text + transcript.rest(), last=True)
        return Completion(
            text=transcript.text,
            steps=tuple(steps),
            finish_reason=made.finish_reason,
            stop_rule=made.stopped_by,
            strategy=self._point.name,
            kv=self._point.kv,
            decode=self._point.record.decode,
            num_layers=self._engine.info.num_layers,
            prompt_tokens=len(self._prompts[row]),
            work=Work.of(made),
        )

    def _begin(self) -> None:
        """Run the prompts; without a cache that yields no token yet."""
        self._begun, started, exits = True, time.perf_counter(), self._point.prompt
        for row, prompt in enumerate(self._prompts):
            self._batch.join(
                row, prompt, self._limit, self._transcripts[row].follow, self._eos, started, lossless=self._drafts,
                rule=self._rules[row], prompt_rule=None if exits is None else exits.rule,
            )  # fmt: skip
        self._batch.prefill(range(len(self._prompts)))


class Stream(Iterator[Token]):
    """Yields tokens as they are decoded; :meth:`completion` is all of them.

    Those of lossless decoding come when they are verified, several at once. Where a strategy ends a completion without
    a token, text that was held back until then is in :meth:`completion` alone. Made by
    :meth:`harness.api.model.Model.stream`.

    Raises:
        HarnessError: while iterating: logits or scores are not finite, or the tokenizer cannot spell a token.
    """

    def __init__(self, request: Requests) -> None:
        self._request = request

    def __next__(self) -> Token:
        token = self._request.next(0)
        if token is None:
            raise StopIteration
        return token

    def completion(self) -> Completion:
        """Decode what is left, and return all of it."""
        return self._request.completion(0)
