"""``harness sweep --replay``: all operating points over one trace, in parts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from harness.config import BASELINE, StrategySpec, parse_all
from harness.config.decode import DRAFT_MAX, LOSSY, DecodeSpec, build_decode, parse_decode
from harness.config.options import build_strategy
from harness.contracts import ModelInfo, Strategy
from harness.contracts.recipes import Progress
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.readings import Heads
from harness.decoding.unit_costs import Timing
from harness.errors import ArtefactError, ConfigError, OptionError
from harness.models.controllers import Observation
from harness.models.model import ResolvedModel
from harness.records import DraftTimes, UnitTimes
from harness.records.calibration import Calibration
from harness.registry import KV_POLICIES
from harness.running.operating_points import OperatingPoint, operating_point
from harness.sweep.calibrate import describe_scores
from harness.sweep.grid import SWEPT, asks_for_thresholds, at_percentile, with_thresholds, without_percentile
from harness.sweep.labels import notes_of, notes_of_drafts, notes_of_heads, notes_of_times, title_of
from harness.sweep.records import DocumentSplit, Sweep
from harness.sweep.replay_lossless import Decisions, Texts, check_replayable, decide, replay_lossless
from harness.sweep.replay_strategy import Outcome, replay
from harness.sweep.rows import make_rows
from harness.sweep.scores import ScoreTally, families, find_levels
from harness.sweep.tokens import TracedTokens, read_tokens
from harness.training.traces.reading import exit_maps, held_out_rows, matches, open_traces
from harness.training.traces.store import Traces

OBSERVED = 2048  # tokens on which thresholds are chosen


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """The request of a sweep.

    Attributes:
        strategies: operating points in the mini-language of :mod:`harness.config`; one with a threshold for which no
            value is given is swept over it.
        references: operating points that stand in the table for comparison.
        points: thresholds of a strategy that is swept.
        documents: ``held-out``: those that heads of this seed never learned from; or ``all``.
        tasks: only documents of these tasks; all if empty.
        kv: name of the KV policy of the expected speed-up.
        decodes: ways to decode, as written; draft_max: tokens of a draft at most, lossless.
        seed: decides which documents are held out, and what random strategies draw.
        measure_costs: also measure what the model's parts take here.
        calibrate: also judge how well each score separates right from wrong exits.
    """

    strategies: tuple[str, ...]
    references: tuple[str, ...] = ()
    points: int = 20
    documents: DocumentSplit = "held-out"
    tasks: tuple[str, ...] = ()
    kv: str = Strategy.default_kv
    decodes: tuple[str, ...] = ("lossy",)
    draft_max: int = DRAFT_MAX
    seed: int = 0
    measure_costs: bool = False
    calibrate: bool = False


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        sweep: its rows and notes.
        points: the operating points, in the order of the rows.
        model: as it was asked for.
        traces, resolved, request: what it was of.
        calibration: of the scores; ``None`` unless the request says so.
    """

    sweep: Sweep
    points: tuple[OperatingPoint, ...]
    model: str
    traces: Traces
    resolved: ResolvedModel
    request: SweepRequest
    calibration: Calibration | None = None


