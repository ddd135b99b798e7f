"""What a strategy is shown: its rows, where they stand, and the exit points it met before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, ModelInfo, Strategy
from harness.registry import KV_POLICIES
from tests.crossing import in_turn

LAYERS = 6


class Spy(Strategy):
    """Hands every view to a function before leaving where the schedule says."""

    def __init__(self, planned: Sequence[Sequence[int]], look: Callable[[Any], None]) -> None:
        self.planned, self.look = planned, look
        self.batch: Batch | None = None

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        return model.exit_points

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        self.batch = batch
        return self

    def should_exit(self, view: Any) -> Tensor:
        self.look(view)
        steps = zip(view.rows.tolist(), view.token_ids, strict=True)
        return torch.tensor([self.planned[row][len(tokens)] == view.exit_layer for row, tokens in steps])


# At the second token one row leaves at 2, one at 4, and one looks back over both of these gaps.
PLANNED = [[6, 2, 5, 3, 6], [6, 4, 1, 6, 2], [6, 6, 5, 3, 1]]


@in_turn(rounds=2, kv=KV_POLICIES.names(), eager=[True, False])
def test_previous_is_the_last_exit_point_over_the_rows_that_are_left(
    llama: Any, kv: str, eager: bool, prompts: list[list[int]]
) -> None:
    """Whether it is looked at once each time or only from the deepest exit point, all the way back."""
    seen: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    depths = []

    def look(view: Any) -> None:
        for place, (row, position) in enumerate(zip(view.rows.tolist(), view.position.tolist(), strict=True)):
            logits = view.logits[place].clone()
            seen[row, position, view.exit_layer] = view.hidden_state[place].clone(), logits
        if not eager and view.exit_layer < 5:
            return
        rows, positions, layer, earlier = view.rows.tolist(), view.position.tolist(), view.exit_layer, view.previous
        while earlier is not None:
            layer -= 1
            assert earlier.exit_layer == layer
            assert earlier.rows.tolist() == rows
            assert earlier.hidden_state.shape[0] == earlier.logits.shape[0] == len(rows)
            for place, (row, position) in enumerate(zip(rows, positions, strict=True)):
                state, logits = seen[row, position, layer]
                assert torch.equal(earlier.hidden_state[place], state)
                assert torch.equal(earlier.logits[place], logits)
                assert earlier.top_token[place] == logits.argmax()
            earlier = earlier.previous
        assert layer == 1
        depths.append(view.exit_layer)

    llama.engine.decode(prompts, Spy(PLANNED, look), kv=kv, max_new_tokens=[5] * 3)
    assert 5 in depths


def test_logits_of_an_earlier_exit_point_are_charged_to_who_is_left(llama: Any, prompts: list[list[int]]) -> None:
    def look(view: Any) -> None:
        if view.exit_layer == 3:
            assert view.previous.previous.logits.shape[0] == len(view.rows) == 1

    # Row 0 leaves at layer 2; row 1 looks back from layer 3 to layer 1, and leaves at 4.
    done = llama.engine.decode(prompts[:2], Spy([[6, 2], [6, 4]], look), kv="skip", max_new_tokens=[2, 2])
    assert [one.lm_head_evaluations for one in done] == [1, 2]


def test_what_is_derived_from_logits_is_its_definition_and_costs_one_evaluation(
    llama: Any, prompts: list[list[int]]
) -> None:
    seen = 0

    def look(view: Any) -> None:
        nonlocal seen
        best, second, entropy = view.top_probability, view.second_probability, view.entropy
        probabilities = view.logits.double().softmax(-1)
        ordered = probabilities.sort(-1, descending=True).values
        torch.testing.assert_close(best.double(), ordered[:, 0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(second.double(), ordered[:, 1], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(view.top_probability.double(), ordered[:, 0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            entropy.double(), -(probabilities * probabilities.log()).sum(-1), rtol=1e-4, atol=1e-5
        )
        assert view.vocab_size == 97
        seen += len(best)

    # Two rows are asked at 1 to 5 and go on, one leaves at 3: an evaluation at every exit asked, and the last layer's.
    done = llama.engine.decode(prompts, Spy([[6, 6], [6, 6], [6, 3]], look), kv="skip", max_new_tokens=[2] * 3)
    assert [one.lm_head_evaluations for one in done] == [6, 6, 3]
    assert seen == 13


def test_once_computes_once_and_keeps_the_rows_that_are_left(llama: Any, prompts: list[list[int]]) -> None:
    computed: list[int] = []

    def look(view: Any) -> None:
        def compute() -> Tensor:
            computed.append(view.exit_layer)
            return view.rows * 10 + view.exit_layer

        for _ in range(2):
            assert view.once("mine", compute).tolist() == [row * 10 + view.exit_layer for row in view.rows.tolist()]
        if view.previous is not None:  # computed there for more rows than are left
            before = view.previous.once("mine", lambda: pytest.fail("computed again"))
            assert before.tolist() == [row * 10 + view.exit_layer - 1 for row in view.rows.tolist()]

    llama.engine.decode(prompts, Spy([[6, 6], [6, 2], [6, 4]], look), kv="skip", max_new_tokens=[2] * 3)
    assert computed == [1, 2, 3, 4, 5]
