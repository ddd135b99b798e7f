"""A comparison of two runs: its operating points and what differs beside them."""

from __future__ import annotations

from dataclasses import dataclass

from harness.contracts import Metric
from harness.records.conditions import Compared, Conditions
from reports.comparing.change import Change
from reports.comparing.differences import Difference
from reports.comparing.pairing import Matched
from reports.recorded import RecordedRun


@dataclass(frozen=True, slots=True)
class PointChange:
    """One operating point of one task in both runs.

    Attributes:
        task: its name. a, b: operating points, the same but for ``--point-a`` and ``--point-b``.
        matched: prompts in common.
        changes: one per metric, in the order of :func:`reports.comparing.change.compared_metrics`.
        verdict: in words.
        baseline: full depth in both.
        identical: completions with the same tokens, of so many compared.
        conditions: what it was measured under in A and in B.
    """

    task: str
    a: str
    b: str
    matched: Matched
    changes: tuple[Change, ...]
    verdict: str = ""
    baseline: bool = False
    identical: tuple[int, int] = (0, 0)
    conditions: tuple[Conditions, ...] = ()

    @property
    def name(self) -> str:
        """As tables write it."""
        return self.a if self.a == self.b else f"{self.a} → {self.b}"

    @property
    def kv(self) -> str:
        """Its KV policy, or both."""
        return " → ".join(dict.fromkeys(one.kv for one in self.conditions))

    def obstacle(self, of: Compared) -> str:
        """Return why no such numbers of A and B are compared; empty where they are."""
        one, other = self.conditions
        return one.why_not_comparable(other, of)

    def of(self, metric: Metric | str) -> Change:
        """Return the change of one metric."""
        name = metric if isinstance(metric, str) else metric.name
        return next(one for one in self.changes if one.metric.name == name)


@dataclass(frozen=True, slots=True)
class RunChange:
    """Two runs compared.

    Attributes:
        a, b: the runs.
        differences: what they were made with that is not the same.
        points: by task, in A's order.
        skipped: (task, operating point, reason): what both have and could not be compared.
        verdict: of all, in words.
        notes: what a reader must know.
    """

    a: RecordedRun
    b: RecordedRun
    differences: tuple[Difference, ...]
    points: tuple[PointChange, ...]
    skipped: tuple[tuple[str, str, str], ...]
    verdict: str
    notes: tuple[str, ...]
