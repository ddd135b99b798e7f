"""Trained additions to a model: which adapter and which shortcuts belong to its weights, and putting them in.

An adapter holds the LoRA updates of its layers; shortcuts are a linear layer per exit. Both are artefacts, told apart
by a fingerprint of the weights they were trained on.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.appearance.visible_text import shell_command, shell_word
from harness.contracts import ModelInfo
from harness.errors import ArtefactError, ConfigError
from harness.host.files import NotRegularError, read_json, real_path
from harness.models.artefacts import NEEDED, SHIPPED, Artefact, fault_of, look_into, read_artefact

if TYPE_CHECKING:
    from torch import Tensor

    from harness.decoding.blocks import Linear


@dataclass(frozen=True, slots=True)
class Remedy:
    """The way to make a missing artefact.

    Attributes:
        commands: for a shell, in order.
        effort: how long they take and what to know of them, a phrase for brackets.
    """

    commands: tuple[str, ...]
    effort: str


def remedy(
    kind: str, model: ModelInfo, name: str, folder: Path | None = None, *, tune: bool = True, overwrite: bool = False
) -> Remedy:
    """Return the commands in order, after which the same run finds what it looked for.

    A controller wants tuning first where the run would take an adapter and there is none. A trace of the same model
    that lies in its usual place is not made again. A shipped set is copied, never written to.

    Args:
        kind: what ``harness train`` shall make: ``adapter``, ``shortcut``, a cheap head or a controller.
        model: as the run asked for it; for shortcuts, with the exit head that they are fitted on.
        name: of the file, without its ending.
        folder: the one the run looks in, if it named the file by a path.
        tune: whether a controller may want tuning first; false where it is known to be of the weights the run has.
        overwrite: whether there is a controller of that name, of something else.
    """
    asked, plain = model.asked, Path(model.name).name
    given = ["--model", asked.model or model.name]
    head = "shared" if kind == "shortcut" else asked.exit_head
    exits = [] if head == "auto" else ["--exit-head", head]
    exits += [] if asked.exit_points == "paper" else ["--exit-points", asked.exit_points]
    commands, effort, place = _own_folder(asked.artefacts)
    found = [] if place is None else ["--artefacts", place]
    if place is None and Path(given[1]).name != plain:  # a folder given as . or the like
        place = f"artefacts/{plain}"
    out = [] if place is None else ["--out", place]
    lite = _harness("train", "lite", *given, *exits, *out)
    if kind == "adapter":
        return Remedy((*commands, lite), "; ".join([*effort, "hours"]))
    if kind == "shortlist":  # counted in the data themselves
        return Remedy((*commands, _harness("train", kind, *given, *out)), "; ".join([*effort, "a minute"]))
    traces, fits = _traces(model)
    if not fits:
        if tune and kind != "shortcut" and asked.weights == "auto" and model.weights == "pretrained":
            commands.append(lite)
            effort.append("hours to tune, without which the base weights serve")
        flags = [] if asked.weights == "auto" else ["--weights", asked.weights]
        flags += [] if asked.dtype == "float32" else ["--dtype", asked.dtype]
        flags += ["--seed", str(asked.seed)] if model.weights == "random" and asked.seed else []
        commands.append(_harness("trace", *given, *flags, *exits, *found, "--out", traces))
        effort.append("minutes to hours to trace")
    effort.append("minutes to train")
    if folder is not None and real_path(folder).is_relative_to(SHIPPED):
        effort.append(f"then give the name {name} without a folder")
    elif folder is not None:
        out = ["--out", str(folder)]
    named = [] if name == kind else ["--name", name]
    named += ["--overwrite"] if overwrite else []
    train = _harness("train", kind, *given, "--traces", traces, *found, *out, *named)
    return Remedy((*commands, train), "; ".join(effort))


def _harness(*arguments: str) -> str:
    return shell_command(["harness", *arguments])


def _own_folder(artefacts: str | None) -> tuple[list[str], list[str], str | None]:
    """Return what makes a folder of the user's of what ``--artefacts`` names, what to know of it, and that folder.

    A shipped set's name means a folder of that name in the working directory, once there is one.
    """
    if artefacts is None:
        return [], [], None
    there = Path(artefacts)
    shipped = there if there.is_dir() else SHIPPED / artefacts
    if not real_path(shipped).is_relative_to(SHIPPED) or not shipped.is_dir():
        return [], [], artefacts
    copy = artefacts if shipped != there and artefacts == shipped.name else f"{shipped.name}-copy"
    then = "the copy is your own and what --artefacts then means" if copy == artefacts else f"give --artefacts {copy}"
    return [shell_command(["cp", "-r", str(shipped), copy])], [then], copy


def _traces(model: ModelInfo) -> tuple[str, bool]:
    """Return a folder with a trace of this very model and true, or else a free one and false."""
    name, number = Path(model.name).name, 1
    wanted = (model.fingerprint, model.exit_head, list(model.exit_points))
    while True:
        folder = Path("traces") / (name if number == 1 else f"{name}-{number}")
        try:
            index = read_json(folder / "index.json")
            if (index["model_fingerprint"], index["exit_head"], index["exit_points"]) == wanted and index["shards"]:
                return str(folder), True
        except (NotRegularError, ValueError, KeyError, TypeError):
            pass  # whatever that is, it is not overwritten
        except OSError:
            return str(folder), False
        number += 1


logger = logging.getLogger(__name__)


def artefact_folders(model: str, given: str | None) -> tuple[Path, ...]:
    """Return where artefacts of a model are looked for, in this order.

    Args:
        model: catalogue name, hub id or folder name.
        given: ``--artefacts``: a folder, or the name of a shipped set; ``None`` for the usual places.

    Raises:
        ConfigError: the folder given does not exist.
    """
    name = Path(model).name
    if given is None:
        return tuple(folder for folder in (Path("artefacts") / name, SHIPPED / name) if folder.is_dir())
    for folder in (Path(given), SHIPPED / given):
        if folder.is_dir():
            return (folder,)
    shipped = sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []
    raise ConfigError(f"--artefacts {given} is no folder. Shipped sets: {', '.join(shipped) or 'none'}.")


def tuned_fingerprint(base: str, adapter_sha256: str) -> str:
    """Return the fingerprint of a base model with an adapter merged into it."""
    return hashlib.sha256(f"{base} {adapter_sha256}".encode()).hexdigest()[:16]


def find_adapter(base: str, folders: Sequence[Path]) -> Artefact | None:
    """Return the first adapter that was trained on the weights with this fingerprint."""
    for folder in folders:
        if os.path.lexists(folder / "adapter.json"):  # what is no file is refused below, not passed over
            adapter = read_artefact(folder / "adapter.json", "adapter")
            if adapter.facts["model_fingerprint"] == base:
                return adapter
    return None


def require_adapter(model: ModelInfo, folders: Sequence[Path]) -> Artefact:
    """Return what :func:`find_adapter` finds for base weights.

    Raises:
        ArtefactError: nothing; says how to make one, or whose the adapters there are.
    """
    found = find_adapter(model.fingerprint, folders)
    if found is not None:
        return found
    others = ""
    for file in (folder / "adapter.json" for folder in folders if os.path.lexists(folder / "adapter.json")):
        theirs = read_artefact(file, "adapter").facts["model_fingerprint"]
        others += f" {file} was trained on weights {theirs}, these are {model.fingerprint}."
    for folder in (folder for folder in folders if (folder / "tuning.json").is_file()):
        whole = f"--model {shell_word(folder / 'model')} --artefacts {shell_word(folder)}"
        others += f" {folder} holds weights that were tuned as a whole, a model of their own: {whole}."
    make = remedy("adapter", model, "adapter")
    lead = "Use --weights pretrained, or make it" if model.asked.weights == "tuned" else "Make it"
    raise ArtefactError(f"there is no adapter for {model.name}.{others} {lead} with ({make.effort}):", make.commands)


def merge(module: Any, adapter: Artefact) -> None:
    """Add an adapter's low-rank updates to the weights of a transformers model, in place.

    ``W += scale · B A`` in float32 (Hu 2021, arXiv 2106.09685), so that decoding pays nothing for it.

    Raises:
        ArtefactError: the adapter names a module the model has not, or one of another shape, or leaves a weight that is
            not finite.
    """
    factors: dict[str, dict[str, Any]] = {}
    for name, tensor in adapter.tensors().items():
        target, _, side = name.rpartition(".")
        factors.setdefault(target, {})[side] = tensor
    modules = dict(module.named_modules())
    if "scale" not in adapter.facts:
        raise ArtefactError(f"{adapter.path} does not say by which scale it was trained (scale). Train it again.")
    scale = float(adapter.facts["scale"])
    for target, sides in factors.items():
        weight = getattr(modules.get(target), "weight", None)
        if weight is None or set(sides) != {"lora_A", "lora_B"}:
            raise ArtefactError(f"{adapter.path} tunes {target}, which this model has not.")
        update = scale * _product(adapter, target, **sides)
        if type(modules[target]).__name__ == "Conv1D":
            update = update.t()
        if update.shape != weight.shape:
            raise ArtefactError(f"{adapter.path}: {target} has shape {tuple(weight.shape)}, not {tuple(update.shape)}.")
        weight.data = (weight.data.float() + update).to(weight.dtype)
        if fault := fault_of(weight.data):
            raise ArtefactError(f"{adapter.path}: {target} {fault} once it is merged. Train the adapter again.")


def _product(adapter: Artefact, target: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:  # noqa: N803, peft's names
    """Return B A in float32."""
    if lora_A.ndim != 2 or lora_B.ndim != 2:
        raise ArtefactError(f"{adapter.path}: {target} is not tuned by two matrices. Train the adapter again.")
    rank = lora_A.shape[0]
    first, second = f"{target}.lora_A", f"{target}.lora_B"
    shapes = {first: (rank, lora_A.shape[1]), second: (lora_B.shape[0], rank)}
    adapter.check({first: lora_A, second: lora_B}, shapes)
    return lora_B.float() @ lora_A.float()


def find_shortcut(weights: str, folders: Sequence[Path], exit_points: Sequence[int]) -> Artefact | None:
    """Return the first shortcuts that lead from these exit points of the weights with this fingerprint."""
    for folder in folders:
        for file in _shortcut_files(folder):
            found = read_artefact(file, "shortcut")
            if belongs_to(found.facts) == weights and set(exit_points) <= set(found.facts["exit_points"]):
                return found
    _say_lost(weights, tuple(folders), tuple(exit_points))
    return None


@lru_cache(maxsize=64)
def _say_lost(weights: str, folders: Sequence[Path], exit_points: Sequence[int]) -> None:
    """Say once where an adapter has lost the shortcuts that were tuned along with it."""
    for file in (folder / "adapter.json" for folder in folders if os.path.lexists(folder / "adapter.json")):
        adapter = read_artefact(file, "adapter")
        tuned = tuned_fingerprint(adapter.facts["model_fingerprint"], adapter.sha256)
        if tuned == weights and adapter.facts.get("exit_head") == "shortcut":
            logger.warning(
                "%s was tuned along with shortcuts, and none here lead from exit points %s: exits are read by the "
                "shared head",
                *(file, ", ".join(map(str, exit_points))),
            )
            return


def require_shortcut(model: ModelInfo, folders: Sequence[Path]) -> Artefact:
    """Return what :func:`find_shortcut` finds for a model that has none yet.

    Raises:
        ArtefactError: nothing; says how to make them.
    """
    found = find_shortcut(model.fingerprint, folders, model.exit_points)
    if found is not None:
        return found
    others = ""
    for file in (file for folder in folders for file in _shortcut_files(folder)):
        theirs = read_artefact(file, "shortcut")
        points = ", ".join(map(str, theirs.facts["exit_points"]))
        others += f" {file} is of weights {belongs_to(theirs.facts)}, exit points {points}."
    wanted = ", ".join(map(str, model.exit_points))
    make = remedy("shortcut", model, "shortcut")
    raise ArtefactError(
        f"there are no shortcuts for {model.name} (weights {model.fingerprint}, exit points {wanted}).{others} "
        f"Use --exit-head shared, or make them with ({make.effort}):",
        make.commands,
    )


def shortcut_path(wanted: Path, weights: str, exit_points: Sequence[int]) -> Path:
    """Return where shortcuts are written, so that none of other weights or exit points are lost.

    Args:
        wanted: their JSON; where it holds others, the beginning of ``weights`` is added to its name.
        weights: fingerprint of those that they belong to, an adapter merged.
        exit_points: that they lead from.
    """
    own = f"{wanted.stem}-{weights[:8]}"
    for name in chain([wanted.stem, own], (f"{own}-{number}" for number in count(2))):
        path = wanted.with_name(f"{name}.json")
        facts = look_into(path)
        readable = facts.get("kind") == "shortcut" and facts.keys() >= set(NEEDED["shortcut"])
        if not readable or (belongs_to(facts), facts["exit_points"]) == (weights, list(exit_points)):
            break  # what is no shortcut stops every run until it is replaced
    if path != wanted:
        logger.warning("%s is of other weights or exit points and is kept: these shortcuts are %s", wanted, path)
    return path


def _shortcut_files(folder: Path) -> list[Path]:
    """Return the shortcuts of a folder, the one with the plain name first."""
    return sorted(folder.glob("shortcut*.json"), key=lambda file: (file.stem != "shortcut", file.name))


def belongs_to(facts: Mapping[str, Any]) -> str:
    """Return the fingerprint of the weights that an artefact belongs to: base weights, or with an adapter merged.

    Shortcuts that were tuned with an adapter name the base weights and the adapter.
    """
    base, adapter = str(facts.get("model_fingerprint", "")), facts.get("adapter_sha256")
    return tuned_fingerprint(base, adapter) if adapter else base


def read_shortcuts(
    shortcut: Artefact, exit_points: Sequence[int], dtype: Any, device: str, *, hidden_size: int
) -> Mapping[int, Linear]:
    """Return exit layer → shortcut, in the model's dtype.

    Raises:
        ArtefactError: one is missing, of another width, or not finite in that dtype.
    """
    from harness.decoding.blocks import Linear  # here, since it brings torch, which reports do without

    shapes: dict[str, tuple[int, ...]] = {f"{layer}.weight": (hidden_size, hidden_size) for layer in exit_points}
    shapes |= {f"{layer}.bias": (hidden_size,) for layer in exit_points}
    read = shortcut.tensors(device, shapes)
    tensors = {name: read[name].to(dtype) for name in shapes}
    for name, tensor in tensors.items():
        if fault := fault_of(tensor):
            raise ArtefactError(f"{shortcut.path}: {name} {fault} in {tensor.dtype}. Use another --dtype.")
    return {layer: Linear(tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]) for layer in exit_points}
