"""One operating point on traced tokens: where each would have left, what it would have said, what that would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, HeadChoice, KVFacts, ModelInfo
from harness.contracts.asking import ask_rule
from harness.decoding.exits import checked
from harness.records import DraftTimes, UnitTimes
from harness.running.operating_points import OperatingPoint
from harness.sweep.tokens import TracedTokens
from harness.sweep.view import HEAD, Charges, ReplayView
from reports.metrics.byte_model import bytes_by_cause


@dataclass(frozen=True, slots=True)
class Drafted:
    """What lossless decoding drafted, and what came of it.

    Attributes:
        verifications, drafts, accepted: passes that went deep, tokens drafted, and those that stood, by document,
            ``[documents]`` int64.
        layers_read: layers whose weights were read.
        layers_discarded: layers run for drafts that did not stand.
        by_exits: drafts that an exit made.
    """

    verifications: Tensor
    drafts: Tensor
    accepted: Tensor
    layers_read: int
    layers_discarded: int
    by_exits: int


@dataclass
class Outcome:
    """What an operating point did on the tokens so far; outcomes of parts of a trace can be added.

    Attributes:
        right: tokens equal to the last layer's, by document, ``[documents]`` int64.
        tokens: tokens by document.
        exits: exit layer → tokens that left there; the last layer included.
        checks, lm_head_evaluations, shortcut_evaluations: as live decoding counts them after prefill.
        cheap_head_evaluations, cheap_head_bytes: of cheap heads, likewise.
        head_checks, head_alike: checks by a cheap head, and those that decided as the LM head would have.
        deep_layers: layers run to look at the last layer's token, by a strategy that does so and is not rehearsed.
        cache_reads: positions × layers attended to.
        skipped_rightly: layers skipped by tokens equal to the last layer's.
        drafted: of lossless decoding; outcomes with it are of whole documents and not added.
    """

    right: Tensor
    tokens: Tensor
    exits: Counter[int]
    checks: int = 0
    lm_head_evaluations: int = 0
    shortcut_evaluations: int = 0
    cheap_head_evaluations: int = 0
    cheap_head_bytes: int = 0
    head_checks: int = 0
    head_alike: int = 0
    deep_layers: int = 0
    cache_reads: int = 0
    skipped_rightly: int = 0
    drafted: Drafted | None = None

    @classmethod
    def nothing(cls, documents: int) -> Outcome:
        """The outcome of no token."""
        zeros = torch.zeros(documents, dtype=torch.int64)
        return cls(zeros, zeros, Counter())

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(
            self.right + other.right,
            self.tokens + other.tokens,
            self.exits + other.exits,
            self.checks + other.checks,
            self.lm_head_evaluations + other.lm_head_evaluations,
            self.shortcut_evaluations + other.shortcut_evaluations,
            self.cheap_head_evaluations + other.cheap_head_evaluations,
            self.cheap_head_bytes + other.cheap_head_bytes,
            self.head_checks + other.head_checks,
            self.head_alike + other.head_alike,
            self.deep_layers + other.deep_layers,
            self.cache_reads + other.cache_reads,
            self.skipped_rightly + other.skipped_rightly,
        )

    @property
    def count(self) -> int:
        """All tokens."""
        return int(self.tokens.sum())

    @property
    def layers(self) -> int:
        """Layers of all tokens."""
        return sum(layer * tokens for layer, tokens in self.exits.items())

    def seconds(self, times: UnitTimes, draft: DraftTimes, model: ModelInfo, kv: KVFacts) -> float | None:
        """Return what decoding the tokens one by one would take, prefill apart; ``None`` where K,V are filled.

        Args:
            times: of layers and LM head.
            draft: of asking the strategy and of reading what exits say.
            model: facts.
            kv: the KV policy; where it defers, layers that exits skip run later as further rows of other passes.
        """
        asked = self.checks * draft.check_s
        if self.drafted is None:
            if kv.fills:
                return None
            deep = self.exits[model.num_layers]
            later = self.count * model.num_layers - self.layers if kv.defers else 0
            heads = deep * times.head_s + (self.count - deep) * draft.read_s
            return asked + (self.layers + self.deep_layers) * times.layer_s + later * times.layer_row_s + heads
        made, passes = self.drafted, int(self.drafted.verifications.sum())
        places = self.count + made.layers_discarded // model.num_layers
        return (
            asked
            + (made.layers_read + self.deep_layers) * times.layer_s
            + (places * model.num_layers - made.layers_read) * times.layer_row_s
            + passes * times.head_s
            + (places - passes) * times.head_row_s
            + made.by_exits * draft.read_s
        )

    def moved(self, model: ModelInfo, kv: KVFacts) -> int:
        """Return the bytes that decoding the tokens one by one would read, see :mod:`reports.metrics.byte_model`.

        Lossless, a verification reads the LM head once for all of its places, and nothing is filled.
        """
        if self.drafted is not None:
            passes = int(self.drafted.verifications.sum())
            return sum(
                bytes_by_cause(
                    model,
                    tokens=passes,
                    layers=self.drafted.layers_read + self.deep_layers,
                    lm_head_evaluations=self.lm_head_evaluations
                    - (self.count + self.drafted.layers_discarded // model.num_layers)
                    + passes,
                    shortcut_evaluations=self.shortcut_evaluations,
                    cheap_head_bytes=self.cheap_head_bytes,
                    kv_fill_layers=0,
                    cache_reads=self.cache_reads,
                )
            )
        filled = sum((model.num_layers - layer) * tokens for layer, tokens in self.exits.items())
        causes = bytes_by_cause(
            model,
            tokens=self.count,
            layers=self.layers + self.deep_layers,
            lm_head_evaluations=self.lm_head_evaluations,
            shortcut_evaluations=self.shortcut_evaluations,
            cheap_head_bytes=self.cheap_head_bytes,
            kv_fill_layers=filled if kv.fills else 0,
            cache_reads=self.cache_reads,
        )
        return sum(causes)


def answers(
    point: OperatingPoint, tokens: TracedTokens, model: ModelInfo, charges: Charges
) -> Iterator[tuple[int, Tensor]]:
    """Yield exit layer and answer, ``[n]`` bool, of all tokens at every exit point that the strategy wants.

    Raises:
        ConfigError: it asks for what the trace does not hold.
        OptionError: it answers in the wrong shape.
    """
    rule: ExitRule = point.strategy.start(model, Batch(tokens.seeds, "cpu"))
    view: ReplayView | None = None
    for layer in point.record.exit_points:
        view = ReplayView(point.name, tokens, layer, view, model, charges)
        yield layer, checked(rule, ask_rule(rule, view), layer, len(tokens), torch.device("cpu"))


def replay(point: OperatingPoint, tokens: TracedTokens, model: ModelInfo) -> Outcome:
    """Return where an operating point would have exited traced tokens; raises as :func:`answers`."""
    count, documents = len(tokens), len(tokens.documents)
    charges = Charges(count)
    spent = charges.spent
    running = torch.ones(count, dtype=torch.bool)
    right = torch.ones(count, dtype=torch.bool)
    layers = torch.full((count,), model.num_layers)
    exits: Counter[int] = Counter()
    checks = mapped = head_checks = head_alike = 0
    by_full: Iterator[tuple[int, Tensor]] | None = None
    if point.strategy.cheap_heads():
        by_full = answers(point, tokens, model, Charges(count, by_full_head=True))
    for layer, decided in answers(point, tokens, model, charges):
        checks += charges.running
        if by_full is not None:
            _, as_full = next(by_full)
            head_checks += charges.running
            head_alike += int((decided == as_full)[running].sum())
        leaving = running & decided
        left = int(leaving.sum())
        if not left:
            continue
        exits[layer] = left
        layers[leaving] = layer
        head = charges.answering.get(layer)
        top = tokens.top(layer) if head is None else tokens.by_head(head, layer)["top"]
        right[leaving] = (top == tokens.final)[leaving]
        if head is None and not charges.seen("logits", layer):  # no check asked for it: the output's own
            spent["logits"] += left
        if layer in tokens.shortcuts:
            mapped += left
            spent["shortcut"] += 0 if charges.seen("shortcut", layer) else left
        running &= ~decided
        charges.running -= left
        if not charges.running:
            break
    if charges.running:
        exits[model.num_layers] = charges.running
        spent["logits"] += charges.running
    if point.strategy.rehearsed:  # decided outside the measured window, replayed inside it
        checks, spent = 0, Counter(logits=count, shortcut=mapped)
    cheap = {HeadChoice.of(what.removeprefix(HEAD)): reads for what, reads in spent.items() if what.startswith(HEAD)}
    return Outcome(
        right=torch.bincount(tokens.document[right], minlength=documents),
        tokens=torch.bincount(tokens.document, minlength=documents),
        exits=exits,
        checks=checks,
        lm_head_evaluations=spent["logits"] + spent["deep"],
        shortcut_evaluations=spent["shortcut"],
        cheap_head_evaluations=sum(cheap.values()),
        cheap_head_bytes=sum(tokens.heads[head].nbytes * reads for head, reads in cheap.items() if tokens.heads),
        head_checks=head_checks,
        head_alike=head_alike,
        deep_layers=spent["deep_layers"],
        cache_reads=int((layers * (tokens.position + 1)).sum()),
        skipped_rightly=int((model.num_layers - layers[right]).sum()),
    )
