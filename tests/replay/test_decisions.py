"""Replaying asks what live decoding asks, answers what it answers, and counts what it counts; lossless, too."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.config import parse_strategies
from harness.config.decode import build_decode, parse_decode
from harness.config.options import build_strategy
from harness.contracts import ExitView, HeadChoice, KVFacts, ModelInfo, Strategy, price
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.decoding.readings import Heads
from harness.errors import ConfigError, OptionError
from harness.models.artefacts import write_artefact
from harness.records import DraftTimes, OperatingPointRecord, SampleRecord, UnitTimes, Work
from harness.records.work import bytes_read
from harness.replay.replay import Outcome, Texts, draft_columns, replay, replay_lossless
from harness.running.operating_points import OperatingPoint, operating_point

POINTS, LAYERS = (4, 6, 10), 12
PROMPTS = [[5, 9, 40, 17], [88, 3, 60, 61, 62, 7], [120, 14, 15]]
SPECS = (
    "full",
    "fixed:layer=6",
    "margin:threshold=0.2:decay=4",
    "confidence:threshold=0.4",
    "entropy:threshold=0.75",
    "patience:patience=2",
    "saturation:threshold=0.7",
    "margin:threshold=0.2",
)


HEADS_SPECS = (
    "confidence:threshold=0.4:head=shortlist/200",
    "confidence:threshold=0.4:head=shortlist/200:token=head",
    "margin:threshold=0.2:head=lowrank/32",
    "entropy:threshold=0.75:head=int8",
)


def by_turns(names: str, cases: Sequence[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Each case with one of the two kinds of exits, by turns."""
    exits = itertools.cycle(("shared head", "shortcuts"))
    return pytest.mark.parametrize(f"tiny, {names}", [(next(exits), *case) for case in cases], indirect=["tiny"])


SHARED_HEAD = pytest.mark.parametrize("tiny", ["shared head"], indirect=True)


@dataclass(frozen=True)
class EveryThird(Strategy):
    """From outside: looks at positions, and at logits of the exit before only where it needs to."""

    def should_exit(self, view: ExitView) -> Tensor:
        third = view.position % 3 == 0
        if view.exit_layer == 10 and view.previous is not None and view.previous.previous is not None:
            return third | (view.previous.previous.top_token == view.top_token)
        return third & (view.exit_layer >= 6)


def operating(strategy: Strategy, points: tuple[int, ...] = POINTS) -> OperatingPoint:
    record = OperatingPointRecord(
        name="mine", strategy="mine", options={}, exit_points=points, rehearsed=strategy.upper_bound
    )
    return OperatingPoint(strategy, record, "recompute")


# ------------------------------------------------------------------------------- as live decoding does


def check_alike(tiny: Any, point: OperatingPoint) -> list[int]:
    """Under ``recompute`` a token's states depend on the tokens alone, so that live and replayed must be equal."""
    limits = [14] * len(PROMPTS)
    live = tiny.engine.decode(PROMPTS, point.strategy, kv="recompute", max_new_tokens=limits)
    tokens = tiny.tokens(PROMPTS, [one.token_ids for one in live])
    found = replay(point, tokens, tiny.info)
    layers = [layer for one in live for layer in one.exit_layers[1:]]
    assert found.count == len(layers) == 39
    assert {layer: n for layer, n in found.exits.items() if n} == {n: layers.count(n) for n in set(layers)}
    assert found.work.exit_checks == sum(one.exit_checks for one in live)
    assert found.work.lm_head_evaluations == sum(one.lm_head_evaluations for one in live)
    assert found.work.shortcut_evaluations == sum(one.shortcut_evaluations for one in live)
    reads = [
        layer * (len(prompt) + step + 1)
        for prompt, one in zip(PROMPTS, live, strict=True)
        for step, layer in enumerate(one.exit_layers[1:])
    ]
    assert found.attended == sum(reads)
    replayed = found.amounts(tiny.info, KVFacts(defers=True))
    records = [
        SampleRecord(window=0, operating_point="mine", task="t", sample_id="a", prompt_ids=prompt, **vars(Work.of(one)))
        for prompt, one in zip(PROMPTS, live, strict=True)
    ]
    for unit in replayed.keys() - {"layer row"}:  # live, those of the last tokens never run
        assert replayed[unit] == sum(record.decode_amounts()[unit] for record in records), unit
    return layers


