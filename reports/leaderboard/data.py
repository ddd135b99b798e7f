"""The site's data: what it keeps of a run, the front page with every operating point's ranks, and a page for each.

What is kept is enough to rank a run again with others, without its records. Identities are made of what was measured,
not of where it lies, so that links survive re-generations, and a run that is published twice is one.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field

from harness.appearance.pages import depth_shade
from harness.contracts import Metric
from harness.records import Manifest, SampleRecord
from harness.records.conditions import Conditions, Group, group_id
from harness.records.estimate import Estimate
from harness.records.record import Record
from harness.records.summary import SummaryRow
from reports.completions.page import coloured_tokens
from reports.figures.drawing import look_of
from reports.leaderboard.checks import Check
from reports.leaderboard.ranking import CRITERIA, is_baseline, is_exact, quality_of, ranks
from reports.metrics.speedups import SPEEDUP
from reports.metrics.vocabulary import HEADLINE, LEADERBOARD, in_section, metrics_of, scores_of_sample, sections_of
from reports.recorded import RecordedRun
from reports.summary.measured import Measured, energy_origin
from reports.summary.pareto import TEXT_KEPT, on_front
from reports.tables.result import ResultTable, columns_of, is_asserted, is_candidate, windows_of
from reports.tables.run_tables import ACCEPTANCE_NOTE, acceptance_tables

SITE_SCHEMA = 2  # of the site's data files; raised when an older program would misread them
SAMPLES_SHOWN = 8  # completions per operating point on the site; all of them are in the run directory

FIELDS = (
    *("id", "group", "run", "name", "strategy", "kv", "decode", "asserted", "kind", "quality", "front", "ranks"),
    *("lossless_ranks", "n", "metrics"),
)  # fmt: skip
"""The fields of each operating point's list on the front page, in order."""

_MARKERS = {
    "o": "circle", "s": "square", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left", ">": "triangle-right",
    "D": "diamond", "d": "diamond-tall", "P": "cross", "X": "x", "x": "x-thin", "*": "star", "p": "pentagon",
}  # fmt: skip
"""matplotlib's markers, as plotly calls them."""


class PointEntry(Record):
    """One operating point on one task."""

    id: str  # 16 hexadecimal digits, permanent
    row: SummaryRow
    baseline_kv: str  # KV policy of the full depth it is compared with
    layers: dict[int, int] = Field(default_factory=dict)  # decoded tokens by the layer they left at, prefill's left out


class RunEntry(Record):
    """One run directory."""

    site_schema: int
    schema_version: int
    id: str  # 16 hexadecimal digits, permanent
    name: str  # of its folder when it was first published
    manifest: Manifest  # without private paths
    machine: str
    notes: tuple[str, ...]
    unranked: dict[str, str] = Field(default_factory=dict)
    """What ``harness submit`` would refuse it for: name of the condition → what was found."""
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

    def kv(self, conditions: Conditions, filled: str) -> str:
        """Return a KV policy, and as ``filled`` says from what it fills skipped layers if not from the exit's state."""
        source = str(self.manifest.config.get("kv_input") or "hidden")
        return (
            filled.format(conditions.kv, source) if source != "hidden" and conditions.kv_facts.fills else conditions.kv
        )


def entry_of(run: RecordedRun, run_id: str, checks: Sequence[Check]) -> RunEntry:
    """Return what the site keeps of a run; operating points without a finished sample are left out."""
    manifest, points = run.manifest, []
    baseline_kv = Conditions.of(manifest, manifest.tasks[0], manifest.operating_points[0]).kv
    for row in (row for row in run.summary.rows if row.n):
        cell = run.cells[row.task, row.operating_point]
        left = Counter(layer for sample in cell.scored for layer in cell.decoded_layers(sample))
        digest = hashlib.sha256(f"{run_id}\0{row.task}\0{row.operating_point}".encode()).hexdigest()
        layers = dict(sorted(left.items()))
        points.append(PointEntry(id=digest[:16], row=row, baseline_kv=baseline_kv, layers=layers))
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


