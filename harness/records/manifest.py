"""``manifest.json``: what was run, on what, from what."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from harness.contracts import OWN_FORMAT, Accuracy, KVFacts, Weights, numbers
from harness.records.machine import MachineRecord, UnitTimes
from harness.records.record import Count, Positive, Record

SCHEMA_VERSION = 1


class BlackBoxRecord(Record):
    """Whether an operating point that the engine does not run is on this machine, whose energy sensor then sees it.

    Attributes:
        local: it runs on this machine, whose energy sensor sees it.
    """

    local: bool


class OperatingPointRecord(Record):
    """One strategy at one setting.

    Attributes:
        name: unique label in the run, for example ``confidence:threshold=0.9``.
        strategy: registered strategy name.
        options: every option with its effective value; of one that was left out, its trained part's.
        exit_points: layers at which it is asked on this model.
        rehearsed: it looked at the answer outside the measured window; an upper bound, not a strategy to deploy.
        artefacts: what trained parts it runs on: name → SHA-256 of the tensors, name with ``.json`` → of the facts.
        kv: name of the KV policy, what happens to K,V of skipped layers. kv_facts: what that policy is.
        decode: ``lossy``, its exits say what comes out; ``lossless``, with the draft source it has: they draft, and
            full depth's tokens come out.
        draft_max: tokens of a draft at most; ``None`` where nothing is drafted.
        draft_sources: names of what proposes tokens before exits draft; empty where only exits do.
        stop: the stop rule beside the protocol's own end, as written; empty for none.
        keep: in editor sessions, which keys and values a request leaves to the next: ``none``, ``prompt``, ``exact`` or
            ``all``; empty for requests that share nothing.
        prompt_exit: how deep the prompt is read, as written; empty for full depth.
        prefetch: in editor sessions, what is computed while the user types: ``deepen`` or ``draft``; empty for nothing.
        weights_format: how the matrices it multiplies with are stored.
        heads: cheap heads that its checks read → what their readings approximate; empty where they read the LM head.
        never_exits: the strategy is asked at every exit point and its answer ignored: full depth plus the cost of
            asking. A probe for the attribution of costs, never a candidate.
        black_box: it completes texts by itself, without the engine; ``None`` for all others. It has no KV policy.
    """

    name: str
    strategy: str
    options: dict[str, Any]
    exit_points: tuple[Count, ...]
    rehearsed: bool = False
    artefacts: dict[str, str] = Field(default_factory=dict)
    kv: str | None = None
    kv_facts: KVFacts | None = None
    decode: str = "lossy"
    draft_max: Positive | None = None
    draft_sources: tuple[str, ...] = ()
    stop: str = ""
    keep: str = ""
    prompt_exit: str = ""
    prefetch: str = ""
    weights_format: str = ""
    heads: dict[str, str] = Field(default_factory=dict)
    never_exits: bool = False
    black_box: BlackBoxRecord | None = None

    @property
    def lossless(self) -> bool:
        """Whether full depth verifies what it drafts."""
        return self.decode.startswith("lossless")


class FormatChoiceRecord(Record):
    """Why ``--weights-format auto`` took the format it did.

    Attributes:
        seconds_per_byte: format → what products of 1, 4 and 16 rows took, per float32 byte of the matrices.
        left_out: format → why it was not tried.
        measured: day on which an earlier process timed them; empty where the run did.
    """

    seconds_per_byte: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    left_out: dict[str, str] = Field(default_factory=dict)
    measured: str = ""


class FormatRecord(Record):
    """The model in one weights format: what of it depends on the format, as in ``ModelRecord``.

    Attributes:
        weights_format: registered name.
        weights_accuracy: how near it keeps a model to float32.
        format_choice: why ``auto`` took it; ``None`` where it was asked for.
        layer_bytes, lm_head_bytes, kv_projection_bytes, shortcut_bytes: see ``ModelInfo``.
        unit_times: what its parts take; ``None`` where nobody asked, and where costs were bytes.
    """

    weights_format: str
    weights_accuracy: Accuracy
    format_choice: FormatChoiceRecord | None = None
    layer_bytes: Count
    lm_head_bytes: Count
    kv_projection_bytes: Count
    shortcut_bytes: Count = 0
    unit_times: UnitTimes | None = None


class ModelRecord(Record):
    """The model as it ran; sizes, exit points and fingerprint are those of ``ModelInfo``.

    Attributes:
        name: as asked for. family: transformers ``model_type``.
        weights: ``pretrained`` (base), ``tuned`` or ``random``. weights_source: where they came from, in words.
        weights_sha256: hash over the weights; ``None`` for random weights, whose seed is in the config.
        tokenizer_source: where the tokenizer came from, in words.
        tokenizer_stand_in: another model's tokenizer stands in.
        num_layers, hidden_size, vocab_size, exit_points, dtype: see ``ModelInfo``.
        layer_bytes, lm_head_bytes, kv_projection_bytes, kv_entry_bytes: see ``ModelInfo``.
        fingerprint, exit_head, shortcut_bytes, exit_module: see ``ModelInfo``; an older record has the defaults.
        weights_format: registered name, of the run's first format; ``None``: the dtype's own.
        weights_accuracy: how near that format keeps a model to float32.
        format_choice: why ``auto`` took it; ``None`` where it was asked for.
        unit_times: what its parts take in that format; ``None`` where nobody asked, and where costs were bytes.
        end_ids: tokens that end a generation.
        other_formats: the model in the further formats that the run compares.
    """

    name: str
    family: str
    weights: Weights
    weights_source: str
    weights_sha256: str | None
    tokenizer_source: str
    tokenizer_stand_in: bool = False
    num_layers: Positive
    hidden_size: Count
    vocab_size: Count
    exit_points: tuple[Count, ...]
    dtype: str
    layer_bytes: Count
    lm_head_bytes: Count
    kv_projection_bytes: Count
    kv_entry_bytes: Count
    fingerprint: str = ""
    exit_head: str = "shared"
    shortcut_bytes: Count = 0
    exit_module: str = ""
    weights_format: str | None = None
    weights_accuracy: Accuracy | None = None
    format_choice: FormatChoiceRecord | None = None
    unit_times: UnitTimes | None = None
    end_ids: tuple[Count, ...] | None = None
    other_formats: tuple[FormatRecord, ...] = ()

    @property
    def numbers(self) -> str:
        """The number formats of weights and activations, in words; of a run of several formats, all of them."""
        return numbers(", ".join(self.formats), self.dtype)

    @property
    def stored_in(self) -> str:
        """The weights format; the dtype's own where none is named."""
        return self.weights_format or OWN_FORMAT.get(self.dtype, self.dtype)

    @property
    def formats(self) -> tuple[str, ...]:
        """The weights formats of a run, its own first."""
        return (self.stored_in, *(other.weights_format for other in self.other_formats))

    @property
    def keeps_tokens(self) -> bool:
        """Whether the format yields the tokens of the activations' own, near-ties apart."""
        return self.weights_accuracy in ("exact", "near-exact") or self.stored_in == OWN_FORMAT.get(self.dtype)

    def stored(self, weights_format: str) -> ModelRecord:
        """Return the model in one of its formats alone."""
        others = {other.weights_format: dict(other) for other in self.other_formats}
        changed = {} if weights_format == self.stored_in else others[weights_format]
        return self.model_copy(update={**changed, "other_formats": ()})