def sweep(model: str, folder: Path, request: SweepRequest, *, artefacts: str | None, progress: Progress) -> SweepResult:
    """Replay operating points on a trace.

    Args:
        model: whose trace it is; see :func:`harness.models.model.resolve`.
        folder: of the trace.
        request: what to sweep.
        artefacts: where trained artefacts are looked for.
        progress: is told how it goes on.

    Raises:
        HarnessError: anything that cannot be replayed, in one line with the remedy.
    """
    specs = parse_all(request.strategies)
    if not specs:
        raise ConfigError("there is nothing to sweep. Give --strategy NAME, or NAME:threshold=VALUE,VALUE.")
    built = [(spec, build_strategy(spec)) for spec, _ in map(without_percentile, specs)]
    progress.stage(f"reading the trace {folder}")
    traces, resolved = open_traces(model, folder, artefacts=artefacts)
    info = resolved.info
    decodes = [parse_decode(text) for text in request.decodes]
    for spec, strategy in built:
        for decode in _ways(strategy, decodes):
            check_replayable(_point(spec, strategy, decode, request, info), traces, info)
    wanted = _wanted(traces, request)
    shortcuts = exit_maps(traces, resolved, Observation(state="exit"))
    heads = engine = None
    if request.measure_costs or any(strategy.cheap_heads() for _, strategy in built):
        progress.stage(f"loading {info.name}, for its {'times' if request.measure_costs else 'heads'}")
        loaded = resolved.load("cpu")
        heads = Heads(loaded.backbone)
        engine = Engine(loaded.backbone, loaded.info, timing=Timing()) if request.measure_costs else None
    began = time.perf_counter()
    references = [StrategySpec(BASELINE), *parse_all(request.references)]
    observed = _observed(traces, wanted, shortcuts, request.seed, heads)
    others = _observed(traces, _not_replayed(traces, wanted, request), shortcuts, request.seed, heads)
    expanded = _expanded(specs, request, observed, others, info)
    asked = list(expanded)
    points, extra = _points(references, asked, request, info)
    for point in points:
        check_replayable(point, traces, info)
    if engine is not None:
        measuring = time.perf_counter()
        for point in points:
            _times(engine, point)
        began += time.perf_counter() - measuring
    tallies, left_out = _tallies(specs, request, traces, wanted, observed, info)
    texts = Texts.of(traces, resolved.tokenizer.eos_token_ids)
    outcomes = _replay_all(points, tallies, traces, wanted, shortcuts, info, request.seed, heads, texts, progress)
    timing = None if engine is None else partial(_times, engine)
    rows = make_rows(points, outcomes, info, KV_POLICIES.load(request.kv).facts, extra, timing)
    percentiles = {str(spec): percentile for spec, percentile in expanded.items()}
    rows = tuple(
        row.model_copy(update={"percentile": percentiles.get(row.operating_point.partition("@")[0])}) for row in rows
    )
    seconds = time.perf_counter() - began - sum(tally.seconds for tally in tallies)
    count, documents = outcomes[0].count, int((outcomes[0].tokens > 0).sum())
    found = Sweep(
        title=title_of(traces, request.documents, request.tasks, count, documents),
        traces=str(folder),
        traced_documents=request.documents,
        tokens=count,
        documents=documents,
        model=info.name,
        weights=info.weights,
        dtype=info.dtype,
        exit_head=info.exit_head,
        num_layers=info.num_layers,
        exit_points=info.exit_points,
        fingerprint=info.fingerprint,
        kv=request.kv,
        notes=(
            *notes_of(traces, resolved, points, outcomes[0].tokens, request.documents, request.seed, request.kv),
            *notes_of_heads(rows),
            *notes_of_drafts(rows),
            *notes_of_times(None if engine is None else engine.timing.times, info),
        ),
        rows=rows,
        replay_s=round(seconds, 3),
    )
    calibration = None
    if request.calibrate:
        progress.stage("judging the scores")
        calibration = describe_scores(found, tallies, left_out, generated=bool(traces.index.get("new_tokens")))
    return SweepResult(found, points, model, traces, resolved, request, calibration)


def _times(engine: Engine, point: OperatingPoint) -> tuple[UnitTimes, DraftTimes]:
    """Return what parts of decoding take, and what drafting or exiting adds at an operating point."""
    found = engine.times(point.strategy, point.lossless)
    assert found is not None  # it measures
    return found


def _wanted(traces: Traces, request: SweepRequest) -> Tensor:
    """Return which rows to replay, ``[n]`` bool."""
    document = traces.columns("document")["document"].long()
    chosen = [number for number, facts in enumerate(traces.documents) if matches(facts, request.tasks)]
    if not chosen:
        known = sorted({str(facts["stream"]).partition(",")[0] for facts in traces.documents})
        raise ArtefactError(
            f"the trace {traces.folder} has no document of {', '.join(request.tasks)}; it has {', '.join(known)}."
        )
    wanted = torch.isin(document, torch.tensor(chosen))
    if request.documents == "held-out":
        wanted &= held_out_rows(traces, document, seed=request.seed)
    wanted &= _asked(traces, document)
    if not wanted.any():
        raise ArtefactError(
            f"no document of {', '.join(request.tasks)} is held out in {traces.folder}. Use --document-split all, or "
            "trace more --documents."
        )
    return wanted


def _asked(traces: Traces, document: Tensor) -> Tensor:
    """Return the rows at which strategies are asked, ``[n]`` bool: not where a context ends, which yields a token."""
    asked = torch.ones_like(document, dtype=torch.bool)
    if traces.index.get("new_tokens"):
        asked[1:] = document[1:] == document[:-1]
        asked[0] = False
    return asked


