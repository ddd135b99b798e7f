"""``harness suitability``: a small trace, what its exits know, and a sweep of three families with a verdict.

``docs/suitability.md`` has the families and what is not said; a setting is replayed as in a sweep and priced here.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from harness.config import StrategySpec, parse_strategies
from harness.config.decode import build_decode, parse_decode
from harness.config.options import build_strategy
from harness.contracts import ExitModule, KVFacts, ModelInfo, Strategy, price
from harness.contracts.recipes import Progress
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.exit_modules.linear import LinearExit
from harness.decoding.readings import best, choices, lm_head_of
from harness.decoding.unit_costs import Timing
from harness.errors import DataError
from harness.host.files import replace_files
from harness.host.libraries import resolve_device
from harness.metering.window import synchronise
from harness.models.controllers import Observation
from harness.models.model import ResolvedModel
from harness.records import DraftTimes, UnitTimes
from harness.records.work import bytes_read
from harness.registry import KV_POLICIES
from harness.replay.options import SuitabilityOptions
from harness.replay.records import ExitFacts, HeadFacts, Setting, Suitability
from harness.replay.replay import Outcome, Texts, draft_columns, replay, replay_lossless
from harness.replay.scores import with_thresholds
from harness.replay.sweep import share_interval
from harness.replay.tokens import COLUMNS, TracedTokens
from harness.replay.verdict import verdict
from harness.running.operating_points import OperatingPoint, operating_point
from harness.running.plan import shared_fields
from harness.training.shortcut import ShortcutMoments
from harness.training.traces.reading import exit_maps, open_traces
from harness.training.traces.record_trace import trace
from harness.training.traces.store import Traces

SUITABILITY = "suitability.json"
ROUNDS = 9
PLAIN, TRAINED, CLOSED_FORM = "plain", "trained maps", "closed-form maps"
MOST = 16_384
"""Tokens that are read at most: whole documents, some of a large trace."""
RANKED = 1024
"""Tokens whose ranks are found where the trace has the rest, at one LM head an exit each."""
FOLDS = 4
CHUNK = 64
SHORT = 4096
"""Rows of the short head whose costs are counted."""
LENGTHS = (1, 2, 4, 8)
"""Tokens of a draft."""
THRESHOLDS, THRESHOLDS_ALONE = 15, 7
"""Tried where every exit point checks, and where one does."""
STRICT = 3
"""Strictest of them that draft losslessly."""
LOSSLESS = parse_decode("lossless")

Columns = Mapping[str, Tensor]
OfExit = Callable[[int, Tensor], Tensor]
"""Exit layer and rows → states that a head reads, ``[n, hidden_size]``."""


def assess(options: SuitabilityOptions, progress: Progress) -> Suitability:
    """Judge a model, and write ``suitability.json`` where there is a folder for it."""
    with TemporaryDirectory(prefix="suitability-") as temporary:
        folder, model = options.traces, options.model
        if folder is None:
            folder = (options.out or Path(temporary)) / "trace"
            trace(options.traced(folder), progress)
        elif "model" not in options.model_fields_set:
            model = str(Traces.open(folder, model).index["model"])
        progress.stage("reading the trace")
        traces, resolved = open_traces(model, folder, artefacts=options.artefacts)
        columns = sampled(traces, *COLUMNS, "last", seed=options.seed)
        result = _judged(options, traces, resolved, columns, progress)
    result = result.model_copy(update={"verdict": tuple(verdict(result))})
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        replace_files({options.out / SUITABILITY: result.model_dump_json(indent=2).encode()})
    return result


def _judged(
    options: SuitabilityOptions, traces: Traces, resolved: ResolvedModel, columns: Columns, progress: Progress
) -> Suitability:
    progress.stage(f"loading {resolved.info.name}")
    (loaded, *_) = resolved.load_all(resolve_device(options.device), progress.stage, (options.weights_format,))
    info, backbone = loaded.info, loaded.backbone
    trained = exit_maps(traces, resolved, Observation(state="exit"))
    progress.begin("reading exits, plain and mapped", (3 if trained else 2) * len(traces.exit_points))
    reads = list(read_all(columns, traces, trained, backbone, progress.step))
    prices, times = None, None
    costs: tuple[float, float] = info.lm_head_bytes, info.layer_bytes
    if options.measure_costs:
        progress.stage("measuring what parts take here")
        prices = _prices(Engine(backbone, info, timing=Timing()), backbone)
        times, costs = prices.times, (prices.times.head_s, prices.times.layer_s)
    progress.begin("replaying strategies", len(reads))
    found = best_settings(reads, info, prices, keep=options.keep, step=progress.step)
    numbers = sorted(set(columns["document"].tolist()))
    return Suitability(
        model=info.name,
        **shared_fields(info, Suitability),
        documents=len(numbers),
        tokens=len(columns["final"]),
        streams=tuple(sorted({str(traces.documents[number]["stream"]) for number in numbers})),
        keep=options.keep,
        heads=tuple(describe(read, info) for read in reads),
        head_in_layers=costs[0] / costs[1],
        row_share=None if times is None else times.layer_row_s / times.layer_s,
        times=times,
        chances=tuple(found),
    )


# ---------------------------------------------------------------------------------- what exits know


@dataclass(frozen=True)
class ReadExits:
    """Some tokens as a head reads them at every exit point; ``ranks``: of the last layer's token, ``[some, exits]``."""

    name: str
    own: bool
    tokens: TracedTokens
    ranks: Tensor