@by_turns("spec", [(spec,) for spec in SPECS])
def test_exits_and_counts_are_those_of_live_decoding(
    tiny: Any, point_of: Callable[..., OperatingPoint], spec: str
) -> None:
    layers = check_alike(tiny, point_of(spec, tiny.info))
    if spec not in ("full", "fixed:layer=6"):
        assert len(set(layers)) > 1, "a threshold that tells nothing"


def tensors(kind: str) -> dict[str, Tensor]:
    return {"token_ids": torch.arange(319, -1, -1)} if kind == "shortlist" else {"root": torch.eye(32)}


@by_turns("text", [(text,) for text in HEADS_SPECS])
def test_checks_by_cheap_heads_replay_and_tell_how_often_they_agree(tiny: Any, text: str, tmp_path: Path) -> None:
    (spec,) = parse_strategies(text)
    strategy = build_strategy(spec)
    for kind in ("shortlist", "lowrank"):
        write_artefact(tmp_path / f"{kind}.json", kind, tensors(kind), {"model": "tiny"})
    info = dataclasses.replace(tiny.info, artefacts=(str(tmp_path),))
    engine = Engine(dataclasses.replace(tiny.engine.backbone, trained=tensors), info)
    live = engine.decode(PROMPTS, strategy, kv="recompute", max_new_tokens=[14] * 3)
    tokens = dataclasses.replace(tiny.tokens(PROMPTS, [one.token_ids for one in live]), heads=Heads(engine.backbone))
    found = replay(operating(strategy), tokens, info)
    layers = [layer for one in live for layer in one.exit_layers[1:]]
    assert {layer: n for layer, n in found.exits.items() if n} == {n: layers.count(n) for n in set(layers)}
    assert found.work.lm_head_evaluations == sum(one.lm_head_evaluations for one in live)
    assert (
        found.work.cheap_head_evaluations == sum(one.cheap_head_evaluations for one in live) == found.work.exit_checks
    )
    assert found.work.cheap_head_bytes == sum(one.cheap_head_bytes for one in live)
    assert found.head_checks == found.work.exit_checks
    assert found.head_alike <= found.head_checks
    if "lowrank" in text:  # nothing is left out
        assert found.head_alike == found.head_checks


@SHARED_HEAD
def test_a_strategy_from_outside_replays_as_it_decodes(tiny: Any) -> None:
    assert len(set(check_alike(tiny, operating(EveryThird())))) > 1


def test_the_oracle_leaves_where_it_leaves_live_and_its_decisions_are_free(
    tiny: Any, point_of: Callable[..., OperatingPoint]
) -> None:
    point = point_of("oracle", tiny.info)
    limits = [14] * len(PROMPTS)
    rehearsed = tiny.engine.decode(PROMPTS, point.strategy, kv="recompute", max_new_tokens=limits)
    layers = [one.exit_layers for one in rehearsed]
    live = tiny.engine.replay(PROMPTS, layers, kv="recompute", max_new_tokens=limits)
    found = replay(point, tiny.tokens(PROMPTS, [one.token_ids for one in live]), tiny.info)
    assert found.layers == sum(layer for each in layers for layer in each[1:]) < found.count * LAYERS
    assert found.right.tolist() == found.tokens.tolist()
    assert found.work.exit_checks == 0
    assert found.work.lm_head_evaluations == sum(one.lm_head_evaluations for one in live)
    assert found.work.shortcut_evaluations == sum(one.shortcut_evaluations for one in live)


