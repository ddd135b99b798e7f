"""The site's memory of a run: enough to rank it again with others, without its records.

A run's identity is made of what was measured (when, on which weights and data, every window's length, every token and
layer), not of where it lies or in which order it came; an operating point's of its run's, its task and its name. Links
to either therefore survive any number of re-generations, and a run that is published twice is one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field

from harness.records import Manifest
from harness.records.conditions import Conditions, Group
from harness.records.record import Record
from harness.records.summary import SummaryRow
from reports.leaderboard.checks import Check
from reports.recorded import RecordedRun
from reports.summary.measured import Measured

SITE_SCHEMA = 2
"""Of the site's data files. Raised when an older program would misread them."""


class PointEntry(Record):
    """One operating point on one task.

    Attributes:
        id: 16 hexadecimal digits, permanent.
        row: its results.
        baseline_kv: KV policy of the full depth it is compared with.
        layers: decoded tokens by the layer they left at; the token that prefill yields is left out.
    """

    id: str
    row: SummaryRow
    baseline_kv: str
    layers: dict[int, int] = Field(default_factory=dict)


class RunEntry(Record):
    """One run directory.

    Attributes:
        site_schema: of this entry. schema_version: of the run directory it was made from.
        id: 16 hexadecimal digits, permanent.
        name: of its folder when it was first published.
        manifest: without private paths.
        machine: one line. notes: sentences that belong under its numbers.
        unranked: what ``harness submit`` would refuse it for: name of the condition → what was found; empty where it
            ranks.
        points: at least one.
    """

    site_schema: int
    schema_version: int
    id: str
    name: str
    manifest: Manifest
    machine: str
    notes: tuple[str, ...]
    unranked: dict[str, str] = Field(default_factory=dict)
    points: tuple[PointEntry, ...]

    @property
    def unfinished(self) -> bool:
        """Whether more windows of it may come."""
        return "finished" in self.unranked

    def conditions(self, point: PointEntry) -> Conditions:
        """Return what one of its operating points was measured under."""
        row = point.row
        (task,) = (task for task in self.manifest.tasks if task.name == row.task)
        (found,) = (found for found in self.manifest.operating_points if found.name == row.operating_point)
        conditions = Conditions.of(self.manifest, task, found)
        return replace(conditions, energy_source=row.energy_source, energy_measured=row.energy_measured)

    def group(self, point: PointEntry) -> Group:
        """Return the ranking that one of its operating points may stand in."""
        return self.conditions(point).group(self.id)


def entry_of(run: RecordedRun, run_id: str, checks: Sequence[Check]) -> RunEntry:
    """Return what the site keeps of a run; operating points without a finished sample are left out.

    Args:
        run: without private paths.
        run_id: its identity.
        checks: the conditions of its publication.
    """
    manifest = run.manifest
    baseline_kv = Conditions.of(manifest, manifest.tasks[0], manifest.operating_points[0]).kv
    points = [
        PointEntry(
            id=hashlib.sha256(f"{run_id}\0{row.task}\0{row.operating_point}".encode()).hexdigest()[:16],
            row=row,
            baseline_kv=baseline_kv,
            layers=_layers(run.cells[row.task, row.operating_point]),
        )
        for row in run.summary.rows
        if row.n
    ]
    return RunEntry(
        site_schema=SITE_SCHEMA,
        schema_version=manifest.schema_version,
        id=run_id,
        name=run.name,
        manifest=manifest,
        machine=run.summary.machine,
        notes=(*run.summary.notes, *(f"scores: {check.found}." for check in checks if check.name == "scores")),
        unranked={check.name: check.found for check in checks if not check.passed},
        points=tuple(points),
    )


def _layers(cell: Measured) -> dict[int, int]:
    return dict(sorted(Counter(layer for sample in cell.scored for layer in cell.decoded_layers(sample)).items()))
