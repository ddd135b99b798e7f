"""One operating point on traced tokens: where each would have left, what it would have said, what that would cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.contracts import Batch, ExitRule, HeadChoice, KVFacts, ModelInfo
from harness.contracts.asking import ask_rule
from harness.decoding.exits import checked
from harness.records import Work
from harness.running.operating_points import OperatingPoint
from harness.sweep.tokens import TracedTokens
from harness.sweep.view import HEAD, Charges, ReplayView


@dataclass
class Outcome:
    """Work of an operating point on the tokens so far; outcomes of parts of a trace can be added.

    Attributes:
        right: tokens equal to the last layer's, by document, ``[documents]`` int64.
        tokens: tokens by document.
        exits: exit layer → tokens that left there; the last layer included.
        work: as live decoding counts it after prefill, but for what depends on the KV policy (:meth:`amounts`). That of
            lossless decoding is of whole documents, and outcomes with it are not added.
        head_checks, head_alike: checks by a cheap head, and those that decided as the LM head would have.
        deep_layers: layers run to look at the last layer's token, by a strategy that does so and is no upper bound.
        attended: positions × layers attended to.
        skipped_rightly: layers skipped by tokens equal to the last layer's.
    """

    right: Tensor
    tokens: Tensor
    exits: Counter[int]
    work: Work = field(default_factory=Work)
    head_checks: int = 0
    head_alike: int = 0
    deep_layers: int = 0
    attended: int = 0
    skipped_rightly: int = 0

    @classmethod
    def nothing(cls, documents: int) -> Outcome:
        """The outcome of no token."""
        zeros = torch.zeros(documents, dtype=torch.int64)
        return cls(zeros, zeros, Counter())

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    @property
    def count(self) -> int:
        """All tokens."""
        return int(self.tokens.sum())

    @property
    def layers(self) -> int:
        """Layers of all tokens."""
        return sum(layer * tokens for layer, tokens in self.exits.items())

    def amounts(self, model: ModelInfo, kv: KVFacts) -> dict[str, float]:
        """Return what decoding the tokens one by one would do, prefill apart, for :func:`harness.contracts.price`.

        Args:
            model: facts.
            kv: the KV policy; where it defers, layers that exits skip run later as further rows of other passes.
        """
        work, count, deepest = self.work, self.count, self.count * model.num_layers
        if work.lossless:
            drafted = 0 if work.drafting is None else work.drafting.passes
            work = replace(work, layers_executed=deepest + work.layers_discarded)
        else:
            drafted = count - self.exits[model.num_layers]
            work = replace(
                work,
                layers_read=self.layers,
                layers_executed=deepest if kv.defers else self.layers,
                kv_fill_layers=deepest - self.layers if kv.fills else 0,
            )
        found = work.amounts(tokens=count, exits=drafted, attended=self.attended, num_layers=model.num_layers)
        return found | {"layer step": found["layer step"] + self.deep_layers}


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
    if point.strategy.upper_bound:  # decided outside the measured window, replayed inside it
        checks, spent = 0, Counter(logits=count, shortcut=mapped)
    cheap = {HeadChoice.of(what.removeprefix(HEAD)): reads for what, reads in spent.items() if what.startswith(HEAD)}
    return Outcome(
        right=torch.bincount(tokens.document[right], minlength=documents),
        tokens=torch.bincount(tokens.document, minlength=documents),
        exits=exits,
        work=Work(
            exit_checks=checks,
            lm_head_evaluations=spent["logits"] + spent["deep"],
            shortcut_evaluations=spent["shortcut"],
            cheap_head_evaluations=sum(cheap.values()),
            cheap_head_bytes=sum(tokens.heads[head].nbytes * reads for head, reads in cheap.items() if tokens.heads),
        ),
        head_checks=head_checks,
        head_alike=head_alike,
        deep_layers=spent["deep_layers"],
        attended=int((layers * (tokens.position + 1)).sum()),
        skipped_rightly=int((model.num_layers - layers[right]).sum()),
    )
