"""The front page as data: every operating point once, its group, and its rank by each criterion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.contracts import Metric
from harness.records import Manifest
from harness.records.estimate import Estimate
from harness.records.summary import SummaryRow
from reports.figures.style import look_of
from reports.leaderboard.details import described
from reports.leaderboard.entries import PointEntry, RunEntry
from reports.leaderboard.groups import Group, group_of
from reports.leaderboard.ranking import CRITERIA, is_baseline, is_exact, quality_of, ranks
from reports.metrics.sections import HEADLINE, LEADERBOARD, in_section
from reports.metrics.speedups import SPEEDUP
from reports.metrics.vocabulary import metrics_of
from reports.summary.energy import energy_origin
from reports.summary.measured import Regime
from reports.summary.pareto import TEXT_KEPT, on_front
from reports.tables.result import is_asserted, is_candidate

__all__ = ["FIELDS", "index_of"]

FIELDS = (
    *("id", "group", "run", "name", "strategy", "kv", "decode", "asserted", "kind", "quality", "front", "ranks"),
    *("lossless_ranks", "n", "metrics"),
)  # fmt: skip
"""What each operating point's list on the front page holds, in order."""

_MARKERS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "v": "triangle-down",
    "<": "triangle-left",
    ">": "triangle-right",
    "D": "diamond",
    "d": "diamond-tall",
    "P": "cross",
    "X": "x",
    "x": "x-thin",
    "*": "star",
    "p": "pentagon",
}


def index_of(runs: Sequence[RunEntry]) -> dict[str, Any]:
    """Return the front page's data. The same runs give the same data, in whatever order they come."""
    runs = sorted(runs, key=lambda run: (run.manifest.created, run.id))
    members: dict[Group, list[tuple[int, PointEntry]]] = {}
    for number, run in enumerate(runs):
        for point in run.points:
            members.setdefault(group_of(run, point), []).append((number, point))
    groups = sorted(members, key=lambda group: (*_first(members[group], runs), group.id))
    shown = front_page_metrics(point.row for run in runs for point in run.points)
    points = [line for number, group in enumerate(groups) for line in _lines(number, members[group], runs, shown)]
    strategies = sorted({point.row.strategy for run in runs for point in run.points})
    return {
        "fields": FIELDS,
        "metrics": [describe_metric(metric, shown) for metric in shown],
        "axes": [SPEEDUP.name, TEXT_KEPT.name],
        "criteria": [[criterion.metric, criterion.title] for criterion in CRITERIA],
        "groups": [{"id": group.id, "facts": described(group), **_facets(group)} for group in groups],
        "runs": [
            [run.id, run.name, run.manifest.created[:10], run.machine, list(run.unranked.values())] for run in runs
        ],
        "looks": {name: _look(name) for name in strategies},
        "points": points,
    }


def _first(members: Sequence[tuple[int, PointEntry]], runs: Sequence[RunEntry]) -> tuple[bool, int, int]:
    """Order rankings: those that compare something first, of them the one with most samples, then the longest."""
    ranked = [point.row.n for number, point in members if not runs[number].unranked]
    return len(ranked) < 2, -max(ranked, default=0), -len(members)


def _facets(group: Group) -> dict[str, Any]:
    """What the front page filters by, besides strategy, KV policy and decoding."""
    return {
        "task": group.task,
        "model": f"{group.model} ({group.weights})",
        "hardware": group.hardware,
        "energy": group.energy_source,
        "measured": group.energy_measured,
        "origin": group.energy_source if group.energy_measured else energy_origin(group.energy_source),
        "title": f"{group.task} · {group.model}, {group.weights} · {group.hardware}",
        "detail": (
            f"{group.protocol} · {group.source} · data {group.fingerprint[:6]} · {group.dtype} · batch "
            f"{group.batch_size} · exit head {group.exit_head.partition(':')[0]} · weights {group.weights_id[:6]} · "
            f"energy {group.energy_source} · against {group.baseline}"
        ),
    }


def _kv(manifest: Manifest, row: SummaryRow) -> str:
    """The KV policy, with what it fills skipped layers from where that is not the exit's own state."""
    source = str(manifest.config.get("kv_input") or "hidden")
    (point,) = (point for point in manifest.operating_points if point.name == row.operating_point)
    return f"{row.kv} ({source})" if source != "hidden" and Regime.of(manifest, point).facts.fills else row.kv


def _lines(
    group: int, members: Sequence[tuple[int, PointEntry]], runs: Sequence[RunEntry], shown: Sequence[Metric]
) -> Iterable[list[Any]]:
    ranked = [place for place, (run, _) in enumerate(members) if not runs[run].unranked]
    rows = [members[place][1].row for place in ranked]
    fronts = dict(zip(ranked, on_front(rows, SPEEDUP), strict=True))
    by_criterion = _ranked(members, ranked)
    among_lossless = _ranked(members, [place for place in ranked if is_exact(members[place][1].row)])
    for place, (run, point) in enumerate(members):
        row = point.row
        kind = "baseline" if is_baseline(row) else "candidate" if is_candidate(row) else "bound"
        yield [
            point.id,
            group,
            run,
            row.operating_point,
            row.strategy,
            _kv(runs[run].manifest, row),
            row.decode,
            int(is_asserted(row)),
            kind,
            quality_of(row),
            int(fronts.get(place, False)),
            [found.get(place) for found in by_criterion],
            [found.get(place) for found in among_lossless] if is_exact(row) else None,
            row.n,
            [_numbers(row.estimate(metric)) for metric in shown],
        ]


def _ranked(members: Sequence[tuple[int, PointEntry]], places: Sequence[int]) -> list[dict[int, int | None]]:
    """Return by each criterion the ranks of some members of a group among each other, by their places."""
    rows = [members[place][1].row for place in places]
    return [dict(zip(places, ranks(rows, criterion), strict=True)) for criterion in CRITERIA]


def front_page_metrics(rows: Iterable[SummaryRow]) -> list[Metric]:
    """Return the metrics of the front page that some row has, in reading order."""
    listed = list(rows)
    found = in_section(metrics_of(listed), HEADLINE, LEADERBOARD)
    return [metric for metric in found if any(row.estimate(metric) is not None for row in listed)]


def describe_metric(metric: Metric, shown: Sequence[Metric]) -> dict[str, Any]:
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
    if estimate.interval is None:
        return _rounded(estimate.value)
    return [_rounded(number) for number in (estimate.value, *estimate.interval)]


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _look(strategy: str) -> list[str]:
    look = look_of(strategy)
    return [look.colour, _MARKERS[look.marker]]
