"""From outcomes to the rows of ``sweep.json``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from torch import Tensor

from harness.contracts import KVFacts, ModelInfo, price
from harness.records import DraftTimes, UnitTimes, Work
from harness.records.work import bytes_read
from harness.running.operating_points import OperatingPoint
from harness.sweep.records import SweepRow
from harness.sweep.replay_strategy import Outcome
from reports.statistics.intervals import Pair, known, ratio, share_bounds
from reports.summary.pareto import front


def make_rows(
    points: Sequence[OperatingPoint],
    outcomes: Sequence[Outcome],
    model: ModelInfo,
    kv: KVFacts,
    references: Collection[str],
    timing: Callable[[OperatingPoint], tuple[UnitTimes, DraftTimes]] | None = None,
) -> tuple[SweepRow, ...]:
    """Return one row per operating point.

    Args:
        points: full depth first.
        outcomes: of the same tokens.
        model: facts.
        kv: the KV policy of the expected speed-up.
        references: names of operating points that were not requested.
        timing: returns what parts of decoding take, and of drafting by an operating point; ``None``: not measured.
    """
    rehearsed = [
        outcome
        for point, outcome in zip(points, outcomes, strict=True)
        if point.strategy.upper_bound and point.lossless is None
    ]
    best = min(rehearsed, key=lambda outcome: outcome.layers, default=None)
    rows = [
        _row(point, outcome, outcomes[0], best, model, kv, point.name in references)
        for point, outcome in zip(points, outcomes, strict=True)
    ]
    if timing is not None:
        seconds = [_seconds(point, one, model, kv, timing) for point, one in zip(points, outcomes, strict=True)]
        rows = [
            row.model_copy(
                update={"seconds_per_token": each, "expected_time_speedup": ratio(seconds[0] or 0, each or 0)}
            )
            for row, each in zip(rows, seconds, strict=True)
        ]
    placed = [place for place, row in enumerate(rows) if not row.rehearsed]
    flags = front([(1 / rows[place].expected_speedup, rows[place].agreement) for place in placed])
    for place, on_front in zip(placed, flags, strict=True):
        rows[place] = rows[place].model_copy(update={"pareto": on_front})
    return tuple(rows)


def share_interval(right: Tensor, tokens: Tensor) -> tuple[float, float] | None:
    """Return the 95 % interval of Σ right / Σ tokens over documents, ``[documents]`` each."""
    pairs = [Pair(r, t) for r, t in zip(right.tolist(), tokens.tolist(), strict=True) if t]
    return known(share_bounds(pairs))


def _row(
    point: OperatingPoint,
    outcome: Outcome,
    full: Outcome,
    best: Outcome | None,
    model: ModelInfo,
    kv: KVFacts,
    reference: bool,
) -> SweepRow:
    count, layers, work = outcome.count, outcome.layers, outcome.work
    if point.strategy.upper_bound:  # a bound runs under exact keys and values, whatever the others do
        kv = point.record.kv_facts or kv
    deepest, reads = count * model.num_layers, bytes_read(model)
    filled = deepest - layers if kv.fills else 0
    row = SweepRow(
        operating_point=point.name,
        strategy=point.record.strategy,
        options=point.record.options,
        exit_points=point.record.exit_points,
        artefacts=point.record.artefacts,
        reference=reference,
        rehearsed=point.strategy.upper_bound,
        tokens=count,
        documents=int((outcome.tokens > 0).sum()),
        exit_layer_mean=layers / count,
        layers_skipped=1 - layers / deepest,
        agreement=int(outcome.right.sum()) / count,
        agreement_ci=None if work.lossless else share_interval(outcome.right, outcome.tokens),  # asserted
        exit_checks_per_token=work.exit_checks / count,
        lm_head_per_token=work.lm_head_evaluations / count,
        shortcut_per_token=work.shortcut_evaluations / count,
        kv_fill_layers_per_token=filled / count,
        cheap_heads_per_token=work.cheap_head_evaluations / count,
        head_agreement=ratio(outcome.head_alike, outcome.head_checks),
        expected_speedup=price(full.amounts(model, kv), reads) / price(outcome.amounts(model, kv), reads),
        oracle_share=None if best is None or work.lossless else ratio(outcome.skipped_rightly, deepest - best.layers),
        exits={layer: tokens / count for layer, tokens in sorted(outcome.exits.items())},
        decode=point.record.decode,
        draft_max=point.record.draft_max,
    )
    return row.model_copy(update=_drafts(work, count)) if work.lossless else row


def _seconds(
    point: OperatingPoint,
    outcome: Outcome,
    model: ModelInfo,
    kv: KVFacts,
    timing: Callable[[OperatingPoint], tuple[UnitTimes, DraftTimes]],
) -> float | None:
    if point.strategy.upper_bound:
        kv = point.record.kv_facts or kv
    if kv.fills and not outcome.work.lossless:
        return None  # what a fill takes was not measured
    times, draft = timing(point)
    return price(outcome.amounts(model, kv), times.costs(draft).per_unit) / outcome.count


def _drafts(work: Work, count: int) -> dict[str, float | None]:
    """Return the fields of a lossless row, of so many tokens."""
    return {
        "tokens_per_verification": ratio(count, work.verifications),
        "acceptance": work.acceptance,
        "drafted_per_token": work.drafts / count,
        "layers_read_per_token": work.layers_read / count,
        "layers_discarded_per_token": work.layers_discarded / count,
    }
