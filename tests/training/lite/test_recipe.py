"""LITE's loss weights by hand, and its loss as transformers and autograd would have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.contracts.recipes import loss_weights
from harness.models.facts import exit_points
from harness.training.lite.lite_model import LiteModel
from harness.training.recipes import Lite, LiteRecipe

EXITS, LAYERS, WIDTH, VOCABULARY = (2, 3, 5), 6, 32, 97
PLAIN = LiteRecipe(
    method="full", exit_head="shared", weights_rule="green-code", exits_per_step=None, token_share=1.0, distill=0.0
)

# ---------------------------------------------------------------------------------- loss weights


def test_weights_of_28_layers_are_the_paper_s() -> None:
    weights = loss_weights(exit_points(28), 28, "green-code")
    expected = [0.1494, 0.1345, 0.1210, 0.1089, 0.0980, 0.0882, 0.0738, 0.0664, 0.0598, 0.1]
    assert [round(weight, 4) for weight in weights] == expected


def test_weights_by_hand() -> None:
    assert loss_weights((4, 6, 10), 12, "uniform") == pytest.approx((0.25,) * 4)
    assert loss_weights((), 12, "green-code") == (1.0,)
    for points in ((2, 4), (8, 10)):  # a half without exits leaves its budget to the other
        assert loss_weights(points, 12, "green-code") == pytest.approx((0.9 / 1.9, 0.9 * 0.9 / 1.9, 0.1))


def test_the_paper_preset_is_the_paper_s() -> None:
    paper = LiteRecipe.part_of(Lite(preset="paper").under("paper"))
    assert (paper.method, paper.exit_head, paper.weights_rule) == ("full", "shared", "green-code")
    assert (paper.learning_rate, paper.schedule, paper.batch, paper.accumulate) == (1e-5, "linear", 4, 32)
    assert 2000 <= paper.steps <= 3000
    assert (paper.exits_per_step, paper.token_share, paper.distill) == (None, 1.0, 0.0)


# ---------------------------------------------------------------------------------------- the loss


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def naive_loss(
    naive_states: Callable[..., list[Tensor]], naive_read_out: Callable[..., Tensor]
) -> Callable[..., tuple[Tensor, dict[int, float]]]:
    """The loss with whole logits of every exit: transformers' hidden layers, F.cross_entropy, autograd."""

    def compute(
        module: Any,
        ids: Tensor,
        exits: Sequence[int],
        recipe: LiteRecipe,
        shortcuts: dict[int, dict[str, Tensor]] | None = None,
    ) -> tuple[Tensor, dict[int, float]]:
        states = naive_states(module, ids)
        logits = {LAYERS: module(ids, use_cache=False).logits}
        for layer in exits:
            state = states[layer - 1]
            logits[layer] = naive_read_out(module, F.linear(state, **shortcuts[layer]) if shortcuts else state)
        rows = {layer: value[:, :-1].flatten(0, 1) for layer, value in logits.items()}
        labels, teacher = ids[:, 1:].flatten(), rows[LAYERS].detach().softmax(-1)
        hard = {layer: F.cross_entropy(row, labels) for layer, row in rows.items()}
        total = torch.zeros(())
        weights = loss_weights(exits, LAYERS, recipe.weights_rule)
        for layer, weight in zip((*exits, LAYERS), weights, strict=True):
            soft = recipe.distill if layer != LAYERS else 0.0
            total = total + weight * ((1 - soft) * hard[layer] + soft * F.cross_entropy(rows[layer], teacher))
        return total, {layer: value.item() for layer, value in hard.items()}

    return compute


def test_the_loss_of_all_exits_and_tokens_is_the_naive_one(
    family: str, make_module: Callable[..., Any], naive_loss: Callable[..., Any], ids: Tensor
) -> None:
    module = make_module(family)
    recipe = PLAIN.replace(distill=0.0 if family == "opt" else 0.5)
    model = LiteModel(module, EXITS, recipe)
    loss = model(ids)["loss"]
    expected, hard = naive_loss(module, ids, EXITS, recipe)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert model.last_losses == pytest.approx(hard, rel=1e-4)
    assert len({round(value, 3) for value in hard.values()}) == 4  # the exits differ, so a mix-up shows

    got = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
    want = torch.autograd.grad(expected, list(module.parameters()), allow_unused=True)
    for (name, _), one, other in zip(module.named_parameters(), got, want, strict=True):
        assert one is not None, name
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["llama", "opt-post-norm"])
def test_shortcuts_stand_before_the_norm_and_are_trained(
    family: str, make_module: Callable[..., Any], naive_loss: Callable[..., Any], ids: Tensor
) -> None:
    module = make_module(family)
    maps = {layer: {"weight": torch.randn(WIDTH, WIDTH) * 0.2, "bias": torch.randn(WIDTH)} for layer in EXITS}
    recipe = PLAIN.replace(exit_head="shortcut", distill=0.3)
    model = LiteModel(module, EXITS, recipe, maps)
    loss = model(ids)["loss"]
    tracked = {layer: {name: part.requires_grad_() for name, part in own.items()} for layer, own in maps.items()}
    expected, _ = naive_loss(module, ids, EXITS, recipe, tracked)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    for layer, own in tracked.items():
        for name, part in own.items():
            got = getattr(model.shortcuts[str(layer)], name).grad
            torch.testing.assert_close(got, part.grad, rtol=1e-3, atol=1e-5)


def test_random_exits_and_tokens_are_the_whole_loss_on_average(
    make_module: Callable[..., Any], naive_loss: Callable[..., Any], ids: Tensor
) -> None:
    module = make_module("llama")
    some = LiteModel(module, EXITS, PLAIN.replace(exits_per_step=1, token_share=0.5))
    torch.manual_seed(0)
    with torch.no_grad():
        draws = torch.stack([some(ids)["loss"] for _ in range(150)])
        expected, _ = naive_loss(module, ids, EXITS, PLAIN)
    error = draws.std() / len(draws) ** 0.5
    assert abs(draws.mean() - expected) < 4 * error
    assert 8 * error < expected * 0.3  # a forgotten factor would be seen


def test_a_step_reads_as_many_exits_as_it_should(make_module: Callable[..., Any], ids: Tensor) -> None:
    model = LiteModel(make_module("gpt2"), EXITS, PLAIN.replace(exits_per_step=2))
    met: set[tuple[int, ...]] = set()
    for seed in range(30):
        torch.manual_seed(seed)
        model(ids)
        assert list(model.last_losses) == sorted(model.last_losses)
        met.add(tuple(model.last_losses))
    assert met == {(2, 3, 6), (2, 5, 6), (3, 5, 6)}
