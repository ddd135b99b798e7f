"""Log-likelihoods of continuations that are known, at full depth or read out at one exit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.decoding.choice import not_finite
from harness.decoding.engine import Engine
from harness.decoding.passes import PrefixPass

CHUNK = 256
"""Positions whose logits are in memory together."""


@torch.inference_mode()
def log_likelihoods(
    engine: Engine, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[Sequence[int]]], layer: int
) -> list[list[tuple[float, bool]]]:
    """Return the log-likelihood of each continuation, and whether it is what would be generated greedily.

    Args:
        engine: of the model.
        inputs: sequences that are read together, in one pass.
        targets: for each input the continuations to score on it; a continuation of n tokens is read from the input's
            last n places, so that the input ends one token before the continuation does.
        layer: decoder layers to run; before the last, the exit head there reads them.

    Returns:
        For each input, of each continuation the sum of natural logs, and whether every token is the most probable one.

    Raises:
        ModelError: an input that is empty, too long or not of the model's tokens; or logits that are not finite.
    """
    engine.check(inputs, [0] * len(inputs))
    current = PrefixPass(engine.backbone, engine.rotary(max(map(len, inputs))), inputs, list(range(len(inputs))))
    current.advance(layer)
    found = []
    for state, read, each in zip(current.states(), inputs, targets, strict=True):
        longest = max(map(len, each))
        states = state[len(read) - longest : len(read)]
        found.append([_score(engine, states[longest - len(target) :], target, layer) for target in each])
    return found


def _score(engine: Engine, states: Tensor, target: Sequence[int], layer: int) -> tuple[float, bool]:
    total, greedy = 0.0, True
    backbone, wanted = engine.backbone, torch.tensor(target, device=states.device)
    for rows, tokens in zip(torch.split(states, CHUNK), torch.split(wanted, CHUNK), strict=True):
        read = rows if layer == backbone.num_layers else backbone.exit_state(rows, layer)
        logits = backbone.logits(read).float()
        total += float(logits.log_softmax(-1).gather(1, tokens[:, None]).sum())
        greedy = greedy and bool((logits.argmax(-1) == tokens).all())
    if not math.isfinite(total):
        raise not_finite("logits", layer, 1, backbone.dtype)
    return total, greedy
