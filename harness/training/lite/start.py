"""Where tuning begins when it does not begin at the base weights: an adapter and maps that are there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.artefacts import Artefact
from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError
from harness.models import fingerprint
from harness.models.tuning import artefact_folders, require_adapter, require_shortcut
from harness.training.lite.recipe import LiteRecipe

__all__ = ["Start", "factor_name", "find_start"]


def factor_name(parameter: str) -> str:
    """Return what an adapter calls a LoRA factor that peft has wrapped: ``…q_proj.lora_A``."""
    return parameter.removeprefix("module.base_model.model.").replace(".default.weight", "")


@dataclass(frozen=True)
class Start:
    """What an earlier tuning left.

    Attributes:
        adapter: its LoRA factors.
        shortcut: its maps; ``None`` for a shared head.
    """

    adapter: Artefact
    shortcut: Artefact | None

    @property
    def steps(self) -> int:
        """Optimiser steps behind it, those of its own start included."""
        return int(self.adapter.facts["recipe"]["steps"]) + int((self.adapter.facts.get("start") or {}).get("steps", 0))

    @property
    def tokens(self) -> int:
        """Tokens read behind it, those of its own start included."""
        recipe = self.adapter.facts["recipe"]
        own = int(recipe["steps"]) * int(recipe["length"]) * int(recipe["batch"]) * int(recipe["accumulate"])
        return own + int((self.adapter.facts.get("start") or {}).get("tokens", 0))

    @property
    def log(self) -> Path:
        """Its ``training.jsonl``, which may be missing."""
        return self.adapter.path.with_name("training.jsonl")

    @property
    def documents(self) -> frozenset[str]:
        """Keys of all documents it was made with, held-out ones included."""
        return frozenset(self.adapter.facts["documents"])

    def same_split(self, data: Sequence[Mapping[str, Any]], seed: int) -> bool:
        """Tell whether streams are its own, cut in the same way, so that what they hold out is new to it too.

        Args:
            data: ``fingerprint`` and number of ``documents`` of every stream, in order.
            seed: of the cut.
        """
        theirs = [(stream["fingerprint"], stream["documents"]) for stream in self.adapter.facts["data"]]
        ours = [(stream["fingerprint"], stream["documents"]) for stream in data]
        return theirs == ours and self.adapter.facts["seed"] == seed

    def facts(self) -> dict[str, Any]:
        """Return what an artefact says of its start."""
        theirs = self.adapter.facts
        return {
            "adapter_sha256": self.adapter.sha256,
            "steps": self.steps,
            "tokens": self.tokens,
            "recipe": theirs["recipe"],
            "data": theirs["data"],
            "seed": theirs["seed"],
            "exits": theirs["exits"],
            "made": theirs["made"],
            **({"start": theirs["start"]} if theirs.get("start") else {}),
        }

    def maps(self, exit_points: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]] | None:
        """Return exit layer → (weight, bias), float32; ``None`` for a shared head."""
        if self.shortcut is None:
            return None
        tensors = self.shortcut.tensors()
        return {layer: (tensors[f"{layer}.weight"].float(), tensors[f"{layer}.bias"].float()) for layer in exit_points}

    def load_factors(self, model: nn.Module) -> None:
        """Put its factors into a model that peft has wrapped.

        Raises:
            ArtefactError: they are not those of this model.
        """
        factors = self.adapter.tensors()
        ours = {factor_name(name): value for name, value in model.named_parameters() if ".lora_" in name}
        odd = sorted(
            name
            for name in ours.keys() | factors.keys()
            if name not in ours or name not in factors or ours[name].shape != factors[name].shape
        )
        if odd:
            raise ArtefactError(f"{self.adapter.path} is an adapter of another model or recipe: {odd[0]} does not fit.")
        with torch.no_grad():
            for name, tensor in factors.items():
                ours[name].copy_(tensor)


def find_start(given: str, info: ModelInfo, recipe: LiteRecipe) -> Start:
    """Find the adapter, and maps where the recipe wants some, that tuning shall go on from.

    Args:
        given: a folder of artefacts, or the name of a shipped set.
        info: of the base weights.
        recipe: of the tuning that begins.

    Raises:
        ConfigError: no such folder, or a recipe that cannot go on from it.
        ArtefactError: what is there belongs to other weights, exit points or another exit head.
    """
    if recipe.method != "lora":
        raise ConfigError("--start-from goes on with a LoRA adapter. To go on with whole weights give them as --model.")
    try:
        folders = artefact_folders(info.name, given)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--artefacts", "--start-from", 1)) from None
    adapter = require_adapter(info.name, info.fingerprint, folders)
    facts = adapter.facts
    if facts["exit_head"] != recipe.exit_head:
        raise ConfigError(
            f"{adapter.path} was tuned with --exit-head {facts['exit_head']}, not {recipe.exit_head}. Give that one."
        )
    if facts["recipe"]["rank"] != recipe.rank:
        raise ConfigError(f"{adapter.path} has rank {facts['recipe']['rank']}, not {recipe.rank}. Give that as --rank.")
    if tuple(facts["exit_points"]) != info.exit_points:
        theirs, ours = (", ".join(map(str, points)) for points in (facts["exit_points"], info.exit_points))
        raise ArtefactError(f"{adapter.path} was tuned for exit points {theirs}, not {ours}.")
    shortcut = None
    if recipe.exit_head == "shortcut":
        tuned = fingerprint.tuned(info.fingerprint, adapter.sha256)
        shortcut = require_shortcut(info.name, tuned, folders, info.exit_points)
    return Start(adapter, shortcut)
