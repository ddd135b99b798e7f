"""The vocabulary every room shares: what a strategy, a task, a meter and a model promise.

Protocols for what is plugged in, frozen dataclasses for what is handed over. No torch at run time:
importing this module must stay cheap, since ``harness list`` does it.

Words (one per idea): ``exit_layer`` is the number of decoder layers *executed* for a token,
1…``num_layers``; ``exit_points`` are the sorted layers where a strategy is asked (the last layer is
not one of them, it always ends a token); ``hidden_state`` is the residual stream *before* the final
norm; quantities carry SI suffixes (``_s``, ``_j``, ``_w``, ``_bytes``); ``None`` means not measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "BadRow",
    "Batch",
    "Corpus",
    "Document",
    "EnergyReading",
    "ExitRule",
    "ExitView",
    "KVInput",
    "KVPolicy",
    "Meter",
    "ModelInfo",
    "Sample",
    "Score",
    "SourceInfo",
    "Split",
    "StopRule",
    "Strategy",
    "Task",
    "TaskData",
    "TaskRequest",
    "TextCodec",
    "Weights",
    "WeightsChoice",
    "document_key",
]

Weights: TypeAlias = Literal["pretrained", "tuned", "random"]
WeightsChoice: TypeAlias = Literal["auto", "pretrained", "tuned", "random"]
Score: TypeAlias = float | None
KVInput: TypeAlias = Literal["hidden", "shortcut"]
Split: TypeAlias = Literal["train", "validation", "test"]
StopRule: TypeAlias = Callable[[Sequence[int]], bool]


class KVPolicy(StrEnum):
    """What happens to the keys and values of layers that an exited token skipped.

    ``propagate`` fills them from the exit hidden state (CALM, Schuster 2022); ``recompute`` runs the
    missing layers together with the next token that goes deeper (EE-LLM), identical to full depth for
    the same token sequence; ``none`` keeps no cache and runs the whole prefix for every token (how
    GREEN-CODE's published numbers were taken); ``skip`` leaves a hole, a lossy control.
    """

    PROPAGATE = "propagate"
    RECOMPUTE = "recompute"
    NONE = "none"
    SKIP = "skip"


# --------------------------------------------------------------------------------------- models


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts of a model that strategies, rooflines and reports need. Known before weights are loaded.

    Attributes:
        name: catalogue name, hub id or folder.
        family: transformers ``model_type``.
        num_layers: decoder layers.
        hidden_size: width of the residual stream.
        vocab_size: rows of the LM head.
        exit_points: sorted layers where strategies are asked; all below ``num_layers``.
        max_positions: longest sequence the position embedding covers, tokens.
        dtype: torch dtype name, for example ``float32``.
        weights: ``pretrained`` (the base weights), ``tuned`` (an adapter merged into them) or ``random``.
        layer_bytes: weight bytes one decoder layer reads for a token.
        lm_head_bytes: weight bytes one LM-head evaluation reads.
        kv_projection_bytes: weight bytes of one layer's norm + K,V projections (a KV fill).
        kv_entry_bytes: bytes of K and V of one position in one layer.
        fingerprint: tells the weights from others, 16 hex digits; what trained artefacts are checked against.
        base_fingerprint: the same of the weights before tuning.
        exit_head: ``shared``, or ``shortcut:`` and the hash of the maps in use.
        shortcut_bytes: weight bytes one exit's shortcut reads; 0 with the shared head.
        artefacts: folders in which trained artefacts are looked for, in this order.
    """

    name: str
    family: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    exit_points: tuple[int, ...]
    max_positions: int
    dtype: str
    weights: Weights
    layer_bytes: int
    lm_head_bytes: int
    kv_projection_bytes: int
    kv_entry_bytes: int
    fingerprint: str = ""
    base_fingerprint: str = ""
    exit_head: str = "shared"
    shortcut_bytes: int = 0
    artefacts: tuple[str, ...] = ()


class TextCodec(Protocol):
    """What tasks and the runner need of a tokenizer."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Ids that end a generation."""

    def encode(self, text: str) -> list[int]:
        """Return token ids without special tokens added."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; special tokens are kept, nothing is cleaned up."""


# ----------------------------------------------------------------------------------- strategies


@dataclass(frozen=True, slots=True)
class Batch:
    """What a strategy may know of a batch before its first token.

    Attributes:
        seeds: one seed per row, derived from the run's seed and the sample, so that a random
            strategy decides alike whatever the batch size and after a resume.
        device: torch device of the tensors it will see.
    """

    seeds: tuple[int, ...]
    device: str

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.seeds)