@by_turns("spec", [("random:probability=0.5",), ("confidence:threshold=0.4",)])
def test_parts_add_up(tiny: Any, point_of: Callable[..., OperatingPoint], spec: str) -> None:
    """Chance included, which is of a token's document and position."""
    point = point_of(spec, tiny.info)
    live = tiny.engine.decode(PROMPTS, point.strategy, kv="recompute", max_new_tokens=[9] * 3)
    whole = tiny.tokens(PROMPTS, [one.token_ids for one in live])
    ((shard, rows),) = whole.shards
    added = Outcome.nothing(3)
    for some in (rows[:5], rows[5:6], rows[6:]):
        added += replay(point, dataclasses.replace(whole, shards=[(shard, some)]), tiny.info)
    together = replay(point, whole, tiny.info)
    for field in dataclasses.fields(together):
        one, other = getattr(added, field.name), getattr(together, field.name)
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name


# ---------------------------------------------------------------------------------------- by hand

CONFIDENT = {
    "top": [[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]],
    "final": [1, 2, 9, 3],
    "top1": [[0.9, 0.1, 0.1], [0.2, 0.8, 0.1], [0.1, 0.1, 0.7], [0.1, 0.2, 0.3]],
    "document": [0, 0, 1, 1],
    "position": [10, 11, 20, 21],
}


def test_one_operating_point_by_hand(
    made: Callable[..., Any], info: ModelInfo, point_of: Callable[..., OperatingPoint]
) -> None:
    found = replay(point_of("confidence:threshold=0.5", info), made(**CONFIDENT), info)
    # Tokens leave at 4 (right), 6 (right), 10 (wrong) and not at all (right by definition).
    assert dict(found.exits) == {4: 1, 6: 1, 10: 1, 12: 1}
    assert found.right.tolist() == [2, 1]
    assert found.tokens.tolist() == [2, 2]
    assert found.work.exit_checks == 4 + 3 + 2
    assert found.work.lm_head_evaluations == 4 + 3 + 2 + 1
    assert found.attended == 4 * 11 + 6 * 12 + 10 * 21 + 12 * 22
    assert (
        price(found.amounts(info, KVFacts(fills=True)), bytes_read(info))
        == 32 * 1000 + 10 * 500 + (8 + 6 + 2) * 100 + found.attended
    )
    assert price(found.amounts(info, KVFacts()), bytes_read(info)) == 32 * 1000 + 10 * 500 + found.attended


@dataclass(frozen=True)
class Scored(Strategy):
    """Its score looks at logits, and at whether an exit point came before."""

    threshold: float

    def should_exit(self, view: ExitView) -> Tensor:
        return view.once("mine", lambda: view.top_probability + (view.previous is None)) >= self.threshold


def test_a_score_is_kept_for_who_comes_the_same_way_and_charged_to_each(
    made: Callable[..., Any], info: ModelInfo
) -> None:
    tokens = made(**CONFIDENT)
    found = [replay(operating(Scored(threshold)), tokens, info) for threshold in (3.0, 1.5, 3.0)]
    assert [one.work.lm_head_evaluations for one in found] == [16, 4 + 3 + 3 + 3, 16]
    assert dict(replay(operating(Scored(1.5), (6,)), tokens, info).exits) == {6: 1, 12: 3}  # who comes another way


# --------------------------------------------------------------------------------------- refusals


@dataclass(frozen=True)
class Asks(Strategy):
    """Does something with a view."""

    what: Callable[[Any], Any]

    def should_exit(self, view: ExitView) -> Tensor:
        decided: Tensor = self.what(view)
        return decided


