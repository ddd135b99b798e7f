"""The table of exits: positions of every held-out document, and intervals over documents."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from harness.training.lite.fit import POSITIONS, ExitRow, exit_table, render

VOCABULARY = 50


class Read:
    """States whose head says at the last layer the token that was read, and at the exit too from a token on."""

    def __init__(self, right_from: int) -> None:
        self.right_from = right_from
        self.lengths: list[int] = []

    def __call__(self, tokens: Tensor) -> tuple[Sequence[Tensor], Tensor]:
        self.lengths.append(tokens.shape[1])
        early = torch.where(tokens >= self.right_from, tokens, 0)
        one_hot = nn.functional.one_hot
        return [one_hot(early, VOCABULARY).float()], one_hot(tokens, VOCABULARY).float()


@pytest.fixture
def head() -> nn.Linear:
    head = nn.Linear(VOCABULARY, VOCABULARY, bias=False)
    head.weight.data = torch.eye(VOCABULARY)
    return head


def table(documents: Sequence[Sequence[int]], head: nn.Linear, right_from: int = 10) -> tuple[ExitRow, ExitRow]:
    streams = [("s", [torch.tensor(document) for document in documents])]
    exit_, last = exit_table(Read(right_from), head, (4,), 12, streams, 64)
    return exit_, last


def test_every_document_is_looked_at_in_equal_shares(head: nn.Linear) -> None:
    documents = [[5] * 2000, [20] * 2000, [20] * 2000, [20] * 101]
    exit_, last = table(documents, head)
    each = POSITIONS // 4
    assert exit_["documents"] == 4
    assert exit_["tokens"] == 3 * each + 99  # the last one is short: pieces of 64 and 37 tokens
    assert exit_["agreement"] == pytest.approx((2 * each + 99) / (3 * each + 99), abs=1e-4)
    assert exit_["accuracy"] == exit_["agreement"]  # the next token is the one that was read
    assert (last["layer"], last["agreement"], last["accuracy"]) == (12, 1.0, 1.0)


def test_no_more_is_read_than_positions_are_wanted(head: nn.Linear) -> None:
    read = Read(10)
    exit_table(read, head, (4,), 12, [("s", [torch.full((5000,), 20)] * 100)], 64)
    assert read.lengths == [64] * 100  # 31 positions each
    read.lengths.clear()
    exit_table(read, head, (4,), 12, [("s", [torch.full((5000,), 20)] * 20)], 64)
    assert set(read.lengths) <= {64, 5000 % 64}
    assert 60 <= len(read.lengths) <= 64  # 154 positions each


def test_intervals_are_over_documents(head: nn.Linear) -> None:
    """As of a mean of four numbers where each document has as many positions."""
    documents = [[20, 5, 5, 5] * 750, [20, 5] * 1500, [20, 5] * 1500, [20, 20, 20, 5] * 750]
    exit_, last = table(documents, head)
    assert exit_["agreement_interval"] is not None
    low, high = exit_["agreement_interval"]
    assert (low + high) / 2 == pytest.approx(exit_["agreement"], abs=1e-3)
    deviation = (sum((share - 0.5) ** 2 for share in (0.25, 0.5, 0.5, 0.75)) / 3) ** 0.5
    assert (high - low) / 2 == pytest.approx(3.1824 * deviation / 4**0.5, rel=0.1)  # Student's t, 3 degrees
    assert last["agreement_interval"] is None  # no two differ
    exit_, _ = table([[20, 5] * 50], head)
    assert exit_["agreement_interval"] is None  # one document


def test_intervals_cover(head: nn.Linear) -> None:
    """Of 16 documents that differ as real ones do, 95 % of intervals hold the mean they were drawn from."""
    chance = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(300):
        shares = 0.3 + 0.4 * torch.rand(16, generator=chance)
        documents = [torch.where(torch.rand(60, generator=chance) < s, 20, 5).tolist() for s in shares.tolist()]
        exit_, _ = table(documents, head)
        low, high = exit_["agreement_interval"] or (1.0, 0.0)
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 300 <= 0.98


def test_the_tables_stand_side_by_side(head: nn.Linear) -> None:
    before, after = ([*table([[5] * 90, [20] * 30], head, right_from=start)] for start in (10, 5))
    lines = render(before, after).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| s | 4 | 2 | 117 | 0.248 [0.000, 1.000] | 1.000 | 0.248 [0.000, 1.000] | 1.000 |"
    assert render(before, ()).splitlines()[2].count("–") == 2
