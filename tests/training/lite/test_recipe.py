"""LITE's loss weights by hand, and its loss as transformers and autograd would have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
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


def test_layerskip_s_weights_by_hand() -> None:
    """e(l) = 0.2 (0 + … + l) of exits; of the last of 6 layers 5 + 0.2 (0 + … + 4)."""
    assert loss_weights((1, 2, 5), 6, "layerskip") == pytest.approx((0, 0.2 / 9.2, 2 / 9.2, 7 / 9.2))
    assert loss_weights((2, 4), 6, "last") == (0, 0, 1)


def test_the_layerskip_preset_is_the_paper_s_from_scratch() -> None:
    options = Lite(preset="layerskip").under("layerskip")
    assert (options.weights, options.exit_points, options.method, options.exit_head) == (
        "random", "all", "full", "shared"
    )  # fmt: skip
    assert (options.layer_dropout, options.weights_rule, options.exits_per_step) == (0.1, "layerskip", 1)
    assert (options.token_share, options.distill) == (1.0, 0.0)


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


def test_an_exit_of_layerskip_s_step_shares_the_loss_with_the_last_layer(
    make_module: Callable[..., Any], naive_loss: Callable[..., Any], ids: Tensor
) -> None:
    module = make_module("llama")
    model = LiteModel(module, EXITS, PLAIN.replace(weights_rule="layerskip", exits_per_step=1))
    loss = model(ids)["loss"]
    (layer, _) = model.last_losses
    expected, _ = naive_loss(module, ids, (layer,), PLAIN.replace(weights_rule="layerskip"))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_the_last_layer_s_loss_reads_no_exit(make_module: Callable[..., Any], ids: Tensor) -> None:
    model = LiteModel(make_module("llama"), EXITS, PLAIN.replace(weights_rule="last", exits_per_step=1))
    loss = model(ids)["loss"]
    assert model.last_losses == {LAYERS: pytest.approx(loss.item())}


# ------------------------------------------------------------------------------------ layer dropout


def test_layers_are_dropped_as_often_as_layerskip_says(
    family: str, make_module: Callable[..., Any], ids: Tensor
) -> None:
    """By sequence; exits read what is left, and evaluation drops nothing."""
    module, trials = make_module(family), 4000
    with torch.no_grad():
        whole = module.eval()(ids, output_hidden_states=True).hidden_states
        model = LiteModel(module, EXITS, PLAIN.replace(layer_dropout=0.6)).train()
        torch.manual_seed(0)
        many = torch.randint(0, VOCABULARY, (trials, 2))
        model(many)
        states = module.base_model(many, output_hidden_states=True).hidden_states
        passed = torch.stack([(one == next_).flatten(1).all(1) for one, next_ in pairwise(states[:LAYERS])], dim=1)
        assert torch.equal(passed, model._dropped[:, : LAYERS - 1])  # the state after the last is normalised
        rates = 0.6 * (2 ** (torch.arange(LAYERS) / (LAYERS - 1)) - 1)
        error = (rates * (1 - rates) / trials).sqrt()
        assert ((model._dropped.float().mean(0) - rates).abs() <= 4 * error).all()
        model.eval()
        for state, expected in zip(module(ids, output_hidden_states=True).hidden_states, whole, strict=True):
            assert torch.equal(state, expected)


def test_layers_that_are_computed_again_drop_the_same(make_module: Callable[..., Any], ids: Tensor) -> None:
    module = make_module("llama")
    model = LiteModel(module, EXITS, PLAIN.replace(layer_dropout=0.9)).train()
    parameters, grads = list(module.parameters()), []
    for checkpointing in (False, True):
        if checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(model(ids)["loss"], parameters))
    assert model._dropped.any()
    for kept, again in zip(*grads, strict=True):
        torch.testing.assert_close(again, kept)


def test_a_dropped_layer_learns_nothing_of_the_sequence(make_module: Callable[..., Any], ids: Tensor) -> None:
    """Of a batch that drops a layer its gradient is zero; of half a batch it is the other half's."""
    module = make_module("llama")
    model = LiteModel(module, EXITS, PLAIN.replace(weights_rule="last", layer_dropout=0.9)).train()
    for seed in range(100):
        torch.manual_seed(seed)
        model(ids[:2])
        if model._dropped[:, -1].tolist() == [True, False]:
            break
    chosen = list(module.base_model.layers[-1].parameters())
    grads = []
    for rows, share in ((ids[:2], 1.0), (ids[1:2], 0.5)):
        torch.manual_seed(seed)
        dropped = torch.rand(2, LAYERS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "rand", lambda *size, drawn=dropped: drawn[-size[0] :])
            grads.append(torch.autograd.grad(share * model(rows)["loss"], chosen))
    for whole, half in zip(*grads, strict=True):
        assert half.abs().max() > 0
        torch.testing.assert_close(whole, half, rtol=1e-4, atol=1e-7)
