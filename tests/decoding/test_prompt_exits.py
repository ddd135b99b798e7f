"""Exits for the prompt: what stands where tokens stopped, and that it can become exact later."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from harness.contracts import Keep, ModelInfo, PromptRule
from harness.decoding.engine import Engine, EngineSession
from harness.decoding.exits import RowExits
from harness.decoding.generation import Generation
from harness.decoding.loop import OpenBatch
from harness.decoding.prompt_exits import Importance, PromptMaps, Tail
from harness.decoding.step import PrefixPass
from harness.errors import ArtefactError, OptionError
from strategies.full import Full
from tests.decoding.conftest import KINDS, LAYERS, VOCABULARY, Case

ROWS, POSITIONS, NEW = 2, 150, 6
EXIT = 3
RULE = Tail(EXIT, tail=10, first=2)


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(VOCABULARY), k=count)


def maps_of(engine: Engine, exits: tuple[int, ...] = (EXIT,), seed: int = 0) -> dict[str, Tensor]:
    """Maps that make something of a state, no copy of what the layers make."""
    heads, chance = engine.backbone.heads, torch.Generator().manual_seed(seed)
    made = {}
    for layer in exits:
        rows = (LAYERS - layer - 1) * 2 * heads.kv_heads * heads.head_dim
        made[f"{layer}.read"] = torch.randn(24, 2 * engine.info.hidden_size, generator=chance) / 8
        made[f"{layer}.made"] = torch.randn(rows, 24, generator=chance) / 8
        made[f"{layer}.bias"] = torch.randn(rows, generator=chance) / 8
    return made


def with_maps(engine: Engine, tensors: dict[str, Tensor]) -> Engine:
    return Engine(replace(engine.backbone, trained=lambda kind: tensors), engine.info)


def distance(some: Tensor, other: Tensor) -> float:
    return (some - other).abs().max().item()


def same(some: Tensor, other: Tensor) -> bool:
    """Whether keys and values of these wide models, up to 20, differ by rounding alone."""
    return distance(some, other) < 5e-3


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, cases: Callable[[str], Case]) -> Engine:
    found = cases(request.param).engine
    return with_maps(found, maps_of(found))


@dataclass
class Opened:
    """An open batch that keeps prompts, of one owner."""

    engine: Engine
    keep: Keep = "prompt"

    def __post_init__(self) -> None:
        self.tally = [Generation() for _ in range(ROWS)]
        self.exits = RowExits(self.engine.info, "cpu", self.tally)
        self.batch: OpenBatch = self.engine.open(ROWS, POSITIONS, "recompute", self.exits, self.tally, ROWS, self.keep)

    def entries(self, row: int, length: int) -> Tensor:
        assert self.batch._cache is not None
        return self.batch._cache.entries[:, row, :, :length].clone()

    def complete(self, row: int, prompt: list[int], rule: PromptRule | None, most: int | None = None) -> int:
        """Decode a prompt to its end; return how many of its tokens were reused."""
        self.exits.join(row, Full(), 3)
        reused = self.batch.join(row, prompt, NEW, owner="me", prompt_rule=rule)
        while self.batch.reading:
            self.batch.prefill(list(self.batch.reading), most)
        while self.batch.running:
            self.batch.step()
        return reused


def plain(engine: Engine, prompt: list[int]) -> Tensor:
    """Keys and values of all layers that full depth leaves."""
    cache = engine.cache(1, POSITIONS)
    with torch.inference_mode():
        PrefixPass(engine.backbone, engine.rotary(POSITIONS), [prompt], [0], cache=cache).read()
    return cache.entries[:, 0, :, : len(prompt)]


def by_hand(engine: Engine, prompt: list[int], depths: list[int], tensors: dict[str, Tensor]) -> Tensor:
    """The same with exits, token by token, a layer at a time: each attends to what those before it left."""
    backbone, rotary = engine.backbone, engine.rotary(POSITIONS)
    heads, width = backbone.heads, 2 * backbone.heads.kv_heads
    cache = torch.zeros(LAYERS, width, len(prompt), heads.head_dim)
    after: dict[tuple[int, int], Tensor] = {}  # layer and position → state
    with torch.inference_mode():
        for position, token in enumerate(prompt):
            place = torch.tensor([position])
            state = backbone.embed(torch.tensor([token]), place)
            tables = None if rotary is None else rotary.tables(place)
            for layer in range(depths[position]):
                block = backbone.blocks[layer]
                queries, entry = block.project(state, rotary, tables)
                cache[layer, :, position] = entry[0]
                keys, values = cache[layer, :, : position + 1].chunk(2)
                shared = heads.query_heads // heads.kv_heads
                keys, values = keys.repeat_interleave(shared, 0), values.repeat_interleave(shared, 0)
                weights = (torch.einsum("hd,hpd->hp", queries[0], keys) * block.scale).softmax(-1)
                state = block.finish(state, torch.einsum("hp,hpd->hd", weights, values).reshape(1, -1))
                after[layer + 1, position] = state
            stop = depths[position]
            if stop == LAYERS:
                continue
            block = backbone.blocks[stop]
            cache[stop, :, position] = block.fill(state, rotary, tables)[0]
            if stop == LAYERS - 1:
                continue
            deep_enough = position > 0 and depths[position - 1] >= stop
            read = torch.cat((state, after[stop, position - 1] if deep_enough else state))
            read = (read if block.post_norm else block.attention_norm(read)).flatten()
            made = tensors[f"{stop}.made"] @ (tensors[f"{stop}.read"] @ read) + tensors[f"{stop}.bias"]
            for above, entry in enumerate(made.view(-1, width, heads.head_dim), stop + 1):
                turned = entry.unsqueeze(0)
                if rotary is not None and tables is not None:
                    turned = rotary.turn(turned, heads.kv_part(tables))
                cache[above, :, position] = turned[0]
    return cache


def test_every_token_leaves_what_its_depth_says(engine: Engine) -> None:
    prompt = tokens(30)
    opened = Opened(engine)
    opened.complete(0, prompt, RULE)
    depths = RULE.depths(prompt, engine.info)
    assert depths == [LAYERS] * 2 + [EXIT] * 18 + [LAYERS] * 10
    expected = by_hand(engine, prompt, depths, maps_of(engine))
    assert same(opened.entries(0, 30), expected)
    full = plain(engine, prompt)
    assert same(opened.entries(0, 30)[: EXIT + 1], full[: EXIT + 1])
    assert distance(opened.entries(0, 30)[EXIT + 1 :, :, 2:20], full[EXIT + 1 :, :, 2:20]) > 1


@dataclass(frozen=True)
class Scattered(PromptRule):
    """Tokens anywhere stop at one of two layers."""

    def exits(self, model: ModelInfo) -> tuple[int, ...]:
        return (2, 4)

    def depths(self, prompt: list[int], model: ModelInfo) -> list[int]:  # type: ignore[override]
        return random.Random(1).choices((2, 4, LAYERS), k=len(prompt))


def test_tokens_may_stop_anywhere_and_at_several_layers(llama: Case) -> None:
    tensors = maps_of(llama.engine, (2, 4))
    engine, prompt = with_maps(llama.engine, tensors), tokens(40)
    opened = Opened(engine)
    opened.complete(0, prompt, Scattered(), 16)
    depths = [*Scattered().depths(prompt, engine.info)[:-1], LAYERS]
    assert same(opened.entries(0, 40), by_hand(engine, prompt, depths, tensors))


@pytest.mark.parametrize("most", [1, 7, 32])
def test_pieces_and_company_change_nothing(engine: Engine, most: int) -> None:
    prompt, other = tokens(33), tokens(20, seed=1)
    alone = Opened(engine)
    alone.complete(0, prompt, RULE)
    pieces = Opened(engine)
    pieces.complete(0, prompt, RULE, most)
    assert same(pieces.entries(0, 33), alone.entries(0, 33))
    assert pieces.tally[0].token_ids == alone.tally[0].token_ids
    both = engine.decode([prompt, other], Full(), kv="recompute", max_new_tokens=[NEW] * 2, prompt_rule=RULE)
    assert both[0].token_ids == alone.tally[0].token_ids


def test_a_kept_beginning_is_never_shallower_than_a_prompt_wants(engine: Engine) -> None:
    opened, prompt = Opened(engine), tokens(60)
    opened.complete(0, prompt, RULE)
    longer = [*prompt, *tokens(5, seed=2)]
    assert opened.complete(0, longer, RULE) == 60
    shorter = [*prompt[:40], *tokens(3, seed=3)]
    assert opened.complete(1, shorter, RULE) == 33  # from there on it is the tail of this one
    cold = Opened(engine)
    cold.complete(0, shorter, RULE)
    assert same(opened.entries(1, 43), cold.entries(0, 43))
    assert opened.complete(1, [*prompt, 1], None) == 0
    assert same(opened.entries(1, 61), plain(engine, [*prompt, 1]))


@pytest.mark.parametrize("most", [5, 100])
def test_a_deepened_prompt_is_full_depth_s(engine: Engine, most: int) -> None:
    opened, prompt = Opened(engine), tokens(45)
    opened.complete(0, prompt, RULE)
    text = [*prompt, *opened.tally[0].token_ids]
    assert distance(opened.entries(0, 45), plain(engine, prompt)) > 1
    rounds = 1
    while not opened.batch.deepen(0, most):
        rounds += 1
    assert rounds == -(-45 // most)
    assert same(opened.entries(0, len(text) - 1), plain(engine, text)[:, :, :-1])
    later = [*prompt, *tokens(4, seed=4)]
    assert opened.complete(1, later, None) == 45
    (cold,) = engine.decode([later], Full(), kv="recompute", max_new_tokens=[NEW])
    assert opened.tally[1].token_ids == cold.token_ids


def test_half_deepened_serves_as_far_as_it_is_exact(llama: Case) -> None:
    engine = with_maps(llama.engine, maps_of(llama.engine))
    opened, prompt = Opened(engine), tokens(60)
    opened.complete(0, prompt, RULE)
    assert not opened.batch.deepen(0, 25)
    assert opened.complete(1, [*prompt, 3], None) == 25
    assert same(opened.entries(1, 61), plain(engine, [*prompt, 3]))
    assert opened.complete(0, [*prompt, 4], RULE) == 60
    while not opened.batch.deepen(0, 25):
        pass
    assert same(opened.entries(0, 61), plain(engine, [*prompt, 4]))


def test_a_prompt_that_was_not_read_to_its_end_serves_as_far_as_it_was(llama: Case) -> None:
    engine = with_maps(llama.engine, maps_of(llama.engine))
    opened, prompt = Opened(engine, "exact"), tokens(60)
    opened.exits.join(0, Full(), 3)
    opened.batch.join(0, prompt, NEW, owner="me", prompt_rule=RULE)
    opened.batch.prefill([0], 20)
    opened.batch.drop(0)
    while not opened.batch.deepen(0, 25):
        pass
    assert opened.complete(1, [*prompt, 3], None) == 20
    assert same(opened.entries(1, 61), plain(engine, [*prompt, 3]))


def test_refusals(llama: Case) -> None:
    engine = with_maps(llama.engine, maps_of(llama.engine))
    with pytest.raises(OptionError, match="cannot exit at layer=6"):
        Tail(LAYERS).exits(engine.info)
    with pytest.raises(ArtefactError, match="no prompt-exit map for layer 2"):
        engine.decode([tokens(90)], Full(), kv="recompute", max_new_tokens=[1], prompt_rule=Tail(2))
    assert PromptMaps.read(engine.backbone, EXIT, torch.ones(2, engine.info.hidden_size), [[1], [0]]).shape == (1, 128)


def test_an_editor_gets_a_shallow_answer_first_and_full_depth_s_later(engine: Engine) -> None:
    """Deepened while the user types: the completion, too, is kept."""
    session, prompt = EngineSession(engine, POSITIONS, "recompute", "exact", "deepen"), tokens(60)
    first = session.decode("me", prompt, Full(), max_new_tokens=NEW, prompt_rule=RULE)
    assert session.prefetch(0.0) == pytest.approx(0.0, abs=0.1)
    session.prefetch(60.0)
    assert (session.idle.deepened, session.idle.drafted) == (len(prompt), 0)
    following = [*prompt, *first.token_ids, *tokens(4, seed=1)]
    second = session.decode("me", following, Full(), max_new_tokens=NEW, prompt_rule=RULE)
    (exact,) = engine.decode([following], Full(), kv="recompute", max_new_tokens=[NEW])
    assert second.prompt_reused == len(prompt) + NEW - 1
    assert second.token_ids == exact.token_ids
    session.prefetch(60.0)
    assert session.idle.deepened == len(prompt), "none of its few new tokens stopped"
    third = session.decode("me", [*following, *second.token_ids, 5], Full(), max_new_tokens=NEW, prompt_rule=RULE)
    assert third.prompt_reused == len(following) + NEW - 1
    undeepened = EngineSession(engine, POSITIONS, "recompute", "exact")
    undeepened.decode("me", prompt, Full(), max_new_tokens=NEW, prompt_rule=RULE)
    again = undeepened.decode("me", following, Full(), max_new_tokens=NEW, prompt_rule=RULE)
    assert again.prompt_reused == len(prompt)


@dataclass(frozen=True)
class Sorted(Importance):
    """Notes what it was asked, and how often."""

    seen: list[Tensor] = field(default_factory=list)

    def chosen(self, attention: Tensor, depths: Sequence[int]) -> list[int]:
        self.seen.append(attention)
        return super().chosen(attention, depths)


def test_attention_is_what_the_layer_behind_the_exit_pays(engine: Engine) -> None:
    rule, prompt = Sorted(EXIT, tail=5, first=2, keep=0.2), tokens(40)
    opened = Opened(engine)
    opened.complete(0, prompt, rule)
    (attention,) = rule.seen
    backbone, rotary = engine.backbone, engine.rotary(POSITIONS)
    (states,) = engine.read(prompt, [EXIT])
    with torch.inference_mode():
        tables = None if rotary is None else rotary.tables(torch.arange(40))
        queries, entries = backbone.blocks[EXIT].project(states, rotary, tables)
        keys = entries[:, : backbone.heads.kv_heads].repeat_interleave(queries.shape[1] // backbone.heads.kv_heads, 1)
        paid = torch.zeros(40)
        for observer in range(35, 40):
            scores = torch.einsum("hd,phd->hp", queries[observer], keys[: observer + 1]) * backbone.blocks[EXIT].scale
            paid[: observer + 1] += scores.softmax(-1).mean(0) / 5
    assert torch.allclose(attention, paid, atol=1e-5)
    deep = sorted(paid[2:35].topk(7).indices.tolist())
    depths = [LAYERS if position < 2 or position >= 35 or position - 2 in deep else EXIT for position in range(40)]
    assert same(opened.entries(0, 40), by_hand(engine, prompt, depths, maps_of(engine)))


@pytest.mark.parametrize("most", [None, 1, 7])
def test_important_tokens_between_tail_and_full_depth(engine: Engine, most: int | None) -> None:
    prompt, opened = tokens(45), Opened(engine)
    opened.complete(0, prompt, Importance(EXIT, tail=10, first=2, keep=1.0), most)
    assert same(opened.entries(0, 45), plain(engine, prompt))
    opened.complete(1, prompt[1:], Importance(EXIT, tail=10, first=2, keep=0.0), most)
    tail = Opened(engine)
    tail.complete(0, prompt[1:], RULE)
    assert same(opened.entries(1, 44), tail.entries(0, 44))
    some = Opened(engine)
    some.complete(0, prompt, Importance(EXIT, tail=10, first=2, keep=0.3), most)
    whole = Opened(engine)
    whole.complete(0, prompt, Importance(EXIT, tail=10, first=2, keep=0.3))
    assert same(some.entries(0, 45), whole.entries(0, 45))
    assert some.tally[0].token_ids == whole.tally[0].token_ids
    while not some.batch.deepen(0, most or 50):
        pass
    text = [*prompt, *some.tally[0].token_ids[:-1][: most or 50]]
    assert same(some.entries(0, len(text)), plain(engine, text))


def test_a_kept_token_goes_on_when_a_later_prompt_chooses_it(llama: Case) -> None:
    engine = with_maps(llama.engine, maps_of(llama.engine))
    opened, prompt, longer = Opened(engine), tokens(50), tokens(50) + tokens(12, seed=6)
    opened.complete(0, prompt, RULE)
    everything = Importance(EXIT, tail=10, first=2, keep=1.0)
    assert opened.complete(0, longer, everything) == 50
    depths = opened.batch._shallow[0].depths
    assert depths == [LAYERS] * 62  # those of the first tail, which saw what maps left, do not run again
    entries = opened.entries(0, 62)
    assert same(entries[:, :, :40], plain(engine, longer)[:, :, :40])
    assert distance(entries[EXIT + 1 :, :, 40:], plain(engine, longer)[EXIT + 1 :, :, 40:]) > 1
    while not opened.batch.deepen(0, 25):
        pass
    assert same(opened.entries(0, 62), plain(engine, longer))


def test_a_prompt_that_is_left_while_it_goes_on_is_no_deeper_than_it_got(llama: Case) -> None:
    engine = with_maps(llama.engine, maps_of(llama.engine))
    opened, prompt = Opened(engine), tokens(60)
    opened.batch.join(0, prompt, NEW, owner="me", prompt_rule=Importance(EXIT, tail=10, first=2, keep=1.0))
    for _ in range(3 + 2):  # three pieces to the exit, with the third of which 20 go on, and then 10 and 10
        opened.batch.prefill([0], 20 if len(opened.batch._shallow[0].depths) < 60 else 10)
    assert opened.batch.reading == {0: 60}
    opened.batch.drop(0)
    went_on = [LAYERS] * 40 + [EXIT] * 20
    assert opened.batch._shallow[0].depths == went_on
    assert opened.complete(1, [*prompt, 2], Tail(EXIT, tail=45, first=2)) == 40
    assert opened.complete(0, [*prompt, 1], None) == 0


@pytest.mark.parametrize("rule", [None, RULE, Importance(EXIT, tail=10, first=2, keep=0.25)])
def test_layers_of_the_prompt_are_counted_once(llama: Case, rule: PromptRule | None) -> None:
    engine = with_maps(llama.engine, maps_of(llama.engine))
    opened, prompt = Opened(engine), tokens(62)
    going = 13 if isinstance(rule, Importance) else 0  # of 50 between, rounded up
    between = 0 if rule is None else 50 - going
    opened.complete(0, prompt, rule, 16)
    assert opened.tally[0].prompt_layers_skipped == between * (LAYERS - EXIT)
    assert opened.tally[0].prompt_layers == 62 * LAYERS - opened.tally[0].prompt_layers_skipped
    assert opened.complete(0, [*prompt, 7], rule, 16) == 62
    assert (opened.tally[0].prompt_layers, opened.tally[0].prompt_reused) == (LAYERS, 62)
