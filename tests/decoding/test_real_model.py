"""The default model's real weights: full depth is ``generate``, and deeper exits agree more with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import ExitView, ModelInfo, Strategy
from harness.registry import KV_POLICIES
from strategies.fixed import Fixed
from strategies.full import Full

pytestmark = pytest.mark.model

CODE = {
    "python": '''import json
from pathlib import Path


def load_settings(path):
    """Return the settings of a JSON file."""
    with Path(path).open(encoding="utf-8") as file:
        return json.load(file)


def save_settings(path, settings):
    """''',
    "java": """package org.example.shapes;

public class Rectangle implements Shape {
    private final double width;
    private final double height;

    public Rectangle(double width, double height) {
        this.width = width;
        this.height = height;
    }

    @Override
    public double area() {
        """,
}


@pytest.mark.parametrize("language", CODE)
def test_never_exiting_is_generate(smollm2: Any, language: str, greedy: Callable[..., list[int]]) -> None:
    prompt = smollm2.tokenizer.encode(CODE[language])
    done = smollm2.engine.decode([prompt], Full(), kv="propagate", max_new_tokens=[24])[0]
    assert len(set(done.token_ids)) > 8
    assert done.token_ids == greedy(smollm2.module, prompt, 24)


@pytest.mark.slow
def test_every_policy_and_a_batch_agree_at_full_depth(smollm2: Any) -> None:
    prompts = [smollm2.tokenizer.encode(text) for text in CODE.values()]
    tokens = [
        [one.token_ids for one in smollm2.engine.decode(prompts, Full(), kv=kv, max_new_tokens=[8, 8])]
        for kv in KV_POLICIES.names()
    ]
    alone = [smollm2.engine.decode([prompt], Full(), kv="skip", max_new_tokens=[8])[0].token_ids for prompt in prompts]
    assert all(found == alone for found in tokens)


def test_recompute_decodes_as_no_cache_does(smollm2: Any) -> None:
    prompt = smollm2.tokenizer.encode(CODE["java"])
    done = smollm2.engine.decode([prompt], Fixed(layer=22), kv="recompute", max_new_tokens=[8])[0]
    plain = smollm2.engine.replay([prompt], [done.exit_layers], kv="none", max_new_tokens=[8])[0]
    assert done.exit_layers == [30] + [22] * 7
    assert done.token_ids == plain.token_ids


@dataclass(frozen=True)
class Watch(Strategy):
    """Never exits; remembers what some exit points would have said."""

    said: dict[int, list[int]] = field(default_factory=dict)

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return (4, 10, 18, 26)

    def should_exit(self, view: ExitView) -> Tensor:
        self.said.setdefault(view.exit_layer, []).extend(view.top_token.tolist())
        return torch.zeros(len(view.rows), dtype=torch.bool)


@pytest.mark.slow
def test_agreement_with_full_depth_grows_with_depth(smollm2: Any) -> None:
    right: Counter[int] = Counter()
    for text in CODE.values():
        watch = Watch()
        prompt = smollm2.tokenizer.encode(text)
        done = smollm2.engine.decode([prompt], watch, kv="propagate", max_new_tokens=[25])[0]
        for layer, said in watch.said.items():
            right[layer] += sum(a == b for a, b in zip(said, done.token_ids[1:], strict=True))
    # Of 48 tokens. An untuned model knows next to nothing in its first layers.
    assert max(right[4], right[10]) <= 6
    assert right[26] >= 10
    assert right[4] + right[10] <= right[18] + 2 < right[26]
