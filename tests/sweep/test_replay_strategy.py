"""Replaying asks what live decoding asks, answers what it answers, and counts what it counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import parse_strategies
from harness.config.options import build_strategy
from harness.contracts import ExitView, HeadChoice, KVFacts, ModelInfo, Strategy, price
from harness.decoding.engine import Engine
from harness.decoding.readings import Heads
from harness.errors import ConfigError, OptionError
from harness.models.artefacts import write_artefact
from harness.records import OperatingPointRecord, SampleRecord, Work
from harness.records.work import bytes_read
from harness.running.operating_points import OperatingPoint
from harness.sweep.replay_strategy import Outcome, replay

POINTS, LAYERS = (4, 6, 10), 12
PROMPTS = [[5, 9, 40, 17], [88, 3, 60, 61, 62, 7], [120, 14, 15]]
SPECS = (
    "full",
    "fixed:layer=6",
    "confidence:threshold=0.4",
    "entropy:threshold=0.75",
    "margin:threshold=0.2",
    "margin:threshold=0.2:decay=4",
    "patience:patience=2",
    "saturation:threshold=0.7",
)


HEADS_SPECS = (
    "confidence:threshold=0.4:head=shortlist/200",
    "confidence:threshold=0.4:head=shortlist/200:token=head",
    "margin:threshold=0.2:head=lowrank/32",
    "entropy:threshold=0.75:head=int8",
)


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


@pytest.mark.parametrize("spec", SPECS)
def test_exits_and_counts_are_those_of_live_decoding(
    tiny: Any, point_of: Callable[..., OperatingPoint], spec: str
) -> None:
    layers = check_alike(tiny, point_of(spec, tiny.info))
    if spec not in ("full", "fixed:layer=6"):
        assert len(set(layers)) > 1, "a threshold that tells nothing"


def tensors(kind: str) -> dict[str, Tensor]:
    return {"token_ids": torch.arange(319, -1, -1)} if kind == "shortlist" else {"root": torch.eye(32)}


@pytest.mark.parametrize("text", HEADS_SPECS)
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


def test_a_head_that_was_not_declared_is_refused(tiny: Any) -> None:
    @dataclass(frozen=True)
    class Secret(Strategy):
        def should_exit(self, view: ExitView) -> Tensor:
            return view.read(HeadChoice("int8")).top_probability > 0.5

    with pytest.raises(ConfigError, match="asks for the head int8, which the trace does not hold"):
        replay(operating(Secret()), tiny.tokens(PROMPTS, [[5, 6, 7]] * 3), tiny.info)


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


def test_parts_add_up(tiny: Any, point_of: Callable[..., OperatingPoint]) -> None:
    point = point_of("confidence:threshold=0.4", tiny.info)
    live = tiny.engine.decode(PROMPTS, point.strategy, kv="recompute", max_new_tokens=[9] * 3)
    whole = tiny.tokens(PROMPTS, [one.token_ids for one in live])
    ((shard, rows),) = whole.shards
    added = Outcome.nothing(3)
    for some in (rows[:5], rows[5:6], rows[6:]):
        added += replay(point, dataclasses.replace(whole, shards=[(shard, some)], memo={}, _made={}), tiny.info)
    together = replay(point, whole, tiny.info)
    assert added.right.tolist() == together.right.tolist()
    assert added.tokens.tolist() == together.tokens.tolist()
    numbers = [field.name for field in dataclasses.fields(together) if field.name not in ("right", "tokens")]
    assert [getattr(added, name) for name in numbers] == [getattr(together, name) for name in numbers]


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


def test_patience_by_hand(made: Callable[..., Any], info: ModelInfo, point_of: Callable[..., OperatingPoint]) -> None:
    tokens = made(top=[[1, 1, 2], [1, 2, 2], [1, 2, 3]], final=[1, 1, 1])
    found = replay(point_of("patience:patience=2", info), tokens, info)
    assert dict(found.exits) == {6: 1, 10: 1, 12: 1}
    assert int(found.right.sum()) == 2


def test_random_decisions_do_not_depend_on_how_a_trace_is_cut(
    made: Callable[..., Any], info: ModelInfo, point_of: Callable[..., OperatingPoint]
) -> None:
    count = 200
    whole = made(top=torch.zeros(count, 3), final=torch.zeros(count))
    point = point_of("random:probability=0.5", info)
    ((shard, rows),) = whole.shards
    parts = [
        replay(point, dataclasses.replace(whole, shards=[(shard, some)], memo={}, _made={}), info)
        for some in rows.split(70)
    ]
    together = replay(point, whole, info)
    assert together.exits == parts[0].exits + parts[1].exits + parts[2].exits
    for layer, share in ((4, 0.5), (6, 0.25), (10, 0.125)):  # 5 standard deviations
        assert together.exits[layer] == pytest.approx(share * count, abs=5 * (count * share * (1 - share)) ** 0.5)


# ------------------------------------------------------------------------------------ shared scores


@dataclass(frozen=True)
class Scored(Strategy):
    """Counts how often its score is computed; the score looks at logits."""

    threshold: float
    computed: list[int]

    def should_exit(self, view: ExitView) -> Tensor:
        def score() -> Tensor:
            self.computed.append(view.exit_layer)
            return view.top_probability * 1.0

        return view.once("mine", score) >= self.threshold


def test_operating_points_share_a_score_and_each_is_charged_for_it(made: Callable[..., Any], info: ModelInfo) -> None:
    tokens, computed = made(**CONFIDENT), list[int]()
    found = [replay(operating(Scored(threshold, computed)), tokens, info) for threshold in (2.0, 0.5, 2.0)]
    assert computed == [4, 6, 10]
    assert [one.work.lm_head_evaluations for one in found] == [16, 10, 16]
    # who comes by other exit points has other scores before it
    replay(operating(Scored(0.5, computed), (6,)), tokens, info)
    assert computed == [4, 6, 10, 6]


# --------------------------------------------------------------------------------------- refusals


@dataclass(frozen=True)
class Asks(Strategy):
    """Does something with a view."""

    what: Callable[[Any], Any]

    def should_exit(self, view: ExitView) -> Tensor:
        decided: Tensor = self.what(view)
        return decided


def test_logits_are_refused_with_what_a_trace_has(made: Callable[..., Any], info: ModelInfo) -> None:
    with pytest.raises(ConfigError, match=r"mine cannot be replayed .* logits, .*top_probability.*harness run"):
        replay(operating(Asks(lambda view: view.logits)), made(**CONFIDENT), info)


def test_generated_tokens_are_refused_where_the_tokens_are_the_document_s(
    made: Callable[..., Any], info: ModelInfo, point_of: Callable[..., OperatingPoint]
) -> None:
    with pytest.raises(ConfigError, match=r"margin:decay=3 cannot be replayed .* --new-tokens 15"):
        replay(point_of("margin:decay=3", info), made(**CONFIDENT), info)


@pytest.mark.parametrize("answer", [True, torch.ones(4), torch.ones(3, dtype=torch.bool)])
def test_an_answer_of_the_wrong_shape_is_refused(made: Callable[..., Any], info: ModelInfo, answer: Any) -> None:
    with pytest.raises(OptionError, match=r"Asks.should_exit returned .* at layer 4; .*shape \(4,\)"):
        replay(operating(Asks(lambda view: answer)), made(**CONFIDENT), info)