def index_of(runs: Sequence[RunEntry]) -> dict[str, Any]:
    """Return the front page's data. The same runs give the same data, in whatever order they come."""
    runs = sorted(runs, key=lambda run: (run.manifest.created, run.id))
    members: dict[str, list[tuple[int, PointEntry]]] = {}
    facts: dict[str, Group] = {}
    for number, run in enumerate(runs):
        for point in run.points:
            group = run.group(point)
            facts[group_id(group)] = group
            members.setdefault(group_id(group), []).append((number, point))

    def place(name: str) -> tuple[bool, int, int, str]:
        """Those that compare something first, of them the one with most samples, then the longest."""
        ranked = [point.row.n for number, point in members[name] if not runs[number].unranked]
        return len(ranked) < 2, -max(ranked, default=0), -len(members[name]), name

    groups = sorted(members, key=place)
    rows = [point.row for run in runs for point in run.points]
    possible = in_section(metrics_of(rows), HEADLINE, LEADERBOARD)
    shown = [metric for metric in possible if any(row.estimate(metric) is not None for row in rows)]
    points = [line for number, name in enumerate(groups) for line in _lines(number, members[name], runs, shown)]
    looks = {name: look_of(name) for name in sorted({row.strategy for row in rows})}
    return {
        "fields": FIELDS,
        "metrics": [_describe_metric(metric, shown) for metric in shown],
        "axes": [SPEEDUP.name, TEXT_KEPT.name],
        "criteria": [[criterion.metric, criterion.title] for criterion in CRITERIA],
        "groups": [{"id": name, "facts": _facts(facts[name]), **_facets(facts[name])} for name in groups],
        "runs": [
            [run.id, run.name, run.manifest.created[:10], run.machine, list(run.unranked.values())] for run in runs
        ],
        "looks": {name: [look.colour, _MARKERS[look.marker]] for name, look in looks.items()},
        "points": points,
    }


def _facets(group: Group) -> dict[str, Any]:
    """Return the filters of the front page besides strategy, KV policy and decoding."""
    source, measured = str(group["Energy source"]), group["Energy measured by a sensor"]
    head, weights = str(group["Exit head"]).partition(":")[0], str(group["Weights’ hash, model’s fingerprint"])
    return {
        "task": group["Task"],
        "model": f"{group['Model']} ({group['Weights']})",
        "hardware": group["Hardware class"],
        "energy": source,
        "measured": measured,
        "origin": source if measured else energy_origin(source),
        "title": f"{group['Task']} · {group['Model']}, {group['Weights']} · {group['Hardware class']}",
        "detail": (
            f"{group['Protocol']} · {group['Data']} · data {str(group['Data fingerprint'])[:6]} · "
            f"{group['Number format']} · batch {group['Batch size']} · requests {group['Requests come']} · "
            f"exit head {head} · weights {weights[:6]} · energy {source} · against {group['Compared with']}"
        ),
    }


def _lines(
    group: int, members: Sequence[tuple[int, PointEntry]], runs: Sequence[RunEntry], shown: Sequence[Metric]
) -> Iterable[list[Any]]:
    ranked = [place for place, (run, _) in enumerate(members) if not runs[run].unranked]
    exact = [place for place in ranked if is_exact(members[place][1].row)]
    fronts = dict(zip(ranked, on_front([members[place][1].row for place in ranked], SPEEDUP), strict=True))

    def by_criterion(places: Sequence[int]) -> list[dict[int, int | None]]:
        """Return by each criterion the ranks of some members among each other, by their places."""
        rows = [members[place][1].row for place in places]
        return [dict(zip(places, ranks(rows, criterion), strict=True)) for criterion in CRITERIA]

    among_all, among_lossless = by_criterion(ranked), by_criterion(exact)
    for place, (number, point) in enumerate(members):
        row, run = point.row, runs[number]
        kind = "baseline" if is_baseline(row) else "candidate" if is_candidate(row) else "bound"
        yield [
            *(point.id, group, number, row.operating_point, row.strategy, run.kv(run.conditions(point), "{} ({})")),
            *(row.decode, int(is_asserted(row)), kind, quality_of(row), int(fronts.get(place, False))),
            [found.get(place) for found in among_all],
            [found.get(place) for found in among_lossless] if is_exact(row) else None,
            row.n,
            [_numbers(row.estimate(metric)) for metric in shown],
        ]


def _describe_metric(metric: Metric, shown: Sequence[Metric]) -> dict[str, Any]:
    """Return what the pages' scripts must know of a metric."""
    difference = f"{metric.name}_difference"
    return {
        "key": metric.name,
        "header": metric.term,
        "title": metric.title or metric.term,
        "about": metric.meaning,
        "unit": metric.unit,
        "form": metric.form,
        "better": metric.better,
        "energy": metric.kind == "energy",
        "paired": metric.paired,
        "column": HEADLINE in metric.sections or metric.paired is not None,
        "below": difference if any(other.name == difference for other in shown) else None,
    }


