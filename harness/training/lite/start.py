"""Where tuning begins when it does not begin at base weights: an adapter and shortcuts, or a model that was tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError
from harness.models.artefacts import Artefact, look_into
from harness.models.exit_modules import LINEAR, read_tensors
from harness.models.facts import PARTS
from harness.models.ngrams import NgramIndex, read_index
from harness.models.trained import SCALE, Missing, artefact_folders, find, require, tuned_fingerprint
from harness.training.recipes import LiteRecipe

_FACTS = ("documents", "held_out", "data", "seed", "steps", "tokens", "packs_read", "ngrams", "exits", "made")


def factor_name(parameter: str) -> str:
    """Return what an adapter calls a LoRA factor that peft has wrapped: ``…q_proj.lora_A``."""
    return parameter.removeprefix("module.base_model.model.").replace(".default.weight", "")


@dataclass(frozen=True)
class Start:
    """An earlier tuning.

    Attributes:
        facts: what its artefact says; ``steps`` and ``tokens`` include those of its own start.
        folder: of its index of n-grams, and its log.
        adapter: its LoRA factors; ``None`` where the model's weights were tuned as a whole.
        shortcut: its shortcuts, which were tuned with the adapter; ``None`` for a shared head.
    """

    facts: Mapping[str, Any]
    folder: Path
    adapter: Artefact | None = None
    shortcut: Artefact | None = None

    @property
    def log(self) -> Path:
        """Its ``training.jsonl``, which may be missing."""
        return self.folder / "training.jsonl"

    @property
    def learned(self) -> frozenset[str]:
        """Keys of the documents that it learned from."""
        return frozenset(self.facts["documents"]) - frozenset(self.facts["held_out"])

    def ngrams(self) -> NgramIndex:
        """Return the index of what it has read; raises :class:`ArtefactError` where it is missing or damaged."""
        return read_index(self.folder, self.facts["ngrams"])

    def sequences_read(self, data: Sequence[Mapping[str, Any]], seed: int, length: int) -> int:
        """Return how many sequences of ``length`` tokens it has read of just these streams, cut with this seed."""
        theirs, ours = (
            [(stream["fingerprint"], stream["documents"]) for stream in each] for each in (self.facts["data"], data)
        )
        same = (theirs, self.facts["seed"], self.facts["recipe"]["length"]) == (ours, seed, length)
        return int(self.facts["packs_read"]) if same else 0

    def described(self) -> dict[str, Any]:
        """Return what an artefact says of its start."""
        told = ("steps", "tokens", "recipe", "data", "seed", "exits", "made")
        return {
            **({"adapter_sha256": self.adapter.sha256} if self.adapter else {}),
            **{name: self.facts[name] for name in told},
            **({"start": self.facts["start"]} if self.facts.get("start") else {}),
        }

    def shortcuts(self, exit_points: Sequence[int], hidden_size: int) -> dict[int, dict[str, Tensor]] | None:
        """Return exit layer → tensors of its exit module, float32; ``None`` where it has none."""
        if self.shortcut is None:
            return None
        read = read_tensors(self.shortcut, exit_points, hidden_size)
        return {layer: {name: part.float() for name, part in own.items()} for layer, own in read.items()}

    def load_factors(self, model: nn.Module) -> None:
        """Put its factors into a model that peft has wrapped; raises :class:`ArtefactError` where they do not fit."""
        if self.adapter is None:
            return
        factors = self.adapter.tensors()
        ours = {factor_name(name): value for name, value in model.named_parameters() if ".lora_" in name}
        shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (ours, factors)]
        if shapes[0] != shapes[1]:
            odd = min(name for name in ours.keys() | factors.keys() if shapes[0].get(name) != shapes[1].get(name))
            raise ArtefactError(f"{self.adapter.path} is an adapter of another model or recipe: {odd} does not fit.")
        with torch.no_grad():
            for name, tensor in factors.items():
                ours[name].copy_(tensor)


def tuned_whole(folder: Path, info: ModelInfo) -> Start | None:
    """Return the tuning that a model's folder says its weights come from; ``None`` where it says none."""
    facts = look_into(folder / PARTS / "tuning.json")
    if facts.get("model_fingerprint") != info.fingerprint or any(name not in facts for name in _FACTS):
        return None
    start = Start(facts, folder / PARTS)
    start.ngrams()  # refused now, not after hours
    return start


def find_start(given: str, info: ModelInfo, recipe: LiteRecipe) -> Start:
    """Find the adapter, and shortcuts where the recipe wants some, in a folder of artefacts or a shipped set."""
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
    for name in _FACTS:
        if name not in facts:
            raise ArtefactError(f"{adapter.path} does not say what it was made from ({name}). Tune it again.")
    for flag, theirs, ours in (
        ("--exit-head", facts.get("exit_head"), recipe.exit_head),
        ("--exit-module", facts["recipe"].get("exit_module", LINEAR), recipe.exit_module),
        ("--rank", facts["recipe"].get("rank"), recipe.rank),
        ("--exit-points", facts.get("exit_points"), list(info.exit_points)),
    ):
        if theirs != ours:
            wanted = ",".join(map(str, theirs)) if isinstance(theirs, list) else theirs
            raise ConfigError(f"{adapter.path} was tuned with {flag} {wanted}. Give that one.")
    shortcut = None
    if recipe.exit_head == "shortcut":
        tuned = tuned_fingerprint(info.fingerprint, adapter.sha256, facts.get("scale", SCALE))
        found = find("shortcut", replace(info, fingerprint=tuned), folders)
        if isinstance(found, Missing):
            raise ArtefactError(
                f"{adapter.path.parent} holds no shortcuts of its adapter (shortcut.json), which were tuned with it. "
                "Restore them, or begin at the base weights."
            )
        shortcut = found
    start = Start(facts, adapter.path.parent, adapter, shortcut)
    start.ngrams()  # refused now, not after hours
    return start
