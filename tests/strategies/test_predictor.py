"""A predictor looks at a few candidate tokens; the LM head has the last word."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.contracts import Batch, ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import write_artefact
from harness.models.controllers import Network, candidate_features
from harness.training.identity import identity
from strategies.predictor import Predictor

FIRST = [[5.0, 4.0, 0.0, -1.0], [0.0, 1.0, 4.0, 5.0], [9.0, 8.0, 0.0, 0.0]]  # candidates 0 1, 3 2 and 0 1
THEN = [[1.0, 3.0, 2.0, 0.0], [9.0, 0.0, 2.0, 4.0], [2.0, 2.0, 0.0, 0.0]]


def write(model: ModelInfo, weight: list[float], bias: float = 0.0, **facts: Any) -> None:
    """One linear predictor for all exits, of two candidates: 6 features."""
    tensors = {}
    for point in model.exit_points:
        tensors |= Network(((torch.tensor([weight]), torch.tensor([bias])),), "relu").tensors(str(point))
    described = identity(model, "t") | {"threshold": 0.7, "candidates": 2, "head": "full", "activation": "relu"}
    write_artefact(Path(model.artefacts[0]) / "predictor.json", "predictor", tensors, described | facts)


def chain(view: Any) -> Any:
    return view(logits=THEN, previous=view(logits=FIRST, exit_layer=4), exit_layer=6)


def test_features_are_logits_shares_and_their_change() -> None:
    now, before = torch.tensor([[1.0, 3.0]]), torch.tensor([[5.0, 4.0]])
    share, earlier = 1 / (1 + math.exp(2)), 1 / (1 + math.exp(-1))
    expected = [1, 3, share, 1 - share, share - earlier, earlier - share]
    assert candidate_features(now, before)[0].tolist() == pytest.approx(expected)
    assert candidate_features(now, None)[0].tolist() == pytest.approx([1, 3, share, 1 - share, 0, 0])


def test_a_hit_holds_where_the_head_says_a_candidate(view: Any, model: ModelInfo) -> None:
    """The score is twice the gain of the second candidate's share: 1.22, −.30 and .46; the head says 1, 0 and 0."""
    write(model, [0, 0, 0, 0, 0, 2.0])
    earlier = 1 / (1 + math.exp(1))
    gains = [2 * (now - earlier) for now in (1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)), 0.5)]
    assert gains == pytest.approx([1.2237, -0.2995, 0.4621], abs=1e-3)
    for threshold, expected, asked in (
        (1 / (1 + math.exp(-0.4)), [True, False, True], [0, 2]),
        (1 / (1 + math.exp(-0.6)), [True, False, False], [0]),
        (1 / (1 + math.exp(0.4)), [True, False, True], [0, 1, 2]),  # the second row hits, and its head says token 0
        (None, [True, False, False], [0]),
        (1.0, [False] * 3, []),
        (0.0, [True, False, True], [0, 1, 2]),
    ):
        seen = chain(view)
        rule = Predictor(threshold=threshold, head="full").start(model, Batch((0,) * 3, "cpu"))
        assert rule.should_exit(seen).tolist() == expected
        assert [places for places, _ in seen.parts] == ([asked] if asked else [])  # the head is run for hits alone
        assert seen.read_rows == [2]  # and two of its rows for all


def test_the_first_exit_point_has_seen_no_change(view: Any, model: ModelInfo) -> None:
    write(model, [1.0, 0, 0, 0, 5.0, 5.0], bias=-4.5)
    rule = Predictor(threshold=0.5, head="full").start(model, Batch((0,) * 3, "cpu"))
    assert rule.should_exit(view(logits=FIRST, exit_layer=4)).tolist() == [True, True, True]  # 5, 5 and 9 less 4.5
    write(model, [1.0, 0, 0, 0, 5.0, 5.0], bias=-6.0)
    rule = Predictor(threshold=0.5, head="full").start(model, Batch((0,) * 3, "cpu"))
    assert rule.should_exit(view(logits=FIRST, exit_layer=4)).tolist() == [False, False, True]


def test_what_does_not_fit_is_refused(model: ModelInfo) -> None:
    write(model, [0.0] * 6)
    assert Predictor(head="full").exit_points(model) == model.exit_points
    with pytest.raises(ArtefactError, match=r"candidates of head=full, and head=int8 was asked for.*--head int8"):
        Predictor(head="int8").exit_points(model)
    write(model, [0.0] * 6, candidates=3)
    with pytest.raises(ArtefactError, match="holds no predictor for layer 4"):
        Predictor(head="full").start(model, Batch((0,), "cpu"))
