"""The bound on what rounding may do holds for every format and family, and nothing that is wrong stays below it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.packing import pack
from harness.decoding.teacher_forcing import FLOAT32_ERROR, TeacherForcing, disturbed, largest_error, product_error
from harness.registry import WEIGHTS_FORMATS
from strategies.full import Full

USABLE = [name for name in WEIGHTS_FORMATS.names() if WEIGHTS_FORMATS.load(name)().obstacle("cpu") is None]
NEW = 24


def logits(case: Any, backbone: Backbone, prompt: list[int], tokens: list[int]) -> Tensor:
    return TeacherForcing(Engine(backbone, case.info), prompt, NEW).logits(tokens)


@pytest.fixture
def own_text(case: Any, prompts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Prompts and what full depth makes of them."""
    made = case.engine.decode(prompts, Full(), kv="recompute", max_new_tokens=[NEW] * len(prompts))
    return [(prompt, one.token_ids) for prompt, one in zip(prompts, made, strict=True)]


def errors(logits: Tensor, other: Tensor) -> Tensor:
    """How far each logit of a place moved against the others."""
    moved = other - logits
    return (moved - moved.mean(-1, keepdim=True)).abs()


@pytest.mark.crossed
@pytest.mark.parametrize("name", USABLE)
def test_no_format_moves_a_logit_further_than_the_bound(case: Any, name: str, own_text: Any) -> None:
    packed = pack(case.engine.backbone, name, "cpu")
    noisy = disturbed(case.engine.backbone, product_error(WEIGHTS_FORMATS.load(name).facts))
    for prompt, tokens in own_text:
        exact = logits(case, case.engine.backbone, prompt, tokens)
        bound = largest_error(exact, logits(case, noisy, prompt, tokens))
        assert errors(exact, logits(case, packed, prompt, tokens)).max() <= bound


def test_the_bound_grows_with_the_error_and_says_little_where_there_is_none(case: Any, own_text: Any) -> None:
    prompt, tokens = own_text[0]
    exact = logits(case, case.engine.backbone, prompt, tokens)
    bounds = [
        largest_error(exact, logits(case, disturbed(case.engine.backbone, error), prompt, tokens))
        for error in (0.0, FLOAT32_ERROR, 1e-3, 1e-1)
    ]
    assert bounds[0] < bounds[1] < bounds[2] < bounds[3]
    assert bounds[1] < 0.01 * float(exact.std(-1).max())


def without_last_inputs(backbone: Backbone) -> Backbone:
    """What kernels make of a model that leave out what is beyond the last whole block of a row."""

    def cut(matrix: Any) -> Linear:
        weight = matrix.weight.clone()
        weight[:, -8:] = 0
        return Linear(weight, matrix.bias)

    return replace(backbone, blocks=[block.packed(cut) for block in backbone.blocks])


def test_wrong_products_move_logits_beyond_the_bound_of_fp16(case: Any, own_text: Any) -> None:
    noisy = disturbed(case.engine.backbone, product_error(WEIGHTS_FORMATS.load("fp16").facts))
    beyond = []
    for prompt, tokens in own_text:
        exact = logits(case, case.engine.backbone, prompt, tokens)
        bound = largest_error(exact, logits(case, noisy, prompt, tokens))
        beyond.append(
            float(errors(exact, logits(case, without_last_inputs(case.engine.backbone), prompt, tokens)).max()) > bound
        )
    assert all(beyond)


def test_logits_are_those_of_the_choices(case: Any, own_text: Callable[..., Any]) -> None:
    for prompt, tokens in own_text:
        forced = TeacherForcing(case.engine, prompt, NEW)
        for length in (1, 9, NEW):
            assert forced.logits(tokens[:length]).argmax(-1).tolist() == forced.choices(tokens[:length])
