"""``harness train sec``: heads that tell where an exit is right, and where no layer will be (Sun 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import TrainingError
from harness.models.controllers import OBSERVATIONS, Network, Observation, write_controller
from harness.training.heads.learning import HeadTargets, train_heads
from harness.training.options import ActionOptions, HeadRecipe
from harness.training.traces.training_set import TrainingSet

EXIT, STOP, CONTINUE = 0.0, 1.0, 2.0
NEVER = 1.0
"""A threshold that no probability reaches."""


def train_actions(options: ActionOptions, run: TrainingRun) -> Trained:
    """Train heads on a trace of documents and write them.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    data = TrainingSet.open(options, run)
    if data.traces.index.get("new_tokens"):
        raise TrainingError(f"{data.traces.folder} has what the model generates, and no truth. Trace documents.")
    columns = data.traces.columns("input", "document")
    known = columns["document"][:-1] == columns["document"][1:]  # the last token of a document has no truth
    known = torch.cat((known, torch.zeros(1, dtype=torch.bool)))
    truth = torch.cat((columns["input"][1:], columns["input"][:1])).long()
    actions = actions_of(data.columns["top"].long(), data.columns["final"].long(), truth)
    observation, rows = OBSERVATIONS[options.observation], data.learned & known
    recipe = HeadRecipe(
        objective="actions", hidden=options.hidden, epochs=options.epochs, learning_rate=options.learning_rate,
        auxiliary=0.0,
    )  # fmt: skip
    targets = HeadTargets(actions[rows], torch.zeros(0), torch.zeros(0))
    networks = train_heads(
        data.states(observation, rows), observation, targets, data.exit_points, recipe,
        seed=options.seed, progress=run.progress,
    )  # fmt: skip
    assert networks is not None
    halved = {key: network.to(torch.float16) for key, network in networks.items()}
    networks = {key: network.to(torch.float32) for key, network in halved.items()}
    if not all(network.finite for network in networks.values()):
        raise TrainingError("training left weights that are no numbers. Lower --learning-rate.")
    chances = _chances(networks, observation, data.states(observation, data.held_out))
    wrong, told = (actions == STOP)[data.held_out].all(1), known[data.held_out]
    least, stopped = stop_threshold(chances[told][..., 1], wrong[told], options.precision)
    exits = torch.where(chances[..., 0] >= chances.amax(-1), chances[..., 0], -torch.inf)
    saved = data.saved(
        exits,
        {**recipe.model_dump(), "precision": options.precision},
        lambda path, facts: write_controller(path, run.recipe, observation, halved, {**facts, "stop": least}),
        never=NEVER,
    )
    said = saved.said()
    note = f" Stops from probability {least:.4f} on: {stopped:.1%} of held-out tokens."
    return Trained(said.report, said.note + note)


def actions_of(top: Tensor, final: Tensor, truth: Tensor) -> Tensor:
    """Return what would be right at each exit, ``[n, exits]`` float32: exit, stop or continue.

    Args:
        top: token of each exit, ``[n, exits]`` int64.
        final: of the last layer, ``[n]``.
        truth: of the document, ``[n]``.
    """
    right = top == truth.unsqueeze(1)
    later = torch.cat((right, (final == truth).unsqueeze(1)), dim=1)
    some = later.flip(1).cumsum(1).flip(1)[:, 1:] > 0  # a layer behind this exit is right
    return torch.where(right, EXIT, torch.where(some, CONTINUE, STOP))


def stop_threshold(chances: Tensor, wrong: Tensor, precision: float) -> tuple[float, float]:
    """Return the loosest threshold whose stopped tokens are mostly wrong, and the share of tokens that it stops.

    Args:
        chances: probability of stop at each exit, ``[n, exits]``; exits are left out of account.
        wrong: whether no layer is right, ``[n]`` bool.
        precision: share of stopped tokens that must be wrong.
    """
    order = chances.amax(1).sort(descending=True)
    stopped = torch.arange(1, len(wrong) + 1)
    enough = (wrong[order.indices].cumsum(0) / stopped >= precision).nonzero().flatten()
    if not len(enough):
        return NEVER, 0.0
    last = int(enough[-1])
    return float(order.values[last]), (last + 1) / len(wrong)


def _chances(networks: dict[str, Network], observation: Observation, states: Tensor) -> Tensor:
    """Return the probabilities of the actions, ``[n, exits, 3]``."""
    parts: list[Any] = []
    for some in torch.split(states, 4096):
        x = observation.build_all(some)
        parts.append(torch.stack([network(x[:, e]) for e, network in enumerate(networks.values())], dim=1))
    return torch.cat(parts).softmax(-1)
