"""``harness train predictor``: SpecEE's predictors, from what a trace's states make of a few candidate tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.contracts import HeadChoice
from harness.contracts.recipes import TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.readings import HeadReading, Heads
from harness.errors import TrainingError
from harness.models.artefacts import write_artefact
from harness.models.controllers import Observation
from harness.models.controllers.learned import candidate_features
from harness.training.heads.learning import HeadTargets, train_heads
from harness.training.options import HeadRecipe, PredictorOptions
from harness.training.traces.training_set import SavedController, TrainingSet, score_all

PART = 256
"""Tokens that are read at a time: heads make logits of the whole vocabulary."""
NEVER = 1.0


def train_predictor(options: PredictorOptions, run: TrainingRun) -> SavedController:
    """Train one predictor per exit point on a trace and write them.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    data = TrainingSet.open(options, run)
    run.progress.stage(f"loading {data.resolved.info.name}")
    backbone = data.resolved.load("cpu").backbone
    features, candidates = read_candidates(data, backbone, HeadChoice.of(options.head), options.candidates)
    among = (data.columns["top"].long().unsqueeze(2) == candidates.unsqueeze(1)).any(2)
    right = data.right(data.learned) & among[data.learned]
    nothing = torch.zeros(right.shape)
    recipe = HeadRecipe(
        hidden=options.hidden, epochs=options.epochs, learning_rate=options.learning_rate, auxiliary=0.0
    )
    networks = train_heads(
        features[data.learned], Observation(), HeadTargets(right.float(), nothing, nothing), data.exit_points,
        recipe, seed=options.seed, progress=run.progress,
    )  # fmt: skip
    assert networks is not None
    if not all(network.finite for network in networks.values()):
        raise TrainingError("training left weights that are no numbers. Lower --learning-rate.")
    scores = torch.sigmoid(score_all(networks, Observation(), features[data.held_out], data.exit_points))
    scores = scores.masked_fill(~among[data.held_out], -torch.inf)  # where the head would not confirm, nothing exits
    tensors = {name: tensor for key, network in networks.items() for name, tensor in network.tensors(key).items()}
    kept = {"candidates": options.candidates, "head": options.head, "activation": "relu"}
    return data.saved(
        scores,
        {"candidates": options.candidates, "head": options.head, **recipe.model_dump()},
        lambda path, facts: write_artefact(path, run.recipe, tensors, {**facts, **kept}),
        never=NEVER,
    )


@torch.inference_mode()
def read_candidates(data: TrainingSet, backbone: Backbone, head: HeadChoice, count: int) -> tuple[Tensor, Tensor]:
    """Return what predictors look at, ``[n, exits, 3 · count]`` float32, and the candidates, ``[n, count]`` int64."""
    heads, points = Heads(backbone), data.exit_points
    features, tokens = [], []
    data.run.progress.begin("reading candidates", data.traces.tokens)
    done = 0
    for shard in data.traces.shards("hidden"):
        for some in torch.split(shard["hidden"], PART):
            states = [backbone.exit_state(some[:, e].to(backbone.dtype), point) for e, point in enumerate(points)]
            candidates = _best(heads, backbone, head, states[0], count)
            logits = [heads.logits_of(candidates, state) for state in states]
            pairs = zip(logits, [None, *logits[:-1]], strict=True)
            features.append(torch.stack([candidate_features(now, before) for now, before in pairs], dim=1))
            tokens.append(candidates)
        done += len(shard["hidden"])
        data.run.progress.step(done)
    return torch.cat(features).clone(), torch.cat(tokens).clone()


def _best(heads: Heads, backbone: Backbone, head: HeadChoice, states: Tensor, count: int) -> Tensor:
    if head.is_full:
        return backbone.logits(states).topk(count, dim=-1).indices
    return HeadReading.of(heads.read(head, states)).best_tokens(count)
