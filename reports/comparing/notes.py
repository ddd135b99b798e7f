"""What must be said beside a comparison of two runs: its limits, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reports.comparing.differences import cost_obstacle, score_obstacle
from reports.comparing.pairing import JOINED
from reports.comparing.results import PointChange
from reports.metrics.time import LATENCY_P50, TOKENS_PER_S
from reports.recorded import RecordedRun
from reports.tables.result import windows_of

__all__ = ["notes"]


def notes(a: RecordedRun, b: RecordedRun, points: Sequence[PointChange], *, interleaved: bool) -> Iterator[str]:
    """Yield one sentence per thing that a reader must know.

    Args:
        a: run of before.
        b: run of after.
        points: what was compared.
        interleaved: both sides are of one run.
    """
    for letter, run in (("A", a), ("B", b)) if not interleaved else (("The run", a),):
        if run.state:
            yield f"{letter} is {run.state}; what both finished is compared."
        if any(row.flagged for row in run.summary.rows):
            yield f"{letter}: of its windows {windows_of(run.summary.rows)}."
    yield from _pairing(points)
    yield from _costs(a, b, points, interleaved=interleaved)
    reason = score_obstacle(a, b)
    if reason:
        yield f"Scores are not compared: {reason}."
    if any(one.value is not None and not one.measured for point in points for one in point.changes):
        yield "Energy is an estimate, no measurement: it is in no verdict and decides no condition."
    yield (
        "Intervals are over prompts, or blocks of them: t intervals of rates and means, a bootstrap of percentiles. "
        "What another process or another day would change is not in them; a percentile has an interval only "
        "where five prompts lie beyond it."
    )


def _pairing(points: Sequence[PointChange]) -> Iterator[str]:
    said: dict[tuple[str, str], list[str]] = {}
    for point in points:
        said.setdefault((point.task, point.matched.words), []).append(point.name)
    for (task, words), names in said.items():
        everywhere = len(names) == sum(point.task == task for point in points)
        yield f"{task}{'' if everywhere else ', ' + ', '.join(names)}: {words}."
    different = next((point for point in points if point.matched.paired and not point.matched.same_reference), None)
    if different is not None:
        yield "Scores are not compared: the prompts are the same and the references are not."
    blocks = [point for point in points if point.matched.paired and not point.of(TOKENS_PER_S).paired]
    if any(point.of(TOKENS_PER_S).value is not None for point in blocks):
        yield "The runs form their blocks of different prompts, so all costs are unpaired."
    throughput = [(point, point.of(TOKENS_PER_S)) for point in points]
    if any(JOINED in one.reason for _, one in throughput):
        yield (
            "The runs form their blocks differently: the smallest unions of blocks that hold the same prompts in both "
            "are paired."
        )
    for point, one in throughput:
        of = len(point.matched.same)
        if one.value is not None and one.paired and one.prompts < of:
            yield (
                f"{point.task}, {point.name}: throughput rests on {one.prompts} of the {of} matched prompts; the "
                "others' blocks failed in a run or do not match."
            )


def _costs(a: RecordedRun, b: RecordedRun, points: Sequence[PointChange], *, interleaved: bool) -> Iterator[str]:
    reasons = dict.fromkeys(cost_obstacle(a.manifest, b.manifest, point.formats) for point in points)
    yield from (f"Costs are not compared: {reason}." for reason in reasons if reason)
    if "" not in reasons:
        return
    if any(not point.matched.paired for point in points):
        yield "Prompts differ, so that a change of cost may come from them; it is tested unpaired."
    if interleaved:
        yield "Both sides are of one run and were measured interleaved: drift of the machine favours neither."
        return
    yield (
        f"The runs were measured one after the other (A {a.manifest.created[:16]}, B {b.manifest.created[:16]} UTC), "
        "not interleaved: drift of the machine is part of a change of cost. The speed-ups over each run's own full "
        "depth were measured interleaved with it; where they did not change, the machine probably did."
    )
    for point in points:
        one = point.of(LATENCY_P50)
        if point.baseline and one.distinguishable and one.value is not None:
            slower = "slower" if one.value > 0 else "faster"
            yield (
                f"{point.task}: full depth itself is {100 * abs(one.value):.1f} % {slower} in B. Where every operating "
                "point changed alike, look at machine and engine before you look at strategies."
            )