def _observed(
    traces: Traces, wanted: Tensor, shortcuts: Mapping[int, Linear], seed: int, heads: Heads | None
) -> Callable[[], TracedTokens]:
    """Return a sample of the wanted tokens, spread over all of them, read once."""

    @cache
    def read() -> TracedTokens:
        rows = wanted.nonzero().squeeze(1)
        some = torch.zeros_like(wanted)
        some[rows[:: max(1, len(rows) // OBSERVED)]] = True
        if not len(rows):
            raise ConfigError(
                "percentiles are of documents that are not replayed, and all are. Use --document-split held-out, or "
                "list values."
            )
        (observed,) = read_tokens(traces, some, shortcuts, seed=seed, part=2 * OBSERVED, heads=heads)
        return observed

    return read


def _not_replayed(traces: Traces, wanted: Tensor, request: SweepRequest) -> Tensor:
    """Return the rows of documents that are not replayed, ``[n]`` bool; of the same tasks where there are some."""
    document = traces.columns("document")["document"].long()
    other = ~torch.isin(document, torch.tensor(sorted(set(document[wanted].tolist()))))
    matching = [number for number, facts in enumerate(traces.documents) if matches(facts, request.tasks)]
    return other & torch.isin(document, torch.tensor(matching)) & _asked(traces, document)


def _expanded(
    specs: Sequence[StrategySpec],
    request: SweepRequest,
    observed: Callable[[], TracedTokens],
    others: Callable[[], TracedTokens],
    info: ModelInfo,
) -> dict[StrategySpec, float | None]:
    """Add thresholds where none is given, after the strategy's own; beside each the percentile that it was asked as."""
    found: dict[StrategySpec, float | None] = {}
    for given in specs:
        spec, percentile = without_percentile(given)
        if percentile is not None:
            found.setdefault(at_percentile(spec, percentile, others(), info), percentile)
            continue
        found.setdefault(spec, None)
        if asks_for_thresholds(spec):
            found |= dict.fromkeys(with_thresholds(spec, request.points, observed(), info))
    return found


def _tallies(
    specs: Sequence[StrategySpec],
    request: SweepRequest,
    traces: Traces,
    wanted: Tensor,
    observed: Callable[[], TracedTokens],
    info: ModelInfo,
) -> tuple[list[ScoreTally], dict[str, str]]:
    """Return counters for the scores of the strategies, if requested, and why some have none."""
    if not request.calibrate:
        return [], {}
    scored, left_out = families(specs)
    documents = torch.tensor(sorted(set(traces.columns("document")["document"][wanted].tolist())))
    tallies = []
    for spec in scored:
        try:
            with torch.inference_mode():
                tally = find_levels(spec, observed(), info, documents)
        except OptionError as error:  # whole numbers, for example
            left_out[str(spec)] = f"a {SWEPT} between its ends is refused: {error}"
            continue
        if tally is None:
            left_out[str(spec)] = "it decides alike at both ends of its threshold"
        else:
            tallies.append(tally)
    return tallies, left_out


def _ways(strategy: Strategy, decodes: Sequence[DecodeSpec]) -> Sequence[DecodeSpec]:
    """Return how a strategy decodes; one that only drafts does so losslessly whatever the others do."""
    own = parse_decode(strategy.default_decode)
    return [one for one in decodes if one.lossless] or [own] if own.lossless else decodes


def _point(
    spec: StrategySpec, strategy: Strategy, decode: DecodeSpec, request: SweepRequest, info: ModelInfo
) -> OperatingPoint:
    if not decode.lossless or not (decode.proposes or strategy.exit_points(info)):
        return operating_point(spec, strategy, info)
    lossless = build_decode(decode, request.draft_max)
    return operating_point(spec, strategy, info, request.kv, suffix=f"@{decode}", decode=decode, lossless=lossless)


def _points(
    references: Sequence[StrategySpec], asked: Sequence[StrategySpec], request: SweepRequest, info: ModelInfo
) -> tuple[tuple[OperatingPoint, ...], frozenset[str]]:
    """Return every operating point once, references first, and the names of those not requested.

    References are lossy, but for those that only draft. What never exits drafts where a source does.
    """
    kept: list[OperatingPoint] = []
    extra: set[str] = set()
    decodes = [parse_decode(text) for text in request.decodes]
    for place, spec in enumerate([*references, *asked]):
        strategy, requested = build_strategy(spec), place >= len(references)
        for decode in _ways(strategy, decodes if requested else [LOSSY]):
            point = _point(spec, strategy, decode, request, info)
            twin = next((one for one in kept if (one.strategy, one.lossless) == (strategy, point.lossless)), None)
            if twin is not None:
                extra.discard(twin.name)
                continue
            kept.append(point)
            if not requested:
                extra.add(point.name)
    return tuple(kept), frozenset(extra)


def _replay_all(
    points: Sequence[OperatingPoint],
    tallies: Sequence[ScoreTally],
    traces: Traces,
    wanted: Tensor,
    shortcuts: Mapping[int, Linear],
    info: ModelInfo,
    seed: int,
    heads: Heads | None,
    texts: Texts,
    progress: Progress,
) -> list[Outcome]:
    total, done = int(wanted.sum()), 0
    drafting = {place: Decisions() for place, point in enumerate(points) if point.lossless is not None}
    outcomes = [Outcome.nothing(len(traces.documents)) for _ in points]
    progress.begin(f"replaying {len(points)} operating points", total)
    with torch.inference_mode():
        for tokens in read_tokens(traces, wanted, shortcuts, seed=seed, heads=heads):
            for place, point in enumerate(points):
                if place in drafting:  # parts divide documents, and drafts do not end with them
                    drafting[place].add(decide(point, tokens, info))
                else:
                    outcomes[place] += replay(point, tokens, info)
            for tally in tallies:
                tally.add(tokens, info)
            done += len(tokens)
            progress.step(done, "tokens")
    for place, decisions in drafting.items():
        outcomes[place] = replay_lossless(points[place], decisions, texts, info, len(traces.documents))
    return outcomes
