"""The page of one operating point as data: its numbers as reports write them, and some of its completions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from harness.contracts import Metric
from harness.records import SampleRecord
from harness.records.summary import SummaryRow
from reports.leaderboard.completions import completion, scale
from reports.leaderboard.entries import PointEntry, RunEntry
from reports.leaderboard.groups import Group, group_of
from reports.leaderboard.ranking import is_baseline, quality_of
from reports.metrics.scores import scores_of_sample
from reports.metrics.sections import HEADLINE, in_section, sections_of
from reports.metrics.vocabulary import metrics_of
from reports.recorded import RecordedRun
from reports.summary.energy import energy_origin
from reports.summary.measured import Measured
from reports.tables.columns import columns_of
from reports.tables.result import ResultTable, is_candidate, windows_of
from reports.tables.run_tables import ACCEPTANCE_NOTE, acceptance_tables

__all__ = ["SAMPLES_SHOWN", "describe_columns", "describe_point", "described"]

SAMPLES_SHOWN = 8
"""Completions per operating point on the site; all of them are in the run directory."""

_LABELS = {
    "hardware": "Hardware class",
    "task": "Task",
    "protocol": "Protocol",
    "source": "Data",
    "fingerprint": "Data fingerprint",
    "model": "Model",
    "weights": "Weights",
    "weights_id": "Weights’ hash, model’s fingerprint",
    "exit_head": "Exit head",
    "dtype": "Number format",
    "batch_size": "Batch size",
    "arrivals": "Requests come",
    "max_new_tokens": "Longest completion",
    "energy_source": "Energy source",
    "energy_measured": "Energy measured by a sensor",
    "baseline": "Compared with",
}


def described(group: Group) -> list[list[str]]:
    """Return a group's facts as (label, text), in reading order."""
    return [
        [_LABELS[name], "yes" if value is True else "no" if value is False else str(value)]
        for name, value in asdict(group).items()
    ]


def describe_columns(entries: Iterable[RunEntry]) -> dict[str, Any]:
    """Return what the numbers of runs are called and mean, by section."""
    metrics = metrics_of(point.row for entry in entries for point in entry.points)
    return {
        "cards": [metric.name for metric in in_section(metrics, HEADLINE)],
        "sections": [[title, [metric.name for metric in in_section(metrics, title)]] for title in sections_of(metrics)],
        "columns": {metric.name: [metric.title or metric.term, metric.meaning] for metric in metrics},
    }


def describe_point(run: RecordedRun, entry: RunEntry, point: PointEntry, shown: int) -> dict[str, Any]:
    """Return the data of an operating point's page.

    Args:
        run: without private paths.
        entry: what the site keeps of it.
        point: one of the entry's.
        shown: completions to show at most: those whose sample ids have the smallest hash, so that they are the same
            for every operating point and nobody picks them.
    """
    row, group = point.row, group_of(entry, point)
    cell = run.cells[row.task, row.operating_point]
    full = run.cells[row.task, run.manifest.operating_points[0].name]
    return {
        "id": point.id,
        "run": entry.id,
        "name": row.operating_point,
        "strategy": row.strategy,
        "task": group.task,
        "model": f"{group.model} ({group.weights})",
        "group": group.id,
        "facts": described(group),
        "baseline": is_baseline(row),
        "lossless": row.lossless,
        "bound": not is_candidate(row),
        "quality": quality_of(row),
        "verdict": row.verdict,
        "unranked": list(entry.unranked.values()),
        "settings": [*_settings(run, cell), ["measured windows", windows_of([row])]],
        "cells": {
            metric.name: [column.texts[0], column.under, _source(metric, row)]
            for metric, column in columns_of([row]).items()
            if not column.empty
        },
        "drafts": [
            [table.title, [[column.header, column.texts[0]] for column in table.columns[len(table.leading) :]]]
            for table in acceptance_tables(ResultTable((row,), entry.machine))
        ],
        "drafts_note": ACCEPTANCE_NOTE,
        "layers": point.layers,
        "num_layers": run.manifest.model.num_layers,
        "scale": scale(set(run.manifest.model.exit_points), run.manifest.model.num_layers),
        "finished": len(cell.scored),
        "failed": row.errors,
        "samples": _samples(cell, full, run.manifest.model.num_layers, shown),
    }


def _source(metric: Metric, row: SummaryRow) -> str:
    """Where an energy comes from, in words; empty for everything else."""
    if metric.kind != "energy":
        return ""
    return row.energy_source if row.energy_measured else energy_origin(row.energy_source)


def _settings(run: RecordedRun, cell: Measured) -> list[list[str]]:
    point = cell.point
    options = [[f"option {name}", "default" if value is None else str(value)] for name, value in point.options.items()]
    kv = cell.regime.kv
    most = "" if point.draft_max is None else f", drafts of {point.draft_max} tokens at most"
    source = str(run.manifest.config.get("kv_input") or "hidden")
    exits = ", ".join(map(str, point.exit_points)) or "none"
    return [
        ["strategy", point.strategy],
        *options,
        ["KV policy", kv if source == "hidden" or not cell.regime.facts.fills else f"{kv}, filled from {source}"],
        ["decoding", f"{point.decode}{most}"],
        *([["stop rule", point.stop]] if point.stop else []),
        ["asked at layers", exits],
        *([f"SHA-256 of {name}", digest] for name, digest in point.artefacts.items()),
    ]


def _samples(cell: Measured, full: Measured, num_layers: int, shown: int) -> list[dict[str, Any]]:
    theirs = {sample.sample_id: sample for sample in full.scored}
    picked = sorted(cell.scored, key=lambda sample: hashlib.sha256(sample.sample_id.encode()).digest())[:shown]
    return [_sample(cell, sample, theirs.get(sample.sample_id), num_layers) for sample in picked]


def _sample(cell: Measured, sample: SampleRecord, full: SampleRecord | None, num_layers: int) -> dict[str, Any]:
    decided = cell.decoded_layers(sample)
    return {
        "id": sample.sample_id,
        "html": completion(sample, num_layers, full, cached=cell.regime.cached),
        "reference": sample.reference,
        "scores": [[metric.title or metric.term, round(score, 3)] for metric, score in scores_of_sample(sample)],
        "latency_s": sample.latency_s,
        "tokens": len(sample.exit_layers),
        "mean_layer": round(sum(decided) / len(decided), 1) if decided else None,
    }
