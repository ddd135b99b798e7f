"""Traced tokens as exits saw them, and a strategy's view of them with the cost that its reads would have had live.

All rows are shown at every exit point, also past the one where they exited: a rule answers each row by itself, and
answers there are dropped. Memory holds one part of a trace at a time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NoReturn, cast
from zlib import crc32

import torch
from torch import Tensor

from harness.contracts import Batch, ExitModule, ExitRule, ExitView, HeadChoice, ModelInfo
from harness.contracts.asking import ask_rule
from harness.decoding.exits import checked
from harness.decoding.readings import HeadReading, Heads
from harness.errors import ConfigError
from harness.running.operating_points import OperatingPoint
from harness.training.traces.store import Traces

COLUMNS = ("hidden", "top", "top1", "top2", "entropy", "final", "position", "document", "input")
PART = 4096
READ = 256
"""Tokens that a cheap head reads at a time: some heads make logits of the whole vocabulary."""

Looks = frozenset[tuple[str | HeadChoice, int]]
"""An input of a computation: quantity or cheap head, and exit layer."""


@dataclass(eq=False)
class TracedTokens:
    """Some tokens of a trace.

    Attributes:
        shards: columns as they lie on disk, each with the selected rows, ``[k]`` int64.
        shortcuts: exit layer → shortcut; empty with the shared head.
        documents: key of every document of the trace.
        generated: the tokens were the model's own, each document's first one yielded by its context.
        heads: the model's cheap heads; ``None`` where no strategy declares one, and the model is not loaded.
        memo: what strategies computed for any of their settings, and what that read.
    """

    exit_points: tuple[int, ...]
    shards: Sequence[tuple[Mapping[str, Tensor], Tensor]]
    shortcuts: Mapping[int, ExitModule]
    documents: Sequence[str]
    generated: bool
    seed: int = 0
    heads: Heads | None = None
    memo: dict[Hashable, tuple[Tensor, Looks]] = field(default_factory=dict, init=False)
    _made: dict[tuple[str, int | None, HeadChoice | None], Tensor] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.shards)

    def column(self, name: str, layer: int | None = None, head: HeadChoice | None = None) -> Tensor:
        """Return a column of :data:`COLUMNS` or ``exit_state``, made once: tokens and numbers int64, all else float32.

        Of an exit's layer: ``hidden`` and ``exit_state`` (behind its shortcut), ``[n, hidden_size]``; ``top``,
        ``top1``, ``top2`` and ``entropy``, ``[n]``, as the LM head says or a cheap one.
        """
        key = name, layer, head
        if key in self._made:
            return self._made[key]
        if head is not None:
            self._read_by(head, layer)
        elif name == "exit_state" and layer is not None:
            hidden = self.column("hidden", layer)
            self._made[key] = self.shortcuts[layer](hidden) if layer in self.shortcuts else hidden
        else:
            at = None if layer is None else self.exit_points.index(layer)
            parts = [whole[name][rows] if at is None else whole[name][:, at][rows] for whole, rows in self.shards]
            found = torch.cat(parts)
            self._made[key] = found.float() if found.is_floating_point() else found.long()
        return self._made[key]

    @property
    def final(self) -> Tensor:
        """Token of the last layer, ``[n]`` int64."""
        return self.column("final")

    @property
    def document(self) -> Tensor:
        """Number of each token's document, ``[n]`` int64."""
        return self.column("document")

    @property
    def position(self) -> Tensor:
        """Position of each token, ``[n]`` int64."""
        return self.column("position")

    @cached_property
    def generated_before(self) -> list[list[int]]:
        """Tokens generated before each token was; only where ``generated``."""
        found = []
        for shard, rows in self.shards:  # documents ascend, and end with shards
            document, read = shard["document"].tolist(), shard["input"].tolist()
            found += [read[bisect_left(document, document[row]) + 1 : row + 1] for row in rows.tolist()]
        return found

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """One per token, from its document and position: the same in any part of the trace."""
        places = zip(self.document.tolist(), self.position.tolist(), strict=True)
        return tuple(self.seed + crc32(f"{self.documents[number]} {position}".encode()) for number, position in places)

    def _read_by(self, head: HeadChoice, layer: int | None) -> None:
        assert self.heads is not None
        parts = torch.split(self.column("exit_state", layer), READ)
        reads = [HeadReading.of(self.heads.read(head, states)) for states in parts]
        said = {"top": "top_token", "top1": "top_probability", "top2": "second_probability", "entropy": "entropy"}
        for name, read in said.items():
            self._made[name, layer, head] = torch.cat([getattr(one, read) for one in reads])