class TaskRecord(Record):
    """One task as it was drawn.

    Attributes:
        name: registered task name.
        language: for example ``python``; ``text`` for what is no code.
        protocol: registered protocol name.
        source_kind: ``path``, ``hub`` or ``embedded``. source: human label. detail: further facts about it.
        fingerprint: SHA-256 over the drawn rows. prompts: over the samples made of them, in tokens.
        samples: number of samples drawn. bad_rows: rows that could not become samples.
        prompt_tokens_mean, prompt_tokens_median: of the drawn prompts. ``None`` in older runs.
        duplicates: samples drawn although tuning has read them (``--duplicates keep``), or skipped for it; ``None``
            where that is not known.
        overlapping: samples of projects whose other files tuning has read (``--allow-overlap``). unknown_projects:
            samples that do not say which project they are of. ``None`` in older runs, which did not ask.
        unindexed: names of the artefacts that do not say all they have read, so that more may be duplicates.
        defined_by: package that defines the task, its protocol and the scores whose names begin with its own; empty
            where they are registered ones.
    """

    name: str
    language: str
    protocol: str
    source_kind: Literal["path", "hub", "embedded"]
    source: str
    fingerprint: str
    prompts: str = ""
    samples: Count
    prompt_tokens_mean: float | None = None
    prompt_tokens_median: float | None = None
    bad_rows: Count
    duplicates: Count | None = None
    overlapping: Count | None = None
    unknown_projects: Count | None = None
    unindexed: tuple[str, ...] = ()
    detail: dict[str, str] = Field(default_factory=dict)
    defined_by: str = ""


