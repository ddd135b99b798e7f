"""Self-speculation whose subset of layers follows the text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, Draft, DraftView, ExitRule, ModelInfo
from strategies.swift import SkippingRule, SkipsLayers


@dataclass(frozen=True)
class Clasp(SkipsLayers):
    """Draft without the layers whose loss turned the last verified token's state least (lossless only).

    Rule: after a verification, for its last token, ``d(i, j)`` is the state after i layers of which j were skipped that
    is nearest in direction to full depth's there, made by layer i of ``d(i − 1, j)`` or left as ``d(i − 1, j − 1)``;
    the layers skipped on the way to the last state are skipped by the next drafts. A token whose probability is below a
    threshold ends its draft. Cost: no check; per choice every layer once, over as many states as layers are skipped.

    Source: Chen et al., "CLaSp", ACL 2025, arXiv 2505.24196: the recurrence, and that a choice serves several
    verifications.

    What differs: the first and the last layer always run, and the objective is the state before the last; states of
    the last verified token exist after the first verification alone, until which evenly spaced layers are skipped;
    drafts are chains. Share of skipped layers, threshold and interval are this harness's.
    """

    every: Annotated[int, Field(ge=1, description="verified tokens after which layers are chosen again")] = 8

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Know nothing of any row."""
        return _Choosing(self, model, batch)


def least_change(
    full: Mapping[int, Tensor], inner: range, count: int, run: Callable[[int, Tensor], Tensor]
) -> tuple[int, ...]:
    """Return the layers to skip, so many of some that follow each other, by CLaSp's recurrence.

    Args:
        full: layers executed → full depth's state then, ``[hidden_size]``: before the first of them and after each.
        inner: the layers, 0-based.
        count: of them, that are skipped.
        run: returns what a layer makes of states ``[n, hidden_size]``.
    """
    best: dict[int, tuple[Tensor, tuple[int, ...]]] = {0: (full[inner.start], ())}  # skipped → state, and which
    for layer in inner:
        goal, left = full[layer + 1], inner.stop - 1 - layer
        rows = [skipped for skipped in best if skipped and skipped + left >= count]
        made = run(layer, torch.stack([best[skipped][0] for skipped in rows])).unbind() if rows else ()
        found = {skipped: (state, best[skipped][1]) for skipped, state in zip(rows, made, strict=True)}
        if left >= count:
            found[0] = goal, ()
        for skipped, (state, which) in best.items():
            more, choice = skipped + 1, (state, (*which, layer))
            if more <= count and more + left >= count:
                nearer = more not in found or _cosine(state, goal) > _cosine(found[more][0], goal)
                found[more] = choice if nearer else found[more]
        best = found
    return best[count][1]


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one, other, dim=0))


class _Choosing(SkippingRule):
    def __init__(self, options: Clasp, model: ModelInfo, batch: Batch) -> None:
        super().__init__(options, model, batch)
        self._every = options.every
        self._seen: list[list[tuple[DraftView, int]]] = [[] for _ in range(batch.size)]  # of each layer, and the place
        self._chosen_at = [-options.every] * batch.size  # tokens of the row then

    def watched(self, draft: Draft) -> Sequence[int]:
        due = self.count and len(draft.token_ids) - self._chosen_at[draft.row] >= self._every
        return range(1, self.num_layers) if due else ()

    def watch(self, view: DraftView) -> None:
        for place, row in enumerate(view.rows.tolist()):
            self._seen[row].append((view, place))

    def verified(self, draft: Draft, accepted: int) -> None:
        last = len(draft.prompt) + len(draft.token_ids) - 2  # whose next token full depth has just said
        seen = {view.exit_layer: (view, at) for view, at in self._seen[draft.row] if int(view.position[at]) == last}
        self._seen[draft.row].clear()
        if not seen:
            return
        first, place = seen[1]

        def run(layer: int, states: Tensor) -> Tensor:
            return first.gathered([(first, [place] * len(states))]).through([layer], states).hidden_state

        full = {layer: view.hidden_state[at] for layer, (view, at) in seen.items()}
        self.skipped[draft.row] = least_change(full, self.inner, self.count, run)
        self._chosen_at[draft.row] = len(draft.token_ids)