def sampled(traces: Traces, *names: str, seed: int = 0) -> dict[str, Tensor]:
    """Return columns of whole documents, :data:`MOST` tokens at most, in the order of the trace."""
    generator = torch.Generator().manual_seed(seed)
    chosen, count = [], 0
    for number in torch.randperm(len(traces.documents), generator=generator).tolist():
        size = int(traces.documents[number]["tokens"])
        if count + size <= MOST:
            chosen.append(number)
            count += size
    if len(chosen) < FOLDS:
        raise DataError(
            f"{len(chosen)} documents of {traces.folder} can be read, and it takes {FOLDS}, since maps are fitted on "
            "some and judged on others. Use more --documents."
        )
    parts = []
    for shard in traces.shards(*dict.fromkeys((*names, "document"))):
        rows = torch.isin(shard["document"].long(), torch.tensor(chosen))
        parts.append([shard[name][rows] for name in names])
    return {name: torch.cat(found) for name, found in zip(names, zip(*parts, strict=True), strict=True)}


def read_all(
    columns: Columns, traces: Traces, trained: Mapping[int, ExitModule], backbone: Backbone, step: Callable[[int], None]
) -> Iterator[ReadExits]:
    """Yield the tokens as read by the plain head, by trained maps where the model has some, and by closed-form ones.

    Closed-form maps are fitted on some documents and judged on the others (cross-fitting).
    """
    points, hidden, final = traces.exit_points, columns["hidden"], columns["final"].long()
    keys, everything = [str(document["key"]) for document in traces.documents], torch.arange(len(final))
    done = 0

    def read(states: OfExit, rows: Tensor) -> dict[str, Tensor]:
        nonlocal done
        found = []
        for point in points:
            found.append(_read(backbone, states(point, rows), final[rows]))
            done += 1
            step(done)
        return {name: torch.stack([each[name] for each in found], dim=1) for name in found[0]}

    def made(name: str, own: bool, maps: Mapping[int, ExitModule], ranks: Tensor, said: Columns) -> ReadExits:
        tokens = TracedTokens(points, [({**columns, **said}, everything)], maps, keys, generated=False)
        return ReadExits(name, own, tokens, ranks)

    def plain(point: int, rows: Tensor) -> Tensor:
        return hidden[rows, points.index(point)].float()

    some = torch.randperm(len(final), generator=torch.Generator().manual_seed(0))[:RANKED].sort().values
    own = read((lambda point, rows: trained[point](plain(point, rows))) if trained else plain, some)
    if trained:
        found = read(plain, everything)
        yield made(PLAIN, False, {}, found.pop("rank"), found)
    yield made(TRAINED if trained else PLAIN, True, trained, own["rank"], {})
    crossed = {point: torch.empty(len(final), hidden.shape[2]) for point in points}
    maps: dict[int, ExitModule] = {}
    _, number = torch.unique(columns["document"], return_inverse=True)
    for fold in range(FOLDS):
        learned = number % FOLDS != fold
        moments = ShortcutMoments(points, hidden.shape[2])
        moments.add({point: hidden[learned, e] for e, point in enumerate(points)}, columns["last"][learned])
        maps = {point: LinearExit({"": Linear(fit.weight, fit.bias)}) for point, fit in moments.solve().items()}
        rows = (~learned).nonzero().squeeze(1)
        for point in points:
            crossed[point][rows] = maps[point](plain(point, rows))
    found = read(lambda point, rows: crossed[point][rows], everything)
    yield made(CLOSED_FORM, False, maps, found.pop("rank"), found)


