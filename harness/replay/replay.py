"""One operating point on traced tokens: where each would have left, what it would have said, what that would cost.

Lossless, a trace of what the model generated holds what each exit says along full depth's text; what a strategy does
behind a wrong draft, all of which is discarded, is taken to be what it does at the same places of that text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.contracts import Batch, DraftRule, HeadChoice, KVFacts, ModelInfo, UnitCosts
from harness.decoding.drafting import Drafting, DraftSettings, draft_rules
from harness.decoding.generation import Generation
from harness.errors import ArtefactError, ConfigError
from harness.records import DraftWork, Work
from harness.replay.tokens import Charges, TracedTokens, answers
from harness.running.operating_points import OperatingPoint
from harness.running.thresholds import learns
from harness.training.traces.store import Traces

_COUNTED = ("exit_checks", "lm_head_evaluations", "shortcut_evaluations", "cheap_head_evaluations", "cheap_head_bytes")
"""Counters of :class:`Work` that a token charges where its strategy decides about it."""


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
        deep_layers: layers run to look at the last layer's token, by a strategy that does so and is not rehearsed.
        attended: positions × layers attended to.
        skipped_rightly: layers skipped by tokens equal to the last layer's.
        drafted, stood: lossless, tokens drafted at the place of each token, and how many of them stood, ``[n]`` int64.
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
    drafted: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    stood: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

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

    @property
    def agreement(self) -> float:
        """Share of the tokens that are the last layer's."""
        return int(self.right.sum()) / self.count

    def amounts(self, model: ModelInfo, kv: KVFacts) -> dict[str, float]:
        """Return what decoding the tokens one by one would do under a KV policy, prefill apart."""
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


@dataclass(frozen=True, slots=True)
class Decisions:
    """An operating point's decision about each of some traced tokens.

    Attributes:
        layer: after which it leaves; the last one where it goes deep, ``[n]`` int64.
        said: its token there, ``[n]`` int64.
        charges: exit layer → what a token that leaves there charges: :data:`_COUNTED` and ``deep_layers``.
    """

    layer: Tensor
    said: Tensor
    charges: Mapping[int, Mapping[str, int]]
    head_checks: int
    head_alike: int


def decide(point: OperatingPoint, tokens: TracedTokens, model: ModelInfo) -> Decisions:
    """Return what an operating point does at traced tokens; raises as :func:`answers`."""
    rehearsed = point.strategy.upper_bound  # it decides outside the measured window
    charges, charged = Charges(), dict[int, Mapping[str, int]]()
    running = torch.ones(len(tokens), dtype=torch.bool)
    layers, said = torch.full((len(tokens),), model.num_layers), tokens.final.clone()
    checks = head_checks = head_alike = 0
    by_full = None
    if point.lossless is None and point.strategy.cheap_heads():
        by_full = answers(point, tokens, model, Charges(by_full_head=True))

    def charge(logits: bool = False, shortcut: bool = False) -> Mapping[str, int]:
        spent: Counter[str | HeadChoice] = Counter() if rehearsed else charges.spent
        cheap = {head: reads for head, reads in spent.items() if isinstance(head, HeadChoice)}
        sizes = [tokens.heads[head].nbytes * reads for head, reads in cheap.items() if tokens.heads]
        lm_heads = spent["logits"] + spent["deep"] + logits
        counts = lm_heads, spent["shortcut"] + shortcut, sum(cheap.values()), sum(sizes), spent["deep_layers"]
        return dict(zip((*_COUNTED, "deep_layers"), (0 if rehearsed else checks, *counts), strict=True))

    for layer, decided in answers(point, tokens, model, charges):
        checks += 1
        if by_full is not None:
            _, as_full = next(by_full)
            head_checks += int(running.sum())
            head_alike += int((decided == as_full)[running].sum())
        leaving = running & decided
        if not leaving.any():
            continue
        head = charges.answering.get(layer)
        layers[leaving], said[leaving] = layer, tokens.column("top", layer, head)[leaving]
        charged[layer] = charge(  # what no check asked for is the output's own
            logits=head is None and (rehearsed or ("logits", layer) not in charges.seen),
            shortcut=layer in tokens.shortcuts and (rehearsed or ("shortcut", layer) not in charges.seen),
        )
        running &= ~decided
        if not running.any():
            break
    charged[model.num_layers] = charge()
    return Decisions(layers, said, charged, head_checks, head_alike)


