"""``suitability.json``: what each exit knows of the final token, and the speed-ups that this allows at most."""

from __future__ import annotations

from harness.contracts import Weights
from harness.records import UnitTimes
from harness.records.record import Record


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
