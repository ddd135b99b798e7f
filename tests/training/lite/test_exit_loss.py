"""The chunked loss is the plain one: cross-entropies of whole logits, differentiated by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.training.lite.lite_model import exit_losses

EXITS, TOKENS, WIDTH, VOCABULARY = 4, 23, 12, 31
WEIGHTS = (0.4, 0.05, 0.25, 0.1)  # they need not sum to one


def inputs(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).requires_grad_()

    return {
        "states": [normal(TOKENS, WIDTH) for _ in range(EXITS)],
        "weight": normal(VOCABULARY, WIDTH, scale=0.7),
        "bias": normal(VOCABULARY) if bias else None,
        "labels": torch.randint(0, VOCABULARY, (TOKENS,), generator=generator),
    }


def naive(
    states: list[Tensor], weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Any, distill: float
) -> tuple[Tensor, Tensor]:
    logits = [F.linear(state, weight, bias) for state in states]
    teacher = logits[-1].detach().softmax(-1)
    hard = [F.cross_entropy(each, labels) for each in logits]
    soft = [F.cross_entropy(each, teacher) for each in logits]
    mixed = [(1 - distill) * h + distill * s for h, s in zip(hard[:-1], soft[:-1], strict=True)]
    return sum(w * loss for w, loss in zip(weights, [*mixed, hard[-1]], strict=True)), torch.stack(hard).detach()


def gradients(loss: Tensor, given: dict[str, Any]) -> list[Tensor]:
    wanted = [*given["states"], given["weight"], *([] if given["bias"] is None else [given["bias"]])]
    return list(torch.autograd.grad(loss, wanted))


@pytest.mark.parametrize(
    ("chunk", "distill", "bias"),
    [(1, 0.3, True), (5, 0.0, False), (5, 1.0, True), (TOKENS, 0.3, False), (4096, 0.0, True)],
)
def test_loss_and_gradients_are_the_naive_ones(chunk: int, distill: float, bias: bool) -> None:
    given = inputs(bias=bias)
    expected, expected_hard = naive(**given, weights=WEIGHTS, distill=distill)
    loss, hard = exit_losses(**given, loss_weights=WEIGHTS, distill=distill, chunk=chunk)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(hard, expected_hard, rtol=1e-5, atol=1e-6)
    assert not hard.requires_grad
    for got, want in zip(gradients(loss, given), gradients(expected, given), strict=True):
        assert want.abs().max() > 1e-4
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_frozen_head_gets_no_gradient() -> None:
    given = inputs()
    given["weight"].requires_grad_(requires_grad=False)
    given["bias"].requires_grad_(requires_grad=False)
    loss, _ = exit_losses(**given, loss_weights=WEIGHTS, distill=0.5, chunk=7)
    loss.backward()
    assert given["weight"].grad is None
    expected, _ = naive(**given, weights=WEIGHTS, distill=0.5)
    for state, want in zip(given["states"], torch.autograd.grad(expected, given["states"]), strict=True):
        torch.testing.assert_close(state.grad, want, rtol=1e-4, atol=1e-6)


def test_bfloat16_is_close_to_float32() -> None:
    low = inputs(dtype=torch.bfloat16)
    high = {
        "states": [state.detach().float().requires_grad_() for state in low["states"]],
        "weight": low["weight"].detach().float().requires_grad_(),
        "bias": low["bias"].detach().float().requires_grad_(),
        "labels": low["labels"],
    }
    loss, hard = exit_losses(**low, loss_weights=WEIGHTS, distill=0.5, chunk=6)
    expected, expected_hard = naive(**high, weights=WEIGHTS, distill=0.5)
    assert loss.dtype == hard.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.01, atol=0)
    torch.testing.assert_close(hard, expected_hard, rtol=0.01, atol=0)
    for got, want in zip(gradients(loss, low), gradients(expected, high), strict=True):
        assert got.dtype == torch.bfloat16
        assert (got.float() - want).norm() < 0.03 * want.norm()


def test_a_certain_and_wrong_exit_keeps_a_finite_loss() -> None:
    states = [torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    weight = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
    loss, hard = exit_losses(states, weight, None, torch.tensor([1]), [1.0, 0.0])
    assert torch.isfinite(loss)
    assert torch.isfinite(hard).all()
    assert hard[0] > 60  # 400 nats, cut off where float32 has no smaller probability


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operation made."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, Tensor):
                self.numel = max(self.numel, one.numel())
        return out


def test_logits_of_more_than_a_chunk_never_exist() -> None:
    tokens, words, chunk = 64, 500, 8
    states = [torch.randn(tokens, 4, requires_grad=True) for _ in range(6)]
    weight, labels = torch.randn(words, 4, requires_grad=True), torch.randint(0, words, (tokens,))
    with Largest() as seen:
        loss, _ = exit_losses(states, weight, None, labels, [1.0] * 6, distill=0.5, chunk=chunk)
        loss.backward()
    assert seen.numel == chunk * words
