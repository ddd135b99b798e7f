"""``harness sweep --replay``: all operating points over one trace, in parts, and the rows of ``sweep.json``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from harness.config import BASELINE, RunConfig, StrategySpec, parse_all
from harness.config.options import option_range
from harness.contracts import KVFacts, ModelInfo, price
from harness.contracts.recipes import Progress
from harness.decoding.engine import Engine
from harness.decoding.readings import Heads
from harness.decoding.unit_costs import Timing
from harness.errors import ArtefactError, ConfigError, UnknownNameError
from harness.models.controllers import Observation
from harness.models.model import ResolvedModel
from harness.records import DraftTimes, UnitTimes
from harness.records.calibration import Calibration
from harness.records.work import bytes_read
from harness.registry import KV_POLICIES
from harness.replay.groups import describe_groups
from harness.replay.options import SweepOptions
from harness.replay.records import Sweep, SweepRow
from harness.replay.replay import Outcome, Texts, check_replayable, draft_columns, replay, replay_lossless
from harness.replay.scores import ScoreTally, at_percentile, describe_scores, find_tallies, with_thresholds
from harness.replay.tables import notes_of, title_of
from harness.replay.tokens import TracedTokens, decided, read_tokens
from harness.running.operating_points import OperatingPoint, build_all, operating_points
from harness.running.plan import shared_fields
from harness.running.thresholds import THRESHOLD, Family, any_number, numbered
from harness.training.traces.reading import documents_of, exit_maps, held_out_rows, open_traces, rows_of
from harness.training.traces.store import Traces
from reports.statistics.intervals import Pair, known, ratio, share_bounds
from reports.summary.pareto import front

OBSERVED = 2048  # tokens on which thresholds are chosen

Timed = Mapping[str, tuple[UnitTimes, DraftTimes]]
"""Operating point → what parts of decoding take, and what drafting or exiting adds there."""


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep: the operating points in the order of its rows, and what it was of.

    ``calibration`` is of the scores; ``None`` where there is no folder for it.
    """

    sweep: Sweep
    points: tuple[OperatingPoint, ...]
    model: str
    traces: Traces
    resolved: ResolvedModel
    options: SweepOptions
    calibration: Calibration | None = None


def sweep(options: SweepOptions, references: Sequence[str] = (), *, progress: Progress) -> SweepResult:
    """Replay operating points on a trace, and ``references`` that stand in the table for comparison.

    A strategy with a threshold for which no value is given is swept over it.
    """
    specs = parse_all(options.strategies)
    if not specs:
        raise ConfigError("there is nothing to sweep. Give --strategy NAME, or NAME:threshold=VALUE,VALUE.")
    some = [one for spec in specs for one in numbered([spec], any_number)]
    progress.stage(f"reading the trace {options.replay}")
    model, traces, resolved = _opened(options)
    info = resolved.info
    for point in _points((), some, options, info)[0]:
        check_replayable(point, traces, info)
    document = traces.columns("document")["document"].long()
    asked, wanted = _rows_of(traces, resolved, document, options)
    heads = engine = None
    timing = Timing() if options.measure_costs else None
    if options.measure_costs or any(strategy.cheap_heads() for _, strategy in build_all(some)):
        progress.stage(f"loading {info.name}, for its {'times' if options.measure_costs else 'heads'}")
        loaded = resolved.load("cpu")
        heads = Heads(loaded.backbone)
        engine = None if timing is None else Engine(loaded.backbone, loaded.info, timing=timing)
    began = time.perf_counter()
    maps = exit_maps(traces, resolved, Observation(state="exit"))
    read = partial(read_tokens, traces, shortcuts=maps, seed=options.seed, heads=heads)
    replayed = torch.unique(document[wanted])
    observed = cache(lambda: _spread(read, wanted))
    others = cache(lambda: _spread(read, asked & ~torch.isin(document, replayed)))
    percentiles = _expanded(specs, options.points, observed, others, info)
    points, extra = _points(references, list(percentiles), options, info)
    timed: Timed | None = None
    if engine is not None:
        measuring = time.perf_counter()
        found = {point.name: engine.times(point.strategy, point.lossless) for point in points}
        timed = {name: times for name, times in found.items() if times is not None}
        began += time.perf_counter() - measuring
    tallies, left_out = list[ScoreTally](), dict[str, str]()
    if options.out is not None:
        tallies, left_out = find_tallies(specs, observed, info, replayed)
    progress.begin(f"replaying {len(points)} operating points", int(wanted.sum()))
    texts = Texts.of(traces, resolved.tokenizer.eos_token_ids)
    outcomes = replay_all(points, read(wanted), texts, info, len(traces.documents), tallies, progress)
    written = {str(spec): percentile for spec, percentile in percentiles.items()}
    labels = [
        {"reference": point.name in extra, "percentile": written.get(point.name.partition("@")[0])} for point in points
    ]
    rows = make_rows(points, outcomes, info, KV_POLICIES.load(options.kv).facts, timed, labels)
    seconds = time.perf_counter() - began - sum(tally.seconds for tally in tallies)
    result = Sweep(
        title=title_of(traces, options, outcomes[0].tokens),
        traces=str(traces.folder),
        traced_documents=options.document_split,
        tokens=rows[0].tokens,
        documents=rows[0].documents,
        model=info.name,
        **shared_fields(info, Sweep),
        kv=options.kv,
        notes=notes_of(traces, resolved, points, rows, outcomes[0].tokens, options, timing.times if timing else None),
        rows=tuple(rows),
        replay_s=round(seconds, 3),
    )
    calibration = None
    if options.out is not None:
        progress.stage("judging the scores")
        drafting = {one.name: made for one, made in zip(points, outcomes, strict=True) if one.lossless is not None}
        groups = describe_groups(traces, resolved, wanted, drafting)
        generated = bool(traces.index.get("new_tokens"))
        calibration = describe_scores(result, tallies, left_out, groups, generated=generated)
    return SweepResult(result, points, model, traces, resolved, options, calibration)


