"""``samples.jsonl``: what came out of every sample under every operating point, one :class:`SampleRecord` a line."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from harness.records.discarded import DiscardedRecord
from harness.records.draft_work import DraftWork
from harness.records.record import Count, Record

__all__ = ["AnswerRecord", "SampleRecord"]


class AnswerRecord(Record):
    """What a black box says of its completion.

    Attributes:
        tokens: how many, by its own tokenizer; ``None`` where it does not say.
        model: what it calls its model; empty where it does not say.
    """

    tokens: Count | None = None
    model: str = ""


class SampleRecord(Record):
    """One sample under one operating point.

    Attributes:
        window: id of the window it ran in; its line in ``windows.jsonl`` commits it.
        operating_point: label.
        task, sample_id, repeat: which sample, and which repetition of it, 0-based.
        duplicate: tuning read its reference, and the context just before it, word for word.
        document: hash of the whole text that it is cut from; empty in older runs, and where the task does not say.
        project: that the text belongs to; ``None`` where nothing says it, and in older runs.
        prompt_ids, token_ids, reference_ids: model tokens.
        exit_layers: layers executed for each generated token. With a KV cache the first token comes
            from prefill, at full depth, and no strategy is asked for it.
        token_times_s: seconds from the start of the batch to each token; none in a run that was not timed, whose
            ``latency_s`` and ``ttft_s`` are ``None`` as well.
        text, reference: what is scored against what.
        token_texts: what each token added; together all that was spoken, of which ``text`` may be a part. A token that
            ends inside a character adds nothing, the one that completes it adds it. Empty in older runs.
        full_depth_ids: full depth's token at each place, given the prompt and the generated tokens before it, by exact
            keys and values. Empty in older runs and in later repeats, which generate the same again.
        scores: per-sample scores.
        score_failures: score → why it has no value, for those of plug-ins that failed on this completion.
        latency_s: start of the batch to this sample's last token.
        ttft_s: start of the batch to the first token.
        finish_reason: ``stop`` (a rule), ``eos``, ``length`` or ``strategy``, which made no token of it.
        stop_rule: of ``stop``, whose rule it was: a name of `harness list stops`, which may be the protocol's own
            (``line``), or the protocol's name where its rule has none. Empty for any other reason, and in older runs,
            where it was the protocol's.
        exit_checks: times the strategy was asked about this sample.
        lm_head_evaluations: LM-head evaluations after prefill charged to this sample, outputs included.
        layers_executed: decoder layers run for generated tokens after prefill, by recomputation included.
        layers_read: of those, a layer that several tokens of this sample ran in one pass counts once.
        kv_fill_layers: layers whose K,V were filled from an exit hidden state.
        shortcut_evaluations: times an exit's linear map was applied for this sample.
        cheap_head_evaluations: times a cheap head read an exit in place of the LM head. cheap_head_bytes: weights that
            those read, at batch 1.
        cheap_head_misses: exits whose token was not the best one of the cheap head that was asked.
        cheap_head_tokens: tokens that a cheap head chose; they need not be the exit's own.
        arrival_s, queue_s: with a fixed arrival rate, when the request came, from the start of its window, and how
            long it waited; ``latency_s`` and ``ttft_s`` then count from its arrival. ``None`` back to back.
        drafted_at: of lossless decoding, for each token the decoder layers that ran before a draft of its place was
            made, 0 where a source proposed it; ``None`` where there was no draft.
        accepted: of lossless decoding, for each token whether it is the draft's; else full depth said it.
        discarded: of lossless decoding, the drafted tokens that do not stand. Empty in older runs, whose ``drafts`` are
            then more than those that stand.
        drafts: tokens drafted, discarded ones included. verifications: passes that went deep.
        layers_discarded: decoder layers run for drafts that were discarded.
        drafting: what the passes did that drafted tokens at exits. rolled_back: the same of those whose token did not
            stand. ``None`` in lossy rows and in older runs.
        answer: of a black box, what it says of the completion. Tokens, layers and counts are then empty and 0, and mean
            nothing; ``ttft_s`` is ``None`` where no text came.
        error: one line when the sample failed; the measured fields are then empty or ``None``.
    """

    window: Count
    operating_point: str
    task: str
    sample_id: str
    repeat: Count = 0
    duplicate: bool = False
    document: str = ""
    project: str | None = None
    prompt_ids: tuple[Count, ...] = ()
    token_ids: tuple[Count, ...] = ()
    reference_ids: tuple[Count, ...] = ()
    exit_layers: tuple[Count, ...] = ()
    token_times_s: tuple[float, ...] = ()
    text: str = ""
    token_texts: tuple[str, ...] = ()
    full_depth_ids: tuple[Count, ...] = ()
    reference: str = ""
    scores: dict[str, float | None] = Field(default_factory=dict)
    score_failures: dict[str, str] = Field(default_factory=dict)
    latency_s: float | None = None
    ttft_s: float | None = None
    finish_reason: Literal["stop", "eos", "length", "strategy"] | None = None
    stop_rule: str = ""
    exit_checks: Count = 0
    lm_head_evaluations: Count = 0
    layers_executed: Count = 0
    layers_read: Count = 0
    kv_fill_layers: Count = 0
    shortcut_evaluations: Count = 0
    cheap_head_evaluations: Count = 0
    cheap_head_bytes: Count = 0
    cheap_head_misses: Count = 0
    cheap_head_tokens: Count = 0
    drafted_at: tuple[Count | None, ...] = ()
    accepted: tuple[bool, ...] = ()
    discarded: tuple[DiscardedRecord, ...] = ()
    drafts: Count = 0
    verifications: Count = 0
    layers_discarded: Count = 0
    drafting: DraftWork | None = None
    rolled_back: DraftWork | None = None
    arrival_s: float | None = None
    queue_s: float | None = None
    answer: AnswerRecord | None = None
    error: str | None = None
