"""Learned exit decisions: what a controller looks at, its network, how it is found and asked, and strategies' bases.

One definition serves training and decoding, is saved with the network, and is what a loaded controller uses. Compiled
layers make observation and first layer one formula, :class:`harness.contracts.StateScore`: the columns of the first
weight that read the state, the three numbers of the change and the exit point are ``W = [S | C | P]``, and
``W · [r·x, c, one-hot(e)] + b = r·(S x) + C c + (b + P_e)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from harness.config.options import option_value
from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, StateScore, StateTest, Strategy
from harness.contracts.strategies import TINY
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact, look_through, write_artefact
from harness.models.trained import find_trained

Activation = Literal["tanh", "relu"]


@dataclass(frozen=True, slots=True)
class Network:
    """Linear maps with an activation between them.

    Attributes:
        layers: (weight ``[out, in]``, bias ``[out]``) in order.
        activation: between the layers; none after the last.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    activation: Activation = "tanh"

    def __call__(self, x: Tensor) -> Tensor:
        """Map inputs ``[n, in]`` to outputs ``[n, out]``."""
        *inner, (weight, bias) = self.layers
        act = torch.tanh if self.activation == "tanh" else torch.relu
        for inner_weight, inner_bias in inner:
            x = act(F.linear(x, inner_weight, inner_bias))
        return F.linear(x, weight, bias)

    def difference(self, first: int, second: int) -> Network:
        """Return the network whose single output is output ``first`` minus output ``second``."""
        weight, bias = self.layers[-1]
        last = (
            weight[first : first + 1] - weight[second : second + 1],
            bias[first : first + 1] - bias[second : second + 1],
        )
        return Network((*self.layers[:-1], last), self.activation)

    def to(self, dtype: torch.dtype) -> Network:
        """Return the same network in another dtype."""
        return Network(tuple((weight.to(dtype), bias.to(dtype)) for weight, bias in self.layers), self.activation)

    @property
    def finite(self) -> bool:
        """Whether every weight is a number."""
        return all(bool(torch.isfinite(tensor).all()) for layer in self.layers for tensor in layer)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors by name, for an artefact."""
        return {
            f"{prefix}.{place}.{part}": tensor
            for place, layer in enumerate(self.layers)
            for part, tensor in zip(("weight", "bias"), layer, strict=True)
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], prefix: str, activation: Activation) -> Network:
        """Read what :meth:`tensors` wrote."""
        layers: list[tuple[Tensor, Tensor]] = []
        while f"{prefix}.{len(layers)}.weight" in tensors:
            name = f"{prefix}.{len(layers)}"
            layers.append((tensors[f"{name}.weight"].float(), tensors[f"{name}.bias"].float()))
        return cls(tuple(layers), activation)

    @classmethod
    def of_module(cls, modules: Sequence[torch.nn.Module]) -> Network:
        """Read the linear layers and the activation of a torch sequence."""
        linear = [module for module in modules if isinstance(module, torch.nn.Linear)]
        activation: Activation = "relu" if any(isinstance(module, torch.nn.ReLU) for module in modules) else "tanh"
        return cls(tuple((m.weight.detach().clone(), m.bias.detach().clone()) for m in linear), activation)


@dataclass(frozen=True, slots=True)
class Observation:
    """Builds a controller's input from the states at an exit point.

    Attributes:
        state: ``hidden``, the residual stream (GREEN-CODE); or ``exit``, what the final norm reads there: the hidden
            state through the exit's shortcut, the same as ``hidden`` with the shared head.
        normalise: divide the state by its root mean square, which grows a hundredfold over the layers.
        change: add three numbers: the logarithm of the state's root mean square, the cosine with the state of the
            previous exit point asked for this token (0 at the first), and the change of that logarithm since then.
        place: add the exit point as a one-hot vector.
    """

    state: Literal["hidden", "exit"] = "hidden"
    normalise: bool = False
    change: bool = False
    place: bool = False

    def width(self, hidden_size: int, exits: int) -> int:
        """Return the length of the input vector."""
        return hidden_size + (3 if self.change else 0) + (exits if self.place else 0)

    def states(self, view: ExitView, place: int) -> tuple[Tensor, Tensor | None]:
        """Return a view's states, and those at the exit point before where they are looked at, for :meth:`build`."""
        before = view.previous if self.change and place else None
        if self.state == "exit":
            return view.exit_state, None if before is None else before.exit_state
        return view.hidden_state, None if before is None else before.hidden_state

    def build(self, state: Tensor, previous: Tensor | None, place: int, exits: int) -> Tensor:
        """Return the inputs ``[n, width]`` of states ``[n, hidden_size]`` at one exit point and at the one before.

        ``place`` counts exit points from 0, and there is no ``previous`` at the first.
        """
        state = state.float()
        if not (self.normalise or self.change or self.place):
            return state
        parts = [state]
        if self.normalise or self.change:
            scale = state.pow(2).mean(-1, keepdim=True).add_(TINY).rsqrt_()
            if self.normalise:
                parts[0] = state * scale
            if self.change:
                parts += _change(state, scale, None if previous is None else previous.float())
        if self.place:
            one_hot = state.new_zeros(len(state), exits)
            one_hot[:, place] = 1
            parts.append(one_hot)
        return torch.cat(parts, dim=-1)

    def build_all(self, states: Tensor) -> Tensor:
        """Return the inputs of every exit point, ``[n, exits, hidden_size]`` → ``[n, exits, width]`` float32."""
        exits = states.shape[1]
        return torch.stack(
            [self.build(states[:, e], states[:, e - 1] if e else None, e, exits) for e in range(exits)], dim=1
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the definition as JSON-able facts."""
        return asdict(self)

    @classmethod
    def of(cls, facts: dict[str, Any]) -> Observation:
        """Read what :meth:`as_dict` wrote."""
        try:
            found = cls(**facts)
        except TypeError:
            found = cls(state="unknown")  # type: ignore[arg-type]
        whole = all(type(flag) is bool for flag in (found.normalise, found.change, found.place))
        if not whole or found.state not in ("hidden", "exit"):
            raise ArtefactError(f"the observation {facts} is not known to this version. Train the controller again.")
        return found


OBSERVATIONS = {
    "paper": Observation(),
    "normal": Observation(normalise=True),
    "rich": Observation(normalise=True, change=True),
    "exit": Observation(state="exit", normalise=True, change=True),
}
"""Values of ``--observation``; ``paper`` is GREEN-CODE's (section IV-B): the hidden state as it is."""


def _change(state: Tensor, scale: Tensor, previous: Tensor | None) -> list[Tensor]:
    size = scale.log().neg_()
    if previous is None:
        return [size, torch.zeros_like(size), torch.zeros_like(size)]
    before = previous.pow(2).mean(-1, keepdim=True).add_(TINY).rsqrt_()
    cosine = (state * previous).mean(-1, keepdim=True) * scale * before
    return [size, cosine, size + before.log()]


def score_at(observation: Observation, network: Network, place: int, exits: int) -> StateScore:
    """Return ``network(observation.build(…))`` of one row at one exit point as one formula."""
    (weight, bias), *later = network.layers
    width = weight.shape[1] - observation.width(0, exits)
    return StateScore(
        bias=bias + weight[:, place - exits] if observation.place else bias,
        weight=weight[:, :width].contiguous(),
        change=weight[:, width : width + 3].t().contiguous() if observation.change else None,
        normalise=observation.normalise,
        later=tuple(later),
        activation=network.activation,
    )


class Sizes:
    """A state as a vector and its inverse root mean square; what was asked for last is remembered."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[Tensor, Tensor, float] | None = None

    def of(self, state: Tensor) -> tuple[Tensor, float]:
        """Return ``[hidden_size]`` float32 of a state ``[1, hidden_size]``, and its size; NaN where it has none."""
        last = self._last  # read once: several threads may ask
        if last is not None and last[0] is state:
            return last[1:]
        x = state.squeeze(0).float()
        square = torch.dot(x, x).item() / x.shape[0] + TINY
        scale = 1 / math.sqrt(square) if square < math.inf else math.nan
        self._last = state, x, scale
        return x, scale


class SingleRow:
    """A score, for one row on the CPU."""

    def __init__(self, score: StateScore, sizes: Sizes | None = None) -> None:
        assert score.weight is not None
        self._score, self._weight = score, score.weight
        self._change = None if score.change is None else tuple(score.change.unbind(0))
        self._sizes = sizes or Sizes()
        self._act = torch.tanh_ if score.activation == "tanh" else torch.relu_

    def __call__(self, state: Tensor, previous: Tensor | None) -> Tensor | None:
        """Return the score ``[1]``; ``None`` where the state's size is no finite number."""
        score = self._score
        if score.normalise or self._change is not None:
            y, before = (state, 0.0) if previous is None else self._sizes.of(previous)
            x, scale = self._sizes.of(state)
            if not math.isfinite(scale):
                return None
        else:
            x, scale = state.squeeze(0).float(), 1.0
        out = torch.addmv(score.bias, self._weight, x, alpha=scale if score.normalise else 1.0)
        if self._change is not None:
            size, cosine, growth = self._change
            out.add_(size, alpha=-math.log(scale))
            if previous is not None:
                out.add_(cosine, alpha=torch.dot(x, y).item() / x.shape[0] * scale * before)
                out.add_(growth, alpha=math.log(before) - math.log(scale))
        for weight, bias in score.later:
            out = torch.addmv(bias, weight, self._act(out))
        return out


@dataclass(frozen=True, eq=False)
class Controller:
    """One trained controller."""

    artefact: Artefact
    observation: Observation
    exit_points: tuple[int, ...]

    def scorer(self, device: str) -> Scorer:
        """Read the networks to a device; raises as :meth:`networks`."""
        return _scorer(self, device)

    def networks(self, device: str = "cpu") -> dict[str, Network]:
        """Read the networks: one named ``shared``, or one per exit point named by its layer."""
        tensors, facts = self.artefact.tensors(device), self.artefact.facts
        names = ["shared"] if "shared.0.weight" in tensors else [str(point) for point in self.exit_points]
        width = self.observation.width(facts["hidden_size"], len(self.exit_points))
        for name in names:
            self.artefact.check(tensors, _shapes(tensors, name, width))
        return {name: Network.of(tensors, name, facts["activation"]) for name in names}


class Scorer:
    """Asks a controller's networks, on a device."""

    def __init__(self, controller: Controller, device: str) -> None:
        networks, points = controller.networks(device), controller.exit_points
        self.observation, self._exits = controller.observation, len(points)
        self._networks: dict[int, tuple[int, Network]] = {}
        self._scores: dict[int, StateScore] = {}
        made: dict[tuple[str, int], StateScore] = {}
        for place, point in enumerate(points):
            name = "shared" if "shared" in networks else str(point)
            key = name, place if self.observation.place else 0
            if key not in made:
                made[key] = score_at(self.observation, networks[name], place, self._exits)
            self._networks[point], self._scores[point] = (place, networks[name]), made[key]
        sizes = Sizes()
        single = {point: SingleRow(score, sizes) for point, score in self._scores.items()}
        self._single = single if device == "cpu" else {}

    def __call__(self, view: ExitView) -> Tensor:
        """Return the score of each row of a view, ``[n]`` float32; what it means is the strategy's business."""
        return view.once(self, lambda: self._score(view))

    def scores(self, points: Sequence[int]) -> tuple[StateScore, ...]:
        """Return the score at each of some exit points as formulas, for compiled layers."""
        return tuple(self._scores[point] for point in points)

    def _score(self, view: ExitView) -> Tensor:
        place, network = self._networks[view.exit_layer]
        state, earlier = self.observation.states(view, place)
        if self._single and state.shape[0] == 1:
            score = self._single[view.exit_layer](state, earlier)
            if score is not None:
                return score
        return network(self.observation.build(state, earlier, place, self._exits)).squeeze(-1)


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


_scorer = lru_cache(maxsize=8)(Scorer)


def write_controller(
    path: Path,
    kind: str,
    observation: Observation,
    networks: Mapping[str, Network],
    facts: Mapping[str, Any],
) -> Artefact:
    """Write a controller."""
    tensors = {name: tensor for prefix, network in networks.items() for name, tensor in network.tensors(prefix).items()}
    activation = next(iter(networks.values())).activation
    described = {**facts, "observation": observation.as_dict(), "activation": activation}
    return write_artefact(path, kind, tensors, described)


def controllers_of(model: ModelInfo, folders: Iterable[Path]) -> list[Path]:
    """Return the controllers in some folders that were trained for these weights and this exit head."""
    wanted = {"model_fingerprint": model.fingerprint, "exit_head": model.exit_head}
    seen = look_through(folders)
    return [file for file, facts in seen if "observation" in facts and wanted.items() <= facts.items()]


def find_controller(kind: str, name: str, model: ModelInfo) -> Controller:
    """Find a controller and check that it was made for this model; reads no tensors."""

    def looks_back(found: Artefact) -> bool:  # at the exit point before: it must be asked at the same ones
        return Observation.of(found.facts["observation"]).change

    return _controller(find_trained(kind, name, model, ("observation", "activation", "threshold"), looks_back))


@lru_cache(maxsize=32)
def _controller(artefact: Artefact) -> Controller:
    facts = artefact.facts
    return Controller(artefact, Observation.of(facts["observation"]), tuple(facts["exit_points"]))


@dataclass(frozen=True)
class TrainedStrategy(Strategy):
    """A strategy that runs on something trained, which is found for the model and checked against it.

    A subclass is a frozen dataclass that declares its options: ``threshold``, and one that tells which artefact to use
    (:attr:`option`).

    Attributes:
        kind: artefact kind, which is the name of the recipe that trains it.
        option: option that names the artefact: a path, a name, or empty for the model's own.
        part: what a run's record calls the artefact; empty for ``kind``.
        needed: facts that the artefact must have, besides those by which it knows its model.
        threshold: ``None`` for the one the artefact was saved with.
    """

    kind: ClassVar[str]
    option: ClassVar[str]
    part: ClassVar[str] = ""
    needed: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: float | None = None

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Every exit point of the model, once the artefact is found and checked."""
        self.artefact(model)
        return model.exit_points

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        """The artefact, tensors and facts."""
        return self.artefact(model).hashes(self.part)

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The artefact's own threshold."""
        return {"threshold": self.artefact(model).facts["threshold"]}

    def settings(self, model: ModelInfo) -> dict[str, float]:
        """Return the options of :meth:`trained_defaults`, as given or else the artefact's own."""
        options = dict(self.trained_defaults(model))
        return options | {name: value for name in options if (value := getattr(self, name)) is not None}

    def artefact(self, model: ModelInfo) -> Artefact:
        """Find the artefact and check it against the model, and what it was saved with against the options' ranges."""
        found = self._find(model)
        _check_saved(type(self), found)
        return found

    def _find(self, model: ModelInfo) -> Artefact:
        return find_trained(self.kind, getattr(self, self.option), model, self.needed)


@dataclass(frozen=True)
class LearnedStrategy(TrainedStrategy):
    """Exit where a trained controller's score reaches a threshold.

    A subclass declares what :class:`TrainedStrategy` asks for, and may turn its options into a threshold
    (:meth:`exit_threshold`).
    """

    def exit_threshold(self, options: Mapping[str, float]) -> float:
        """Return the score from which a token exits."""
        return options["threshold"]

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Load the controller; loaded once, however many batches there are."""
        return _rule(self.controller(model).scorer(batch.device), self.exit_threshold(self.settings(model)))

    def controller(self, model: ModelInfo) -> Controller:
        """Return the controller of :meth:`artefact`."""
        self.artefact(model)
        return find_controller(self.kind, getattr(self, self.option), model)

    def _find(self, model: ModelInfo) -> Artefact:
        return find_controller(self.kind, getattr(self, self.option), model).artefact


def logit(probability: float) -> float:
    """Return the logit that a probability is reached from, which spares the sigmoid: of 0 any, of 1 none."""
    if probability in (0, 1):
        return math.inf if probability else -math.inf
    return math.log(probability / (1 - probability))


@lru_cache(maxsize=64)
def _check_saved(strategy: type[TrainedStrategy], artefact: Artefact) -> None:
    hints = get_type_hints(strategy, include_extras=True)
    for one in fields(strategy):
        if one.name in artefact.facts:
            value = artefact.facts[one.name]
            try:
                option_value(hints[one.name], value)
            except ValueError as error:
                raise ArtefactError(
                    f"{artefact.path} was saved with {one.name} {value}, which is not allowed: {error}. Train it again."
                ) from None


@dataclass(frozen=True, eq=False)
class AtLeast:
    """Exit where a score reaches a threshold."""

    score: Scorer
    threshold: float
    _rounded: float = field(init=False)
    _answers: ClassVar[tuple[Tensor, Tensor]] = torch.tensor([False]), torch.tensor([True])

    def __post_init__(self) -> None:
        rounded = torch.tensor(self.threshold, dtype=torch.float32).item()  # as torch compares it with float32
        object.__setattr__(self, "_rounded", rounded)

    def should_exit(self, view: ExitView) -> Tensor:
        """Compare the score; of one row on a CPU without a kernel."""
        score = self.score(view)
        if score.shape[0] == 1 and score.dtype is torch.float32 and score.device.type == "cpu":
            return self._answers[score.item() >= self._rounded]
        return score >= self.threshold

    def state_test(self, points: Sequence[int]) -> StateTest:
        """Return the same for compiled layers."""
        return StateTest(self.score.scores(points), self.threshold, self.score.observation.state)


_rule = lru_cache(maxsize=128)(AtLeast)
"""One object per setting: it has no state, so that rows of several requests can be asked together."""


def candidate_features(logits: Tensor, before: Tensor | None) -> Tensor:
    """Return logits, their softmax among themselves and its change since the exit before, ``[n, k]`` → ``[n, 3k]``."""
    shares = logits.softmax(-1)
    change = torch.zeros_like(shares) if before is None else shares - before.softmax(-1)
    return torch.cat((logits, shares, change), dim=-1)
