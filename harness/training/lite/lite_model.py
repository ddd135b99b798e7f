"""LITE: a model whose loss is the weighted sum of the cross-entropies of all its exits, in constant memory.

The loss is GREEN-CODE's Eq. 1 (section III-D; Varshney 2023, arXiv 2310.18581). Logits are the largest tensor of the
whole step: ``tokens × vocabulary`` for each exit. Here tokens are taken in chunks and, inside a chunk, one exit after
the other; its gradient is formed at once and only that (``tokens × hidden_size``) is kept, so that one chunk of one
exit exists at a time (two with distillation, which needs the last layer's).

Layer dropout is LayerSkip's (Elhoushi 2024, arXiv 2404.16710, section 4.1.1): each sequence of a batch skips layer l of
L with probability p_max (e^(l ln 2 / (L − 1)) − 1), l from 0. What differs: it does not rise in time, and a layer that
is skipped is computed all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from harness.contracts.recipes import loss_weights
from harness.decoding.families import head_modules
from harness.models.exit_modules import module_from
from harness.training.recipes import LiteRecipe

CHUNK = 128
"""Tokens whose logits exist at the same time."""


def exit_losses(
    states: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    loss_weights: Sequence[float],
    *,
    distill: float = 0.0,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the exits' mean losses, scalar float32, and each one's mean cross-entropy, nats.

    ``states`` is what the LM head reads, ``[tokens, hidden_size]`` per exit, the last layer's last; ``distill`` the
    share of the loss that pulls an early exit towards the last layer's distribution (cross-entropy with soft targets)
    instead of towards the label, which the last layer itself always learns. Only the sum is differentiable.
    """
    total, hard = _ExitLosses.apply(weight, bias, labels, tuple(loss_weights), distill, chunk, *states)  # type: ignore[no-untyped-call]
    return total, hard


class _Teacher(NamedTuple):
    """The last layer's distribution ``[tokens, vocab_size]`` and the LM-head row it expects ``[tokens, width]``."""

    likelihood: Tensor
    expected: Tensor


