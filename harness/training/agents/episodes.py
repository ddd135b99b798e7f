"""Traced tokens as an agent meets them: observations, rewards, and where episodes may begin."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import ArtefactError, TrainingError
from harness.host.libraries import library_border
from harness.models.controllers import Observation
from harness.training.agents.reward import Reward, reward_table
from harness.training.traces.store import Traces

CONTEXT = (0.2, 0.6)
"""Share of a document that is context, drawn uniformly (GREEN-CODE section IV-F)."""

HALF_ABOVE_BYTES = 4 << 30
CHUNK = 1024

States = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class TracedDocument:
    """Where a document lies in the rows of :class:`Episodes`.

    Attributes:
        number: in the trace's index.
        key: see :func:`harness.contracts.document_key`.
        stream: task and source.
        row: its first row.
        tokens: rows it has.
        position: position of its first row in the document, from 0.
        length: tokens of the whole document, at the trace's cut.
    """

    number: int
    key: str
    stream: str
    row: int
    tokens: int
    position: int
    length: int


@dataclass(frozen=True, eq=False)
class Episodes:
    """Tokens (rows) to learn from, and the rule by which episodes are drawn from them.

    Attributes:
        observations: ``[n, exits, width]`` float32; float16 where that would take more than 4 GiB.
        rewards: of both actions, ``[n, exits, 2]`` float32.
        right: whether an exit's token is the last layer's, ``[n, exits]`` bool.
        optimal: place of the first exit that is right, ``[n]``; ``exits`` for the last layer.
        documents: those that episodes are drawn from.
        length: tokens of an episode.
        generated: the trace generated its tokens after a context of its own, so that an episode is a document's
            first rows; else it begins behind 20–60 % of the document.
        exit_points: layers of the exits.
        num_layers: decoder layers.
    """

    observations: NDArray[np.floating]
    rewards: NDArray[np.float32]
    right: NDArray[np.bool_]
    optimal: NDArray[np.int64]
    documents: tuple[TracedDocument, ...]
    length: int
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

    def only(self, documents: Sequence[TracedDocument]) -> Episodes:
        """Return the same rows with episodes drawn from some documents alone."""
        return replace(self, documents=tuple(documents))

    def rows(self) -> NDArray[np.int64]:
        """Return the rows of all its documents."""
        return np.concatenate([np.arange(d.row, d.row + d.tokens) for d in self.documents])

    def draw(self, generator: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw episodes: a document uniformly, then how much of it is context.

        Returns:
            First rows, and the rows behind the last ones, ``[count]`` each.
        """
        chosen = [self.documents[place] for place in generator.integers(len(self.documents), size=count)]
        row = np.array([document.row for document in chosen])
        tokens = np.array([document.tokens for document in chosen])
        shares = generator.uniform(*CONTEXT, size=count)
        if not self.generated:
            position = np.array([document.position for document in chosen])
            length = np.array([document.length for document in chosen])
            skipped = np.maximum(np.rint(shares * length).astype(np.int64) - position, 0)
            row, tokens = row + skipped, tokens - skipped
        return row, row + np.minimum(tokens, self.length)


def read_episodes(
    traces: Traces,
    tasks: Collection[str],
    length: int,
    observation: Observation,
    states: Mapping[int, States],
    reward: Reward,
) -> Episodes:
    """Read a trace's documents into memory as episodes.

    Args:
        traces: checked already.
        tasks: keep documents of these; empty for all.
        length: tokens of an episode.
        observation: what the agent looks at.
        states: exit layer → map of hidden states to what the observation wants; those missing stay as they are.
        reward: what decisions earn.

    Raises:
        ArtefactError: no document of these tasks, or states that are no numbers.
    """
    with library_border(f"{traces.folder} is damaged", "Trace again.", ArtefactError):
        documents = _documents(traces, tasks)
    points, num_layers = traces.exit_points, int(traces.index["num_layers"])
    total = sum(document.tokens for document in documents)
    width = observation.width(int(traces.index["hidden_size"]), len(points))
    small = 4 * total * len(points) * width > HALF_ABOVE_BYTES
    observations = np.empty((total, len(points), width), dtype=np.float16 if small else np.float32)
    right = torch.empty(total, len(points), dtype=torch.bool)
    chosen = torch.tensor([document.number for document in documents])
    end = 0
    for shard in traces.shards("hidden", "top", "final", "document"):
        rows = torch.isin(shard["document"].long(), chosen).nonzero().squeeze(1)
        for part in torch.split(rows, CHUNK):
            begin, end = end, end + len(part)
            made = observation.build_all(_apply(shard["hidden"][part].float(), points, states)).numpy()
            if not np.isfinite(made).all():
                raise ArtefactError(f"{traces.folder} holds states beyond float16. Trace other layers: --exit-points.")
            observations[begin:end] = made
            right[begin:end] = shard["top"][part] == shard["final"][part].unsqueeze(1)
    rewards, optimal = reward_table(right, points, num_layers, reward)
    generated = bool(traces.index.get("new_tokens", 0))
    return Episodes(
        observations=observations,
        rewards=rewards.numpy(),
        right=right.numpy(),
        optimal=optimal.numpy(),
        documents=documents,
        length=length,
        generated=generated,
        exit_points=points,
        num_layers=num_layers,
    )


def split(everything: Episodes, held_out: Collection[int]) -> tuple[Episodes, Episodes]:
    """Split documents into those to learn from, each long enough for an episode, and those to look at afterwards.

    Args:
        everything: all of them.
        held_out: numbers of the latter.

    Raises:
        TrainingError: none is left to learn from.
    """
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
    return everything.only(learning), everything.only(checking)


def _documents(traces: Traces, tasks: Collection[str]) -> tuple[TracedDocument, ...]:
    """Return the documents of some tasks, in the order of their rows."""
    positions: dict[int, int] = {}
    for shard in traces.shards("position", "document"):
        numbers, first = np.unique(shard["document"].numpy(), return_index=True)
        for number, place in zip(numbers.tolist(), first.tolist(), strict=True):
            positions.setdefault(number, int(shard["position"][place]))
    found: list[TracedDocument] = []
    row = 0
    for number, facts in enumerate(traces.documents):
        stream, tokens = str(facts["stream"]), int(facts["tokens"])
        if not tasks or stream.partition(",")[0] in tasks:
            key, length = str(facts["key"]), int(facts["length"])
            found.append(TracedDocument(number, key, stream, row, tokens, positions[number], length))
            row += tokens
    if not found:
        known = sorted({str(document["stream"]) for document in traces.documents})
        raise ArtefactError(f"{traces.folder} holds no document of {', '.join(tasks)}; it holds {'; '.join(known)}.")
    return tuple(found)


def _fits(document: TracedDocument, length: int) -> bool:
    """Tell whether an episode fits behind the longest context."""
    latest = max(round(CONTEXT[1] * document.length), document.position)
    return latest + length <= document.position + document.tokens


def _apply(hidden: Tensor, points: Sequence[int], states: Mapping[int, States]) -> Tensor:
    """Map the states of some tokens ``[n, exits, hidden_size]`` exit by exit."""
    if not states:
        return hidden
    parts = zip(points, hidden.unbind(1), strict=True)
    return torch.stack([states[point](part) if point in states else part for point, part in parts], dim=1)
