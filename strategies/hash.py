"""Exit where the token that is read is known to need no more layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, ClassVar

import torch
from pydantic import Field

from harness.contracts import Batch, ExitRule, ModelInfo, PlannedRule
from harness.errors import ArtefactError
from harness.models.artefacts import Artefact
from harness.models.controllers import TrainedStrategy


@dataclass(frozen=True)
class Hash(TrainedStrategy):
    """Exit at a layer that a table names for the token that was read last.

    Rule: token id x leaves at the first exit point l with s_l(x) ≥ threshold, s_l(x) = (times that exit l said what the
    last layer said after x) / (times that x was read + 1), counted in a trace; what was not met runs all layers, and so
    does the first token of a run without a cache. Cost per check: 0, nothing is computed.

    Source: Sun et al., "HashEE", Findings of ACL 2022, arXiv 2203.01670 (a hash function assigns each token
    to an exit; no classifier, no threshold on states). What differs: of the paper's hash functions (random, frequency,
    mutual information, clusters) none is used; the table is counted from agreement, which plays the part of mutual
    information with labels. In the paper each token of an input leaves by itself and stays frozen; here the token that
    is read decides for what it predicts. The table is kept with its shares, so that ``threshold`` can move.
    """

    kind: ClassVar[str] = "hash"
    option: ClassVar[str] = "table"

    threshold: Annotated[
        float | None,
        Field(ge=0, le=1, description="least share s; the table's own when left out; 1 never exits"),
    ] = None
    table: Annotated[str, Field(description="counted table: a path, a name, or empty for the model's own")] = ""

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Read the table; read once, however many batches there are."""
        return _rule(self.artefact(model), self.settings(model)["threshold"])


@lru_cache(maxsize=32)
def _rule(artefact: Artefact, threshold: float) -> ExitRule:
    tensors, points = artefact.tensors(), artefact.facts["exit_points"]
    token_ids = tensors.get("token_ids", torch.empty(0))
    if token_ids.dim() != 1 or token_ids.is_floating_point():
        raise ArtefactError(f"{artefact.path}: token_ids are no list of tokens. Make the hash again.")
    artefact.check(tensors, {"shares": (len(token_ids), len(points))})
    reached = (tensors["shares"].float() >= threshold) & (threshold < 1)  # 4096 / 4097 is kept as 1
    first = reached.int().argmax(1).tolist()
    known = zip(token_ids.tolist(), first, reached.any(1).tolist(), strict=True)
    return _Layers({token: points[place] for token, place, leaves in known if leaves})


@dataclass(frozen=True, slots=True)
class _Layers(PlannedRule):
    of_token: Mapping[int, int]

    def planned_layer(self, token_ids: Sequence[int]) -> int | None:
        return self.of_token.get(token_ids[-1]) if token_ids else None