def decided(document: Tensor) -> Tensor:
    """Return the rows, ``[n]`` bool, at which strategies are asked about generated tokens: not where a context ends."""
    return torch.cat((torch.zeros(1, dtype=torch.bool), document[1:] == document[:-1]))


def read_tokens(
    traces: Traces,
    wanted: Tensor,
    shortcuts: Mapping[int, ExitModule],
    *,
    seed: int = 0,
    part: int = PART,
    heads: Heads | None = None,
) -> Iterator[TracedTokens]:
    """Yield the wanted rows of a trace, ``[n]`` bool, ``part`` tokens at a time."""
    keys = [str(document["key"]) for document in traces.documents]
    generated = bool(traces.index.get("new_tokens"))

    def tokens() -> TracedTokens:
        return TracedTokens(traces.exit_points, waiting, shortcuts, keys, generated, seed, heads)

    waiting: list[tuple[Mapping[str, Tensor], Tensor]] = []
    count = start = 0
    for shard in traces.shards(*COLUMNS):
        size = len(shard["final"])
        rows = wanted[start : start + size].nonzero().squeeze(1)
        start += size
        while len(rows):
            taken, rows = rows[: part - count], rows[part - count :]
            waiting.append((shard, taken))
            count += len(taken)
            if count == part:
                yield tokens()
                waiting, count = [], 0
    if waiting:
        yield tokens()


@dataclass
class Charges:
    """The reads that live decoding charges to a token which gets as far, each once per exit.

    Attributes:
        by_full_head: cheap heads are answered by the LM head, to see what that would decide.
        spent: ``logits``, ``shortcut``, each cheap head and ``deep`` (running the remaining layers) → how often;
            ``deep_layers``: how many layers that took.
        seen: what was read, and at which exit layer.
        answering: exit layer → cheap head that rows which exit there take their tokens from.
    """

    by_full_head: bool = False
    spent: Counter[str | HeadChoice] = field(default_factory=Counter)
    seen: set[tuple[str | HeadChoice, int]] = field(default_factory=set)
    answering: dict[int, HeadChoice] = field(default_factory=dict)
    _recorders: list[set[tuple[str | HeadChoice, int]]] = field(default_factory=list)

    def look(self, what: str | HeadChoice, layer: int) -> bool:
        """Charge a read, and tell whether it was the first one."""
        for recorder in self._recorders:
            recorder.add((what, layer))
        if (what, layer) in self.seen:
            return False
        self.seen.add((what, layer))
        self.spent[what] += 1
        return True

    def record(self, compute: Callable[[], Tensor]) -> tuple[Tensor, Looks]:
        """Return what is computed and everything that was read for it."""
        self._recorders.append(set())
        try:
            value = compute()
        finally:
            looks = self._recorders.pop()
        return value, frozenset(looks)


def answers(
    point: OperatingPoint, tokens: TracedTokens, model: ModelInfo, charges: Charges
) -> Iterator[tuple[int, Tensor]]:
    """Yield exit layer and answer, ``[n]`` bool, of all tokens at every exit point that the strategy wants.

    Raises:
        ConfigError: it asks for what the trace does not hold.
    """
    rule: ExitRule = point.strategy.start(model, Batch(tokens.seeds, "cpu"))
    view: _View | None = None
    for layer in point.record.exit_points:
        view = _View(layer, view, point.name, tokens, model, charges)
        yield layer, checked(rule, ask_rule(rule, cast("ExitView", view)), layer, len(tokens), torch.device("cpu"))


