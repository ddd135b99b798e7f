"""A table names the layer for the token that was read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import write_artefact
from harness.training.identity import identity
from strategies.hash import Hash

SHARES = {
    3: (0.0, 0.5, 0.875, 0.25, 0.875, 0.875, 0.875, 0.875, 0.875),  # first 7 of 8 at layer 8, whatever follows
    7: (0.8, 0.7, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 1.0),
    9: (0.0,) * 9,
}


def write(
    model: ModelInfo, counted: Mapping[int, Sequence[float]] = SHARES, name: str = "hash", **tensors: Tensor
) -> None:
    table = {"token_ids": torch.tensor(list(counted)).int(), "shares": torch.tensor(list(counted.values())).half()}
    facts = identity(model, "t") | {"threshold": 0.75}
    write_artefact(Path(model.artefacts[0]) / f"{name}.json", "hash", table | tensors, facts)


def layers(strategy: Hash, model: ModelInfo, view: Any, texts: list[list[int]]) -> list[int]:
    """The exit layer of each text's next token."""
    rule = strategy.start(model, Batch((0,) * len(texts), "cpu"))
    found = [model.num_layers] * len(texts)
    for layer in reversed(model.exit_points):
        seen = view(rows=range(len(texts)), exit_layer=layer)
        seen.token_ids = texts
        for row, leaves in enumerate(rule.should_exit(seen).tolist()):
            found[row] = layer if leaves else found[row]
    return found


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(0.875, [8, 26]), (0.75, [8, 4]), (0.5, [6, 4]), (0.95, [28, 26]), (0.0, [4, 4]), (None, [8, 4]), (1.0, [28, 28])],
)
def test_the_last_token_decides(view: Any, model: ModelInfo, threshold: float | None, expected: list[int]) -> None:
    write(model)
    texts = [[7, 7, 3], [3, 7], [7, 9], [3, 50], []]
    found = layers(Hash(threshold=threshold), model, view, texts)
    assert found[:2] == expected
    assert found[2] == (28 if threshold != 0 else 4)
    assert found[3:] == [28, 28]  # a token that is not in the table, and none at all


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ({"shares": torch.zeros(3, 8).half()}, r"shares has shape \(3, 8\), and \(3, 9\) is needed"),
        ({"token_ids": torch.zeros(3, 2).int()}, "token_ids are no list of tokens"),
    ],
)
def test_a_damaged_table_is_refused(model: ModelInfo, damage: dict[str, Tensor], reason: str) -> None:
    write(model, **damage)
    with pytest.raises(ArtefactError, match=reason):
        Hash().start(model, Batch((0,), "cpu"))
