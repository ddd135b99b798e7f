"""Self-speculation whose depth and draft length follow what was accepted lately."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, Draft, DraftRule, DraftView, ExitRule, ExitView, ModelInfo, UnitCosts
from harness.models.heads import ReadsHead

PRIOR = (1.0, 2.0)
"""Tokens of an exit that were full depth's and tokens that were compared, before there were any."""


@dataclass(frozen=True)
class DynamicExit(ReadsHead):
    """Draft at the exit and length that promise most tokens per cost by what was accepted lately (lossless only).

    Rule: after each verification, exit l and length d are those with the most (1 − a_l^(d+1)) / (1 − a_l) tokens for
    the cost of d tokens drafted after l layers and one after all; no draft where that is best. a_l is the share of
    places where exit l's token would have been full depth's (shadow tokens), among those verified up to the first that
    was replaced; a verification counts ω times as much as the next. A draft ends earlier where a token's probability is
    below a threshold. Cost per check: 0; per verification: a head over every exit's states.

    Source: Entezari Zarch et al., "DEL", 2025, arXiv 2504.05598. The states at every exit are those that draft and
    verification pass anyway; one product of the head reads all of them.

    What differs: costs count the LM head, the head that reads drafts, checks, and one row more in the pass that
    verifies, by the model's ``costs`` (measured, or bytes of weights), where the paper counts layers. The paper ends
    drafts by a dynamic threshold, too; here it lies midway between the mean probabilities of drafted tokens that stood
    and of those that were replaced, weighted as above. Every exit begins as if one of two tokens had been right; each
    row has estimates of its own. Between two verifications of ``every`` (1 in the paper) only the exit that drafted
    learns. A cheap ``head`` costs nothing but drafts, since full depth verifies them.
    """

    default_decode: ClassVar[str] = "lossless"

    decay: Annotated[float, Field(gt=0, le=1, description="ω, weight of a verification against the next")] = 0.95
    length: Annotated[int, Field(ge=1, le=64, description="tokens of a draft at most; --draft-max bounds it, too")] = 16
    every: Annotated[int, Field(ge=1, description="verifications between two that read every exit's tokens")] = 1

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Know nothing of any row."""
        return _Chooser(self, model)


def best_exit(rates: Mapping[int, float], costs: UnitCosts, num_layers: int, max_length: int) -> tuple[int | None, int]:
    """Return the exit layer and the draft length that promise most tokens per cost; ``None`` and 0 for no draft.

    ``rates`` are exit layer → share of its tokens that are accepted.
    """
    deep = costs.deep(num_layers)
    best = 1 / deep
    chosen: tuple[int | None, int] = (None, 0)
    for layer, rate in rates.items():
        step = costs.draft(layer, num_layers)
        tokens = stands = 1.0
        last = 1 / deep
        for length in range(1, max_length + 1):
            stands *= rate
            tokens += stands
            per_cost = tokens / (deep + length * step)
            if per_cost <= last:  # and falls from here on: each token adds less than the one before, for the same cost
                break
            last = per_cost
            if per_cost > best:
                best, chosen = per_cost, (layer, length)
    return chosen


@dataclass(slots=True)
class _Share:
    """A share of things, or a mean, whose older parts weigh less."""

    part: float = 0.0
    whole: float = 0.0

    def add(self, part: float, whole: float, decay: float) -> None:
        self.part, self.whole = decay * self.part + part, decay * self.whole + whole

    @property
    def value(self) -> float | None:
        """The share; ``None`` of nothing."""
        return self.part / self.whole if self.whole else None


@dataclass(slots=True)
class _Row:
    """State of a row until its next verification."""

    rates: dict[int, _Share]
    layer: int | None = None
    length: int = 0
    verifications: int = 0
    stood: _Share = field(default_factory=_Share)
    replaced: _Share = field(default_factory=_Share)
    seen: list[tuple[DraftView, list[int]]] = field(default_factory=list)  # views, and its places in them

    @property
    def threshold(self) -> float:
        """Probability below which a token ends a draft."""
        stood, replaced = self.stood.value, self.replaced.value
        return 0.0 if stood is None or replaced is None else (stood + replaced) / 2


class _Chooser(DraftRule):
    needs_probabilities: ClassVar[bool] = True

    def __init__(self, options: DynamicExit, model: ModelInfo) -> None:
        self._options, self._model = options, model
        self._costs = model.costs  # measured now, if so, and not while a draft waits
        self._rows: dict[int, _Row] = {}

    def _row(self, row: int) -> _Row:
        if row not in self._rows:
            self._rows[row] = _Row({layer: _Share(*PRIOR) for layer in self._model.exit_points})
            self._choose(row)
        return self._rows[row]

    def rates(self, row: int) -> dict[int, float]:
        """Return how often each exit's tokens would have been accepted in a row, by its layer."""
        return {layer: share.value or 0.0 for layer, share in self._row(row).rates.items()}

    def _choose(self, row: int) -> None:
        chosen = best_exit(self.rates(row), self._costs, self._model.num_layers, self._options.length)
        self._rows[row].layer, self._rows[row].length = chosen

    def _reads(self, row: _Row) -> bool:
        """Whether the row's next verification reads every exit's tokens."""
        return row.verifications % self._options.every == 0

    def should_exit(self, view: ExitView) -> Tensor:
        """Exit at the row's layer, and keep what shallower exits would have been read from."""
        if self._options.token == "head":
            self._options.reading(view)
        answer = []
        for place, number in enumerate(view.rows.tolist()):
            row = self._row(number)
            leaves = row.layer == view.exit_layer
            answer.append(leaves)
            if not leaves and self._reads(row):  # where it leaves, the draft has the token
                row.seen.append((cast("DraftView", view), [place]))
        return torch.tensor(answer)

    def verify_now(self, draft: Draft) -> bool:
        """End a draft that is long enough, or whose last token is doubtful."""
        row = self._row(draft.row)
        return len(draft.tokens) >= row.length or draft.probabilities[-1] < row.threshold

    def watched(self, draft: Draft) -> Sequence[int]:
        """Every exit point, where this verification is to be learned from."""
        return self._model.exit_points if self._reads(self._row(draft.row)) else ()

    def watch(self, view: DraftView) -> None:
        places: dict[int, list[int]] = {}
        for place, row in enumerate(view.rows.tolist()):
            places.setdefault(row, []).append(place)
        for row, held in places.items():
            self._row(row).seen.append((view, held))

    def verified(self, draft: Draft, accepted: int) -> None:
        """Learn which exits were right, and choose the next draft's."""
        row, decay = self._row(draft.row), self._options.decay
        right: dict[int, list[bool]] = {}
        for place, layer in enumerate(draft.layers[: accepted + 1]):
            if layer:
                right.setdefault(layer, []).append(place < accepted)
        stood, replaced = draft.probabilities[:accepted], draft.probabilities[accepted : accepted + 1]
        row.stood.add(sum(stood), len(stood), decay)
        row.replaced.add(sum(replaced), len(replaced), decay)
        for layer, token, said in self._shadows(row, draft):
            right.setdefault(layer, []).append(token == said)
        for layer, answers in right.items():
            row.rates[layer].add(sum(answers), len(answers), decay)
        row.seen.clear()
        row.verifications += 1
        self._choose(draft.row)

    def _shadows(self, row: _Row, draft: Draft) -> list[tuple[int, int, int]]:
        """Return exit layer, its token, and full depth's, of everything that was seen at a place that is now known."""
        known: list[tuple[int, int]] = []
        parts: list[tuple[DraftView, list[int]]] = []
        for view, held in row.seen:
            # What follows the token at a position is token_ids[position + 1 - len(prompt)], if it is known.
            after = [at + 1 - len(draft.prompt) for at in view.position[held].tolist()]
            places = [place for place, at in zip(held, after, strict=True) if at < len(draft.token_ids)]
            known += [(view.exit_layer, draft.token_ids[at]) for at in after if at < len(draft.token_ids)]
            if places:
                parts.append((view, places))
        if not parts:
            return []
        tokens = self._options.reading(parts[0][0].gathered(parts)).top_token.tolist()
        return [(layer, token, said) for (layer, said), token in zip(known, tokens, strict=True)]
