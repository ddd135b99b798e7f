"""LITE: tuning a model so that its head can read intermediate layers (GREEN-CODE section III-D, Eq. 1).

The loss is the weighted sum of the cross-entropies of all exits, each read by the model's own final norm and LM head,
or by a linear shortcut before them. :mod:`harness.training.lite.exit_loss` keeps its memory constant in the number of
exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from harness.contracts.loss_weights import loss_weights
from harness.decoding.families import head_modules
from harness.training.lite.exit_loss import exit_losses
from harness.training.lite.options import LiteRecipe

__all__ = ["LiteModel"]


class LiteModel(nn.Module):
    """A causal LM with its exits, as a module whose forward pass is the aggregated loss.

    Args:
        module: a transformers causal LM, LoRA already inside if wanted.
        exit_points: exits to train.
        recipe: of the loss.
        shortcuts: exit layer → (weight, bias) to begin with; needed when the recipe wants shortcuts.

    Attributes:
        last_losses: cross-entropy of the exits of the latest step, by layer, nats.
    """

    def __init__(
        self,
        module: Any,
        exit_points: Sequence[int],
        recipe: LiteRecipe,
        shortcuts: dict[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.config = module.config
        self._no_split_modules = module._no_split_modules  # what FSDP gathers at a time: a layer
        self.exit_points = tuple(exit_points)
        self.num_layers = int(module.config.num_hidden_layers)
        self.recipe = recipe
        self.shortcuts = nn.ModuleDict()
        for layer, (weight, bias) in (shortcuts or {}).items():
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.weight.data, linear.bias.data = weight.clone(), bias.clone()
            self.shortcuts[str(layer)] = linear
        self._weights = dict(
            zip(
                (*exit_points, self.num_layers),
                loss_weights(exit_points, self.num_layers, recipe.weights_rule),
                strict=True,
            )
        )
        self.last_losses: dict[int, float] = {}

    @property
    def core(self) -> Any:
        """The causal LM, without peft's wrapping."""
        return (
            getattr(getattr(self.module, "base_model", None), "model", self.module)
            if _is_peft(self.module)
            else self.module
        )

    def exit_states(self, input_ids: Tensor, layers: Sequence[int]) -> tuple[list[Tensor], Tensor]:
        """Return what the LM head reads at some exits and at the last layer, each ``[batch, length, width]``."""
        out = self.core.base_model(input_ids=input_ids, output_hidden_states=True, use_cache=False)
        head = head_modules(self.core)
        states = []
        for layer in layers:
            hidden = out.hidden_states[layer]
            if str(layer) in self.shortcuts:
                hidden = self.shortcuts[str(layer)](hidden)
            states.append(head.read(hidden))
        return states, out.last_hidden_state

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return ``{"loss": scalar}`` of packed sequences ``[batch, length]``."""
        recipe = self.recipe
        layers = list(self.exit_points)
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
        loss, each = exit_losses(rows, weight, bias, labels[picked], weights, distill=recipe.distill)
        self.last_losses = dict(zip((*layers, self.num_layers), each.tolist(), strict=True))
        return {"loss": loss}


def _is_peft(module: Any) -> bool:
    return hasattr(module, "peft_config")
