"""A trained controller: found for a model, checked against it before weights are read, asked at every exit point."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.contracts import ExitView, ModelInfo
from harness.errors import ArtefactError
from harness.models.artefacts import PICKLES, Artefact, json_path, look_into, read_artefact, write_artefact
from harness.models.controllers.network import Network
from harness.models.controllers.observation import Observation
from harness.models.controllers.single_row import SingleRow
from harness.models.remedy import remedy

__all__ = ["Controller", "Scorer", "controller_path", "controllers_of", "find_controller", "write_controller"]

FILES = {".json", ".safetensors", *PICKLES}
"""Endings by which a path is known from a name such as ``rl-0.5``."""


@dataclass(frozen=True, eq=False)
class Controller:
    """One trained controller.

    Attributes:
        artefact: where it lies and what it was trained for.
        observation: what it looks at.
        exit_points: layers it was trained at.
    """

    artefact: Artefact
    observation: Observation
    exit_points: tuple[int, ...]

    def scorer(self, device: str) -> Scorer:
        """Read the networks to a device; raises as :meth:`networks`."""
        return _scorer(self, device)

    def networks(self, device: str = "cpu") -> dict[str, Network]:
        """Read the networks: one named ``shared``, or one per exit point named by its layer.

        Raises:
            ArtefactError: the tensors cannot be read, are not finite, or make no network from what is observed to one
                score.
        """
        tensors, facts = self.artefact.tensors(device), self.artefact.facts
        names = ["shared"] if "shared.0.weight" in tensors else [str(point) for point in self.exit_points]
        width = self.observation.width(facts["hidden_size"], len(self.exit_points))
        for name in names:
            self.artefact.check(tensors, _shapes(tensors, name, width))
        return {name: Network.of(tensors, name, facts["activation"]) for name in names}


class Scorer:
    """Asks a controller's networks.

    Args:
        controller: which one.
        device: where its tensors shall be.
    """

    def __init__(self, controller: Controller, device: str) -> None:
        networks, points = controller.networks(device), controller.exit_points
        names = ["shared"] * len(points) if "shared" in networks else [str(point) for point in points]
        self._observation = controller.observation
        self._exits = len(points)
        self._networks = {
            point: (place, networks[name]) for place, (point, name) in enumerate(zip(points, names, strict=True))
        }
        single = {name: SingleRow(self._observation, network, self._exits) for name, network in networks.items()}
        self._single = dict(zip(points, map(single.__getitem__, names), strict=True)) if device == "cpu" else {}

    def __call__(self, view: ExitView) -> Tensor:
        """Return the score of each row of a view, ``[n]`` float32; what it means is the strategy's business."""
        return view.once(self, lambda: self._score(view))

    def _score(self, view: ExitView) -> Tensor:
        place, network = self._networks[view.exit_layer]
        observation = self._observation
        before = view.previous if observation.change and place else None
        if observation.state == "exit":
            state, earlier = view.exit_state, None if before is None else before.exit_state
        else:
            state, earlier = view.hidden_state, None if before is None else before.hidden_state
        if self._single and len(state) == 1:
            score = self._single[view.exit_layer](state, earlier, place)
            if score is not None:
                return score
        return network(observation.build(state, earlier, place, self._exits)).squeeze(-1)