REFUSED: tuple[tuple[Callable[[Any], Any], str], ...] = (
    (lambda view: view.logits, r"mine cannot be replayed .* logits, .*top_probability.*harness run"),
    (lambda view: view.token_ids, r"mine cannot be replayed .* --new-tokens 15"),
    (lambda view: view.stop(view.rows > 0), "asks for the end of completions, which the trace does not hold"),
    (lambda view: view.read(HeadChoice("int8")), "the head int8, which .* name it in cheap_heads"),
    (lambda view: True, r"Asks.should_exit returned .* at layer 4; .*shape \(4,\)"),
    (lambda view: torch.ones(3, dtype=torch.bool), r"Asks.should_exit returned"),
)


def test_what_a_trace_does_not_hold_and_wrong_answers_are_refused(made: Callable[..., Any], info: ModelInfo) -> None:
    for asked, said in REFUSED:
        with pytest.raises((ConfigError, OptionError), match=said):
            replay(operating(Asks(asked)), made(**CONFIDENT), info)


# --------------------------------------------------------------------------------------- lossless


NEW = 30
LONGER = [[5, 9, 40, 17, 5, 9, 40], [88, 3, 60, 61, 62, 7], [120, 14, 15], [33] * 9, list(range(40, 60))]
LAYERSKIP = "layerskip:layer=10:length=3"


def drafting(text: str, info: Any, decode: str, most: int) -> OperatingPoint:
    (spec,) = parse_strategies(text)
    lossless = build_decode(parse_decode(decode), most)
    return operating_point(
        spec, build_strategy(spec), info, "recompute", suffix=f"@{decode}", decode=parse_decode(decode),
        lossless=lossless,
    )  # fmt: skip


def live_and_replayed(
    tiny: Any, text: str, decode: str, most: int, eos: frozenset[int] = frozenset()
) -> tuple[list[Generation], Outcome]:
    point = drafting(text, tiny.info, decode, most)
    given: dict[str, Any] = {"max_new_tokens": [NEW] * len(LONGER), "eos_token_ids": eos}
    full = tiny.engine.decode(LONGER, build_strategy(parse_strategies("full")[0]), kv="recompute", **given)
    live = tiny.engine.decode(LONGER, point.strategy, kv="recompute", lossless=point.lossless, **given)
    if point.strategy.upper_bound:
        stops = [[*one.first_stops(LAYERS), *[LAYERS] * NEW] for one in live]
        live = tiny.engine.replay(LONGER, stops, kv="recompute", lossless=point.lossless, **given)
    assert [one.token_ids for one in live] == [one.token_ids for one in full]
    tokens = tiny.tokens(LONGER, [one.token_ids for one in full])
    columns = draft_columns(point, tokens, tiny.info)
    texts = Texts(dict(enumerate(LONGER)), NEW, eos)
    return live, replay_lossless(point, [columns], texts, tiny.info, len(LONGER))


@pytest.mark.slow
@by_turns(
    "text, decode",
    [
        ("fixed:layer=10", "lossless"),
        ("confidence:threshold=0.4", "lossless+lookup:min_n=1"),
        ("margin:threshold=0.3", "lossless+lookup:min_n=1"),
        ("entropy:threshold=0.75", "lossless"),
        ("oracle", "lossless+lookup:min_n=1"),
        (LAYERSKIP, "lossless"),
    ],
)
def test_what_stands_is_exactly_that_of_live_decoding(tiny: Any, text: str, decode: str) -> None:
    live, found = live_and_replayed(tiny, text, decode, 16)
    assert found.count == sum(len(one.token_ids) - 1 for one in live)
    assert found.work.verifications == sum(one.verifications for one in live)
    assert found.work.accepted_tokens == sum(sum(one.accepted) for one in live)
    assert sum(one.verifications for one in live) < found.count  # some pass yielded several


EXACT = (
    (LAYERSKIP, "lossless", 16),  # what follows a wrong draft is as long wherever it stands
    ("layerskip:layer=4:length=8", "lossless", 2),
    ("confidence:threshold=0.4", "lossless", 1),  # a wrong draft is followed by none
    ("full", "lossless+lookup:min_n=1", 16),  # what a source proposes is verified at once
)