def describe(read: ReadExits, model: ModelInfo) -> HeadFacts:
    """Return what the exits know."""
    tokens = read.tokens
    exits = []
    for place, layer in enumerate(tokens.exit_points):
        ranks = read.ranks[:, place].float()
        exits.append(
            ExitFacts(
                layer=layer,
                agreement=(tokens.column("top", layer) == tokens.final).float().mean().item(),
                entropy=tokens.column("entropy", layer).mean().item(),
                rank_median=ranks.median().item(),
                in_ten=(ranks <= 10).float().mean().item(),
            )
        )
    bound = replay(_point("oracle", model), tokens, model)
    return HeadFacts(
        name=read.name,
        own=read.own,
        exits=tuple(exits),
        oracle_skip=1 - bound.layers / (bound.count * model.num_layers),
        ranked=len(read.ranks),
    )


@torch.inference_mode()
def _read(backbone: Backbone, states: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Return what the LM head says of states ``[n, hidden_size]``: the columns of a trace, and the targets' ranks."""
    parts = []
    for some, wanted in zip(torch.split(states, CHUNK), torch.split(targets, CHUNK), strict=True):
        logits = backbone.logits(some.to(backbone.dtype)).float()
        shares = logits.log_softmax(-1)
        two = shares.topk(2, dim=-1)
        parts.append(
            {
                "top": two.indices[:, 0].int(),
                "top1": two.values[:, 0].exp(),
                "top2": two.values[:, 1].exp(),
                "entropy": -(shares.exp() * shares).nan_to_num(0.0).sum(-1),
                "rank": 1 + (logits > logits.gather(1, wanted.unsqueeze(1))).sum(-1),
            }
        )
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


# ------------------------------------------------------------------------------------ what parts cost


@dataclass(frozen=True, slots=True)
class Prices:
    """Seconds of parts on this machine: ``check`` asks about the whole head, read; ``short`` reads the short head."""

    times: UnitTimes
    check: float
    map: float
    short: float


def _prices(engine: Engine, backbone: Backbone) -> Prices:
    found = engine.times(build_strategy(StrategySpec("confidence")), None)
    assert found is not None  # it measures
    times, draft = found
    lm_head = lm_head_of(backbone)
    width, device = lm_head.width, str(backbone.device)
    short = lm_head.pack(lm_head.rows(torch.arange(min(SHORT, lm_head.vocab_size), device=backbone.device)))
    state, zeros = torch.ones(1, width, device=backbone.device), torch.zeros(width, device=backbone.device)
    square = Linear(torch.ones(width, width, device=backbone.device) / width, zeros)
    with torch.inference_mode():
        return Prices(
            times=times.model_copy(update={"drafts": {}}),
            check=draft.check_s,
            map=_least(lambda: square(state), device),
            short=_least(lambda: choices(best(short(state))), device),
        )


def _least(once: Callable[[], object], device: str) -> float:
    """Return the least seconds of several rounds, besides a first one, until the device has done what it was given."""

    def whole() -> None:
        once()
        synchronise(device)

    _, *seconds = timeit.repeat(whole, number=1, repeat=ROUNDS + 1)
    return min(seconds)


# ------------------------------------------------------------------------------ the best of each family


def best_settings(
    reads: Sequence[ReadExits],
    info: ModelInfo,
    prices: Prices | None,
    *,
    keep: float,
    step: Callable[[int], None],
    short: int = SHORT,
) -> list[Setting]:
    """Return the best setting of every family with every head that keeps enough, fastest first, lossy before lossless.

    Without ``prices`` only bytes are counted. The short head, of so many rows, is left out where the vocabulary is no
    longer than two of it.
    """
    short_bytes = short * info.lm_head_bytes // info.vocab_size if info.vocab_size > 2 * short else 0
    found = [
        Setting(
            family="full depth", head="–", setting="full", agreement=1.0, layers=info.num_layers, bytes_speedup=1.0,
            time_speedup=None if prices is None else 1.0,
        )
    ]  # fmt: skip
    for place, read in enumerate(reads):
        exits = _Exits(read, info, prices, short_bytes)
        best_of: dict[str, Setting] = {}
        for setting in (*exits.lossy(), *exits.lossless()):
            slower = setting.family in best_of and best_of[setting.family].speedup >= setting.speedup
            if not slower and setting.agreement >= keep:
                best_of[setting.family] = setting
        found += best_of.values()
        step(place + 1)
    return sorted(found, key=lambda one: (one.lossless, -one.speedup))


class _Exits:
    """One head's tokens, and how the settings of its families are replayed and priced."""

    def __init__(self, read: ReadExits, info: ModelInfo, prices: Prices | None, short_bytes: int) -> None:
        self._head, self._tokens, self._prices, self._short_bytes = read.name, read.tokens, prices, short_bytes
        maps = bool(read.tokens.shortcuts)
        self._info = replace(info, shortcut_bytes=info.hidden_size * (info.hidden_size + 1) * 4 if maps else 0)
        self._full = replay(_point("full", self._info), self._tokens, self._info)
        mapped = prices.map if prices is not None and maps else 0.0
        head, check, short = (0.0, 0.0, 0.0) if prices is None else (prices.times.head_s, prices.check, prices.short)
        self._unasked = DraftTimes(check_s=0.0, read_s=head + mapped)
        self._whole = DraftTimes(check_s=check + mapped, read_s=0.0)
        self._short = DraftTimes(check_s=max(check - head, 0.0) + short + mapped, read_s=head)
        self._short_draft = DraftTimes(check_s=0.0, read_s=short + mapped)

    def _setting(self, family: str, name: str, outcome: Outcome, asking: DraftTimes, bound: bool = False) -> Setting:
        kv: KVFacts = KV_POLICIES.load(Strategy.default_kv).facts
        reads, seconds = bytes_read(self._info), None
        whole, own = self._full.amounts(self._info, kv), outcome.amounts(self._info, kv)
        if self._prices is not None and not kv.fills:
            times = self._prices.times
            unasked = times.costs(DraftTimes(check_s=0.0, read_s=0.0))
            seconds = price(whole, unasked.per_unit) / price(own, times.costs(asking).per_unit)
        return Setting(
            family=family,
            head=self._head,
            setting=name,
            lossless=outcome.work.lossless,
            bound=bound,
            agreement=outcome.agreement,
            agreement_ci=share_interval(outcome),
            layers=(outcome.layers + outcome.work.layers_discarded) / outcome.count,
            bytes_speedup=price(whole, reads) / price(own, reads),
            time_speedup=seconds,
        )

    def lossy(self) -> Iterator[Setting]:
        """Yield the oracle, fixed depths, and one confidence check at all exit points or at one, at three prices."""
        everywhere, texts = self._info.exit_points, [f"fixed:layer={layer}" for layer in self._info.exit_points]
        for family, text in [("oracle", "oracle"), *(("fixed depth", text) for text in texts)]:
            found = replay(_point(text, self._info), self._tokens, self._info)
            yield self._setting(family, text, found, self._unasked, bound=family == text)
        for exits in [everywhere, *((layer,) for layer in everywhere if len(everywhere) > 1)]:
            yield from self._checked(replace(self._info, exit_points=exits))

    def _checked(self, info: ModelInfo) -> Iterator[Setting]:
        count, one, where = THRESHOLDS, "", ""
        if len(info.exit_points) == 1:
            count, one, where = THRESHOLDS_ALONE, "one ", f" at layer {info.exit_points[0]}"
        never = StrategySpec("confidence", (("threshold", "1"),))  # or hardly: it pays for its checks all the same
        for spec in [never, *with_thresholds(StrategySpec("confidence"), count, self._tokens, info, refuse=False)]:
            found = replay(operating_point(spec, build_strategy(spec), info), self._tokens, info)
            name, checks = f"{spec}{where}", found.work.exit_checks
            yield self._setting(f"{one}check by the LM head", name, found, self._whole)
            if self._short_bytes:
                size = checks * self._short_bytes
                cheap = _with(
                    found, lm_head_evaluations=found.count, cheap_head_evaluations=checks, cheap_head_bytes=size
                )
                yield self._setting("check by a short head", name, cheap, self._short, bound=True)
            maps = found.count - found.exits[info.num_layers] if self._tokens.shortcuts else 0
            free = _with(found, lm_head_evaluations=found.count, shortcut_evaluations=maps)
            yield self._setting("learned check", name, free, self._unasked, bound=True)

    def lossless(self) -> Iterator[Setting]:
        """Yield drafts of fixed length, and drafts that end where the exit is not sure."""
        for layer, length in product(self._info.exit_points, LENGTHS):
            name, found = self._drafting(f"layerskip:layer={layer}:length={length}", length)
            yield self._setting("drafts of fixed length", name, found, self._unasked)
            if self._short_bytes:
                drafts = 0 if found.work.drafting is None else found.work.drafting.passes
                heads = found.work.lm_head_evaluations - drafts
                cheap = _with(found, lm_head_evaluations=heads, cheap_head_bytes=drafts * self._short_bytes)
                yield self._setting("drafts by a short head", name, cheap, self._short_draft, bound=True)
        confident = with_thresholds(StrategySpec("confidence"), THRESHOLDS, self._tokens, self._info, refuse=False)
        for spec in confident[:STRICT]:
            name, found = self._drafting(str(spec), max(LENGTHS))
            yield self._setting("drafts while sure", name, found, self._whole)

    def _drafting(self, text: str, length: int) -> tuple[str, Outcome]:
        point = _point(text, self._info, length)
        columns = draft_columns(point, self._tokens, self._info)
        texts = Texts({}, limit=len(self._tokens) + 2, eos=frozenset())
        return point.name, replay_lossless(point, [columns], texts, self._info, len(self._tokens.documents))


def _point(text: str, info: ModelInfo, length: int | None = None) -> OperatingPoint:
    """Return an operating point as written, lossless where drafts have a length."""
    (spec,) = parse_strategies(text)
    if length is None:
        return operating_point(spec, build_strategy(spec), info)
    lossless = build_decode(LOSSLESS, length)
    suffix = f"@{LOSSLESS}"
    return operating_point(spec, build_strategy(spec), info, suffix=suffix, decode=LOSSLESS, lossless=lossless)


def _with(found: Outcome, **counters: Any) -> Outcome:
    return replace(found, work=replace(found.work, **counters))