def _shapes(tensors: Mapping[str, Tensor], name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes that a network's tensors must have, as many layers as there are: ``width`` to one."""
    count = next(n for n in itertools.count() if f"{name}.{n}.weight" not in tensors)
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(max(1, count)):
        weight = tensors.get(f"{name}.{number}.weight")
        rows = 1 if number >= count - 1 or weight is None or weight.ndim == 0 else weight.shape[0]
        shapes |= {f"{name}.{number}.weight": (rows, width), f"{name}.{number}.bias": (rows,)}
        width = rows
    return shapes


@lru_cache(maxsize=8)
def _scorer(controller: Controller, device: str) -> Scorer:
    return Scorer(controller, device)


def write_controller(
    path: Path,
    kind: str,
    observation: Observation,
    networks: Mapping[str, Network],
    facts: Mapping[str, Any],
) -> Artefact:
    """Write a controller.

    Args:
        path: of its ``.json``.
        kind: ``classifier``, ``lte``, ``rl`` …
        observation: what it looks at.
        networks: one named ``shared``, or one per exit point named by its layer; one output each.
        facts: ``model``, ``model_fingerprint``, ``exit_head``, ``exit_points`` and everything else to be kept.
    """
    tensors = {name: tensor for prefix, network in networks.items() for name, tensor in network.tensors(prefix).items()}
    activation = next(iter(networks.values())).activation
    described = {**facts, "observation": observation.as_dict(), "activation": activation}
    return write_artefact(path, kind, tensors, described)


def controller_path(kind: str, name: str, model: ModelInfo) -> Path:
    """Return where a controller lies: the first of its name that was made for this model, or else the first.

    Args:
        kind: its artefact kind.
        name: what the user gave: a path, a name without folder and suffix, or nothing for ``kind`` itself.
        model: whose artefact folders are searched.

    Raises:
        ArtefactError: nothing there; names the commands.
    """
    given = Path(name or kind)
    if given.suffix in FILES or len(given.parts) > 1:
        return given
    there = [path for folder in model.artefacts if (path := Path(folder) / f"{given}.json").is_file()]
    if there:
        return next((path for path in there if len(there) > 1 and _is_of(path, kind, model)), there[0])
    places = ", ".join(model.artefacts) or f"artefacts/{Path(model.name).name}"
    others = sorted({path.stem for folder in model.artefacts for path in Path(folder).glob(f"{kind}*.json")})
    known = f" There are: {', '.join(others)}." if others else ""
    steps = remedy(kind, model, str(given))
    raise ArtefactError(
        f"there is no {given}.json for {model.name} in {places}.{known} Make it with ({steps.effort}):", steps.commands
    )


def _is_of(path: Path, kind: str, model: ModelInfo) -> bool:
    try:
        facts = _read(path, kind, path.stat().st_mtime_ns).artefact.facts
    except ArtefactError:
        return False  # loading it will say what is wrong with it
    return (facts["model_fingerprint"], facts["exit_head"]) == (model.fingerprint, model.exit_head)


def controllers_of(model: ModelInfo, folders: Iterable[Path]) -> list[Path]:
    """Return the controllers in some folders that were trained for these weights and this exit head."""
    found, wanted = [], (model.fingerprint, model.exit_head)
    for file in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        facts = look_into(file)
        if "observation" in facts and (facts.get("model_fingerprint"), facts.get("exit_head")) == wanted:
            found.append(file)  # only controllers have one
    return found


def find_controller(kind: str, name: str, model: ModelInfo) -> Controller:
    """Find a controller and check that it was made for this model; reads no tensors. Arguments as above.

    Raises:
        ArtefactError: missing, or made for other weights, exit points or another exit head; gives both values.
    """
    path = controller_path(kind, name, model)
    stamp = json_path(path)
    changed = stamp.stat().st_mtime_ns if stamp.is_file() else 0
    controller = _read(path, kind, changed)
    facts = controller.artefact.facts
    elsewhere = stamp.parent if path == Path(name) else None
    steps = partial(remedy, kind, model, stamp.stem, elsewhere)
    for what, theirs, ours in (
        ("weights", facts["model_fingerprint"], model.fingerprint),
        ("exit head", facts["exit_head"], model.exit_head),
        ("hidden size", facts["hidden_size"], model.hidden_size),
    ):
        if theirs != ours:
            make = steps(tune=what == "weights")
            instead = _instead(what, facts, model)
            lead = f"{instead}, or train it again" if instead else "Train it for this model"
            raise ArtefactError(
                f"{path} was trained with {what} {theirs} ({facts['model']}); {model.name} runs with {ours}. "
                f"{lead} ({make.effort}):",
                make.commands,
            )
    known = controller.exit_points
    fits = known == model.exit_points if controller.observation.change else set(model.exit_points) <= set(known)
    if not fits:  # one that looks at the exit point before must be asked at the same ones
        make = steps(tune=False)
        raise ArtefactError(
            f"{path} was trained at exit points {', '.join(map(str, known))}; this run has "
            f"{', '.join(map(str, model.exit_points))}. Use --exit-points {','.join(map(str, known))}, or train it "
            f"again ({make.effort}):",
            make.commands,
        )
    return controller


def _instead(what: str, facts: Mapping[str, Any], model: ModelInfo) -> str:
    """Return the flag that lets a run take a controller as it is; empty where there is none."""
    if what == "weights" and model.asked.weights == "pretrained" and facts["model"] == model.name:
        return "Leave out --weights pretrained"
    if what == "exit head" and facts["exit_head"] == "shared":
        return "Give --exit-head shared, for which it was trained"
    if what == "exit head" and model.asked.exit_head == "shared":
        return "Leave out --exit-head shared"
    return ""


@lru_cache(maxsize=32)
def _read(path: Path, kind: str, changed: int) -> Controller:
    artefact = read_artefact(path, kind)
    try:
        facts = artefact.facts
        observation = Observation.of(facts["observation"])
        points = tuple(facts["exit_points"])
        for key in ("model", "model_fingerprint", "exit_head", "hidden_size", "activation", "threshold"):
            facts[key]
    except KeyError as error:
        raise ArtefactError(f"{path} lacks what a {kind} needs ({error}). Train it again.") from None
    return Controller(artefact, observation, points)
