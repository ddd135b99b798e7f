"""The front page as data: every operating point once, its group, and its rank by each criterion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from harness.records import Manifest
from harness.records.summary import SummaryRow
from reports.figures.style import look_of
from reports.leaderboard.details import described
from reports.leaderboard.entries import PointEntry, RunEntry
from reports.leaderboard.groups import Group, group_of
from reports.leaderboard.ranking import CRITERIA, is_baseline, on_front, quality_of, ranks
from reports.summary.measured import Regime
from reports.tables.result import is_candidate

__all__ = ["FIELDS", "index_of"]

_NUMBERS = (
    "n",
    "edit_similarity",
    "edit_similarity_difference",
    "exact_match",
    "codebleu",
    "agreement",
    "layers_skipped",
    "oracle_fraction",
    "speedup",
    "decode_speedup",
    "latency_p50_s",
    "energy_j_per_token",
    "energy_ratio",
)
_INTERVALS = ("edit_similarity_difference", "speedup", "decode_speedup", "energy_ratio")
FIELDS = (
    *("id", "group", "run", "name", "strategy", "kv", "kind", "quality", "front", "ranks"),
    *_NUMBERS,
    *(f"{name}_ci" for name in _INTERVALS),
)
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
    groups = sorted(members, key=lambda group: (-len(members[group]), group.id))
    points = [line for number, group in enumerate(groups) for line in _lines(number, members[group], runs)]
    strategies = sorted({point.row.strategy for run in runs for point in run.points})
    return {
        "fields": FIELDS,
        "criteria": [[criterion.measure, criterion.title] for criterion in CRITERIA],
        "groups": [{"id": group.id, "facts": described(group), **_facets(group)} for group in groups],
        "runs": [[run.id, run.name, run.manifest.created[:10], run.machine] for run in runs],
        "looks": {name: _look(name) for name in strategies},
        "points": points,
    }


def _facets(group: Group) -> dict[str, str]:
    """What the front page filters by, besides strategy and KV policy."""
    return {
        "task": group.task,
        "model": f"{group.model} ({group.weights})",
        "hardware": group.hardware,
        "energy": group.energy_source,
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


def _lines(group: int, members: Sequence[tuple[int, PointEntry]], runs: Sequence[RunEntry]) -> Iterable[list[Any]]:
    rows = [point.row for _, point in members]
    by_criterion = [ranks(rows, criterion) for criterion in CRITERIA]
    for (run, point), front, *placed in zip(members, on_front(rows), *by_criterion, strict=True):
        row = point.row
        kind = "baseline" if is_baseline(row) else "candidate" if is_candidate(row) else "bound"
        yield [
            point.id,
            group,
            run,
            row.operating_point,
            row.strategy,
            _kv(runs[run].manifest, row),
            kind,
            quality_of(row),
            int(front),
            placed,
            *(_rounded(getattr(row, name)) for name in _NUMBERS),
            *(_interval(getattr(row, f"{name}_ci")) for name in _INTERVALS),
        ]


def _interval(interval: tuple[float, float] | None) -> list[float | None] | None:
    return None if interval is None else [_rounded(bound) for bound in interval]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}") if isinstance(value, float) else value


def _look(strategy: str) -> list[str]:
    look = look_of(strategy)
    return [look.colour, _MARKERS[look.marker]]
