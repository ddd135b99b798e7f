"""Where the time and energy of operating points went: what an attribution says, as it stands in ``summary.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer

from harness.records.estimate import Estimate, Interval
from harness.records.record import Record

Quantity = Literal["time", "energy"]

PARTS = ("prefill", "layers", "exit_checks", "check_heads", "output_head", "kv_fill", "rest")
"""Parts of a request, in the order they are shown.

``prefill``: the prompt pass. ``layers``: decoder layers of later tokens, attention over the cache included.
``exit_checks``: asking the strategy. ``check_heads``: LM-head evaluations that only a check or a draft wanted, and
cheap heads that read drafts. ``output_head``: the one evaluation per token that any decoding needs, or per
verification, all of its places included. ``kv_fill``: K,V of skipped layers, and what an exit costs once, however deep
it lies. ``rest``: what no count explains; it can be negative.
"""

PHASES = ("drafting", "verifying", "rolled_back")
"""The phases of lossless decoding after prefill: all parts but ``prefill`` and ``rest``, taken apart another way.

``drafting``: layers of passes that ended in a draft which stands, and all checks and heads but those of verifications.
``verifying``: passes that went deep, the LM head over all of their places. ``rolled_back``: passes that drafted a token
which did not stand, and rows of verifications that were discarded.
"""


class Ranged(Record):
    """An estimate as files of attributions have it, with its bootstrap 95 % interval if enough blocks were measured.

    Attributes:
        value: the number.
        ci: bootstrap 95 % interval; ``None`` where too few blocks were measured.
    """

    value: float
    ci: Interval | None = None


def _read(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    written = Ranged.model_validate(given)
    return Estimate.of(written.value, written.ci)


Cost = Annotated[
    Estimate,
    BeforeValidator(_read, json_schema_input_type=Ranged),
    PlainSerializer(lambda one: {"value": one.value, "ci": one.interval}),
]


class OperatingPointCost(Record):
    """One operating point's request, taken apart.

    Attributes:
        operating_point: label.
        total: measured, per request (s or J).
        parts: name of :data:`PARTS` → per request, by the fit. phases: likewise :data:`PHASES` of lossless decoding.
        overhead: deciding, per request: checks by the direct way, less (at the fit's price) the LM heads of checks that
            served as the output; ``None`` without a probe.
        overhead_of_run: the same over this operating point's total. overhead_of_full: over full depth's.
    """

    operating_point: str
    total: float
    parts: dict[str, Cost]
    phases: dict[str, Cost] = Field(default_factory=dict)
    overhead: Cost | None = None
    overhead_of_run: Cost | None = None
    overhead_of_full: Cost | None = None


class CheckCost(Record):
    """The cost of asking a strategy once, its LM-head evaluations included, found in two independent ways.

    Attributes:
        strategy: registered name.
        direct: (probe − full depth) / checks: the strategy is asked at every exit point and never exits.
        fitted: from the fit over all operating points but the probes.
        agree: whether the interval of their difference holds 0; ``None`` where one is missing.
    """

    strategy: str
    direct: Cost | None
    fitted: Cost | None
    agree: bool | None


class Attribution(Record):
    """The costs of one task's operating points in one quantity.

    Attributes:
        task: task name.
        weights_format: of the operating points, where the run compares several; empty where it has one.
        quantity: ``time`` (seconds) or ``energy`` (joules).
        source: ``clock``, or the energy source. measured: by a clock, or a sensor.
        blocks: of samples, the unit that is resampled, that every operating point finished.
        blocks_left_out: blocks that only some of them finished.
        residual: median of |measured − fitted| / measured over the windows.
        unit_costs: count → cost of one (seconds or joules).
        rows: operating points in the run's order, probes left out. checks: strategies that were asked.
    """

    task: str
    weights_format: str = ""
    quantity: Quantity
    source: str
    measured: bool = True
    blocks: int
    blocks_left_out: int = 0
    residual: float
    unit_costs: dict[str, float]
    rows: tuple[OperatingPointCost, ...]
    checks: tuple[CheckCost, ...]

    @property
    def where(self) -> str:
        """The task, and the weights format where the run compares several."""
        return f"{self.task}, {self.weights_format}" if self.weights_format else self.task
