"""Self-speculation by a subset of the layers, with layers left out in the middle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.contracts import Batch, Draft, DraftRule, DraftView, ExitRule, ExitView, ModelInfo, Strategy
from harness.errors import OptionError


@dataclass(frozen=True)
class SkipsLayers(Strategy):
    """Drafts by some of the layers, the first and the last among them; the base of what chooses which."""

    default_decode: ClassVar[str] = "lossless"

    ratio: Annotated[float, Field(ge=0, lt=1, description="share of the layers but first and last that is skipped")] = (
        0.45
    )
    threshold: Annotated[float, Field(ge=0, le=1, description="probability below which a token ends its draft")] = 0.8
    length: Annotated[int, Field(ge=1, le=64, description="tokens of a draft at most; --draft-max bounds it, too")] = 16

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Ask nowhere."""
        return ()

    def should_exit(self, view: ExitView) -> Tensor:
        """Stay."""
        return torch.zeros_like(view.rows, dtype=torch.bool)


class SkippingRule(DraftRule):
    """Drafts without the layers that a row skips, until a token is doubtful.

    Attributes:
        skipped: row → layers, 0-based; a row begins with layers that are evenly spaced.
    """

    needs_probabilities: ClassVar[bool] = True

    def __init__(self, options: SkipsLayers, model: ModelInfo, batch: Batch) -> None:
        self._options, self.num_layers = options, model.num_layers
        self.inner = range(1, model.num_layers - 1)
        self.count = int(options.ratio * len(self.inner))  # of the layers that are skipped
        evenly = tuple(self.inner[place * len(self.inner) // self.count] for place in range(self.count))
        self.skipped = dict.fromkeys(range(batch.size), evenly)

    def should_exit(self, view: ExitView) -> Tensor:
        """Stay."""
        return torch.zeros_like(view.rows, dtype=torch.bool)

    def drafting_layers(self, draft: Draft) -> Sequence[int]:
        """Those that the row does not skip; none where it skips none."""
        skipped = self.skipped[draft.row]
        return [layer for layer in range(self.num_layers) if layer not in skipped] if skipped else ()

    def verify_now(self, draft: Draft) -> bool:
        """End a draft that is long enough, or whose last token is doubtful."""
        return len(draft.tokens) >= self._options.length or draft.probabilities[-1] < self._options.threshold


@dataclass(frozen=True)
class Swift(SkipsLayers):
    """Draft without the layers that a search on the completion's own first tokens can spare (lossless only).

    Rule: every second layer or so is skipped at first. Once ``window`` tokens are verified, each of the next ``trials``
    verifications scores one random set of as many layers: the share of those tokens that drafts by the others would
    have said. The best set drafts. A token whose probability is below a threshold ends its draft. Cost: no check; per
    trial the layers that are not skipped and the LM head, over the window.

    Source: Xia et al., "SWIFT", ICLR 2025, arXiv 2410.06916. The share of skipped layers, the threshold, one candidate
    after each verification, and that first and last layer always run are theirs.

    What differs: whole layers are skipped, where the paper skips attention and MLP apart. Candidates are random, where
    every 25th of the paper's is Bayesian optimisation's. A search belongs to its completion, since completions do not
    depend on one another here; the paper's goes on over a task's requests, up to 1,000 trials. ``skip`` names a set of
    such a search, as the paper's cached configurations do, and nothing is searched. The first set is scored, too. The
    window has 8 tokens (50), since completions here are short, and each sees full depth's keys and values before it, as
    the first of a draft does, where the paper drafts the whole window. Drafts are chains, no trees, of 16 tokens (25)
    at most.
    """

    skip: Annotated[
        str | None, Field(description="layers that are always skipped, 0-based: 9+11+12; none is searched")
    ] = None
    window: Annotated[int, Field(ge=1, description="tokens that score a set of layers, the completion's first")] = 8
    trials: Annotated[int, Field(ge=0, description="sets that are scored at most, the first one included")] = 8

    def exit_points(self, model: ModelInfo) -> tuple[int, ...]:
        """Ask nowhere.

        Raises:
            OptionError: ``skip`` names something else than layers of the model between the first and the last.
        """
        if self.skip is not None:
            _named(self.skip, model)
        return ()

    def start(self, model: ModelInfo, batch: Batch) -> ExitRule:
        """Skip what is named, or know nothing of any row."""
        return _Searching(self, model, batch)


def _named(skip: str, model: ModelInfo) -> tuple[int, ...]:
    parts = skip.split("+")
    layers = tuple(sorted({int(part) for part in parts if part.isascii() and part.isdigit()}))
    if len(layers) < len(parts) or not 1 <= layers[0] <= layers[-1] < model.num_layers - 1:
        raise OptionError(
            f"swift:skip={skip} has to name layers of {model.name} between its first and last, each once: "
            f"numbers of 1 to {model.num_layers - 2} such as 2+3."
        )
    return layers


@dataclass(slots=True)
class _Search:
    """The search of one row.

    Attributes:
        seen: views of the verification on its way after the first layer, and the row's places in them.
        parts: the same of verified tokens. wanted: what follows each of those.
        score: of the best set so far; below all before the first.
        trials: sets that were scored.
    """

    chance: random.Random
    seen: list[tuple[DraftView, list[int]]] = field(default_factory=list)
    parts: list[tuple[DraftView, list[int]]] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    score: float = -1.0
    trials: int = 0


class _Searching(SkippingRule):
    def __init__(self, options: Swift, model: ModelInfo, batch: Batch) -> None:
        super().__init__(options, model, batch)
        self._window, self._trials = options.window, options.trials if self.count else 0
        if options.skip is not None:
            self.skipped, self._trials = dict.fromkeys(range(batch.size), _named(options.skip, model)), 0
        self._searches = [_Search(random.Random(seed)) for seed in batch.seeds]

    def watched(self, draft: Draft) -> Sequence[int]:
        return (1,) if self._trials and len(self._searches[draft.row].wanted) < self._window else ()

    def watch(self, view: DraftView) -> None:
        for place, row in enumerate(view.rows.tolist()):
            self._searches[row].seen.append((view, [place]))

    def verified(self, draft: Draft, accepted: int) -> None:
        search = self._searches[draft.row]
        for view, places in search.seen:
            after = int(view.position[places[0]]) + 1 - len(draft.prompt)
            if after < len(draft.token_ids) and len(search.wanted) < self._window:
                search.parts.append((view, places))
                search.wanted.append(draft.token_ids[after])
        search.seen.clear()
        if len(search.wanted) == self._window and search.trials < self._trials:
            self._try(search, draft.row)

    def _try(self, search: _Search, row: int) -> None:
        """Score a set of layers, the row's own first, and take it if it is better."""
        drawn = tuple(sorted(search.chance.sample(self.inner, self.count))) if search.trials else self.skipped[row]
        search.trials += 1
        kept = [layer for layer in range(1, self.num_layers) if layer not in drawn]
        said = search.parts[0][0].gathered(search.parts).through(kept).top_token.tolist()
        score = sum(one == other for one, other in zip(said, search.wanted, strict=True)) / self._window
        if score > search.score:
            search.score, self.skipped[row] = score, drawn
        if search.trials == self._trials:
            search.parts.clear()  # which hold states and the cache
