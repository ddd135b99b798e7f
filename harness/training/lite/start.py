"""Where tuning begins when it does not begin at the base weights: an adapter and shortcuts that are there already."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError
from harness.models.artefacts import Artefact
from harness.models.ngrams import NgramIndex, read_index
from harness.models.trained import Missing, artefact_folders, find, require, tuned_fingerprint
from harness.models.weights import read_shortcuts
from harness.training.recipes import LiteRecipe


def factor_name(parameter: str) -> str:
    """Return what an adapter calls a LoRA factor that peft has wrapped: ``…q_proj.lora_A``."""
    return parameter.removeprefix("module.base_model.model.").replace(".default.weight", "")


@dataclass(frozen=True)
class Start:
    """State of an earlier tuning.

    Attributes:
        adapter: its LoRA factors.
        shortcut: its shortcuts; ``None`` for a shared head.
    """

    adapter: Artefact
    shortcut: Artefact | None

    @property
    def steps(self) -> int:
        """Optimiser steps behind it, those of its own start included."""
        return int(self.adapter.facts["recipe"]["steps"]) + self._before("steps")

    @property
    def tokens(self) -> int:
        """Tokens read behind it, those of its own start included; of one process, where an older version is silent."""
        recipe = self.adapter.facts["recipe"]
        own = math.prod(int(recipe[name]) for name in ("steps", "length", "batch", "accumulate"))
        return int(self.adapter.facts.get("tokens", own + self._before("tokens")))

    def _before(self, what: str) -> int:
        return int((self.adapter.facts.get("start") or {}).get(what, 0))

    @property
    def log(self) -> Path:
        """Its ``training.jsonl``, which may be missing."""
        return self.adapter.path.with_name("training.jsonl")

    @property
    def documents(self) -> frozenset[str]:
        """Keys of all documents it was made with, held-out ones included."""
        return frozenset(self.adapter.facts["documents"])

    @property
    def indexed(self) -> bool:
        """Whether its index is of all that it has read."""
        return bool((self.adapter.facts.get("ngrams") or {}).get("complete"))

    def ngrams(self) -> NgramIndex | None:
        """Return the index of what it has read; ``None`` where an older version wrote none.

        Raises:
            ArtefactError: the index is missing or damaged.
        """
        facts = self.adapter.facts.get("ngrams")
        return None if facts is None else read_index(self.adapter.path.parent, facts)

    @property
    def learned(self) -> frozenset[str] | None:
        """Keys of the documents that it learned from; ``None`` where an older version did not say what it held out."""
        held_out = self.adapter.facts.get("held_out")
        return None if held_out is None else self.documents - frozenset(held_out)

    def same_cut(self, data: Sequence[Mapping[str, Any]], seed: int) -> bool:
        """Tell whether it, and every tuning it went on from, read just these streams, cut with this seed.

        Args:
            data: ``fingerprint`` and number of ``documents`` of every stream, in order.
            seed: of the cut.
        """
        return all(_read_these(facts, data, seed) for facts in _line(self.adapter.facts))

    def sequences_read(self, data: Sequence[Mapping[str, Any]], seed: int, length: int) -> int:
        """Return how many sequences of ``length`` tokens it has read of these streams; arguments as above."""
        facts = self.adapter.facts
        if not _read_these(facts, data, seed) or facts["recipe"]["length"] != length:
            return 0
        if "packs_read" in facts:
            return int(facts["packs_read"])
        return self.tokens // length if self.same_cut(data, seed) else 0

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

    def shortcuts(self, exit_points: Sequence[int], hidden_size: int) -> dict[int, tuple[Tensor, Tensor]] | None:
        """Return exit layer → (weight, bias), float32; ``None`` for a shared head.

        Raises:
            ArtefactError: one is missing, of another width, or not finite.
        """
        if self.shortcut is None:
            return None
        maps = read_shortcuts(self.shortcut, exit_points, torch.float32, "cpu", hidden_size=hidden_size)
        return {layer: (linear.weight, linear.bias) for layer, linear in maps.items() if linear.bias is not None}

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


def _line(facts: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Yield the facts of a tuning, of the one that it went on from, and so on."""
    while facts:
        yield facts
        facts = facts.get("start")


def _read_these(facts: Mapping[str, Any], data: Sequence[Mapping[str, Any]], seed: int) -> bool:
    theirs, ours = ([(stream["fingerprint"], stream["documents"]) for stream in each] for each in (facts["data"], data))
    return bool(theirs == ours and facts["seed"] == seed)


def find_start(given: str, info: ModelInfo, recipe: LiteRecipe) -> Start:
    """Find the adapter, and shortcuts where the recipe wants some, that tuning shall go on from.

    Args:
        given: a folder of artefacts, or the name of a shipped set.
        info: of the base weights.
        recipe: of the tuning that begins.

    Raises:
        ConfigError: no such folder, or a recipe that cannot go on from it.
        ArtefactError: what is there belongs to other weights, exit points or another exit head, or its index of what
            it has read is missing or damaged.
    """
    if recipe.method != "lora":
        raise ConfigError(
            "--start-from goes on with a LoRA adapter: use --method lora. To go on with whole weights give them as "
            "--model."
        )
    try:
        folders = artefact_folders(info.name, given)
    except ConfigError as error:
        raise ConfigError(str(error).replace("--artefacts", "--start-from", 1)) from None
    asked = replace(info.asked, exit_head=recipe.exit_head)
    adapter = require(find("adapter", replace(info, asked=asked), folders))
    facts = adapter.facts
    try:
        known = Start(adapter, None)
        known.facts(), known.documents, known.learned, facts["recipe"]["rank"], facts["exit_points"], facts["exit_head"]
        int(facts["recipe"]["length"]), int(facts.get("packs_read", 0))
        for each in _line(facts):
            _read_these(each, (), 0)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(f"{adapter.path} does not say what it was made from ({error}). Tune it again.") from None
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
        tuned = tuned_fingerprint(info.fingerprint, adapter.sha256)
        found_shortcut = find("shortcut", replace(info, fingerprint=tuned), folders)
        if isinstance(found_shortcut, Missing):
            raise ArtefactError(
                f"{adapter.path.parent} holds no shortcuts of its adapter (shortcut.json), which were tuned with it. "
                "Restore them, or begin at the base weights."
            )
        shortcut = found_shortcut
    found = Start(adapter, shortcut)
    found.ngrams()  # refused now, not after hours
    return found
