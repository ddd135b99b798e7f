"""Full depth chooses along a text as transformers does, and the bound on rounding holds for every format."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.decoding.engine import Engine
from harness.decoding.packing import pack
from harness.decoding.teacher_forcing import FLOAT32_ERROR, TeacherForcing, disturbed, largest_error, product_error
from harness.errors import ModelError
from harness.registry import WEIGHTS_FORMATS
from strategies.full import Full
from tests.crossing import in_turn
from tests.decoding.conftest import FORMS, each_kind


def forced(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[int]:
    """Transformers' choice before each token of a completion."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0]
    chosen: list[int] = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    return chosen


def test_choices_are_those_of_transformers_for_every_family(case: Any, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        reader = TeacherForcing(case.engine, prompt, 9)
        for length in (1, 9, 2):  # a shorter one after a longer one: what that left behind is not seen
            completion = random.Random(length).choices(range(1, 97), k=length)
            assert reader.choices(completion) == forced(case.reference, prompt, completion)
            assert reader.logits(completion).argmax(-1).tolist() == reader.choices(completion)


def test_what_does_not_fit_the_positions_is_refused(llama: Any) -> None:
    with pytest.raises(ModelError, match="need 161 positions"):
        TeacherForcing(llama.engine, [1] * 150, 11)


# ------------------------------------------------------------------------------ the real model


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


@in_turn(case=list(FORMS), name=USABLE)
def test_no_format_moves_a_logit_further_than_the_bound(case: Any, name: str, own_text: Any) -> None:
    packed = pack(case.engine.backbone, name, "cpu")
    noisy = disturbed(case.engine.backbone, product_error(WEIGHTS_FORMATS.load(name).facts))
    for prompt, tokens in own_text:
        exact = logits(case, case.engine.backbone, prompt, tokens)
        bound = largest_error(exact, logits(case, noisy, prompt, tokens))
        assert errors(exact, logits(case, packed, prompt, tokens)).max() <= bound


@pytest.mark.parametrize("case", ["llama"], indirect=True)
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


@each_kind
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
