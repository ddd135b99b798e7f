"""Drafts by named layers, others left out in the middle: what they say, what they cost, and who names them."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, Draft, DraftRule, DraftView, ExitRule, ExitView, Lossless, ModelInfo, Strategy
from harness.decoding.blocks import Linear
from harness.decoding.cache import KVCache
from harness.decoding.drafting import DraftSettings
from harness.decoding.engine import Engine
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.decoding.packing import pack
from harness.errors import OptionError
from strategies.clasp import Clasp, least_change
from strategies.fixed import Fixed
from strategies.full import Full
from strategies.swift import SkipsLayers, Swift
from tests.decoding.conftest import LAYERS, Reference, each_kind

NEW = 24
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 32}


def decoded(engine: Engine, prompts: Sequence[Sequence[int]], strategy: Strategy, most: int = 16) -> list[Generation]:
    limits = [NEW] * len(prompts)
    made = engine.decode(prompts, strategy, kv="recompute", max_new_tokens=limits, lossless=Lossless(most))
    plain = engine.decode(prompts, Full(), kv="recompute", max_new_tokens=limits)
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]
    return made


@dataclass(frozen=True)
class Kept(SkipsLayers):
    """Drafts by a strategy's rule, and keeps the rule and its drafts, and how many tokens were verified before each."""

    of: Strategy = field(default_factory=Swift)
    rules: list[Any] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    verified: list[int] = field(default_factory=lambda: [1])  # prefill's

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        rule = self.of.start(model, batch)
        assert isinstance(rule, DraftRule)
        learn = rule.verified

        def verified(draft: Draft, accepted: int) -> None:
            self.drafts.append(copy.deepcopy(draft))
            self.verified.append(len(draft.token_ids))
            learn(draft, accepted)

        rule.verified = verified
        self.rules.append(rule)
        return rule