@by_turns("text, decode, most", EXACT)
def test_drafts_that_nothing_unknown_follows_are_replayed_exactly(tiny: Any, text: str, decode: str, most: int) -> None:
    live, found = live_and_replayed(tiny, text, decode, most)
    assert counts(found.work) == counts(*live)
    assert max(one.drafts / one.verifications for one in live) <= most
    drafted, stood = list[int](), list[int]()
    for one in live:  # without the token of prefill
        places = Counter(place for place, kept in enumerate(one.accepted) if kept)
        places += Counter(out.place + behind for out in one.discarded for behind in range(len(out.token_ids)))
        drafted += [places[place] for place in range(1, len(one.token_ids))]
        stood += one.accepted[1:]
    assert (found.drafted.tolist(), found.stood.tolist()) == (drafted, stood)
    assert 0 < sum(stood) < sum(drafted)


TIMES = UnitTimes(positions=9, rows=5, layer_s=1.0, head_s=5.0, layer_row_s=0.25, head_row_s=0.5)
SECONDS = TIMES.costs(DraftTimes(check_s=0.125, read_s=2.0)).per_unit


def test_lossy_seconds_by_hand(info: Any, made: Any) -> None:
    (spec,) = parse_strategies("fixed:layer=4")
    found = replay(operating_point(spec, build_strategy(spec), info), made(top=[[1, 2, 3]] * 5, final=[1] * 5), info)
    exits = 5 * (4 + 0.125 + 2)
    assert price(found.amounts(info, KVFacts()), SECONDS) == exits
    assert price(found.amounts(info, KVFacts(defers=True)), SECONDS) == exits + 5 * 8 / 4


def counts(*made: Work) -> dict[str, int]:
    names = "drafts", "layers_read", "layers_discarded", "lm_head_evaluations", "shortcut_evaluations", "exit_checks"
    return {name: sum(getattr(one, name) for one in made) for name in (*names, "verifications")}


@SHARED_HEAD
def test_the_bound_is_exact_with_drafts_of_any_length(tiny: Any) -> None:
    """It drafts nothing wrong."""
    live, found = live_and_replayed(tiny, "oracle", "lossless", 16)
    assert counts(found.work) == counts(*live) | {"layers_discarded": 0, "exit_checks": 0}


@SHARED_HEAD
def test_the_end_of_a_text_is_replayed_as_it_is_decoded(tiny: Any) -> None:
    full = tiny.engine.decode(
        LONGER, build_strategy(parse_strategies("full")[0]), kv="recompute", max_new_tokens=[NEW] * len(LONGER)
    )
    eos = frozenset({full[0].token_ids[5], full[2].token_ids[9]})
    live, found = live_and_replayed(tiny, "oracle", "lossless", 16, eos)
    assert any(one.finish_reason == "eos" for one in live)
    assert found.work.verifications == sum(one.verifications for one in live)
    assert found.work.layers_read == sum(one.layers_read for one in live)


@pytest.mark.slow
@SHARED_HEAD
def test_what_is_modelled_lies_within_the_interval_of_live_decoding(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a wrong draft: how much is drafted, and how many layers are read for it."""
    chance = np.random.default_rng(0)
    prompts = [chance.integers(1, 300, 6).tolist() for _ in range(40)]
    monkeypatch.setattr(f"{__name__}.LONGER", prompts)
    live, found = live_and_replayed(tiny, "confidence:threshold=0.4", "lossless", 16)
    tokens = np.array([len(one.token_ids) - 1 for one in live])
    for replayed, counted in (
        (found.work.drafts, [one.drafts for one in live]),
        (found.work.layers_read, [one.layers_read for one in live]),
        (found.work.lm_head_evaluations, [one.lm_head_evaluations for one in live]),
    ):
        picked = chance.integers(0, len(live), (2000, len(live)))
        drawn = np.array(counted)[picked].sum(1) / tokens[picked].sum(1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        assert low <= replayed / found.count <= high
