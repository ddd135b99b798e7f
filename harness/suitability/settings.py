"""The best setting of each family of strategies on tokens that were read once, by bytes and by measured times.

Settings are replayed by the sweep's own machinery and priced by its own models. A family in which something is free
that would cost (checks, or a short head that decides as the whole one does) is an upper bound: its best setting says
what a better check could gain, not what one has gained.

Lossless decoding is replayed along the documents' own text, where live drafts follow what the model generates: at each
place exits and full depth have read the same true tokens. Acceptance there stands in for acceptance live.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.config import StrategySpec
from harness.config.decode import build_decode, parse_decode
from harness.config.options import build_strategy
from harness.contracts import KVFacts, ModelInfo, Strategy, price
from harness.records import DraftTimes, UnitTimes
from harness.records.work import bytes_read
from harness.registry import KV_POLICIES
from harness.running.operating_points import OperatingPoint, operating_point
from harness.suitability.exits import ReadExits
from harness.suitability.record import Setting
from harness.sweep.grid import with_thresholds
from harness.sweep.replay_lossless import Decisions, Texts, decide, replay_lossless
from harness.sweep.replay_strategy import Outcome, replay
from harness.sweep.rows import share_interval

SHORT = 4096
"""Rows of the short head whose costs are counted."""
LENGTHS = (1, 2, 4, 8)
"""Tokens of a draft."""
THRESHOLDS, THRESHOLDS_ALONE = 15, 7
"""Tried where every exit point checks, and where one does."""
STRICT = 3
"""Strictest of them that draft losslessly."""
LOSSLESS = parse_decode("lossless")


@dataclass(frozen=True, slots=True)
class Prices:
    """Costs of the parts of decoding on this machine, in seconds.

    Attributes:
        times: of layers and LM head. check: asking about the whole head at one exit, its reading included.
        map: an exit's linear map. short: reading the short head instead of the whole one.
    """

    times: UnitTimes
    check: float
    map: float
    short: float


@dataclass(frozen=True)
class _Replayed:
    """One setting: what it did, and what that costs.

    Attributes:
        setting: name. outcome: replayed. draft: what asking and reading an exit take, in seconds.
        bound: as of a family.
    """

    family: str
    setting: str
    outcome: Outcome
    draft: DraftTimes
    lossless: bool = False
    bound: bool = False


class _Exits:
    """One head's tokens, and how its families are replayed and priced.

    Args:
        read: the tokens.
        info: the model; its ``shortcut_bytes`` those of the head's maps.
        prices: what parts cost; ``None`` where only bytes are counted.
        short_bytes: bytes that reading the short head moves; 0 where the whole head is no longer.
    """

    def __init__(self, read: ReadExits, info: ModelInfo, prices: Prices | None, short_bytes: int) -> None:
        self._tokens, self._info, self._short_bytes = read.tokens, info, short_bytes
        mapped = prices.map if prices is not None and read.tokens.shortcuts else 0.0
        head, check, short = (0.0, 0.0, 0.0) if prices is None else (prices.times.head_s, prices.check, prices.short)
        self._unasked = DraftTimes(check_s=0.0, read_s=head + mapped)
        self._whole = DraftTimes(check_s=check + mapped, read_s=0.0)
        asking = max(check - head, 0.0)
        self._short = DraftTimes(check_s=asking + short + mapped, read_s=head)
        self._short_draft = DraftTimes(check_s=0.0, read_s=short + mapped)

    def full(self) -> Outcome:
        """Full depth."""
        return replay(self._point(StrategySpec("full")), self._tokens, self._info)

    def lossy(self) -> Iterator[_Replayed]:
        """Every lossy setting."""
        oracle = self._point(StrategySpec("oracle"))
        yield _Replayed("oracle", "oracle", replay(oracle, self._tokens, self._info), self._unasked, bound=True)
        for layer in self._info.exit_points:
            point = self._point(_spec("fixed", layer=layer))
            yield _Replayed("fixed depth", point.name, replay(point, self._tokens, self._info), self._unasked)
        everywhere = self._info.exit_points
        for exits in [everywhere, *([(layer,) for layer in everywhere] if len(everywhere) > 1 else [])]:
            yield from self._checked(exits)

    def _checked(self, exits: tuple[int, ...]) -> Iterator[_Replayed]:
        """Confidence at some exit points, and the same decisions at other prices."""
        info = replace(self._info, exit_points=exits)
        alone = len(exits) == 1
        where = f" at layer {exits[0]}" if alone else ""
        count = THRESHOLDS_ALONE if alone else THRESHOLDS
        never = StrategySpec("confidence", (("threshold", "1"),))  # or hardly: it pays for its checks all the same
        for spec in [never, *with_thresholds(StrategySpec("confidence"), count, self._tokens, info, refuse=False)]:
            point = operating_point(spec, build_strategy(spec), info)
            found = replay(point, self._tokens, info)
            name = f"{point.name}{where}"
            yield _Replayed(f"{'one ' if alone else ''}check by the LM head", name, found, self._whole)
            if self._short_bytes:
                checks = found.work.exit_checks
                cheap = _with(
                    found,
                    lm_head_evaluations=found.count,
                    cheap_head_evaluations=checks,
                    cheap_head_bytes=checks * self._short_bytes,
                )
                yield _Replayed("check by a short head", name, cheap, self._short, bound=True)
            left = found.count - found.exits[info.num_layers]
            free = _with(
                found, lm_head_evaluations=found.count, shortcut_evaluations=left if self._tokens.shortcuts else 0
            )
            yield _Replayed("learned check", name, free, self._unasked, bound=True)

    def lossless(self) -> Iterator[_Replayed]:
        """Every lossless setting: drafts of fixed length, and drafts that end where the exit is not sure."""
        for layer in self._info.exit_points:
            for length in LENGTHS:
                point = self._point(_spec("layerskip", layer=layer, length=length), length)
                found = self._replayed(point)
                yield _Replayed("drafts of fixed length", point.name, found, self._unasked, lossless=True)
                if self._short_bytes:
                    drafts = 0 if found.work.drafting is None else found.work.drafting.passes
                    cheap = _with(
                        found,
                        lm_head_evaluations=found.work.lm_head_evaluations - drafts,
                        cheap_head_bytes=drafts * self._short_bytes,
                    )
                    yield _Replayed(
                        "drafts by a short head", point.name, cheap, self._short_draft, lossless=True, bound=True
                    )
        confident = with_thresholds(StrategySpec("confidence"), THRESHOLDS, self._tokens, self._info, refuse=False)
        for spec in confident[:STRICT]:
            point = self._point(spec, max(LENGTHS))
            yield _Replayed("drafts while sure", point.name, self._replayed(point), self._whole, lossless=True)

    def _replayed(self, point: OperatingPoint) -> Outcome:
        decisions = Decisions()
        decisions.add(decide(point, self._tokens, self._info))
        texts = Texts({}, limit=len(self._tokens) + 2, eos=frozenset())
        return replay_lossless(point, decisions, texts, self._info, len(self._tokens.documents))

    def _point(self, spec: StrategySpec, length: int | None = None) -> OperatingPoint:
        strategy = build_strategy(spec)
        if length is None:
            return operating_point(spec, strategy, self._info)
        lossless = build_decode(LOSSLESS, length)
        suffix = f"@{LOSSLESS}"
        return operating_point(spec, strategy, self._info, suffix=suffix, decode=LOSSLESS, lossless=lossless)


def best_settings(
    reads: Sequence[ReadExits],
    info: ModelInfo,
    prices: Prices | None,
    *,
    keep: float,
    map_bytes: int,
    short_bytes: int,
    step: Callable[[int], None],
) -> list[Setting]:
    """Return the best setting of every family with every head, fastest first, lossy before lossless.

    Args:
        reads: the tokens by every head.
        info: the model.
        prices: what parts cost here.
        keep: least agreement of a setting.
        map_bytes: bytes of a linear map per exit.
        short_bytes: as above.
        step: is told how many heads are done.
    """
    kv: KVFacts = KV_POLICIES.load(Strategy.default_kv).facts
    found = [
        Setting(
            family="full depth", head="–", setting="full", agreement=1.0, layers=info.num_layers, bytes_speedup=1.0,
            time_speedup=None if prices is None else 1.0,
        )
    ]  # fmt: skip
    for place, read in enumerate(reads):
        mapped = replace(info, shortcut_bytes=map_bytes if read.tokens.shortcuts else 0)
        exits = _Exits(read, mapped, prices, short_bytes)
        full = exits.full()
        best: dict[str, Setting] = {}
        for one in (*exits.lossy(), *exits.lossless()):
            setting = _setting(one, full, read.name, mapped, kv, prices)
            slower = one.family in best and best[one.family].speedup >= setting.speedup
            if not slower and setting.agreement >= keep:
                best[one.family] = setting
        found += best.values()
        step(place + 1)
    return sorted(found, key=lambda one: (one.lossless, -one.speedup))


def _setting(one: _Replayed, full: Outcome, head: str, info: ModelInfo, kv: KVFacts, prices: Prices | None) -> Setting:
    outcome, count, reads = one.outcome, one.outcome.count, bytes_read(info)
    whole, own = full.amounts(info, kv), outcome.amounts(info, kv)
    seconds = None
    if prices is not None and not kv.fills:
        unasked = prices.times.costs(DraftTimes(check_s=0.0, read_s=0.0))
        seconds = price(whole, unasked.per_unit) / price(own, prices.times.costs(one.draft).per_unit)
    return Setting(
        family=one.family,
        head=head,
        setting=one.setting,
        lossless=one.lossless,
        bound=one.bound,
        agreement=int(outcome.right.sum()) / count,
        agreement_ci=None if one.lossless else share_interval(outcome.right, outcome.tokens),
        layers=(outcome.layers + outcome.work.layers_discarded) / count,
        bytes_speedup=price(whole, reads) / price(own, reads),
        time_speedup=seconds,
    )


def _with(found: Outcome, **counters: Any) -> Outcome:
    return replace(found, work=replace(found.work, **counters))


def _spec(name: str, **options: int) -> StrategySpec:
    return StrategySpec(name, tuple((option, str(value)) for option, value in options.items()))