def replay(point: OperatingPoint, tokens: TracedTokens, model: ModelInfo) -> Outcome:
    """Return where an operating point would have exited traced tokens; raises as :func:`answers`."""
    found, documents = decide(point, tokens, model), len(tokens.documents)
    right = found.said == tokens.final
    exits = Counter({layer: n for layer, n in enumerate(torch.bincount(found.layer).tolist()) if n})
    total: Counter[str] = Counter(lm_head_evaluations=exits[model.num_layers])
    for layer, count in exits.items():
        for name, each in found.charges[layer].items():
            total[name] += count * each
    counted: dict[str, Any] = {name: total[name] for name in _COUNTED}
    return Outcome(
        right=torch.bincount(tokens.document[right], minlength=documents),
        tokens=torch.bincount(tokens.document, minlength=documents),
        exits=exits,
        work=Work(**counted),
        head_checks=found.head_checks,
        head_alike=found.head_alike,
        deep_layers=total["deep_layers"],
        attended=int((found.layer * (tokens.position + 1)).sum()),
        skipped_rightly=int((model.num_layers - found.layer[right]).sum()),
    )


# --------------------------------------------------------------------------------------- lossless


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts of documents, where their tokens were generated; the most new tokens, and those that end a completion."""

    prompts: Mapping[int, Sequence[int]]
    limit: int
    eos: frozenset[int]

    @classmethod
    def of(cls, traces: Traces, eos: frozenset[int]) -> Texts:
        """Return those of a trace."""
        texts = {n: str(facts["prompt"]) for n, facts in enumerate(traces.documents) if "prompt" in facts}
        try:
            prompts = {number: tuple(map(int, text.split())) for number, text in texts.items()}
        except ValueError:
            raise ArtefactError(f"{traces.folder} has a prompt that is no list of tokens. Trace again.") from None
        return cls(prompts, int(traces.index.get("new_tokens") or 0), eos)


def check_replayable(point: OperatingPoint, traces: Traces, model: ModelInfo) -> None:
    """Refuse decoding that cannot be replayed: lossless, of texts not generated; or of what learns while it decodes."""
    why, remedy = "", f"Run it: `harness run --strategy {point.name}`."
    if point.lossless is None:
        if learns(point.strategy.start(model, Batch((0,), "cpu"))):
            why = "it learns from the tokens before, and a replay asks about each token by itself"
    else:
        asked: list[UnitCosts] = []

        def costs() -> UnitCosts:
            asked.append(model.costs)
            return model.costs

        sources, rules = point.lossless.sources, _rules(point, replace(model, unit_costs=costs))
        if not traces.index.get("new_tokens"):
            why = f"{traces.folder} is of documents' own tokens"
            remedy = "Trace what the model generates: `harness trace --new-tokens 15`."
        elif not all("prompt" in facts for facts in traces.documents):
            why, remedy = f"{traces.folder} was taken without prompts", "Trace again: `harness trace --new-tokens 15`."
        elif any(rule.needs_probabilities for rule in rules):
            why = "it ends drafts by probabilities, which a trace does not hold"
        elif not all(rule.knows_drafts_alone for rule in rules[len(sources) :]):
            why = "it ends drafts by what it has seen live"
        elif asked:
            why = "what it drafts rests on costs that are measured where it decodes"
    if why:
        raise ConfigError(f"{point.name} cannot be replayed: {why}. {remedy}")


def _rules(point: OperatingPoint, model: ModelInfo) -> tuple[DraftRule, ...]:
    """Return what decides about the drafts of one row: its sources, and the strategy where it does, too."""
    assert point.lossless is not None
    batch = Batch((0,), "cpu")
    return draft_rules(point.lossless.sources, model, batch, point.strategy.start(model, batch))


def draft_columns(point: OperatingPoint, tokens: TracedTokens, model: ModelInfo) -> dict[str, Tensor]:
    """Return what an operating point does at the next tokens, for :func:`replay_lossless`, ``[n]`` int64 each.

    They are ``layer`` and ``said`` of :class:`Decisions`, what each token charges, ``final`` (full depth's token),
    ``input``, ``document`` and ``position``.
    """
    found = decide(point, tokens, model)
    facts = {name: tokens.column(name) for name in ("final", "input", "document", "position")}
    for name in (*_COUNTED, "deep_layers"):
        by_layer = torch.zeros(model.num_layers + 1, dtype=torch.int64)
        for layer, charged in found.charges.items():
            by_layer[layer] = charged[name]
        facts[name] = by_layer[found.layer]
    return {**facts, "layer": found.layer, "said": found.said}


def replay_lossless(
    point: OperatingPoint, parts: Sequence[Mapping[str, Tensor]], texts: Texts, model: ModelInfo, documents: int
) -> Outcome:
    """Return what a lossless point would have done on whole documents, by :func:`draft_columns` in their order."""
    assert point.lossless is not None
    tokens = torch.zeros(documents, dtype=torch.int64)
    work, accepted, drafting = Work(), list[bool](), DraftWork()
    drafted, stood = list[int](), list[int]()
    deep_layers = attended = 0
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    ends = whole["document"].diff().nonzero().flatten() + 1
    split = {name: column.tensor_split(ends) for name, column in whole.items()}
    for place, (number, *_) in enumerate(each.tolist() for each in split["document"]):
        columns = {name: column[place].tolist() for name, column in split.items()}
        settings = DraftSettings(point.lossless.draft_max, _rules(point, model))
        one = _Document(columns, texts.prompts.get(number, ()), texts, model, settings)
        one.run()
        tokens[number] = len(columns["final"])
        work, drafting = work + one.made, drafting + one.made.drafting
        accepted += one.made.accepted
        drafted += one.drafted
        stood += one.made.accepted
        deep_layers, attended = deep_layers + one.deep_layers, attended + one.attended
    return Outcome(
        right=tokens,
        tokens=tokens,
        exits=Counter({model.num_layers: int(tokens.sum())}),
        work=replace(work, accepted=tuple(accepted), drafting=drafting),
        deep_layers=deep_layers,
        attended=attended,
        drafted=torch.tensor(drafted),
        stood=torch.tensor(stood, dtype=torch.int64),
    )


class _Document:
    """One document, decoded again without its model; ``made`` are its tokens, and the work that they were.

    ``drafted`` says how many tokens were drafted at each place behind its first.
    """

    def __init__(
        self, columns: Mapping[str, list[int]], prompt: Sequence[int], texts: Texts, model: ModelInfo,
        settings: DraftSettings,
    ) -> None:  # fmt: skip
        self._columns, self._texts, self._layers = columns, texts, model.num_layers
        self.text = [columns["input"][0], *columns["final"]]
        self.made = Generation(token_ids=self.text[:1], lossless=True)
        self._drafting = Drafting(0, prompt, self.made, texts.limit, settings, model.vocab_size)
        self._waiting: list[int] = []  # layers that drafts have run
        self.drafted = [0] * len(columns["final"])
        self.deep_layers = self.attended = 0

    def run(self) -> None:
        """Decode it to its end."""
        while len(self.made.token_ids) < len(self.text):
            fresh, _ = self._drafting.fresh()
            place = len(self.made.token_ids) + len(self.made.draft) - 1
            if self._drafting.due or place >= len(self._columns["layer"]):  # behind the text's end nothing is known
                self._verify(len(fresh))
                continue
            layer = self._columns["layer"][place]
            for name in _COUNTED:
                setattr(self.made, name, getattr(self.made, name) + self._columns[name][place])
            self.deep_layers += self._columns["deep_layers"][place]
            if layer == self._layers:
                self._verify(len(fresh))
            else:
                self._draft(self._columns["said"][place], layer)

    def _draft(self, token: int, layer: int) -> None:
        self._read(layer)
        self._waiting = [max(layer, before) for before in self._waiting] + [layer]
        length = len(self.made.token_ids) + len(self.made.draft) + 1
        self._drafting.add(token, layer, None, ends=token in self._texts.eos or length >= self._texts.limit)

    def _verify(self, fresh: int) -> None:
        """Keep what full depth's text agrees with, and the token that follows."""
        made, drafted = self.made, list(self.made.draft)
        self._read(self._layers if fresh else self._layers - min(self._waiting))
        places = len(drafted) + (0 if self._drafting.ended else 1)
        left = self.text[len(made.token_ids) :]
        stands = next((n for n, (a, b) in enumerate(zip(drafted, left, strict=False)) if a != b), None)
        stands = min(len(drafted), len(left)) if stands is None else stands
        count = min(stands + 1, places, len(left))
        made.verifications += 1
        for place in range(len(made.token_ids) - 1, min(len(made.token_ids) - 1 + len(drafted), len(self.drafted))):
            self.drafted[place] += 1
        made.lm_head_evaluations += places
        made.layers_discarded += (places - count) * self._layers
        made.token_ids += left[:count]
        made.accepted += [place < stands for place in range(count)]
        self._waiting.clear()
        self._drafting.close(stands)

    def _read(self, layers: int) -> None:
        self.made.layers_read += layers
        here = self._columns["position"][0] + len(self.made.token_ids) + len(self.made.draft)
        self.attended += layers * here