_NOT_IN_A_TRACE = {
    "token_ids": ("the tokens generated so far", "Trace what the model generates: `harness trace --new-tokens 15`"),
    "logits": ("logits", "top_token, top_probability, second_probability and entropy are in a trace"),
    "best_tokens": ("the best tokens of a head", "top_token is in a trace"),
    "logits_of": ("logits of some tokens", "top_token and top_probability are in a trace"),
    "answer_with": ("another token than a head's", "answer_by a head can be replayed"),
    "stop": ("the end of completions", "An exit can be replayed"),
    "part": ("some rows alone", "Rows of a trace are asked together"),
}
"""Part of a view or reading → what it would be, and the advice."""


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """As much of :class:`harness.contracts.ExitView` as a trace holds, at one exit point, read by one head."""

    exit_layer: int
    previous: _View | None
    _name: str
    _tokens: TracedTokens
    _model: ModelInfo
    _charges: Charges
    _head: HeadChoice | None = None

    def __getattr__(self, name: str) -> NoReturn:
        if name not in _NOT_IN_A_TRACE:
            raise AttributeError(name)
        self._refuse(*_NOT_IN_A_TRACE[name])

    @property
    def rows(self) -> Tensor:
        return torch.arange(len(self._tokens))

    @property
    def position(self) -> Tensor:
        return self._tokens.position

    @property
    def token_ids(self) -> Sequence[Sequence[int]]:
        if not self._tokens.generated:
            self._refuse(*_NOT_IN_A_TRACE["token_ids"])
        return self._tokens.generated_before

    @property
    def hidden_state(self) -> Tensor:
        return self._tokens.column("hidden", self.exit_layer)

    @property
    def exit_state(self) -> Tensor:
        self._map()
        return self._tokens.column("exit_state", self.exit_layer)

    @property
    def vocab_size(self) -> int:
        return self._model.vocab_size

    @property
    def top_token(self) -> Tensor:
        return self._said("top")

    @property
    def top_probability(self) -> Tensor:
        return self._said("top1")

    @property
    def second_probability(self) -> Tensor:
        return self._said("top2")

    @property
    def entropy(self) -> Tensor:
        return self._said("entropy")

    def read(self, head: HeadChoice) -> _View:
        if head.is_full or self._charges.by_full_head:
            return self
        if self._tokens.heads is None:
            self._refuse(
                f"the head {head}", "Let the strategy name it in cheap_heads(), and the model is loaded for it"
            )
        return replace(self, _head=head)

    def answer_by(self, head: HeadChoice) -> None:
        if not head.is_full and not self._charges.by_full_head:
            self._charges.answering[self.exit_layer] = head

    @property
    def full_depth_token(self) -> Tensor:
        if self._charges.look("deep", 0):
            self._charges.spent["deep_layers"] += self._model.num_layers - self.exit_layer
        return self._tokens.final

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Compute something once for all operating points that come to this exit by the same ones."""
        path, before = [self.exit_layer], self.previous
        while before is not None:
            path.append(before.exit_layer)
            before = before.previous
        memo, place = self._tokens.memo, (key, *path, self._charges.by_full_head)
        if place not in memo:
            memo[place] = self._charges.record(compute)
        value, looks = memo[place]
        for what, layer in looks:
            self._charges.look(what, layer)
        return value

    def _map(self) -> None:
        if self.exit_layer in self._tokens.shortcuts:
            self._charges.look("shortcut", self.exit_layer)

    def _said(self, column: str) -> Tensor:
        self._map()
        self._charges.look("logits" if self._head is None else self._head, self.exit_layer)
        return self._tokens.column(column, self.exit_layer, self._head)

    def _refuse(self, what: str, advice: str) -> NoReturn:
        raise ConfigError(
            f"{self._name} cannot be replayed on this trace: it asks for {what}, which the trace does not hold. "
            f"{advice}; or run it live: `harness run --strategy {self._name}`."
        )