def _opened(options: SweepOptions) -> tuple[str, Traces, ResolvedModel]:
    model = options.model or str(Traces.open(options.replay, "").index["model"])
    try:
        return model, *open_traces(model, options.replay, artefacts=options.artefacts)
    except UnknownNameError as error:
        if options.model is not None or f"'{model}'" not in str(error):
            raise
        raise ConfigError(
            f"the trace {options.replay} is of '{model}', which is no known model. Say where it is: --model DIR."
        ) from None


def _rows_of(traces: Traces, resolved: ResolvedModel, document: Tensor, options: SweepOptions) -> tuple[Tensor, Tensor]:
    """Return at which rows of the tasks strategies are asked, and which of them to replay, ``[n]`` bool each."""
    tasks = options.tasks
    asked = rows_of(document, documents_of(traces, tasks))
    if traces.index.get("new_tokens"):
        asked &= decided(document)
    wanted = asked
    if options.document_split == "held-out":
        apart = documents_of(traces, (), resolved)
        wanted = asked & held_out_rows(traces, document, apart, seed=options.seed)
    if not wanted.any():
        raise ArtefactError(
            f"no document of {', '.join(tasks)} is held out in {traces.folder}. Use --document-split all, or "
            "trace more --documents."
        )
    return asked, wanted


