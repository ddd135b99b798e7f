"""A trained controller: found for a model, checked against it before weights are read, asked at every exit point."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.contracts import ExitView, ModelInfo, StateScore
from harness.models.artefacts import Artefact, look_into, write_artefact
from harness.models.controllers.network import Network
from harness.models.controllers.observation import Observation
from harness.models.controllers.search import find_trained
from harness.models.controllers.single_row import SingleRow, Sizes, score_at

__all__ = ["Controller", "Scorer", "controllers_of", "find_controller", "write_controller"]


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

    Attributes:
        observation: what it looks at.
    """

    def __init__(self, controller: Controller, device: str) -> None:
        networks, points = controller.networks(device), controller.exit_points
        names = ["shared"] * len(points) if "shared" in networks else [str(point) for point in points]
        self.observation = controller.observation
        self._exits = len(points)
        self._networks = {
            point: (place, networks[name]) for place, (point, name) in enumerate(zip(points, names, strict=True))
        }
        made: dict[tuple[str, int], StateScore] = {}
        self._scores: dict[int, StateScore] = {}
        for place, (point, name) in enumerate(zip(points, names, strict=True)):
            key = name, place if self.observation.place else 0
            if key not in made:
                made[key] = score_at(self.observation, networks[name], place, self._exits)
            self._scores[point] = made[key]
        sizes = Sizes()
        single = {point: SingleRow(score, sizes) for point, score in self._scores.items()}
        self._single = single if device == "cpu" else {}

    def __call__(self, view: ExitView) -> Tensor:
        """Return the score of each row of a view, ``[n]`` float32; what it means is the strategy's business."""
        return view.once(self, lambda: self._score(view))

    def scores(self, points: Sequence[int]) -> tuple[StateScore, ...]:
        """Return the score at each of some exit points, for one row."""
        return tuple(self._scores[point] for point in points)

    def _score(self, view: ExitView) -> Tensor:
        place, network = self._networks[view.exit_layer]
        observation = self.observation
        before = view.previous if observation.change and place else None
        if observation.state == "exit":
            state, earlier = view.exit_state, None if before is None else before.exit_state
        else:
            state, earlier = view.hidden_state, None if before is None else before.hidden_state
        if self._single and state.shape[0] == 1:
            score = self._single[view.exit_layer](state, earlier)
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


def controllers_of(model: ModelInfo, folders: Iterable[Path]) -> list[Path]:
    """Return the controllers in some folders that were trained for these weights and this exit head."""
    found, wanted = [], (model.fingerprint, model.exit_head)
    for file in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        facts = look_into(file)
        if "observation" in facts and (facts.get("model_fingerprint"), facts.get("exit_head")) == wanted:
            found.append(file)  # only controllers have one
    return found


def find_controller(kind: str, name: str, model: ModelInfo) -> Controller:
    """Find a controller and check that it was made for this model; reads no tensors.

    Args and errors are those of :func:`find_trained`.
    """
    return _controller(find_trained(kind, name, model, ("observation", "activation", "threshold"), _looks_back))


def _looks_back(artefact: Artefact) -> bool:
    """One that looks at the exit point before must be asked at the same ones."""
    return Observation.of(artefact.facts["observation"]).change


@lru_cache(maxsize=32)
def _controller(artefact: Artefact) -> Controller:
    facts = artefact.facts
    return Controller(artefact, Observation.of(facts["observation"]), tuple(facts["exit_points"]))