def _numbers(estimate: Estimate | None) -> float | list[float] | None:
    """Return a value, with its interval where it has one."""
    if estimate is None:
        return None
    rounded = [float(f"{number:.5g}") for number in (estimate.value, *(estimate.interval or ()))]
    return rounded if estimate.interval else rounded[0]


def _facts(group: Group) -> list[list[str]]:
    """Return a group's facts as (label, text), in reading order."""
    return [[name, "yes" if value is True else "no" if value is False else str(value)] for name, value in group.items()]


def describe_columns(entries: Iterable[RunEntry]) -> dict[str, Any]:
    """Return what the numbers of runs are called and mean, by section."""
    metrics = metrics_of(point.row for entry in entries for point in entry.points)
    return {
        "cards": [metric.name for metric in in_section(metrics, HEADLINE)],
        "sections": [[title, [metric.name for metric in in_section(metrics, title)]] for title in sections_of(metrics)],
        "columns": {metric.name: [metric.title or metric.term, metric.meaning] for metric in metrics},
    }


def describe_point(run: RecordedRun, entry: RunEntry, point: PointEntry, shown: int) -> dict[str, Any]:
    """Return the data of an operating point's page."""
    row, group = point.row, entry.group(point)
    cell = run.cells[row.task, row.operating_point]
    full = run.cells[row.task, run.manifest.operating_points[0].name]
    theirs = {sample.sample_id: sample for sample in full.scored}
    num_layers = run.manifest.model.num_layers
    origin = row.energy_source if row.energy_measured else energy_origin(row.energy_source)
    return {
        "id": point.id,
        "run": entry.id,
        "name": row.operating_point,
        "strategy": row.strategy,
        "task": group["Task"],
        "model": f"{group['Model']} ({group['Weights']})",
        "group": group_id(group),
        "facts": _facts(group),
        "baseline": is_baseline(row),
        "lossless": row.lossless,
        "bound": not is_candidate(row),
        "quality": quality_of(row),
        "verdict": row.verdict,
        "unranked": list(entry.unranked.values()),
        "settings": [*_settings(entry, cell), ["measured windows", windows_of([row])]],
        "cells": {
            metric.name: [column.texts[0], column.under, origin if metric.kind == "energy" else ""]
            for metric, column in columns_of([row]).items()
            if not column.empty
        },
        "drafts": [
            [table.title, [[column.header, column.texts[0]] for column in table.columns[len(table.leading) :]]]
            for table in acceptance_tables(ResultTable((row,), entry.machine))
        ],
        "drafts_note": ACCEPTANCE_NOTE,
        "layers": point.layers,
        "num_layers": num_layers,
        "scale": [
            (layer, *depth_shade(layer, num_layers)) for layer in sorted({*run.manifest.model.exit_points, num_layers})
        ],
        "finished": len(cell.scored),
        "failed": row.errors,
        "samples": [
            _sample(cell, sample, theirs.get(sample.sample_id), num_layers)
            for sample in sorted(cell.scored, key=lambda one: hashlib.sha256(one.sample_id.encode()).digest())[:shown]
        ],
    }


def _settings(entry: RunEntry, cell: Measured) -> list[list[str]]:
    point = cell.point
    most = "" if point.draft_max is None else f", drafts of {point.draft_max} tokens at most"
    return [
        ["strategy", point.strategy],
        *([f"option {name}", "default" if value is None else str(value)] for name, value in point.options.items()),
        ["KV policy", entry.kv(cell.conditions, "{}, filled from {}")],
        ["decoding", f"{point.decode}{most}"],
        *([["stop rule", point.stop]] if point.stop else []),
        *([["prompt read to", point.prompt_exit]] if point.prompt_exit else []),
        *([["keys and values kept", point.keep]] if point.keep else []),
        *([["computed while the user types", point.prefetch]] if point.prefetch else []),
        ["asked at layers", ", ".join(map(str, point.exit_points)) or "none"],
        *([f"SHA-256 of {name}", digest] for name, digest in point.artefacts.items()),
    ]


def _sample(cell: Measured, sample: SampleRecord, full: SampleRecord | None, num_layers: int) -> dict[str, Any]:
    decided, cached = cell.decoded_layers(sample), cell.conditions.cached
    html = coloured_tokens(sample, num_layers, full, cached=cached)
    return {
        "id": sample.sample_id,
        "html": html,
        "reference": sample.reference,
        "scores": [[metric.title or metric.term, round(score, 3)] for metric, score in scores_of_sample(sample)],
        "latency_s": sample.latency_s,
        "tokens": len(sample.exit_layers),
        "mean_layer": round(sum(decided) / len(decided), 1) if decided else None,
    }
