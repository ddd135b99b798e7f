"""From a trace to trained heads and their artefact."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from harness.contracts.recipes import TrainingRun
from harness.models.controllers import OBSERVATIONS
from harness.training.heads.head_checkpoints import HeadCheckpoints
from harness.training.heads.learning import HeadTargets, train_heads
from harness.training.heads.options import HeadOptions, HeadRecipe, ReturnRecipe
from harness.training.interrupt import stop_on_interrupt
from harness.training.traces.training_set import SavedController, TrainingSet

__all__ = ["train_on_trace"]

NEVER = {"likelihood": 1.0, "certainty": 2.0, "return": 1.0}
"""Thresholds that no score reaches."""


def train_on_trace(options: HeadOptions, run: TrainingRun) -> SavedController | None:
    """Train heads on a trace and write them to ``NAME.json`` in the folder, checkpoints to ``checkpoints/heads-NAME/``.

    Returns:
        ``None`` where it was interrupted; the checkpoint continues it.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    data = TrainingSet.open(options, run)
    observation = OBSERVATIONS[options.observation]
    recipe = ReturnRecipe.part_of(options) if isinstance(options, ReturnRecipe) else HeadRecipe.part_of(options)
    how = {
        "kind": run.recipe,
        **recipe.model_dump(),
        "observation": observation.as_dict(),
        "seed": options.seed,
        "trace": _fingerprint(data),
        "streams": data.streams,
    }
    folder = options.folder / "checkpoints" / f"heads-{options.name or run.recipe}"
    checkpoints = HeadCheckpoints(folder, "heads", data.identity() | how)
    if options.resume:
        checkpoints.read()  # to refuse before the states are read, which takes long
    columns = [data.columns[key][data.learned] for key in ("top", "final", "top1", "entropy")]
    targets = replace(HeadTargets.of(*columns), num_layers=data.resolved.info.num_layers)
    states = data.states(observation, data.learned)
    with stop_on_interrupt() as stop:
        networks = train_heads(
            states, observation, targets, data.exit_points, recipe,
            seed=options.seed, progress=run.progress, checkpoints=checkpoints, resume=options.resume, stop=stop,
        )  # fmt: skip
    if networks is None:
        return None
    link = None if recipe.objective == "certainty" else torch.sigmoid  # thresholds are probabilities
    return data.save(networks, observation, recipe.model_dump(), never=NEVER[recipe.objective], link=link)


def _fingerprint(data: TrainingSet) -> str:
    """Return what tells a trace from another: a hash of its index, which has those of its shards."""
    return hashlib.sha256(json.dumps(data.traces.index, sort_keys=True).encode()).hexdigest()[:16]
