"""Traced tokens as an agent meets them: observations, rewards, and where episodes may begin."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from harness.contracts import ExitModule
from harness.errors import TrainingError
from harness.models.controllers import Observation
from harness.training.agents.reward import Reward, reward_table
from harness.training.traces.reading import mapped
from harness.training.traces.store import Traces

CONTEXT = (0.2, 0.6)
"""Share of a document that is context, drawn uniformly (GREEN-CODE section IV-F)."""

HALF_ABOVE_BYTES = 4 << 30
CHUNK = 1024


class TracedDocument(NamedTuple):
    """Where a document lies in the rows of :class:`Episodes`."""

    number: int  # in the trace's index
    key: str
    stream: str  # task and source
    row: int  # its first one
    tokens: int  # rows it has
    position: int  # of its first row in the document, from 0
    length: int  # tokens of the whole document, at the trace's cut


@dataclass(frozen=True, eq=False)
class Episodes:
    """Tokens (rows) to learn from, and the rule by which episodes are drawn from them.

    Where the trace generated its tokens after a context of its own, an episode is a document's first rows; else it
    begins behind 20–60 % of the document.
    """

    observations: NDArray[np.floating]  # [n, exits, width] float32; float16 where that would take more than 4 GiB
    rewards: NDArray[np.float32]  # of both actions, [n, exits, 2]
    right: NDArray[np.bool_]  # whether an exit's token is the last layer's, [n, exits]
    optimal: NDArray[np.int64]  # place of the first exit that is right, [n]; exits for the last layer
    documents: tuple[TracedDocument, ...]  # those that episodes are drawn from
    length: int  # tokens of an episode
    generated: bool
    exit_points: tuple[int, ...]
    num_layers: int

    @property
    def exits(self) -> int:
        """Number of exit points."""
        return len(self.exit_points)

    @property
    def width(self) -> int:
        """Length of an observation."""
        return int(self.observations.shape[2])

    @property
    def tokens(self) -> int:
        """Rows of the documents episodes are drawn from."""
        return sum(document.tokens for document in self.documents)

    def rows(self) -> NDArray[np.int64]:
        """Return the rows of all its documents."""
        return np.concatenate([np.arange(d.row, d.row + d.tokens) for d in self.documents])

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw a document uniformly, then its context: first rows and those behind the last, ``[count]`` each."""
        chosen = [self.documents[place] for place in generator.integers(len(self.documents), size=count)]
        row, tokens, position, length = np.array([document[3:] for document in chosen]).T
        shares = generator.uniform(*CONTEXT, size=count)
        if not self.generated:
            skipped = np.maximum(np.rint(shares * length).astype(np.int64) - position, 0)
            row, tokens = row + skipped, tokens - skipped
        return row, row + np.minimum(tokens, self.length)


def read_episodes(
    traces: Traces,
    chosen: Collection[int],
    length: int,
    observation: Observation,
    maps: Mapping[int, ExitModule],
    reward: Reward,
) -> Episodes:
    """Read some documents of a trace, by number, into memory as episodes of ``length`` tokens.

    ``maps`` are those of :func:`harness.training.traces.reading.exit_maps`.
    """
    documents = _documents(traces, chosen)
    points, num_layers = traces.exit_points, int(traces.index["num_layers"])
    total = sum(document.tokens for document in documents)
    width = observation.width(int(traces.index["hidden_size"]), len(points))
    small = 4 * total * len(points) * width > HALF_ABOVE_BYTES
    observations = np.empty((total, len(points), width), dtype=np.float16 if small else np.float32)
    right = torch.empty(total, len(points), dtype=torch.bool)
    wanted = torch.tensor([document.number for document in documents])
    end = 0
    for shard in traces.shards("hidden", "top", "final", "document"):
        rows = torch.isin(shard["document"].long(), wanted).nonzero().squeeze(1)
        for part in torch.split(rows, CHUNK):
            begin, end = end, end + len(part)
            made = observation.build_all(mapped(shard["hidden"][part].float(), points, maps)).numpy()
            observations[begin:end] = made
            right[begin:end] = shard["top"][part] == shard["final"][part].unsqueeze(1)
    rewards, optimal = reward_table(right, points, num_layers, reward)
    generated = bool(traces.index.get("new_tokens", 0))
    return Episodes(
        observations, rewards.numpy(), right.numpy(), optimal.numpy(), documents, length, generated, points, num_layers
    )


def split(everything: Episodes, held_out: Collection[int]) -> tuple[Episodes, Episodes]:
    """Split off the documents of these numbers; those to learn from must each be long enough for an episode."""
    learning = [document for document in everything.documents if document.number not in held_out]
    if not everything.generated:
        learning = [document for document in learning if _fits(document, everything.length)]
    if not learning:
        longest = max(document.length for document in everything.documents)
        raise TrainingError(
            f"no document of the trace is long enough for {CONTEXT[1]:.0%} context and {everything.length} tokens; "
            f"the longest has {longest}. Trace longer ones, or lower --tokens."
        )
    checking = [document for document in everything.documents if document.number in held_out]
    return replace(everything, documents=tuple(learning)), replace(everything, documents=tuple(checking))


def _documents(traces: Traces, chosen: Collection[int]) -> tuple[TracedDocument, ...]:
    """Return these documents, in the order of their rows."""
    columns = traces.columns("position", "document")
    numbers, first = np.unique(columns["document"].numpy(), return_index=True)
    positions = dict(zip(numbers.tolist(), columns["position"].numpy()[first].tolist(), strict=True))
    found: list[TracedDocument] = []
    row = 0
    for number, facts in enumerate(traces.documents):
        if number in chosen:
            tokens, length = int(facts["tokens"]), int(facts["length"])
            found.append(TracedDocument(number, facts["key"], facts["stream"], row, tokens, positions[number], length))
            row += tokens
    return tuple(found)


def _fits(document: TracedDocument, length: int) -> bool:
    """Tell whether an episode fits behind the longest context."""
    latest = max(round(CONTEXT[1] * document.length), document.position)
    return latest + length <= document.position + document.tokens