@contextmanager
def skipping(layers: Sequence[Any]) -> Iterator[None]:
    """Let layers of a transformers model give what they are given."""

    def give(module: Any, args: tuple[Any, ...], kwargs: Any, output: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    handles = [layer.register_forward_hook(give, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@each_kind
def test_a_draft_is_what_transformers_says_without_those_layers(case: Any, prompts: list[list[int]]) -> None:
    """Behind full depth's keys and values, and the draft's own."""
    kept = Kept(of=Swift(skip="2+3", threshold=0, length=3))
    decoded(case.engine, prompts[:1], kept)
    layers = Reference(case.reference, "none", [])._layers
    assert len(kept.drafts) > 3
    for draft, verified in zip(kept.drafts, kept.verified, strict=False):
        text = [*draft.prompt, *draft.token_ids[:verified]]
        with torch.no_grad():
            cache = case.reference(torch.tensor([text[:-1]]), use_cache=True).past_key_values
            said = text[-1:]
            with skipping([layers[2], layers[3]]):
                for _ in draft.tokens:
                    out = case.reference(torch.tensor([said[-1:]]), past_key_values=cache, use_cache=True)
                    said.append(int(out.logits[0, -1].argmax()))
        assert list(draft.tokens) == said[1:]


def test_every_layer_that_is_read_is_counted(llama: Any, prompts: list[list[int]]) -> None:
    (one,) = decoded(llama.engine, prompts[:1], Swift(skip="1+3", threshold=0, length=3))
    drafting = one.drafting
    assert one.drafts == drafting.passes == drafting.lm_head_evaluations > one.verifications
    assert drafting.layers_read == 4 * one.drafts
    assert one.layers_read == 4 * one.drafts + LAYERS * one.verifications
    assert one.layers_executed == 4 * one.drafts + LAYERS * (NEW - 1) + one.layers_discarded
    assert {at for at in one.drafted_at if at is not None} == {4}
    assert one.exit_checks == 0


def test_what_chooses_layers_is_charged(llama: Any, prompts: list[list[int]]) -> None:
    """Two of the four inner layers are skipped: a trial runs three behind the first, a choice the inner ones."""
    (one,) = decoded(llama.engine, prompts[:1], Swift(ratio=0.5, threshold=0, window=5, trials=2))
    least = one.drafting.layers_read + LAYERS * one.verifications
    assert one.layers_read == least + 2 * 3
    assert one.layers_executed == one.drafting.layers_read + LAYERS * (NEW - 1) + one.layers_discarded + 2 * 3 * 5
    (one,) = decoded(llama.engine, prompts[:1], Clasp(ratio=0.5, threshold=0, every=NEW))
    # one choice; nothing but skips is left for a first layer, or for the last ones once two are to be skipped
    assert one.layers_read == one.drafting.layers_read + LAYERS * one.verifications + 3


@each_kind
def test_a_view_goes_on_through_layers_and_leaves_nothing(
    case: Any, prompts: list[list[int]], caches: list[KVCache]
) -> None:
    """Through all of them, from the first on: full depth's tokens."""
    compared = []

    @dataclass(frozen=True)
    class Looking(Swift):
        def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
            rule: Any = super().start(model, batch)
            rule.watched, rule.watch, rule.verified = lambda _: (1,), self.watch, self.verified
            return rule

        def watch(self, view: DraftView) -> None:
            compared.append(view)

        def verified(self, draft: Draft, accepted: int) -> None:
            view, text = compared.pop(), [*draft.prompt, *draft.token_ids]
            known = [(place, at) for place, at in enumerate(view.position.tolist()) if at + 1 < len(text)]
            before = caches[-1].entries.clone()
            said = view.through(range(1, LAYERS)).top_token.tolist()
            assert torch.equal(caches[-1].entries, before)
            assert [said[place] for place, _ in known] == [text[at + 1] for _, at in known]
            seen.append(len(known))

    seen: list[int] = []
    decoded(case.engine, prompts[:1], Looking(skip="2", threshold=0, length=3))
    assert sum(seen) == NEW - 1


def without_effect(case: Any, *idle: int) -> Engine:
    """Return an engine for a model some of whose layers change nothing."""
    backbone, blocks = case.engine.backbone, list(case.engine.backbone.blocks)
    for layer in idle:
        zeros = {name: Linear(torch.zeros_like(getattr(blocks[layer], name).weight)) for name in ("output", "mlp_out")}
        blocks[layer] = replace(blocks[layer], **zeros)
    return Engine(replace(backbone, blocks=blocks), case.info)


@pytest.mark.parametrize(
    "strategy", [Swift(ratio=0.5, threshold=0, length=4, window=6, trials=40), Clasp(ratio=0.5, threshold=0, length=4)]
)
def test_layers_that_do_nothing_are_found(llama: Any, prompts: list[list[int]], strategy: SkipsLayers) -> None:
    """Two of them, of four that may be skipped; drafts then stand."""
    kept = Kept(of=strategy)
    (made,) = decoded(without_effect(llama, 2, 4), prompts[:1], kept)
    (rule,) = kept.rules
    assert rule.skipped[0] == (2, 4)
    assert made.accepted[-4:].count(True) >= 3
    assert len(made.discarded) < made.verifications


def test_layers_that_undo_one_another_are_skipped_together() -> None:
    """Each alone turns the state more than any other layer does."""
    changes = torch.tensor([[0.0, 0, 0], [0, 3, 0], [0, -3, 0], [0.5, 0, 1], [0, 0.5, 1], [0, 0, 0]])
    states = torch.tensor([4.0, 0, 0]) + changes.cumsum(0)
    full = dict(enumerate(states, 1))
    assert least_change(full, range(1, 5), 2, lambda layer, some: some + changes[layer]) == (1, 2)
    assert least_change(full, range(1, 5), 0, lambda layer, some: some + changes[layer]) == ()
    assert least_change(full, range(1, 5), 4, lambda layer, some: some + changes[layer]) == (1, 2, 3, 4)


@pytest.mark.parametrize("form", ["llama", "qwen3", "gpt2", "neox-parallel"])
@pytest.mark.parametrize("strategy", [Swift(skip="2+3", threshold=0, length=3), Clasp(threshold=0.1)], ids=str)
def test_compiled_layers_draft_as_torch_s(
    make_case: Any, prompts: list[list[int]], form: str, strategy: SkipsLayers
) -> None:
    case = make_case(form, **WIDE)
    packed = pack(case.engine.backbone, "fp16", "cpu")
    assert packed.compiled is not None
    compiled, plain = (Engine(one, case.info) for one in (packed, replace(packed, compiled=None)))
    made, theirs = (decoded(one, prompts[:2], strategy) for one in (compiled, plain))
    assert [one.discarded for one in made] == [one.discarded for one in theirs]
    assert [one.counts for one in made] == [one.counts for one in theirs]


@dataclass(frozen=True)
class Either(Fixed):
    """Drafts by an exit and by named layers in turn."""

    odd: int = 0

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        return _InTurn(self.odd)


class _InTurn(DraftRule):
    def __init__(self, odd: int) -> None:
        self._odd = odd

    def should_exit(self, view: ExitView) -> Tensor:
        return torch.ones_like(view.rows, dtype=torch.bool)

    def drafting_layers(self, draft: Draft) -> Sequence[int]:
        return (0, 2, 5) if len(draft.tokens) % 2 == self._odd else ()


@each_kind
@pytest.mark.parametrize("odd", [0, 1])
def test_exits_and_named_layers_draft_in_turn(case: Any, prompts: list[list[int]], odd: int) -> None:
    for one in decoded(case.engine, prompts, Either(4, odd), most=5):
        drafted = [at for at in one.drafted_at if at] + [at for lost in one.discarded for at in lost.drafted_at]
        assert set(drafted) == {3, 4}


@each_kind
def test_rows_draft_each_in_its_own_way_beside_others(case: Any, prompts: list[list[int]]) -> None:
    strategies: list[Strategy] = [Swift(skip="2", threshold=0), Swift(skip="1+4", threshold=0.3), Fixed(3)]
    tally = [Generation() for _ in prompts]
    exits = RowExits(case.info, "cpu", tally)
    batch = case.engine.open(len(prompts), 60, "recompute", exits, tally)
    for row, (prompt, strategy) in enumerate(zip(prompts, strategies, strict=True)):
        _, rule = exits.join(row, strategy, 0)
        rules = exits.guarded([rule] if isinstance(rule, DraftRule) else [])
        batch.join(row, prompt, NEW, lossless=DraftSettings(4, rules))
    batch.prefill(range(len(prompts)))
    while batch.running:
        batch.step()
    assert not exits.failures
    plain = case.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[NEW] * len(prompts))
    assert [one.token_ids for one in tally] == [one.token_ids for one in plain]
    assert all(one.drafts for one in tally)


@pytest.mark.parametrize("named", [(0, 6), (2, 1), (-1, 3), (1, 1)])
def test_layers_that_the_model_has_not_are_refused(
    llama: Any, prompts: list[list[int]], named: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_InTurn, "drafting_layers", lambda *_: named)
    with pytest.raises(OptionError, match="name some of 0 to 5, ascending"):
        decoded(llama.engine, prompts[:1], Either(4))


@pytest.mark.parametrize("skip", ["0", "5", "1+1", "2+x", "", "1,2", "٢"])
def test_a_set_that_cannot_be_skipped_is_refused(llama: Any, skip: str) -> None:
    with pytest.raises(OptionError, match="between its first and last"):
        Swift(skip=skip).exit_points(llama.info)