class MeterRecord(Record):
    """The energy meter of a run.

    Attributes:
        source: what its numbers are called.
        description: one line.
        sensor_period_s: how often it ticks; ``None`` without a sensor.
        measured: a sensor measured, in this run; otherwise its numbers are estimates, or another run's.
        unavailable: why better meters were not.
    """

    source: str
    description: str
    sensor_period_s: float | None
    measured: bool = False
    unavailable: dict[str, str] = Field(default_factory=dict)


class PluginRecord(Record):
    """Something the run used that another project registered.

    Attributes:
        kind: ``strategy``, ``task``, ``score`` …
        name: as registered.
        distribution, version: of the package that registered it. code: hash of that package's files.
    """

    kind: str
    name: str
    distribution: str
    version: str
    code: str = ""


class ObservedThreshold(Record):
    """A threshold that was asked for as a percentile of a strategy's scores.

    Attributes:
        strategy: the operating point, with the number.
        threshold: the number.
        percentile: share of the observed scores below it that was asked for, in per cent. reached: the share that is.
        documents: decoded by full depth for it, that the run does not decode.
    """

    strategy: str
    threshold: float
    percentile: float
    reached: float | None = None
    documents: Positive


class Manifest(Record):
    """The record of what was run, on what, from which sources. Written once, before the first sample.

    Attributes:
        schema_version: of every file in the directory but ``summary.json``.
        run: id of the run, 16 hexadecimal digits, drawn when its directory is made.
        created: UTC time, ISO 8601.
        config: the resolved run configuration.
        operating_points: in the order given, full depth first.
        model, tasks, meter: what was used.
        block_size: samples per interleaved block.
        bandwidth_bytes_per_s: measured matrix-vector bandwidth; ``None`` when not measured.
        bandwidth_detail: kernel, buffer and what limited it, or why it was not measured.
        environment: machine, operating system, threads, git commit, hashes of code, package versions.
        plugins: what of it came from packages of other projects.
        machine: what decided, at the start, how far its numbers can be trusted; ``None`` in runs that were not timed.
        placement: of a study's point: its executor, host and process, and processor cores; and, under ``--device-map``,
            ``layers``: which are where, in words.
        observed_thresholds: those that were given as percentiles.
    """

    schema_version: Count
    run: str = ""
    created: str
    config: dict[str, Any]
    operating_points: tuple[OperatingPointRecord, ...]
    model: ModelRecord
    tasks: tuple[TaskRecord, ...]
    meter: MeterRecord
    block_size: Positive
    bandwidth_bytes_per_s: float | None
    bandwidth_detail: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any]
    plugins: tuple[PluginRecord, ...] = ()
    machine: MachineRecord | None = None
    placement: dict[str, str] = Field(default_factory=dict)
    observed_thresholds: tuple[ObservedThreshold, ...] = ()

    @property
    def code(self) -> dict[str, str]:
        """Package that decides → hash of its files: the project's own, and of plug-ins."""
        return {**(self.environment.get("code") or {}), **self.plugin_code}

    @property
    def plugin_code(self) -> dict[str, str]:
        """Package of another project that the run used → hash of its files."""
        return {plugin.distribution: plugin.code for plugin in self.plugins if plugin.code}

    @property
    def timed(self) -> bool:
        """Whether times were recorded; without them other work may have shared the machine, and nothing is a cost."""
        return not self.config.get("untimed", False)

    @model_validator(mode="after")
    def _formats_are_the_model_s(self) -> Self:
        strange = {point.weights_format for point in self.operating_points} - {"", *self.model.formats}
        if strange:
            raise ValueError(f"operating points in {', '.join(sorted(strange))}, which the model was not stored in")
        return self
