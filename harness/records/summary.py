"""``summary.json``: one row per task × operating point, and what to know beside them.

Versioned by itself: it is made of the other files and can be made again of those of any version.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from harness.contracts import OWN_FORMAT, Metric, Weights, numbers
from harness.records.cost import Attribution
from harness.records.estimate import Estimate
from harness.records.record import Count, Record

EXIT = "exit"
"""The source of tokens that exits drafted."""


class Acceptance(Record):
    """Of some drafted tokens of one operating point, how many stood.

    Attributes:
        source: ``exit``, or the name of the draft source; ``None`` for all.
        layer: decoder layers that ran before they were drafted; ``None`` for all, and where a source proposed them.
        kind: of code (:mod:`reports.completions.token_kinds`); ``None`` for all, those of no kind included.
        drafted, accepted: tokens. share: the second over the first, with its interval over blocks of samples.
    """

    source: str | None = None
    layer: Count | None = None
    kind: str | None = None
    drafted: Count
    accepted: Count
    share: Estimate


SUMMARY_VERSION = 4


class SummaryRow(Record):
    """One operating point on one task.

    Attributes:
        operating_point, strategy, options, task, language, protocol, source, model, weights, exit_head, kv, batch_size,
            dtype, weights_format: what ran; the format is the dtype's own in older summaries.
        black_box: the engine does not run it; its weights format is that of the full depth it is held against.
        decode: ``lossy``, or ``lossless`` with its draft source: full depth verified every token.
        draft_max: tokens of a draft at most; ``None`` where nothing is drafted.
        stop: the stop rule beside the protocol's own end, as written; empty for none.
        keep, prompt_exit, prefetch: as of :class:`harness.records.OperatingPointRecord`.
        baseline_format: weights format of the full depth that its tokens and scores are compared with.
        n: samples scored. errors: samples that failed. repeats: repetitions timed.
        windows: measured windows that count. flagged: those in which something else moved the machine
            (:data:`harness.metering.contamination.CONTAMINATED`).
        speedup_unflagged: the speed-up of whole requests without flagged windows, of this row and of full depth;
            ``None`` where there are none, or fewer than five blocks without.
        energy_source: where its energy comes from. energy_measured: a sensor measured it.
        verdict: the comparison with full depth in words; ``None`` when one of them has no finished sample.
        rehearsed: it saw the answer outside the measured window: an upper bound, never on the front.
        pareto: on the front of text kept and speed-up among the rows of its table (:mod:`reports.summary.pareto`).
        acceptances: which drafted tokens stood; empty where nothing was drafted.
        metrics: estimates by the name of their metric; one that is not there was not measured, or is not defined.
    """

    operating_point: str
    strategy: str
    options: dict[str, Any]
    task: str
    language: str
    protocol: str
    source: str
    model: str
    weights: Weights
    exit_head: str = "shared"
    kv: str
    batch_size: int
    dtype: str
    black_box: bool = False
    weights_format: str = Field(default_factory=lambda row: OWN_FORMAT.get(row["dtype"], row["dtype"]))
    decode: str = "lossy"
    draft_max: int | None = None
    stop: str = ""
    keep: str = ""
    prompt_exit: str = ""
    prefetch: str = ""
    baseline_format: str = Field(default_factory=lambda row: row["weights_format"])
    n: int
    errors: int
    repeats: int
    windows: int = 0
    flagged: int = 0
    speedup_unflagged: float | None = None
    energy_source: str = "none"
    energy_measured: bool = False
    verdict: str | None = None
    rehearsed: bool = False
    pareto: bool = False
    acceptances: tuple[Acceptance, ...] = ()
    metrics: dict[str, Estimate] = Field(default_factory=dict)

    @property
    def numbers(self) -> str:
        """The number formats of weights and activations, in words."""
        return numbers(self.weights_format, self.dtype)

    @property
    def lossless(self) -> bool:
        """Whether full depth verified what was drafted."""
        return self.decode.startswith("lossless")

    def estimate(self, metric: Metric | str) -> Estimate | None:
        """Return a metric's estimate; ``None`` where it was not measured, or is not defined."""
        return self.metrics.get(metric if isinstance(metric, str) else metric.name)

    def value(self, metric: Metric | str) -> float | None:
        """Return a metric's value; ``None`` as above."""
        found = self.estimate(metric)
        return None if found is None else found.value


class Summary(Record):
    """``summary.json``: one row per task × operating point, and what a reader must know beside them.

    Attributes:
        schema_version: of this file.
        machine: one line that describes where it was measured.
        notes: sentences a table must carry (random weights, tokenizer stand-in, estimated energy …).
        rows: the results.
        attributions: where time and energy went, per task and quantity; empty without probes (``--attribute``).
        records: seal of the records it was made of (:mod:`harness.store.record_files`).
        score_failures: score → why it lacks values, for those of plug-ins that failed.
    """

    schema_version: int
    machine: str
    notes: tuple[str, ...]
    rows: tuple[SummaryRow, ...]
    attributions: tuple[Attribution, ...] = ()
    records: str = ""
    score_failures: dict[str, str] = Field(default_factory=dict)
