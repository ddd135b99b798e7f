"""``samples.jsonl``, ``windows.jsonl`` and ``scores.json``: samples, what was measured, and scores computed again."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from harness.records.record import Count, Record
from harness.records.work import Work


class AnswerRecord(Record):
    """An external endpoint's facts about its completion: tokens by its own tokenizer, and what it calls its model.

    Attributes:
        tokens: how many, by its own tokenizer; ``None`` where it does not say.
        model: what it calls its model; empty where it does not say.
    """

    tokens: Count | None = None
    model: str = ""


class SampleRecord(Record, Work):
    """One sample under one operating point, with the work that it was.

    Attributes:
        window: id of the window it ran in; its line in ``windows.jsonl`` commits it.
        operating_point: label.
        task, sample_id, repeat: which sample, and which repetition of it, 0-based.
        duplicate: tuning read its reference, and the context just before it, word for word.
        document: hash of the whole text that it is cut from; empty where the task does not say.
        project: that the text belongs to; ``None`` where nothing says it.
        prompt_ids, token_ids, reference_ids: model tokens.
        token_times_s: seconds from the start of the batch to each token; none in a run that was not timed, whose
            ``latency_s`` and ``ttft_s`` are ``None`` as well.
        text, reference: what is scored against what.
        token_texts: what each token added; together all that was spoken, of which ``text`` may be a part. A token that
            ends inside a character adds nothing, the one that completes it adds it.
        full_depth_ids: full depth's token at each place, given the prompt and the generated tokens before it, by exact
            keys and values. Empty in later repeats, which generate the same again.
        scores: per-sample scores. score_failures: score → why it has no value, for those of plug-ins that failed.
        latency_s: start of the batch to this sample's last token. ttft_s: to the first.
        finish_reason: ``stop`` (a rule), ``eos``, ``length`` or ``strategy``, which made no token of it.
        stop_rule: of ``stop``, whose rule it was: a name of `harness list stops`, which may be the protocol's own
            (``line``), or the protocol's name where its rule has none.
        arrival_s, queue_s: with a fixed arrival rate, when the request came, from the start of its window, and how long
            it waited; ``latency_s`` and ``ttft_s`` then count from its arrival. ``None`` back to back.
        session: the editor session that it is a request of; empty for none.
        prompt_reused: first tokens of its prompt that were not read, since earlier requests of the session had left
            their keys and values.
        overtaken: requests of the session before it that typing overtook. overtaken_s: seconds that they computed for;
            ``None`` outside of sessions, and in a run that was not timed. prefetch_s: as that, seconds of computing
            while the user typed, for which nobody waited. prefetched: tokens decoded in them. prefetch_used: tokens of
            its completion that were accepted because they, or those of earlier requests' idle time, had been.
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
    arrival_s: float | None = None
    queue_s: float | None = None
    session: str = ""
    prompt_reused: Count = 0
    overtaken: Count = 0
    overtaken_s: float | None = None
    prefetch_s: float | None = None
    prefetched: Count = 0
    prefetch_used: Count = 0
    answer: AnswerRecord | None = None
    error: str | None = None

    def decode_amounts(self) -> dict[str, float]:
        """Return the work after its first token for :func:`harness.contracts.price`: cached, alone in its batch."""
        depth, layers, first = max((1, *self.exit_layers)), self.exit_layers[1:], len(self.prompt_ids) + 1
        if self.verifications:
            exits = 0 if self.drafting is None else self.drafting.passes
            attended = self.layers_read * self.middle
        else:
            exits = sum(layer < depth for layer in layers)
            attended = sum(layer * (first + step) for step, layer in enumerate(layers))
        return self.amounts(tokens=len(layers), exits=exits, attended=attended, num_layers=depth)

    @property
    def middle(self) -> int:
        """Positions that there are when its completion is half made: what its passes attend to on average."""
        return len(self.prompt_ids) + 1 + (len(self.exit_layers) - 1) // 2

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        for one in self.discarded:
            if not len(one.token_ids) == len(one.drafted_at) == len(one.token_texts):
                raise ValueError("discarded tokens, layers and texts that are not equally many")
        return self


class SampleScores(Record):
    """Stands in place of the same fields of a :class:`harness.records.SampleRecord`.

    Attributes:
        scores: per-sample scores.
        score_failures: score → why it has no value, for those of plug-ins that failed on this completion.
    """

    scores: dict[str, float | None] = Field(default_factory=dict)
    score_failures: dict[str, str] = Field(default_factory=dict)


class ScoresRecord(Record):
    """Scores that are newer than the samples beside them; nothing that was measured is touched.

    Attributes:
        schema_version, run: as in ``manifest.json``.
        records: seal of the last window when they were computed; what was measured later keeps its own.
        computed: when, UTC.
        names: which scores were computed then, with these versions of packages.
        versions: package → version, of what computed them.
        samples: of each line of ``samples.jsonl`` up to there.
    """

    schema_version: int
    run: str
    records: str
    computed: str
    names: tuple[str, ...]
    versions: dict[str, str]
    samples: tuple[SampleScores, ...]


class WindowRecord(Record):
    """One measured window: one block of samples under one operating point. Commits its samples.

    Attributes:
        window: id, counting up in the order written.
        task, block, repeat, operating_point: what ran.
        warmup: left out of every summary.
        idle: nothing ran; the model was loaded. Its task and operating point are empty, its power is the machine's own.
        superseded: contaminated and measured again (``--strict``); left out of every summary and counted there.
        samples: number of sample lines this window commits. failed: how many of those are error records.
        tokens: generated tokens; ``None`` where a black box does not count its own.
        started: UTC time, ISO 8601.
        duration_s: window length, monotonic clock; ``None`` in a run that was not timed (``untimed``).
        cpu_time_s, foreign_cpu_s, stolen_cpu_s: CPU seconds of this process, of everything else on the usable cores,
            and those that the hypervisor gave to others; ``None`` where they cannot be read.
        energy_j, energy_source, energy_scope, sensor_period_s, flags, energy_reason: see ``EnergyReading``.
    """

    window: Count
    task: str
    block: Count
    repeat: Count
    operating_point: str
    warmup: bool = False
    idle: bool = False
    superseded: bool = False
    samples: Count
    failed: Count = 0
    tokens: Count | None
    started: str
    duration_s: float | None
    cpu_time_s: float | None
    foreign_cpu_s: float | None = None
    stolen_cpu_s: float | None = None
    energy_j: float | None = None
    energy_source: str = "none"
    energy_scope: str = ""
    sensor_period_s: float | None = None
    flags: tuple[str, ...] = ()
    energy_reason: str | None = None
