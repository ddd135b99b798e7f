"""Drafts from what verifications said: of each token, the last layer's best successor when it was last read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated

from pydantic import Field

from harness.contracts import Batch, Draft, DraftRule, DraftView, ModelInfo
from harness.contracts.drafts import DraftSource


@dataclass(frozen=True)
class Recycling(DraftSource):
    """Propose, token by token, the last layer's best successor of the same token when it was last read.

    Verification reads the last layer at every place of a draft, also behind the first wrong one: what it said there
    is not lost. Behind a source that reads text (``lossless+lookup+recycling``) it drafts where that has nothing.

    Source: Luo et al., "Token Recycling", 2024, arXiv 2408.08696. What differs: the paper keeps eight successors of
    each token and drafts a static tree of 80 nodes; here it is a chain of the best. The paper also reads logits behind
    every prompt token, each an LM head's cost where none is needed: here what follows in the prompt stands for them. A
    row begins with nothing of other rows, where the paper keeps its matrix from request to request.
    """

    k: Annotated[int, Field(ge=1, le=64, description="tokens proposed at most")] = 3

    def start(self, model: ModelInfo, batch: Batch) -> DraftRule:
        """Know no successors yet."""
        return _Recycling(self.k, model.num_layers)


@dataclass(slots=True)
class _Row:
    prompt: Sequence[int]
    successors: dict[int, int] = field(default_factory=dict)


class _Recycling(DraftRule):
    def __init__(self, k: int, num_layers: int) -> None:
        self._k, self._num_layers = k, num_layers
        self._rows: dict[int, _Row] = {}

    def propose(self, draft: Draft, max_tokens: int) -> Sequence[int]:
        row = self._rows.get(draft.row)
        if row is None or row.prompt is not draft.prompt:
            text = [*draft.prompt, *draft.token_ids]
            row = self._rows[draft.row] = _Row(draft.prompt, dict(pairwise(text)))
        said = [*draft.token_ids[-1:], *draft.tokens][-1:]
        while len(said) <= min(self._k, max_tokens) and said[-1] in row.successors:
            said.append(row.successors[said[-1]])
        return said[1:]

    def watched(self, draft: Draft) -> Sequence[int]:
        return (self._num_layers,) if draft.row in self._rows else ()

    def watch(self, view: DraftView) -> None:
        row = self._rows[int(view.rows[0])]
        said, begin = view.token_ids[0], len(row.prompt)
        for position, best in zip(view.position.tolist(), view.top_token.tolist(), strict=True):
            row.successors[said[position - begin]] = best
