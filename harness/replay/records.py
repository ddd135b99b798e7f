"""``sweep.json``, with the notes that must stand beside its numbers, and ``suitability.json``.

Every number of a :class:`SweepRow` is replayed: the tokens are the trace's and not those that earlier exits would have
led to, so the drift of live decoding is not in them. Only a :class:`DriftRow` holds live numbers, and says which.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from pydantic import Field

from harness.contracts import Weights
from harness.records import UnitTimes
from harness.records.record import Record

DocumentSplit: TypeAlias = Literal["held-out", "all"]
Interval: TypeAlias = tuple[float, float]


class SweepRow(Record):
    """One operating point, replayed.

    Attributes:
        measurement: how it was obtained.
        operating_point, strategy, options, exit_points, artefacts: as in a run's manifest.
        reference: added for comparison (full depth, fixed exits, the bound), not requested.
        rehearsed: it looks at the answer: a bound, never on the front.
        tokens, documents: how much was replayed.
        exit_layer_mean: layers executed per token.
        layers_skipped: 1 − exit_layer_mean / num_layers.
        agreement: share of tokens equal to the last layer's. agreement_ci: 95 % over documents; ``None`` with
            fewer than five.
        exit_checks_per_token, lm_head_per_token, shortcut_per_token, kv_fill_layers_per_token: counts as live decoding
            charges them.
        cheap_heads_per_token: readings of cheap heads in place of the LM head. head_agreement: share of checks that
            decide as they would by the LM head, for a strategy that reads a cheap one; else ``None``.
        expected_speedup: full depth's bytes per token over this one's: what decoding at batch 1 would gain if nothing
            but memory traffic took time; an expectation, not a measurement.
        seconds_per_token: what a decoded token would take, by what its parts take where the sweep ran (``unit_times``);
            ``None`` where that was not measured. expected_time_speedup: full depth's over this one's.
        oracle_share: of the layers skipped by leaving at the first exit whose token is the last layer's, the share
            that tokens equal to the last layer's skip here; never above 1. ``None`` where that skips none.
        exits: exit layer → share of tokens that left there, the last layer included. All end there, lossless.
        decode: ``lossy``, or ``lossless`` with its draft source. draft_max: tokens of a draft at most, lossless.
        tokens_per_verification, acceptance, drafted_per_token, layers_read_per_token, layers_discarded_per_token: of
            lossless rows, as a run's metrics of these names; ``None`` else. What follows a wrong draft until it is
            verified is not in a trace: those drafts are modelled, and with them all but the first of these numbers.
        percentile: of the scores on documents that are not replayed, in per cent, where the threshold was given as one.
        pareto: no other row has at least this agreement and this expected speed-up, and more of one.
    """

    measurement: Literal["replayed"] = "replayed"
    operating_point: str
    strategy: str
    options: dict[str, Any]
    exit_points: tuple[int, ...]
    artefacts: dict[str, str] = Field(default_factory=dict)
    reference: bool = False
    rehearsed: bool = False
    tokens: int
    documents: int
    exit_layer_mean: float
    layers_skipped: float
    agreement: float
    agreement_ci: Interval | None
    exit_checks_per_token: float
    lm_head_per_token: float
    shortcut_per_token: float
    kv_fill_layers_per_token: float
    cheap_heads_per_token: float = 0.0
    head_agreement: float | None = None
    expected_speedup: float
    seconds_per_token: float | None = None
    expected_time_speedup: float | None = None
    oracle_share: float | None = None
    exits: dict[int, float]
    pareto: bool = False
    decode: str = "lossy"
    draft_max: int | None = None
    tokens_per_verification: float | None = None
    acceptance: float | None = None
    drafted_per_token: float | None = None
    layers_read_per_token: float | None = None
    layers_discarded_per_token: float | None = None
    percentile: float | None = None

    @property
    def lossless(self) -> bool:
        """Whether full depth verifies what is drafted."""
        return self.decode.startswith("lossless")


class DriftRow(Record):
    """One operating point replayed and live.

    Attributes:
        operating_point: as in the sweep.
        samples, tokens: how much was decoded live; without the token that prefill yields.
        replayed_exit_layer, replayed_agreement: of the sweep, on the trace's documents.
        twin_exit_layer, twin_agreement: replayed on what full depth generated for the very samples of the live run:
            other documents than the sweep's, but no drift yet.
        live_exit_layer: layers per decoded token.
        live_same_prefix: share of tokens equal to full depth's, up to the first that differs in each sample: as in a
            replay all tokens before were full depth's; what remains of drift is in the keys and values alone.
        live_agreement: share of full depth's tokens that stand at the same place, to the end: it also counts what
            follows from the first difference.
        live_exit_layer_ci, live_same_prefix_ci, live_agreement_ci: 95 % over samples; ``None`` with fewer
            than five.
    """

    operating_point: str
    samples: int
    tokens: int
    replayed_exit_layer: float
    replayed_agreement: float
    twin_exit_layer: float
    twin_agreement: float
    live_exit_layer: float
    live_same_prefix: float
    live_agreement: float
    live_exit_layer_ci: Interval | None
    live_same_prefix_ci: Interval | None
    live_agreement_ci: Interval | None


class Sweep(Record):
    """A whole sweep.

    Attributes:
        schema_version: of this document.
        measurement: of its rows.
        title: what was replayed, in words.
        traces: folder of the trace. traced_documents: which of its documents.
        tokens, documents: how many.
        model, weights, dtype, exit_head, num_layers, exit_points, fingerprint: the model.
        kv: policy of the expected speed-up and of live runs.
        notes: sentences that must stand beside the numbers.
        rows: full depth first.
        drift: operating points that were also decoded live. live_directory: that run's directory.
        replay_s: seconds that choosing thresholds, replaying and intervals took, once the trace was open.
    """

    schema_version: int = 1
    measurement: Literal["replayed"] = "replayed"
    title: str
    traces: str
    traced_documents: DocumentSplit
    tokens: int
    documents: int
    model: str
    weights: Weights
    dtype: str
    exit_head: str
    num_layers: int
    exit_points: tuple[int, ...]
    fingerprint: str
    kv: str
    notes: tuple[str, ...]
    rows: tuple[SweepRow, ...]
    drift: tuple[DriftRow, ...] = ()
    live_directory: str | None = None
    replay_s: float


class ExitFacts(Record):
    """One exit point read by one head.

    Attributes:
        layer: decoder layers executed.
        agreement: share of tokens at which its best token is the last layer's.
        entropy: mean, of its distribution (nats).
        rank_median: of the last layer's token in it; 1 is the best.
        in_ten: share of tokens whose last-layer token is among its ten best.
    """

    layer: int
    agreement: float
    entropy: float
    rank_median: float
    in_ten: float


class HeadFacts(Record):
    """One way to read exits.

    Attributes:
        name: ``plain`` (the model's own norm and LM head), ``trained maps``, or ``closed-form maps`` before it.
        own: what a run of this model reads exits with.
        exits: by layer.
        oracle_skip: share of decoder layers skipped by exits at the first exit point whose token is the last layer's.
        ranked: tokens that ranks are of.
    """

    name: str
    own: bool
    exits: tuple[ExitFacts, ...]
    oracle_skip: float
    ranked: int


class Setting(Record):
    """The best setting of one family of strategies, replayed.

    Attributes:
        family: of strategies, in words.
        head: name of the head that reads exits.
        setting: the operating point replayed; ``full`` where none of the family is faster.
        lossless: full depth's tokens come out.
        bound: an upper bound, not deployable: it looks at the answer, or something is free that would cost.
        agreement: share of tokens that are full depth's. agreement_ci: 95 % over documents.
        layers: decoder layers a token, those of rejected drafts included.
        bytes_speedup: full depth's bytes read over its own.
        time_speedup: full depth's expected time over its own, from measured parts; ``None`` where none were.
    """

    family: str
    head: str
    setting: str
    lossless: bool = False
    bound: bool = False
    agreement: float
    agreement_ci: tuple[float, float] | None = None
    layers: float
    bytes_speedup: float
    time_speedup: float | None = None

    @property
    def speedup(self) -> float:
        """In time where parts were measured, else in bytes."""
        return self.bytes_speedup if self.time_speedup is None else self.time_speedup


class Suitability(Record):
    """A model's suitability for early exit on a machine.

    Attributes:
        schema_version: of this document.
        model, weights, exit_head, weights_format, num_layers, exit_points, fingerprint: the model, as a run has it.
        documents, tokens: read, teacher-forced. streams: task and source of each.
        keep: share of tokens that lossy settings had to keep.
        heads: what exits know, by how they are read.
        head_in_layers: the LM head's cost in decoder layers, by time where it was measured, else by bytes.
        row_share: cost of one more row of a pass, as a share of a pass of one; ``None`` where it was not measured.
        times: what parts took; ``None`` where they were not measured.
        chances: the best setting of each family of strategies and head, fastest first, lossy before lossless.
        verdict: sentences.
    """

    schema_version: int = 1
    model: str
    weights: Weights
    exit_head: str
    weights_format: str
    num_layers: int
    exit_points: tuple[int, ...]
    fingerprint: str
    documents: int
    tokens: int
    streams: tuple[str, ...]
    keep: float
    heads: tuple[HeadFacts, ...]
    head_in_layers: float
    row_share: float | None
    times: UnitTimes | None
    chances: tuple[Setting, ...]
    verdict: tuple[str, ...] = ()

    def best(self, *, lossless: bool, bounds: bool = False) -> Setting:
        """Return the fastest family.

        Args:
            lossless: of those that yield full depth's tokens, or of the others.
            bounds: also upper bounds, which are not deployable.
        """
        found = [one for one in self.chances if one.lossless == lossless and (bounds or not one.bound)]
        return max(found, key=lambda one: one.speedup)
