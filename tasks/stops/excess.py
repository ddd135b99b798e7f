"""A completion ends where a trained head says that what follows is excess."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from harness.contracts import Cursor, ModelInfo, RowStop, Stop
from harness.models.artefacts import Artefact
from harness.models.controllers import OBSERVATIONS, Network
from harness.models.trained import find_trained

SEES = OBSERVATIONS["normal"]
"""Input of the heads: a state divided by its root mean square."""


@dataclass(frozen=True)
class Excess(Stop):
    """End a completion where a trained head says that the function is over, so that what follows is excess.

    Rule: σ(w_l · h/rms(h) + b_l) ≥ threshold, h being the state that the newest token comes from after the l layers
    that were executed for it; one head per exit point and one for the last layer. Cost per token: one product of the
    hidden size. The newest token, which comes from the state at which the function is over, is the last. The first one
    is never: its state is the prompt's. Lossless decoding asks of the last layer's states when it verifies.

    Source: Guo et al., "When to Stop? Towards Efficient Code Generation in LLMs with Excess Token Prevention", ISSTA
    2024, arXiv 2407.20042 (CodeFast: GenGuard). What differs: labels are where functions of real documents end by their
    syntax, not where the model's own answers do; there is a head for each depth at which a token may leave; and the
    head tells the end itself, so that no vote over the tokens of a line is taken and no excess line has to be
    generated first.
    """

    kind: ClassVar[str] = "excess"

    threshold: Annotated[
        float | None, Field(ge=0, le=1, description="least probability; the heads' own when left out; 0 always ends")
    ] = None
    heads: Annotated[str, Field(description="trained heads: a path, a name, or empty for the model's own")] = ""

    def check(self, model: ModelInfo, language: str) -> None:
        self._artefact(model)

    def artefacts(self, model: ModelInfo) -> Mapping[str, str]:
        return self._artefact(model).hashes()

    def start(self, cursor: Cursor) -> RowStop:
        artefact = self._artefact(cursor.model)
        threshold = artefact.facts["threshold"] if self.threshold is None else self.threshold
        return _Guard(_heads(artefact, cursor.device), threshold)

    def _artefact(self, model: ModelInfo) -> Artefact:
        """Find the heads; they must have been trained at the exit points there are, or more."""
        return find_trained(self.kind, self.heads, model, ("threshold",), lambda _: False)


class _Guard(RowStop):
    reads_states = True

    def __init__(self, heads: Mapping[int, Network], threshold: float) -> None:
        self._heads, self._threshold = heads, threshold
        self._chance = 0.0

    def see(self, layer: int, state: Tensor) -> None:
        x = SEES.build(state.unsqueeze(0), None, 0, 1)
        self._chance = float(self._heads[layer](x).sigmoid())

    def over(self, token_ids: Sequence[int]) -> bool:
        return len(token_ids) > 1 and self._chance >= self._threshold  # the prompt's end is not the completion's


@lru_cache(maxsize=8)
def _heads(artefact: Artefact, device: str) -> Mapping[int, Network]:
    facts, tensors = artefact.facts, artefact.tensors(device)
    layers = [*facts["exit_points"], facts["num_layers"]]
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers:
        shapes |= {f"{layer}.0.weight": (1, facts["hidden_size"]), f"{layer}.0.bias": (1,)}
    artefact.check(tensors, shapes)
    return {layer: Network.of(tensors, str(layer), "tanh") for layer in layers}