class ExitView(Protocol):
    """What a strategy sees at one exit point: the rows of the batch that are still running.

    ``n`` is the number of those rows. Everything lazy is computed at most once, and logits that were
    asked for are reused as the output if the row exits here; every LM-head evaluation is counted and
    charged to the strategy.
    """

    @property
    def exit_layer(self) -> int:
        """Decoder layers executed so far for this token."""

    @property
    def rows(self) -> Tensor:
        """Indices of these rows in the batch, ``[n]`` int64."""

    @property
    def position(self) -> Tensor:
        """Position of the token being processed, 0-based, ``[n]`` int64."""

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        """Tokens generated so far by each of these rows."""

    @property
    def hidden_state(self) -> Tensor:
        """Residual stream before the final norm, ``[n, hidden_size]``."""

    @property
    def exit_state(self) -> Tensor:
        """What the final norm reads at this exit, ``[n, hidden_size]``: the hidden state through the exit's shortcut,
        or the hidden state itself with the shared head. Computed when first asked for; the LM head is not run.
        """

    @property
    def logits(self) -> Tensor:
        """Exit head's logits, ``[n, vocab_size]``; computed when first asked for."""

    @property
    def top_token(self) -> Tensor:
        """Arg-max of ``logits``, ``[n]`` int64; costs what ``logits`` costs."""

    @property
    def vocab_size(self) -> int:
        """Columns of ``logits``; nothing is computed."""

    @property
    def top_probability(self) -> Tensor:
        """Probability of the best token, ``[n]`` float32; costs what ``logits`` costs. A trace holds it, and not the
        logits: a strategy that asks for this and its neighbours can be replayed (``harness sweep``).
        """

    @property
    def second_probability(self) -> Tensor:
        """Probability of the second token, ``[n]`` float32; the best one's is found on the way."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the exit head's distribution, ``[n]`` float32, nats."""

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return ``compute()``, ``[n, …]``, computed at most once for a key.

        For what options do not change, such as the score that a threshold is compared with: where many operating
        points are replayed together, all share the result. The key must say whose it is: ``"saturation: dots"``.
        """

    @property
    def full_depth_token(self) -> Tensor:
        """Token the last layer would give from here, ``[n]`` int64. Runs the remaining layers: only
        for rehearsed strategies (the oracle), whose cost lies outside the measured window.
        """

    @property
    def previous(self) -> ExitView | None:
        """The view of the previous exit point asked for this token, same rows; ``None`` at the first."""


class ExitRule(Protocol):
    """Per-batch decision maker, made by :meth:`Strategy.start`."""

    def should_exit(self, view: ExitView) -> Tensor:
        """Return which rows stop here, ``[n]`` bool."""


class Strategy(Protocol):
    """A frozen dataclass whose fields are its options; subclass it and add ``should_exit``.

    Field annotations carry the range: ``threshold: Annotated[float, Field(ge=0, le=1, description=…)]``.
    A stateless strategy is its own rule. ``rehearsed`` strategies are decoded once outside the measured
    window; inside it their exits are replayed at no decision cost (the oracle). ``probabilistic`` ones have a
    ``threshold`` that is the least probability, by their own estimate, that the exit's token is right: whether that
    estimate holds can be checked (``harness sweep --out`` writes calibration).
    """

    rehearsed: ClassVar[bool] = False
    probabilistic: ClassVar[bool] = False

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Return the layers at which this strategy wants to be asked, sorted, a subset of the model's.

        Raises:
            OptionError: an option does not fit the model. Called before weights are loaded.
        """
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """Return the trained parts it runs on for this model: name → SHA-256, for the record."""
        return {}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Return the decision maker of one batch; state that lives across tokens lives there."""
        return self

    def should_exit(self, view: ExitView) -> Tensor:
        """Return which rows stop here, ``[n]`` bool."""


# ---------------------------------------------------------------------------------------- tasks


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """Which samples to draw.

    Attributes:
        protocol: ``green-code`` or ``codexglue-line``.
        source: ``embedded``, ``hub``, or a path.
        limit: at most so many samples; ``None`` for all.
        seed: decides every random choice of the sampling.
        split: part of the dataset, where it has several. A source of one file is taken whole.
        seen: keys (:func:`document_key`) of documents the model was tuned on; they are never drawn.
        max_new_tokens: overrides the protocol's own limit.
        max_positions: longest prompt + completion the model covers, tokens.
    """

    protocol: str
    source: str
    limit: int | None = None
    seed: int = 0
    split: Split = "test"
    seen: frozenset[str] = frozenset()
    max_new_tokens: int | None = None
    max_positions: int | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A piece of source code, whole or from its beginning.

    Attributes:
        number: 1-based row number in its source.
        sample_id: the row's own id, or ``row-NUMBER`` when it has none.
        text: the code; of a token list, the tokens joined with single spaces.
    """

    number: int
    sample_id: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Whole documents to learn from.

    Attributes:
        documents: in an order that the seed alone decides.
        source: where they came from; its fingerprint is over ids and texts.
    """

    documents: tuple[Document, ...]
    source: SourceInfo


def document_key(text: str) -> str:
    """Return what a document is recognised by wherever it turns up: 16 hex digits over its beginning.

    White space is left out and 300 further characters count, so that one file has one key as raw text, as a joined
    token list, or broken off in the middle. Two files that begin alike share a key, which errs on the safe side.
    """
    head = "".join(text[:4096].removeprefix("<s>").split())[:300]
    return hashlib.sha256(head.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion to make.

    Attributes:
        sample_id: stable within a data source.
        prompt_ids: context tokens, never empty.
        reference: ground-truth text.
        reference_ids: ground-truth tokens.
        max_new_tokens: the protocol's limit for this sample.
    """

    sample_id: str
    prompt_ids: tuple[int, ...]
    reference: str
    reference_ids: tuple[int, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a sample; becomes a counted error record.

    Attributes:
        sample_id: as a sample's.
        reason: one line with the row number.
    """

    sample_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where samples came from; named in every result.

    Attributes:
        kind: ``path``, ``hub`` or ``embedded``.
        label: short human name for tables, for example ``embedded: Python 3.11 standard library``.
        fingerprint: SHA-256 over the selected rows (ids, prompts, references), hex.
        detail: further facts (path, split, versions).
    """

    kind: Literal["path", "hub", "embedded"]
    label: str
    fingerprint: str
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskData:
    """The samples of one task under one protocol and source.

    Attributes:
        samples: in a fixed order.
        bad_rows: rows that could not become samples.
        source: where they came from.
    """

    samples: tuple[Sample, ...]
    bad_rows: tuple[BadRow, ...]
    source: SourceInfo


class Task(Protocol):
    """A dataset that can be drawn under the protocols, and scored."""

    @property
    def name(self) -> str:
        """Registered name."""

    @property
    def language(self) -> str:
        """Programming language, ``python`` or ``java``."""

    def load(self, request: TaskRequest, codec: TextCodec) -> TaskData:
        """Draw the samples.

        Raises:
            DataError: the source cannot be read or cannot be scored.
        """

    def corpus(self, source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> Corpus:
        """Return whole documents of a source, at most ``limit``.

        Raises:
            DataError: the source cannot be read, or it holds no document.
        """

    def stop_rule(self, protocol: str, codec: TextCodec) -> StopRule:
        """Return a predicate on the tokens generated so far: true when the completion is over."""

    def completion(self, protocol: str, text: str) -> str:
        """Return the part of generated text that is scored (the line, cut at its end)."""

    def score(
        self, text: str, reference: str, token_ids: Sequence[int], reference_ids: Sequence[int]
    ) -> dict[str, Score]:
        """Return the scores of one sample, each in 0…1 unless its name says otherwise."""

    def score_corpus(self, texts: Sequence[str], references: Sequence[str]) -> dict[str, Score]:
        """Return the corpus-level scores; ``None`` where a score is not defined."""


# --------------------------------------------------------------------------------------- meters


@dataclass(frozen=True, slots=True)
class EnergyReading:
    """What a meter says of one window.

    Attributes:
        energy_j: joules, ``None`` when there is no number.
        source: ``nvml``, ``rapl``, ``soc``, ``estimate``, ``replay`` or ``none``.
        scope: what the number covers, for example ``gpu board``, ``cpu package``, ``process``.
        duration_s: window length by a monotonic clock.
        cpu_time_s: CPU seconds of this process inside the window.
        sensor_period_s: how often the sensor ticks; ``None`` when there is no sensor.
        flags: quality remarks, for example ``short-window``; empty when nothing is wrong.
        reason: why ``energy_j`` is ``None``.
    """

    energy_j: float | None
    source: str
    scope: str
    duration_s: float
    cpu_time_s: float
    sensor_period_s: float | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None


@runtime_checkable
class Meter(Protocol):
    """Reads energy over windows; one window at a time.

    A registered meter is a class that takes the keywords ``device`` and ``tdp_w``, and may offer
    ``probe(device) -> str | None``: why it cannot be used here, with the remedy. One that also takes
    ``argument`` gets what follows the colon in ``--energy NAME:ARGUMENT``.
    """

    @property
    def source(self) -> str:
        """``nvml``, ``rapl``, ``soc``, ``estimate``, ``replay`` or ``none``."""

    @property
    def description(self) -> str:
        """One line for the manifest and the table's footer: sensor, scope, and how a guess is made."""

    @property
    def sensor_period_s(self) -> float | None:
        """How often the sensor ticks, seconds; ``None`` when windows may be of any length."""

    def begin(self) -> None:
        """Open the window. The device is synchronised first."""

    def end(self) -> EnergyReading:
        """Close the window. The device is synchronised first."""

    def close(self) -> None:
        """Release the sensor."""
