"""Generating from Python: the engine's own tokens, one by one or all at once, with any strategy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import harness
from harness.api.model import Model
from harness.config import parse_all
from harness.contracts import Strategy
from harness.errors import ConfigError, HarnessError, ModelError, OptionError, UnknownNameError
from harness.running.operating_points import build_all
from tests.crossing import in_turn

PROMPT = "def load_path(items, limit=3):\n    for item in items:\n        "


@pytest.mark.parametrize(("text", "kv"), [("confidence:threshold=0.2", "propagate"), ("oracle", "skip")])
def test_it_is_what_the_engine_decodes(model: Model, text: str, kv: str) -> None:
    tokenizer = model.loaded.tokenizer
    found = model.generate(PROMPT, text, kv=kv, max_new_tokens=20)
    policy = found.kv
    assert policy == ("recompute" if text == "oracle" else kv)  # a bound needs exact K,V
    (made,) = model._engine.decode(
        [tokenizer.encode(PROMPT)], build_all(parse_all([text]))[0][1], kv=policy,
        max_new_tokens=[20], eos_token_ids=tokenizer.eos_token_ids,
    )  # fmt: skip
    assert found.tokens.token_id.tolist() == made.token_ids
    assert found.tokens.exit_layer.tolist() == made.exit_layers
    assert found.finish_reason == made.finish_reason
    for count, value in found.counts.items():  # probabilities are read from logits that were there, and charge nothing
        assert value == getattr(made, count)
    assert found.text == "".join(found.tokens.text)
    assert found.text == tokenizer.decode(made.token_ids[: -1 if made.finish_reason == "eos" else None])
    assert (found.tokens.time_s.diff().dropna() >= 0).all()


@pytest.mark.model
def test_full_depth_is_transformers_greedy() -> None:
    model = harness.load("smollm2-135m", weights_format="float32")
    prompt = torch.tensor([model.loaded.tokenizer.encode("def fibonacci(n):\n    ")])
    with torch.inference_mode():
        expected = model.loaded.module.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
        )
        whole = model.loaded.module(expected).logits.softmax(-1)
    found = model.generate("def fibonacci(n):\n    ", max_new_tokens=12)
    new = expected[0, prompt.shape[1] :]
    assert found.tokens.token_id.tolist() == new.tolist()
    chosen = whole[0, prompt.shape[1] - 1 : -1].gather(1, new.unsqueeze(1)).squeeze(1)
    assert found.tokens.probability.tolist() == pytest.approx(chosen.tolist(), rel=1e-3)
    assert model.sources["exits"].startswith("shortcuts ")


def test_a_stream_yields_what_generate_returns(model: Model) -> None:
    stream = model.stream(PROMPT, "confidence:threshold=0.2", max_new_tokens=9)
    first = next(stream)
    assert (first.index, first.exit_layer, first.last) == (0, model.info.num_layers, False)
    steps = [first, *stream]
    assert steps[-1].last
    assert next(stream, None) is None
    whole = model.generate(PROMPT, "confidence:threshold=0.2", max_new_tokens=9)
    assert [token.token_id for token in steps] == whole.tokens.token_id.tolist()
    assert stream.completion().text == whole.text


def test_a_stop_text_ends_it_and_is_no_part_of_it(model: Model) -> None:
    whole = model.generate(PROMPT, max_new_tokens=20).text
    stop = whole[5:7]
    found = model.generate(PROMPT, max_new_tokens=20, stop=stop)
    assert found.finish_reason == "stop"
    assert found.text == whole[: whole.index(stop)] == "".join(found.tokens.text)


@pytest.mark.parametrize("decode", ["lossy", "lossless+suffix"])
def test_several_prompts_are_decoded_together_each_as_alone(model: Model, decode: str) -> None:
    prompts = [PROMPT, PROMPT[:20], PROMPT[8:]]
    options: dict[str, Any] = {"max_new_tokens": 12, "decode": decode, "stop": "zq"}
    alone = [model.generate(prompt, "confidence:threshold=0.2", **options) for prompt in prompts]
    together = model.generate(prompts, "confidence:threshold=0.2", batch_size=2, **options)
    for one, of_all in zip(alone, together, strict=True):
        assert (one.text, one.finish_reason, one.prompt_tokens) == (
            of_all.text,
            of_all.finish_reason,
            of_all.prompt_tokens,
        )
        assert [step.exit_layer for step in one.steps] == [step.exit_layer for step in of_all.steps]
    ids = [model.loaded.tokenizer.encode(prompt) for prompt in prompts[:2]]
    assert [made.text for made in model.generate(ids, "confidence:threshold=0.2", **options)] == [
        made.text for made in together[:2]
    ]


def test_a_notebook_shows_the_depth_of_every_token(model: Model) -> None:
    lossy = model.generate(PROMPT, "confidence:threshold=0.2", max_new_tokens=6)
    shown = lossy._repr_html_()
    assert shown.count('<span class="tok') == 6
    for step in lossy.steps[1:]:
        assert f"layer {step.exit_layer} of 12" in shown
    assert "confidence:threshold=0.2" in shown
    drafted = model.generate(PROMPT, "random:probability=0.9", max_new_tokens=12, decode="lossless")
    assert "accepted by full depth" in drafted._repr_html_()


def test_a_strategy_of_nowhere_decides(model: Model, sure: type[Any]) -> None:
    expected = model.generate(PROMPT, "confidence:threshold=0.2", max_new_tokens=12).tokens
    for given in (sure, sure(0.2)):
        found = model.generate(PROMPT, given, max_new_tokens=12)
        assert found.tokens.exit_layer.tolist() == expected.exit_layer.tolist()
        assert found.strategy == f"{sure.__module__}:Sure:least=0.2"
    assert set(model.generate(PROMPT, sure(0.0), max_new_tokens=4).tokens.exit_layer[1:]) == {4}


@in_turn(strategy=["random:probability=0.7", "oracle"], decode=["lossless+lookup:n=2:min_n=1", "lossless"])
def test_lossless_tokens_are_full_depth_s(model: Model, strategy: str, decode: str) -> None:
    full = model.generate(PROMPT, max_new_tokens=24)
    found = model.generate(PROMPT, strategy, max_new_tokens=24, decode=decode, draft_max=5)
    assert found.tokens.token_id.tolist() == full.tokens.token_id.tolist()
    assert found.tokens.text.tolist() == full.tokens.text.tolist()
    assert found.tokens.probability.tolist() == pytest.approx(full.tokens.probability.tolist(), rel=1e-3)
    assert (found.decode, found.kv, found.finish_reason) == (decode, "recompute", full.finish_reason)
    drafts = found.drafts
    assert drafts is not None
    assert tuple(step.accepted for step in found.steps) == drafts.accepted
    assert tuple(step.drafted_at for step in found.steps) == drafts.drafted_at
    assert sum(drafts.accepted) == drafts.accepted_tokens <= drafts.drafted_tokens == found.counts["drafts"]
    assert len(set(found.tokens.time_s)) == 1 + drafts.verifications
    assert full.drafts is None
    assert f"{drafts.accepted_tokens} of {drafts.drafted_tokens} drafted tokens accepted, " in str(found)
    assert "12.0 of 12 layers on average, full, " in str(full)
    assert set(full.tokens.accepted) == {None}
    stop = full.text[9:12]
    expected = model.generate(PROMPT, max_new_tokens=24, stop=stop)
    steps = list(model.stream(PROMPT, strategy, max_new_tokens=24, stop=stop, decode=decode, draft_max=3))
    assert [step.last for step in steps] == [False] * (len(steps) - 1) + [True]
    assert "".join(step.text for step in steps) == expected.text


@dataclass(frozen=True)
class NeedsOne(Strategy):
    least: float


class NotFrozen:
    def should_exit(self, view: object) -> None: ...


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"strategy": "confidance"}, UnknownNameError, "Did you mean 'confidence'"),
    ({"strategy": "fixed:layer=4,6"}, ConfigError, "'fixed:layer=4,6' is 2 operating points"),
    ({"strategy": NotFrozen()}, ConfigError, r"NotFrozen .* is no strategy: give NAME"),
    ({"strategy": NeedsOne}, ConfigError, r"NeedsOne.* .least.\. Give an object: NeedsOne\("),
    ({"kv": "none,skip"}, ConfigError, "kv = 'none,skip' is 2 policies"),
    ({"decode": "loseless"}, ConfigError, "decode = 'loseless' cannot be read. Did you mean 'lossless'"),
    ({"draft_head": "foo"}, UnknownNameError, "unknown head 'foo'"),
    ({"decode": "lossless", "kv": "skip"}, OptionError, "under --kv skip none do. Use --kv recompute"),
    ({"max_new_tokens": 0}, ConfigError, "max_new_tokens = 0: input should be greater than or equal to 1"),
    ({"max_new_tokens": 999}, ModelError, "has 256"),
    ({"stop": ("\n", "")}, ConfigError, "stop = '': give the text"),
    ({"text": ""}, ModelError, "the prompt is empty"),
    ({"text": "a\ud800"}, ConfigError, "character 1 of the prompt is half of a surrogate pair"),
    ({"text": [1.5]}, ConfigError, r"text = \[1.5\]: give the prompt as one text"),
    ({"text": [1, 320]}, ModelError, "token id 320 is outside the vocabulary of"),
]


def test_what_cannot_be_generated_or_loaded(model: Model, tiny_llama: Path) -> None:
    for given, error, said in REFUSED:
        with pytest.raises(error, match=said):
            model.generate(**{"text": PROMPT} | given)
    loads: list[tuple[dict[str, Any], str]] = [
        ({"exit_points": "4,99"}, "--exit-points 4,99"),
        ({"dtype": "float8"}, "dtype = 'float8'"),
        ({"device": "tpu"}, "device 'tpu'"),
        ({"weights": "tuned"}, "there is no adapter"),
    ]
    for given, said in loads:
        with pytest.raises(HarnessError, match=said):
            harness.load(tiny_llama, **given)


def test_token_ids_may_be_of_an_array_or_a_tensor(model: Model) -> None:
    token_ids = model.loaded.tokenizer.encode(PROMPT)
    expected = model.generate(token_ids, max_new_tokens=3).tokens.token_id.tolist()
    for given in (tuple(token_ids), np.array(token_ids), torch.tensor(token_ids)):
        assert model.generate(given, max_new_tokens=3).tokens.token_id.tolist() == expected


# ------------------------------------------------------------------------------------------------ trace


def test_a_trace_is_what_the_heads_say(model: Model) -> None:
    found = model.trace(PROMPT)
    token_ids = model.loaded.tokenizer.encode(PROMPT)
    layers = [*model.info.exit_points, model.info.num_layers]
    assert found.exit_layer.tolist() == layers * len(token_ids)
    assert "".join(found.text[:: len(layers)]) == PROMPT
    with torch.inference_mode():
        expected = model.loaded.module(torch.tensor([token_ids])).logits[0].softmax(-1)
    deep = found[found.exit_layer == 12]
    assert deep.top_token_id.tolist() == expected.argmax(-1).tolist()
    assert deep.probability.tolist() == pytest.approx(expected.max(-1).values.tolist(), rel=1e-4)
    entropy = -(expected * expected.log()).sum(-1)
    assert deep.entropy.tolist() == pytest.approx(entropy.tolist(), rel=1e-3)
    assert deep.full_depth.all()
    agreeing = found.top_token_id == found.position.map(deep.set_index("position").top_token_id)
    assert found.full_depth.tolist() == agreeing.tolist()
    assert 0 < found.full_depth.mean() < 1
    assert not found.isna().to_numpy().any()
    made = model.generate(token_ids, "fixed:layer=6", max_new_tokens=2, kv="none")  # as a trace says, exits decode
    said = found[found.exit_layer == 6].iloc[-1]
    assert made.steps[0].token_id == said.top_token_id
    assert made.steps[0].probability == pytest.approx(said.probability, rel=1e-4)


def test_logits_that_are_not_finite_are_refused(make_model: Callable[..., Path]) -> None:
    model = harness.load(make_model("llama"), threads=1)
    model.loaded.backbone.blocks[8].output.weight[0, 0] = math.nan
    stream = model.stream(PROMPT)
    for _ in range(2):  # a second attempt says the same
        with pytest.raises(ModelError, match=r"^logits of layer 12 are not finite at token 1: .* Check the model"):
            next(stream)
    with pytest.raises(ModelError, match="not finite at token 1"):
        model.generate(PROMPT, kv="none")
    with pytest.raises(ModelError, match="logits of layer 10 are not finite at token 1"):
        model.trace(PROMPT)
    assert len(model.generate(PROMPT, "fixed:layer=4", kv="none", max_new_tokens=3).steps) == 3


def test_a_strategy_that_only_drafts_is_decoded_losslessly(model: Model) -> None:
    text = "def total(values):\n    result = 0\n"
    drafted = model.generate(text, "layerskip:layer=4:length=2", max_new_tokens=8)
    assert drafted.decode == "lossless"
    assert drafted.text == model.generate(text, max_new_tokens=8).text
    for name in ("layerskip", "swift", "clasp"):
        with pytest.raises(OptionError, match=f"{name} only drafts"):
            model.generate(text, f"{name}:length=2", decode="lossy")


@dataclass(frozen=True)
class StopAfter(Strategy):
    """Stop at the first exit point once there are so many tokens."""

    tokens: int = 4

    def should_exit(self, view: Any) -> torch.Tensor:
        view.stop(torch.tensor([len(made) >= self.tokens for made in view.token_ids]))
        return torch.zeros(len(view.rows), dtype=torch.bool)


def test_a_strategy_may_end_a_completion(model: Model) -> None:
    whole, found = (model.generate(PROMPT, strategy, max_new_tokens=9) for strategy in ("full", StopAfter(4)))
    assert found.finish_reason == "strategy"
    assert found.tokens.token_id.tolist() == whole.tokens.token_id.tolist()[:4]
    assert found.text == "".join(found.tokens.text)
    assert found.steps[-1].last


def test_a_stop_rule_ends_it(model: Model) -> None:
    """``line`` of Java, whose marks even random weights make soon."""
    free = model.generate(PROMPT, max_new_tokens=64)
    marks = [place for place, text in enumerate(free.tokens.text) if set(text) & set("\n;{}")]
    found = model.generate(
        PROMPT, "fixed:layer=4", max_new_tokens=64, decode="lossless", stop_rule="line:language=java"
    )
    assert marks
    assert (found.finish_reason, found.stop_rule) == ("stop", "line")
    assert found.tokens.token_id.tolist() == free.tokens.token_id.tolist()[: marks[0] + 1]
    assert found.steps[-1].last
    assert "ended by line" in repr(found)
    with pytest.raises(OptionError, match="must know the language"):
        model.generate(PROMPT, stop_rule="statement")