def _spread(read: Callable[..., Iterator[TracedTokens]], wanted: Tensor) -> TracedTokens:
    """Return a sample of the wanted tokens, spread over all of them."""
    rows = wanted.nonzero().squeeze(1)
    if not len(rows):
        raise ConfigError(
            "percentiles are of documents that are not replayed, and all are. Use --document-split held-out, or "
            "list values."
        )
    some = torch.zeros_like(wanted)
    some[rows[:: max(1, len(rows) // OBSERVED)]] = True
    (observed,) = read(some, part=2 * OBSERVED)
    return observed


def _expanded(
    specs: Sequence[StrategySpec],
    count: int,
    observed: Callable[[], TracedTokens],
    others: Callable[[], TracedTokens],
    info: ModelInfo,
) -> dict[StrategySpec, float | None]:
    """Add thresholds where none is given, after the strategy's own; beside each the percentile that it was asked as."""

    def numbers(one: Family) -> dict[str, float]:
        return {at_percentile(one.spec, wanted, others(), info): wanted for wanted in one.wanted}

    found: dict[StrategySpec, float | None] = {}
    for spec in specs:
        found |= numbered([spec], numbers)
        if all(name != THRESHOLD for name, _ in spec.options) and option_range(spec.name, THRESHOLD) is not None:
            found |= dict.fromkeys(with_thresholds(spec, count, observed(), info))
    return found


def _points(
    references: Sequence[str], asked: Sequence[StrategySpec], options: SweepOptions, info: ModelInfo
) -> tuple[tuple[OperatingPoint, ...], set[str]]:
    """Return every operating point once, full depth and lossy references first, and names of those not requested."""
    given = {"kv": options.kv, "draft_max": options.draft_max, "draft_head": "full"}
    built = build_all([StrategySpec(BASELINE), *parse_all(references)])
    found = list(operating_points(built, RunConfig.build(given), [info]))
    extra = {point.name for point in found}
    for point in operating_points(build_all(asked), RunConfig.build({**given, "decode": options.decode}), [info]):
        twin = next((one for one in found if (one.strategy, one.lossless) == (point.strategy, point.lossless)), None)
        if twin is None:
            found.append(point)
        else:
            extra.discard(twin.name)
    return tuple(found), extra


def replay_all(
    points: Sequence[OperatingPoint],
    parts: Iterable[TracedTokens],
    texts: Texts,
    info: ModelInfo,
    documents: int,
    tallies: Sequence[ScoreTally],
    progress: Progress,
) -> list[Outcome]:
    """Return what operating points would have done on all parts of a trace, which are counted in the tallies, too."""
    done = 0
    drafted = {place: list[dict[str, Tensor]]() for place, point in enumerate(points) if point.lossless is not None}
    outcomes = [Outcome.nothing(documents) for _ in points]
    with torch.inference_mode():
        for tokens in parts:
            for place, point in enumerate(points):
                if place in drafted:  # parts divide documents, and drafts do not end with them
                    drafted[place].append(draft_columns(point, tokens, info))
                else:
                    outcomes[place] += replay(point, tokens, info)
            for tally in tallies:
                tally.add(tokens, info)
            done += len(tokens)
            progress.step(done, "tokens")
    for place, columns in drafted.items():
        outcomes[place] = replay_lossless(points[place], columns, texts, info, documents)
    return outcomes


# ---------------------------------------------------------------------------------------------- rows


def make_rows(
    points: Sequence[OperatingPoint],
    outcomes: Sequence[Outcome],
    model: ModelInfo,
    kv: KVFacts,
    timed: Timed | None,
    labels: Sequence[Mapping[str, Any]],
) -> list[SweepRow]:
    """Return one row per operating point, full depth first; ``kv`` is the policy of the expected speed-up."""
    both = list(zip(points, outcomes, strict=True))
    bounds = [outcome.layers for point, outcome in both if point.strategy.upper_bound and point.lossless is None]
    fewest = min(bounds, default=None)
    rows = [_row(*one, outcomes[0], fewest, model, kv, timed) for one in both]
    placed = [place for place, row in enumerate(rows) if not row.rehearsed]
    flags = front([(1 / rows[place].expected_speedup, rows[place].agreement) for place in placed])
    on_front = {place for place, flag in zip(placed, flags, strict=True) if flag}
    full = rows[0].seconds_per_token or 0
    return [
        row.model_copy(
            update={
                **label,
                "pareto": place in on_front,
                "expected_time_speedup": ratio(full, row.seconds_per_token or 0),
            }
        )
        for place, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]


def share_interval(outcome: Outcome) -> tuple[float, float] | None:
    """Return the 95 % interval of the agreement over documents; ``None`` where all of it is asserted, lossless."""
    if outcome.work.lossless:
        return None
    pairs = [Pair(r, t) for r, t in zip(outcome.right.tolist(), outcome.tokens.tolist(), strict=True) if t]
    return known(share_bounds(pairs))


def _row(
    point: OperatingPoint,
    outcome: Outcome,
    full: Outcome,
    fewest: int | None,
    model: ModelInfo,
    kv: KVFacts,
    timed: Timed | None,
) -> SweepRow:
    """Return a row; ``fewest`` are the layers of the bound."""
    count, layers, work = outcome.count, outcome.layers, outcome.work
    if point.strategy.upper_bound:  # a bound runs under exact keys and values, whatever the others do
        kv = point.record.kv_facts or kv
    deepest, reads, seconds = count * model.num_layers, bytes_read(model), None
    if timed is not None and (work.lossless or not kv.fills):  # what a fill takes was not measured
        times, draft = timed[point.name]
        seconds = price(outcome.amounts(model, kv), times.costs(draft).per_unit) / count
    drafts: dict[str, Any] = {}
    if work.lossless:
        drafts = {
            "tokens_per_verification": ratio(count, work.verifications),
            "acceptance": work.acceptance,
            "drafted_per_token": work.drafts / count,
            "layers_read_per_token": work.layers_read / count,
            "layers_discarded_per_token": work.layers_discarded / count,
        }
    return SweepRow(
        operating_point=point.name,
        **shared_fields(point.record, SweepRow),
        tokens=count,
        documents=int((outcome.tokens > 0).sum()),
        exit_layer_mean=layers / count,
        layers_skipped=1 - layers / deepest,
        agreement=outcome.agreement,
        agreement_ci=share_interval(outcome),
        exit_checks_per_token=work.exit_checks / count,
        lm_head_per_token=work.lm_head_evaluations / count,
        shortcut_per_token=work.shortcut_evaluations / count,
        kv_fill_layers_per_token=(deepest - layers if kv.fills else 0) / count,
        cheap_heads_per_token=work.cheap_head_evaluations / count,
        head_agreement=ratio(outcome.head_alike, outcome.head_checks),
        expected_speedup=price(full.amounts(model, kv), reads) / price(outcome.amounts(model, kv), reads),
        seconds_per_token=seconds,
        oracle_share=None if fewest is None or work.lossless else ratio(outcome.skipped_rightly, deepest - fewest),
        exits={layer: tokens / count for layer, tokens in sorted(outcome.exits.items())},
        **drafts,
    )
