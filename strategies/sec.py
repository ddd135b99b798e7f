"""Exit where the answer is there, and stop the completion where no layer will have it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, ExitRule, ExitView, ModelInfo, StateScore, StateTest
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, Observation, TrainedStrategy, score_at

_ROUNDING = 1e-3
"""By which compiled layers, whose sums have another order, may miss a score; the rule is asked from there on."""


@dataclass(frozen=True)
class StopExit(TrainedStrategy):
    """Exit, stop or go on, as a three-way head of each exit point says.

    Rule: p = softmax(f_l(x)) over exit, stop and continue; exit where that is the likeliest and p_exit ≥ threshold;
    else stop where p_stop ≥ stop. What stops ends its completion without a token; in lossless decoding it goes on.
    Cost per check: a small network, no LM head.

    Source: Sun et al., "When Neural Code Completion Models Size up the Situation", ICSE 2024, arXiv 2401.09964
    (Stop&Exit Controller). Labels: exit where the exit's token is the document's, stop where neither it nor any later
    layer's is, else continue. What differs: the paper takes the likeliest action; here two thresholds weigh them,
    chosen on held-out documents: that of exits keeps 98 % of tokens as the last layer would have them, replayed, and
    of what stops nine in ten tokens are wrong at every layer. f_l sees what the classifier's heads see. The paper
    propagates the state of an exit to later layers; here keys and values are exact unless a run says otherwise.

    Compiled layers find where one of the two thresholds is reached: max(log p_exit − log threshold, log p_stop − log
    stop) ≥ 0. There alone the rule is asked.
    """

    kind: ClassVar[str] = "sec"
    option: ClassVar[str] = "heads"
    needed: ClassVar[tuple[str, ...]] = ("threshold", "stop", "observation", "activation")

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least probability of exit; the heads' own when left out; 1 never exits"),
    ] = None
    stop: Annotated[
        float | None,
        Field(ge=0, le=1, description="least probability of stop; the heads' own when left out; 1 never stops"),
    ] = None
    heads: Annotated[str, Field(description="trained heads: a path, a name, or empty for the model's own")] = ""

    def trained_defaults(self, model: ModelInfo) -> Mapping[str, float]:
        """The heads' own thresholds."""
        facts = self.artefact(model).facts
        return {"threshold": facts["threshold"], "stop": facts["stop"]}

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Read the heads; read once, however many batches there are."""
        least = self.settings(model)
        return _rule(self.artefact(model), batch.device, least["threshold"], least["stop"])


@lru_cache(maxsize=32)
def _rule(artefact: Artefact, device: str, exits: float, stops: float) -> ExitRule:
    facts, tensors = artefact.facts, artefact.tensors(device)
    observation, points = Observation.of(facts["observation"]), tuple(facts["exit_points"])
    networks, scores = {}, {}
    offsets = torch.tensor([_offset(exits), _offset(stops), -math.inf])
    for place, point in enumerate(points):
        network = Network.of(tensors, str(point), facts["activation"])
        width = observation.width(facts["hidden_size"], len(points))
        if not network.layers or network.layers[0][0].shape[1] != width or len(network.layers[-1][1]) != 3:
            raise ArtefactError(f"{artefact.path} holds no three-way head for layer {point}. Make the sec again.")
        networks[point] = place, network
        scores[point] = replace(score_at(observation, network, place, len(points)), offsets=offsets)
    return _Acting(observation, networks, scores, exits, stops)


def _offset(least: float) -> float:
    """Return what makes 0 of the logarithm of a threshold, of which 0 is always reached and 1 never."""
    return -math.inf if least >= 1 else -math.log(least) if least else math.inf


@dataclass(frozen=True, slots=True, eq=False)
class _Acting:
    observation: Observation
    networks: Mapping[int, tuple[int, Network]]
    scores: Mapping[int, StateScore]
    exits: float
    stops: float

    def should_exit(self, view: ExitView) -> Tensor:
        """Weigh the three actions; what shall stop is told the view."""
        chances = view.once((self, "chances"), lambda: self._chances(view))
        exit_, stop = chances[:, 0], chances[:, 1]
        leaves = (exit_ >= chances.amax(1)) & (exit_ >= self.exits) & (self.exits < 1)
        stops = ~leaves & (stop >= self.stops) & (self.stops < 1)
        if stops.any():
            view.stop(stops)
        return leaves

    def state_test(self, points: Sequence[int]) -> StateTest:
        """Ask where exit or stop is likely enough."""
        scores = tuple(self.scores[point] for point in points)
        return StateTest(scores, -_ROUNDING, self.observation.state, asks=True)

    def _chances(self, view: ExitView) -> Tensor:
        place, network = self.networks[view.exit_layer]
        state, earlier = self.observation.states(view, place)
        return network(self.observation.build(state, earlier, place, len(self.networks))).softmax(-1)
