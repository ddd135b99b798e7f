"""The contract of a metric: one number of an operating point, and everything that is said of it anywhere.

Tables, files, comparisons, figures and the leaderboard read these facts; none has a list of metrics of its own. A
registered metric is a :class:`Metric`, for example::

    COMPLETION_TOKENS = Metric(
        name="completion_tokens",
        header="tokens",
        meaning="mean length of a completion",
        of_sample=lambda sample: float(len(sample.token_ids)),
        kind="work",
    )

Every score of a task is a metric without being declared (:mod:`reports.metrics.vocabulary`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias

Better: TypeAlias = Literal["higher", "lower"]
Form: TypeAlias = Literal["count", "number", "seconds", "fraction", "percent", "ratio", "difference"]
"""How it is written: a whole number, three significant digits, ms or s, 0.123, 12.3 %, 1.23×, +0.123."""
Kind: TypeAlias = Literal["score", "work", "cost", "energy"]
"""Facts that two runs must share to compare it: references, nothing, the machine, the machine and the energy source."""
Pairing: TypeAlias = Literal["ratio", "difference"]
Against: TypeAlias = Literal["full", "own_full", "fastest_full", "fastest_lossless"]
"""Which full depth of a run: its first one; that of the operating point's own weights format and ``keep``; or, of those
formats that keep the model's tokens, the fastest with that ``keep``. With a single format and ``keep`` they are one and
the same. ``fastest_lossless`` is full depth behind drafts from text, the fastest likewise."""


@dataclass(frozen=True, slots=True)
class Wording:
    """How a sentence tells of a metric; ``{}`` stands for the amount."""

    better: str  # the sentence where it is better or worse
    worse: str
    noun: str = ""  # its subject where nothing can be told
    # a ratio of costs is told as the share of the baseline's that is saved, not as a gain in speed
    saving: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One number of an operating point on a task.

    Either ``of_sample`` gives the number of one sample, and the metric is its mean or percentile over the samples, or
    ``compute`` gives the metric of a whole operating point (:class:`reports.metrics.point.Point`). A number per sample
    is enough to compare the metric between runs, with interval and test; ``compute`` needs ``units`` for that. A number
    that is not finite, or beyond all reason, is missing and counted.

    Attributes:
        name: column of files and word of conditions; ends in its SI unit (``_s``, ``_j``, ``_w``) if it has one.
        header: of table columns, one or two lines; ``-`` at a line's end is a hyphenation.
        meaning: one phrase.
        of_sample: number of one :class:`harness.records.SampleRecord`; ``None`` where it has none.
        percentile: over samples, 0…100; ``None`` for the mean.
        compute: value, :class:`harness.records.estimate.Estimate` or ``None`` of a point. When ``paired``, what is
            compared instead: a list of :class:`reports.statistics.intervals.Pair` (full depth's cost and this one's,
            by block) for a ratio, the differences of samples by sample id for a difference; ``None`` where it is not
            defined. Interval, test and correction are made from it.
        paired: compared with full depth, as a ratio of costs or as a mean difference.
        against: what ``compute`` pairs with.
        restates: name of a metric; tables leave this one out where it says the same in every row.
        interval: it has a 95 % interval: the estimates that ``compute`` returns do, and a percentile gets one.
        units: independent units of a point for comparisons of runs: prompts → numbers
            (:data:`reports.metrics.point.Units`).
        kind: what two runs must share to compare it.
        black_box: texts, times of whole requests and windows are all it needs, so that what the engine does not run has
            it, too; without this it is missing there, never zero.
        better: which direction is; ``None`` where neither is.
        unit: SI symbol or word; empty for a pure number.
        form: how it is written.
        title: name in one line; by default the header's.
        sections: where it stands: section → place (:mod:`reports.metrics.vocabulary`).
        priority: where a narrow headline has no room for all, the lowest numbers are kept.
        verdict: how a comparison with full depth is put in words; ``None``: not.
        always_told: it belongs to every verdict, also when nothing can be told.
        change: how a change between two runs is put in words; ``None``: not.
    """

    name: str
    header: str
    meaning: str
    _: KW_ONLY
    of_sample: Callable[[Any], float | None] | None = None
    percentile: float | None = None
    compute: Callable[[Any], Any] | None = None
    paired: Pairing | None = None
    against: Against = "full"
    restates: str = ""
    interval: bool = False
    units: Callable[[Any], Any] | None = None
    kind: Kind = "cost"
    black_box: bool = False
    better: Better | None = None
    unit: str = ""
    form: Form = "number"
    title: str = ""
    sections: Mapping[str, float] = field(default_factory=lambda: {"headline": 100, "Further measures": 100})
    priority: int = 100
    verdict: Wording | None = None
    always_told: bool = False
    change: Wording | None = None

    @property
    def term(self) -> str:
        """The header in one line."""
        return re.sub("-\n", "", self.header).replace("\n/", "/").replace("\n", " ")

    @property
    def parts(self) -> tuple[str, ...]:
        """Fields of its estimates beside the value, by name."""
        if self.paired:
            counts = ("samples", "differing") if self.paired == "difference" else ()
            return ("low", "high", "no_interval", "p", "p_holm", "n", *counts)
        return ("low", "high", "no_interval", "n") if self.interval else ()

    @property
    def is_cost(self) -> bool:
        """Whether a change of it is written relative to what it was."""
        return self.kind in ("cost", "energy")
