"""A comparison of two runs as one JSON document."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from reports.comparing.change import Change
from reports.comparing.conditions import Judgement
from reports.comparing.results import PointChange, RunChange
from reports.recorded import RecordedRun

__all__ = ["SCHEMA_VERSION", "comparison_document"]

SCHEMA_VERSION = 2


def comparison_document(comparison: RunChange, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return a JSON-able document; ``null`` is "not compared", with the reason beside it.

    Changes are fractions (0.05 is 5 %), levels in SI units; intervals are of 95 %. ``measured`` is false of an energy
    that no sensor of both runs measured: an estimate, of which no condition can be judged.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "a": _run(comparison.a),
        "b": _run(comparison.b),
        "differences": [dataclasses.asdict(one) for one in comparison.differences],
        "verdict": comparison.verdict,
        "notes": list(comparison.notes),
        "points": [_point(point) for point in comparison.points],
        "skipped": [
            {"task": task, "operating_point": name, "reason": reason} for task, name, reason in comparison.skipped
        ],
        "conditions": [
            {
                "condition": one.condition.text,
                "task": one.task or None,
                "operating_point": one.point or None,
                "outcome": one.outcome,
                "words": one.words,
            }
            for one in judgements
        ],
    }


def _run(run: RecordedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "created": run.manifest.created,
        "state": run.state or "finished",
        "model": run.manifest.model.name,
        "weights_sha256": run.manifest.model.weights_sha256,
    }


def _point(point: PointChange) -> dict[str, Any]:
    return {
        "task": point.task,
        "operating_point_a": point.a,
        "operating_point_b": point.b,
        "kv_a": point.kv_a,
        "kv_b": point.kv_b,
        "weights_format_a": point.formats[0],
        "weights_format_b": point.formats[1],
        "verdict": point.verdict,
        "prompts_matched": len(point.matched.same),
        "prompts_a": point.matched.in_a,
        "prompts_b": point.matched.in_b,
        "completions_identical": point.identical[0],
        "completions_compared": point.identical[1],
        "metrics": {one.metric.name: _change(one) for one in point.changes},
    }


def _change(one: Change) -> dict[str, Any]:
    return {
        "a": one.a,
        "b": one.b,
        "unit": one.metric.unit or None,
        "absolute": one.absolute,
        "absolute_interval": one.absolute_interval,
        "relative": one.relative,
        "relative_interval": one.relative_interval,
        "p": one.p,
        "p_holm": one.p_holm,
        "distinguishable": one.distinguishable,
        "units": one.units,
        "prompts": one.prompts,
        "paired": one.paired,
        "source": one.source or None,
        "measured": one.measured,
        "reason": one.reason or None,
        "no_interval": one.no_interval,
    }
