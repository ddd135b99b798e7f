"""Lossless decoding on traced tokens: what would be drafted, verified and discarded along full depth's own text.

A trace of what the model generated holds, at every place of full depth's text, what each exit says after the tokens
before. Drafts that are right follow that text, so that their exits, their verifications and the tokens of each are
those of live decoding, and the engine's own bookkeeping (:class:`harness.decoding.drafting.Drafting`) decides when a
draft ends. **What a trace does not hold** is what exits say behind a wrong draft. All of it is discarded, and how much
is drafted until the pass that goes deep only costs; it is modelled: the strategy does there what it does at the same
places of full depth's text, which keeps the observed lengths of its drafts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.contracts import Batch, DraftRule, HeadChoice, ModelInfo
from harness.decoding.drafting import Drafting, DraftSettings
from harness.decoding.generation import Generation
from harness.errors import ArtefactError, ConfigError
from harness.records import DraftWork, Work
from harness.running.operating_points import OperatingPoint
from harness.running.thresholds import learns
from harness.sweep.replay_strategy import Outcome, answers
from harness.sweep.tokens import TracedTokens
from harness.sweep.view import HEAD, Charges
from harness.training.traces.store import Traces

_COUNTED = (
    "exit_checks",
    "lm_head_evaluations",
    "shortcut_evaluations",
    "cheap_head_evaluations",
    "cheap_head_bytes",
)
"""Counters that a token charges where its strategy decides about it."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Generated texts beside the traced tokens.

    Attributes:
        prompts: tokens of each document's prompt; empty where a trace has none.
        limit: new tokens at most.
        eos: tokens that end a completion.
    """

    prompts: Mapping[int, Sequence[int]]
    limit: int
    eos: frozenset[int]

    @classmethod
    def of(cls, traces: Traces, eos: frozenset[int]) -> Texts:
        """Return those of a trace.

        Raises:
            ArtefactError: a prompt cannot be read.
        """
        try:
            prompts = {
                number: tuple(map(int, str(facts["prompt"]).split()))
                for number, facts in enumerate(traces.documents)
                if "prompt" in facts
            }
        except ValueError:
            raise ArtefactError(f"{traces.folder} has a prompt that is no list of tokens. Trace again.") from None
        return cls(prompts, int(traces.index.get("new_tokens") or 0), eos)


@dataclass
class Decisions:
    """Decisions of an operating point at every traced token, and their charges.

    Attributes:
        columns: ``layer`` after which it leaves (the last one where it goes deep), ``said`` by the exit there,
            ``final`` (full depth's token), ``input``, ``document``, ``position``, and charges; ``[n]`` int64 each,
            of parts.
    """

    columns: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, part: Mapping[str, Tensor]) -> None:
        """Append the next tokens of the trace."""
        for name, column in part.items():
            self.columns.setdefault(name, []).append(column)

    def by_document(self) -> dict[int, dict[str, list[int]]]:
        """Return the columns of each document."""
        whole = {name: torch.cat(parts) for name, parts in self.columns.items()}
        ends = whole["document"].diff().nonzero().flatten() + 1
        split = {name: [part.tolist() for part in column.tensor_split(ends)] for name, column in whole.items()}
        return {
            numbers[0]: {name: parts[place] for name, parts in split.items()}
            for place, numbers in enumerate(split["document"])
        }


def check_replayable(point: OperatingPoint, traces: Traces, model: ModelInfo) -> None:
    """Refuse decoding that cannot be replayed.

    Raises:
        ConfigError: lossless, of texts that the model did not generate, or without their prompts; or something decides
            about drafts by what it sees live; or lossy, what it learns from tokens decides about the next.
    """
    if point.lossless is None:
        if learns(point.strategy.start(model, Batch((0,), "cpu"))):
            raise ConfigError(
                f"{point.name} cannot be replayed: it learns from the tokens before, and a replay asks about each "
                f"token by itself. Run it: `harness run --strategy {point.name}`."
            )
        return
    again = "Trace what the model generates: `harness trace --new-tokens 15`"
    if not traces.index.get("new_tokens"):
        raise ConfigError(f"{point.name} cannot be replayed: {traces.folder} is of documents' own tokens. {again}.")
    if point.lossless.sources and not all("prompt" in facts for facts in traces.documents):
        raise ConfigError(f"{point.name} cannot be replayed: {traces.folder} was taken without prompts. {again} again.")
    rules = _rules(point, model)
    if any(rule.needs_probabilities for rule in rules):
        raise ConfigError(
            f"{point.name} cannot be replayed: it ends drafts by probabilities, which a trace does not hold. Run it: "
            f"`harness run --strategy {point.name}`."
        )
    if not all(rule.knows_drafts_alone for rule in rules[len(point.lossless.sources) :]):
        raise ConfigError(
            f"{point.name} cannot be replayed: it ends drafts by what it has seen live. Run it: "
            f"`harness run --strategy {point.name}`."
        )


def _rules(point: OperatingPoint, model: ModelInfo) -> list[DraftRule]:
    """Return what decides about the drafts of one row: its sources, and the strategy where it does, too."""
    assert point.lossless is not None
    batch = Batch((0,), "cpu")
    own = point.strategy.start(model, batch)
    rules = [source.start(model, batch) for source in point.lossless.sources]
    return [*rules, *([own] if isinstance(own, DraftRule) else [])]


def decide(point: OperatingPoint, tokens: TracedTokens, model: ModelInfo) -> dict[str, Tensor]:
    """Return what an operating point does at traced tokens, as columns of :class:`Decisions`."""
    count = len(tokens)
    charges = Charges(1)  # one token's: all that get as far are charged alike
    running = torch.ones(count, dtype=torch.bool)
    layers, said = torch.full((count,), model.num_layers), tokens.final.clone()
    found = {name: torch.zeros(count, dtype=torch.int64) for name in (*_COUNTED, "deep_layers")}
    rehearsed = point.strategy.upper_bound
    checks = 0

    def charge(rows: Tensor, more: Counter[str]) -> None:
        spent = Counter() if rehearsed else charges.spent  # it decided outside the measured window
        cheap = {HeadChoice.of(key.removeprefix(HEAD)): n for key, n in spent.items() if key.startswith(HEAD)}
        values = {
            "exit_checks": 0 if rehearsed else checks,
            "lm_head_evaluations": spent["logits"] + spent["deep"] + more["logits"],
            "shortcut_evaluations": spent["shortcut"] + more["shortcut"],
            "cheap_head_evaluations": sum(cheap.values()),
            "cheap_head_bytes": sum(tokens.heads[head].nbytes * n for head, n in cheap.items() if tokens.heads),
            "deep_layers": spent["deep_layers"],
        }
        for name, value in values.items():
            found[name][rows] = value

    for layer, decided in answers(point, tokens, model, charges):
        checks += 1
        leaving = running & decided
        if leaving.any():
            head = charges.answering.get(layer)
            top = tokens.top(layer) if head is None else tokens.by_head(head, layer)["top"]
            layers[leaving], said[leaving] = layer, top[leaving].long()
            output = Counter(
                logits=int(head is None and (rehearsed or not charges.seen("logits", layer))),
                shortcut=int(layer in tokens.shortcuts and (rehearsed or not charges.seen("shortcut", layer))),
            )
            charge(leaving, output)
            running &= ~decided
            if not running.any():
                break
    charge(running, Counter())  # the verification reads their token
    facts = {"document": tokens.document, "position": tokens.position, "final": tokens.final}
    return {**found, **facts, "layer": layers, "said": said, "input": tokens.input}


def replay_lossless(
    point: OperatingPoint, decisions: Decisions, texts: Texts, model: ModelInfo, documents: int
) -> Outcome:
    """Return what lossless decoding would have done on whole documents.

    Args:
        point: a lossless one.
        decisions: of all their tokens.
        texts: that they are of.
        model: facts.
        documents: how many the trace has.
    """
    assert point.lossless is not None
    tokens = torch.zeros(documents, dtype=torch.int64)
    work, accepted, drafting = Work(), list[bool](), DraftWork()
    deep_layers = attended = 0
    for number, columns in decisions.by_document().items():
        settings = DraftSettings(point.lossless.draft_max, _rules(point, model))
        one = _Document(columns, texts.prompts.get(number, ()), texts, model, settings)
        one.run()
        tokens[number] = len(columns["final"])
        work, drafting = work + one.made, drafting + one.made.drafting
        accepted += one.made.accepted
        deep_layers, attended = deep_layers + one.deep_layers, attended + one.attended
    return Outcome(
        right=tokens,
        tokens=tokens,
        exits=Counter({model.num_layers: int(tokens.sum())}),
        work=replace(work, accepted=tuple(accepted), drafting=drafting),
        deep_layers=deep_layers,
        attended=attended,
    )


class _Document:
    """One document, decoded again without its model.

    Args:
        columns: of its tokens.
        prompt: its tokens.
        texts: limit and ends.
        model: facts.
        settings: how it drafts.

    Attributes:
        made: its tokens, and the work that they were.
        deep_layers, attended: as of an :class:`Outcome`.
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