class _ExitLosses(torch.autograd.Function):
    """Forms the gradients during the forward pass; backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        loss_weights: tuple[float, ...],
        distill: float,
        chunk: int,
        *states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        tokens, last = len(labels), len(states) - 1
        grad_states = [torch.empty_like(state) for state in states]
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[0] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[1] else None
        hard = weight.new_zeros(len(states), dtype=torch.float32)
        total = weight.new_zeros((), dtype=torch.float32)
        for start in range(0, tokens, chunk):
            part = slice(start, start + chunk)
            label = labels[part]
            right_rows = weight[label]
            teacher: _Teacher | None = None
            for index in range(last, -1, -1):  # the last layer first: it is the teacher
                state = states[index][part]
                logits = F.linear(state, weight, bias)
                right = logits.gather(1, label.unsqueeze(1)).float().sum()
                likelihood = logits.softmax(-1)
                del logits
                surprise = -likelihood.gather(1, label.unsqueeze(1)).float().clamp_min(1e-30).log().sum()
                expected = likelihood @ weight
                soft = distill if index != last else 0.0
                gradient = expected - (1 - soft) * right_rows
                loss = surprise
                if soft:
                    assert teacher is not None
                    gradient = gradient - soft * teacher.expected
                    # soft cross-entropy = log-sum-exp − Σ q·z, and Σ q·z needs no pass over the vocabulary
                    agreed = torch.sum(teacher.expected.float() * state.float())
                    if bias is not None:
                        agreed = agreed + torch.sum(teacher.likelihood.float() @ bias.float())
                    loss = surprise + soft * (right - agreed)
                hard[index] += surprise
                total += loss_weights[index] * loss
                scale = loss_weights[index] / tokens
                grad_states[index][part] = gradient.mul_(scale)
                if grad_weight is not None:
                    error = likelihood if teacher is None or not soft else likelihood - soft * teacher.likelihood
                    grad_weight.addmm_(error.t().to(state.dtype), state, alpha=scale)  # autocast narrows the likelihood
                    grad_weight.index_add_(0, label, state, alpha=(soft - 1) * scale)
                    if grad_bias is not None:
                        grad_bias.add_(error.sum(0), alpha=scale)
                        grad_bias.index_add_(
                            0, label, torch.ones_like(label, dtype=grad_bias.dtype), alpha=(soft - 1) * scale
                        )
                if index == last and distill:
                    teacher = _Teacher(likelihood, expected)
        ctx.save_for_backward(grad_weight, grad_bias, *grad_states)
        hard /= tokens
        ctx.mark_non_differentiable(hard)
        return total / tokens, hard

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor, _: Tensor) -> tuple[Any, ...]:
        grads = [None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors]
        return (*grads[:2], None, None, None, None, *grads[2:])


class LiteModel(nn.Module):
    """A transformers causal LM with its exits, as a module whose forward pass is the aggregated loss.

    ``shortcuts`` are exit layer → tensors of its exit module, to begin with; ``last_losses`` the cross-entropy of the
    exits of the latest step, by layer, nats.
    """

    def __init__(
        self,
        module: Any,
        exit_points: Sequence[int],
        recipe: LiteRecipe,
        shortcuts: Mapping[int, Mapping[str, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.config = module.config
        self._no_split_modules = module._no_split_modules  # what FSDP gathers at a time: a layer
        self.exit_points = tuple(exit_points)
        self.num_layers = int(module.config.num_hidden_layers)
        self.recipe = recipe
        self.shortcuts = nn.ModuleDict()
        for layer, tensors in (shortcuts or {}).items():
            self.shortcuts[str(layer)] = nn.ParameterDict({name: part.clone() for name, part in tensors.items()})
        weights = loss_weights(exit_points, self.num_layers, recipe.weights_rule)
        self._weights = dict(zip((*exit_points, self.num_layers), weights, strict=True))
        self.last_losses: dict[int, float] = {}
        if recipe.layer_dropout:
            layers = [part for part in module.modules() if type(part).__name__ in module._no_split_modules]
            for place, layer in enumerate(layers):  # first of all hooks: what is read of a layer comes after
                layer.register_forward_hook(partial(self._pass_by, place), prepend=True)

    @property
    def core(self) -> Any:
        """The causal LM, without peft's wrapping."""
        return self.module.base_model.model if hasattr(self.module, "peft_config") else self.module

    def exit_states(self, input_ids: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Return what the LM head reads at some exits and at the last layer, each ``[batch, length, width]``."""
        out = self.core.base_model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
        head = head_modules(self.core)
        states = []
        for layer in layers:
            hidden = out.hidden_states[layer]
            if str(layer) in self.shortcuts:
                own = module_from(self.recipe.exit_module, cast("Any", self.shortcuts[str(layer)]))
                hidden = own(hidden.flatten(0, 1)).view_as(hidden)
            states.append(head.read(hidden))
        return states, out.last_hidden_state

    def _pass_by(self, place: int, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Return a layer's output ``[batch, length, width]``; of sequences that skip it in training, its input."""
        return torch.where(self._dropped[:, place, None, None], inputs[0], output) if self.training else output

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}`` of packed sequences ``[batch, length]``."""
        recipe = self.recipe
        if recipe.layer_dropout:
            depth = torch.arange(self.num_layers) / (self.num_layers - 1)
            dropped = torch.rand(len(input_ids), self.num_layers) < recipe.layer_dropout * (2**depth - 1)
            self._dropped = dropped.to(input_ids.device)  # kept for layers that the backward pass computes again
        layers = [layer for layer in self.exit_points if self._weights[layer]]
        scale = 1.0
        if recipe.exits_per_step is not None and recipe.exits_per_step < len(layers):
            chosen = torch.randperm(len(layers))[: recipe.exits_per_step].tolist()
            scale = len(layers) / len(chosen)  # so that the expected loss is the full sum
            layers = sorted(layers[place] for place in chosen)
        states, last = self.exit_states(input_ids, layers)
        labels = input_ids[:, 1:].flatten()
        picked = slice(None)
        if recipe.token_share < 1:
            picked = torch.randperm(len(labels), device=labels.device)[: max(1, int(len(labels) * recipe.token_share))]  # type: ignore[assignment]
        head = head_modules(self.core).lm_head
        weight, bias = cast("Tensor", head.weight), cast("Tensor | None", getattr(head, "bias", None))
        rows = [state[:, :-1].flatten(0, 1)[picked].to(weight.dtype) for state in (*states, last)]
        weights = [*(self._weights[layer] * scale for layer in layers), self._weights[self.num_layers]]
        if recipe.weights_rule == "layerskip":  # normalised over the exits of the step
            weights = list(loss_weights(layers, self.num_layers, recipe.weights_rule))
        loss, each = exit_losses(rows, weight, bias, labels[picked], weights, distill=recipe.distill)
        self.last_losses = dict(zip((*layers, self.num_layers), each.tolist(), strict=True))
        return {"loss": loss}
