"""Cheap heads: what they approximate and cost, and that exits' tokens stay the LM head's unless told otherwise."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import HeadLogits, LMHead
from harness.decoding.engine import Engine
from harness.decoding.heads.int8 import ExactRows, Int8
from harness.decoding.heads.lowrank import LowRank
from harness.decoding.heads.shortlist import Shortlist
from harness.decoding.packing import pack_near_exact
from harness.decoding.readings import HeadReading, Heads, entropy, top_probability, two_best
from harness.errors import ArtefactError, ModelError
from strategies.confidence import Confidence
from strategies.entropy import Entropy
from strategies.margin import Margin
from tests.decoding.conftest import Again, decode_open, with_heads

VOCABULARY, WIDTH = 3000, 32


@pytest.fixture
def lm_head() -> LMHead:
    """A head whose rows differ in size, and with a bias."""
    chance = torch.Generator().manual_seed(5)
    weight = torch.randn(VOCABULARY, WIDTH, generator=chance) * torch.linspace(1.2, 0.4, VOCABULARY).unsqueeze(1)
    bias = torch.randn(VOCABULARY, generator=chance) / 4
    return LMHead(
        VOCABULARY, WIDTH, "cpu", lambda ids: weight.clone() if ids is None else weight[ids], bias, pack_near_exact
    )


@pytest.fixture
def states() -> Tensor:
    return torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(6))


def exact(lm_head: LMHead, states: Tensor) -> Tensor:
    assert lm_head.bias is not None
    return states @ lm_head.rows(None).t() + lm_head.bias


def root(states: Tensor) -> dict[str, Tensor]:
    """Any root does where no direction is left out."""
    return {"root": torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))).Q * 3}


WHOLE: Mapping[str, Callable[[LMHead, Tensor], Any]] = {
    "shortlist": lambda head, states: Shortlist(head, None, {"token_ids": torch.randperm(VOCABULARY)}),
    "lowrank": lambda head, states: LowRank(head, WIDTH, root(states)),
    "int8": lambda head, states: Int8(head, None, {}),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_head_that_leaves_nothing_out_reads_as_the_lm_head(name: str, lm_head: LMHead, states: Tensor) -> None:
    logits = exact(lm_head, states)
    reading = HeadReading.of(WHOLE[name](lm_head, states)(states))
    slack = 0.02 if name == "int8" else 0.003
    assert reading.top_token.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(reading.top_probability, top_probability(logits), rtol=slack, atol=slack)
    torch.testing.assert_close(reading.second_probability, two_best(logits)[:, 1], rtol=slack, atol=slack)
    torch.testing.assert_close(reading.entropy, entropy(logits), rtol=slack, atol=slack)


@pytest.mark.parametrize("name", WHOLE)
def test_a_row_reads_alike_whatever_its_neighbours(name: str, lm_head: LMHead, states: Tensor) -> None:
    head = WHOLE[name](lm_head, states)
    states = torch.cat((states[:7], 100 * states[7:8]))  # an outlier among them
    together = HeadReading.of(head(states))
    for row in range(len(states)):
        alone = HeadReading.of(head(states[row : row + 1]))
        assert alone.top_token.item() == together.top_token[row].item()
        assert alone.top_probability.item() == pytest.approx(together.top_probability[row].item(), abs=1e-5)
        assert alone.entropy.item() == pytest.approx(together.entropy[row].item(), abs=1e-4)


def test_a_shortlist_counts_what_it_does_not_read(lm_head: LMHead, states: Tensor) -> None:
    states = states / 4  # logits spread by one and a half
    logits = exact(lm_head, states)
    ids = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(1))
    some = ids[: VOCABULARY // 2]
    found = Shortlist(lm_head, len(some), {"token_ids": ids})(states)
    assert found.rest is not None
    assert found.token_ids is not None
    assert found.token_ids.tolist() == some.tolist()
    torch.testing.assert_close(found.logits, logits[:, some], rtol=0.01, atol=0.01)
    others = logits[:, ids[len(some) :]].logsumexp(-1)
    assert float((found.rest - others).abs().mean()) < 0.1
    expected = (logits[:, some].amax(1) - logits.logsumexp(1)).exp()
    torch.testing.assert_close(HeadReading.of(found).top_probability, expected, rtol=0.25, atol=0)
    assert float((HeadReading.of(HeadLogits(found.logits)).top_probability / expected).min()) > 1.5  # without the rest


def test_what_is_outside_a_shortlist_is_one_token_to_entropy() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2]])
    found = HeadLogits(probabilities[:, :2].log(), torch.tensor([7, 4]), probabilities[:, 2].log())
    reading = HeadReading.of(found)
    assert reading.top_token.tolist() == [7]
    assert reading.top_probability.item() == pytest.approx(0.5)
    assert reading.second_probability.item() == pytest.approx(0.3)
    assert reading.entropy.item() == pytest.approx(float(-(probabilities * probabilities.log()).sum()))


def test_low_rank_reads_the_best_exactly_and_adds_half_the_variance_it_leaves_out(
    lm_head: LMHead, states: Tensor
) -> None:
    size = 20
    head = LowRank(lm_head, size, {"root": torch.eye(WIDTH)})
    logits, found = exact(lm_head, states), head(states).logits
    rows = lm_head.rows(None)
    assert lm_head.bias is not None
    preview = states[:, :size] @ rows[:, :size].t() + lm_head.bias + rows[:, size:].pow(2).sum(1) / 2
    best = preview.topk(LowRank.EXACT, dim=1).indices
    torch.testing.assert_close(found.gather(1, best), logits.gather(1, best), rtol=0.01, atol=0.01)
    torch.testing.assert_close(found.scatter(1, best, 0), preview.scatter(1, best, 0), rtol=0.01, atol=0.02)


@pytest.mark.parametrize("size", [50, 4096, 49152])
def test_the_best_columns_are_those_of_topk(size: int) -> None:
    chance = torch.Generator().manual_seed(size)
    head = LMHead(size, 2, "cpu", lambda ids: torch.zeros(size, 2), None, pack_near_exact)
    logits = torch.randn(5, size, generator=chance)
    replaced = logits.clone()
    ExactRows(head, 16).replace(replaced, torch.zeros(5, 2))  # by zeros
    assert torch.equal(replaced, logits.scatter(1, logits.topk(16, dim=1).indices, 0))


def test_what_does_not_fit_is_refused(lm_head: LMHead) -> None:
    with pytest.raises(ArtefactError, match="ranks 10 of 3,000 tokens, and 11 are asked for"):
        Shortlist(lm_head, 11, {"token_ids": torch.arange(10)})
    with pytest.raises(ArtefactError, match="ranks 0 of 3,000"):
        Shortlist(lm_head, 4, {})
    with pytest.raises(ArtefactError, match="ranks 2 of"):
        Shortlist(lm_head, 2, {"token_ids": torch.tensor([1, VOCABULARY])})
    with pytest.raises(ArtefactError, match="of width 5, the LM head of 32"):
        LowRank(lm_head, 2, {"root": torch.eye(5)})
    with pytest.raises(ModelError, match="runs on a CPU"):
        Int8(dataclasses.replace(lm_head, device="cuda:0"), None, {})


# ------------------------------------------------------------------------------------------ decoding


@pytest.fixture
def engine(llama: Any, tmp_path: Path) -> Engine:
    return with_heads(llama, tmp_path)


READERS = [
    Confidence(threshold=0.6, head="shortlist/40"),
    Confidence(threshold=0.6, head="lowrank/64"),
    Margin(threshold=0.3, head="shortlist/97"),
    Entropy(threshold=0.3, head="int8"),
]


@pytest.mark.parametrize("strategy", READERS, ids=str)
def test_an_exit_by_a_cheap_head_speaks_by_the_lm_head(
    engine: Engine, schedule: Any, prompts: list[list[int]], strategy: Any
) -> None:
    limits = [10] * 3
    done = engine.decode(prompts, strategy, kv="recompute", max_new_tokens=limits)
    plain = engine.decode(prompts, schedule([one.exit_layers for one in done]), kv="recompute", max_new_tokens=limits)
    assert [one.token_ids for one in done] == [one.token_ids for one in plain]
    assert {layer for one in done for layer in one.exit_layers[1:]} > {6}
    size = Heads(engine.backbone)[strategy.cheap_heads()[0]].nbytes
    for one in done:
        assert one.lm_head_evaluations == 9  # one a token, as if nobody had asked
        assert one.cheap_head_evaluations == one.exit_checks
        assert one.cheap_head_bytes == one.exit_checks * size
        assert one.cheap_head_tokens == 0


def test_a_head_that_is_exact_decides_as_the_lm_head(engine: Engine, prompts: list[list[int]]) -> None:
    limits = [12] * 3
    full = engine.decode(prompts, Confidence(threshold=0.613), kv="recompute", max_new_tokens=limits)
    for head in ("lowrank/64", "shortlist/97"):
        cheap = engine.decode(prompts, Confidence(threshold=0.613, head=head), kv="recompute", max_new_tokens=limits)
        assert [one.exit_layers for one in cheap] == [one.exit_layers for one in full]
        assert [one.cheap_head_misses for one in cheap] == [0] * 3


@pytest.mark.parametrize("token", ["full", "head"])
def test_misses_of_a_shortlist_are_counted_and_its_own_tokens_too(
    engine: Engine, prompts: list[list[int]], token: Any
) -> None:
    strategy = Confidence(threshold=0.0, head="shortlist/40", token=token)  # leaves at once
    done = engine.decode(prompts, strategy, kv="recompute", max_new_tokens=[12] * 3)
    listed = set(torch.arange(97).roll(11)[:40].tolist())
    for one in done:
        outside = sum(made not in listed for made in one.token_ids[1:])
        if token == "full":
            assert one.cheap_head_misses == outside
            assert (one.lm_head_evaluations, one.cheap_head_tokens) == (11, 0)
        else:
            assert outside == 0
            assert (one.lm_head_evaluations, one.cheap_head_tokens) == (0, 11)
            assert one.cheap_head_misses == 0
    assert token == "head" or sum(one.cheap_head_misses for one in done) > 0


def test_rows_of_several_heads_decode_together_as_alone(engine: Engine, prompts: list[list[int]]) -> None:
    mixed = [
        Confidence(threshold=0.5, head="shortlist/40"),
        Confidence(threshold=0.5, head="shortlist/40", token="head"),
        Confidence(threshold=0.5),
    ]
    made, failures = decode_open(engine, [(prompts[row], one, 12) for row, one in enumerate(mixed)])
    assert not failures
    for prompt, strategy, one in zip(prompts, mixed, made, strict=True):
        (alone,) = engine.decode([prompt], strategy, kv="recompute", max_new_tokens=[12])
        assert (one.token_ids, one.exit_layers, one.counts) == (alone.token_ids, alone.exit_layers, alone.counts)
        assert len(one.log_probabilities) == 12


@pytest.mark.parametrize("strategy", READERS, ids=str)
def test_what_reads_a_head_holds_no_cache(engine: Engine, prompts: list[list[int]], strategy: Any) -> None:
    """A cache with its graphs serves the next batch at once, not when Python has collected cycles."""
    again, recorded = Again(), []
    recording = Engine(engine.backbone, engine.info, recorder=again)
    gc.disable()
    try:
        for _ in range(2):
            recording.decode(prompts, strategy, kv="recompute", max_new_tokens=[6] * 3)
            recorded.append(again.recorded)
    finally:
        gc.enable()
    assert recorded[0] == recorded[1] > 0


def test_without_an_artefact_the_model_says_so(llama: Any, prompts: list[list[int]]) -> None:
    with pytest.raises(ArtefactError, match=r"there is no shortlist\.json for llama"):
        llama.engine.decode(prompts[:1], Confidence(head="shortlist"), kv="recompute", max_new_tokens=[3])
