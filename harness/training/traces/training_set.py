"""A trace as something to learn from: a part of its documents held out, and a controller saved with what it did there.

What a recipe that trains a controller needs beside its own method::

    data = TrainingSet.open(self, run)
    states, right = data.states(observation, data.learned), data.right(data.learned)
    networks = {"4": Network(...), "6": Network(...)}  # exit layer → score; or "shared", one for all
    return data.save(networks, observation, {"shrink": self.shrink}, never=1e30).said()

Replay is teacher-forced: the drift that real exits cause is not in its numbers, which choose thresholds and compare
recipes; results come from live decoding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import TrainingError
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, Observation, write_controller
from harness.models.model import ResolvedModel
from harness.training.identity import exit_head_note, identity, own_file, provenance
from harness.training.options import ControllerOptions, TraceChoice
from harness.training.traces.reading import (
    documents_of,
    exit_maps,
    exit_states,
    held_out_rows,
    index_of,
    matches,
    open_traces,
    rows_of,
)
from harness.training.traces.store import Traces

QUANTILES = tuple(place / 40 for place in range(1, 40))


class ReplayRow(TypedDict):
    """One threshold on a trace: mean decoder layers, tokens that ran to the end included, and the share of tokens equal
    to the last layer's.
    """

    threshold: float
    exit_layer: float
    agreement: float


def exit_places(leaves: Tensor) -> Tensor:
    """Return the place of the first exit taken, ``[n, exits]`` bool → ``[n]`` int64; ``exits`` for the last layer."""
    always = torch.cat((leaves, torch.ones(len(leaves), 1, dtype=torch.bool)), dim=1)
    return always.int().argmax(1)


def replay_rows(
    scores: Tensor,
    right: Tensor,
    exit_points: Sequence[int],
    num_layers: int,
    thresholds: Sequence[float] | None = None,
) -> list[ReplayRow]:
    """Return one row per threshold of the rule *exit where score ≥ threshold*.

    Scores are ``[n, exits]``, minus infinity where nothing may exit; ``right`` is whether the exit's token is the last
    layer's. Thresholds that are left out are quantiles of the scores, so that none of them is empty.
    """
    if thresholds is None:
        thresholds = sorted(set(torch.quantile(sample(_finite(scores)), torch.tensor(QUANTILES)).tolist()))
    layers = torch.tensor([*exit_points, num_layers], dtype=torch.float32)
    correct = torch.cat((right, torch.ones(len(right), 1, dtype=torch.bool)), dim=1)
    rows = []
    for threshold in thresholds:
        places = exit_places(scores >= threshold)
        agreement = correct.gather(1, places.unsqueeze(1)).float().mean().item()
        rows.append(ReplayRow(threshold=threshold, exit_layer=layers[places].mean().item(), agreement=agreement))
    return rows


def threshold_keeping(
    scores: Tensor, right: Tensor, exit_points: Sequence[int], num_layers: int, keep: float
) -> ReplayRow | None:
    """Return the loosest threshold, by bisection, whose agreement is at least ``keep``; ``None`` if no exit helps."""
    low, high = _finite(scores).min().item(), _finite(scores).max().item()
    best: ReplayRow | None = None
    for _ in range(24):
        middle = (low + high) / 2
        (row,) = replay_rows(scores, right, exit_points, num_layers, [middle])
        if row["agreement"] >= keep:
            best, high = row, middle
        else:
            low = middle
    return best


def render_replay(rows: Sequence[ReplayRow]) -> str:
    """Return rows as Markdown."""
    lines = ["| threshold (replayed) | mean exit layer | agreement |", "|--:|--:|--:|"]
    lines += [f"| {row['threshold']:.4g} | {row['exit_layer']:.2f} | {row['agreement']:.4f} |" for row in rows]
    return "\n".join(lines)


def _finite(scores: Tensor) -> Tensor:
    """Those that are finite; a zero where none is."""
    flat = scores.float().flatten()
    kept = flat[flat.isfinite()]
    return kept if len(kept) else torch.zeros(1)


def sample(scores: Tensor) -> Tensor:
    """A million values ``[n]`` at most: torch.quantile takes no more than 16."""
    return scores if len(scores) <= 1_000_000 else scores[:: len(scores) // 1_000_000 + 1]


@dataclass(frozen=True)
class SavedController:
    """A trained controller, and what its thresholds would have done on held-out documents.

    Attributes:
        artefact: where it lies.
        rows: thresholds on held-out documents, replayed.
        kept: the loosest threshold that keeps the wanted agreement, or ``None``.
        tokens: held-out tokens.
        keep: the agreement that was wanted.
    """

    artefact: Artefact
    rows: tuple[ReplayRow, ...]
    kept: ReplayRow | None
    tokens: int
    keep: float

    def said(self) -> Trained:
        """Return what the command prints."""
        advice = f"No exit keeps {self.keep:.0%}."
        if self.kept:
            advice = f"{self.keep:.0%} agreement from threshold {self.kept['threshold']:.4f} on."
        head = exit_head_note(self.artefact.facts["exit_head"])
        note = f"{self.tokens} held-out tokens, replayed. {advice} The result is {self.artefact.path}. {head}"
        return Trained(render_replay(self.rows), note)


@dataclass(frozen=True)
class TrainingSet:
    """One trace, opened for one recipe; ``n`` is the number of its tokens, ``E`` of its exit points.

    Attributes:
        options: of the recipe.
        run: of the recipe.
        traces: the trace.
        resolved: its model; ``resolved.info`` has the facts.
        columns: ``top`` ``[n, E]``, ``final`` ``[n]``, ``top1`` ``[n, E]``, ``entropy`` ``[n, E]``, ``document``
            ``[n]``; see :mod:`harness.training.traces.store`.
        learned: which tokens to learn from, ``[n]`` bool.
        held_out: which tokens to check on, ``[n]`` bool; of documents without a copy among those learned from.
    """

    options: TraceChoice
    run: TrainingRun
    traces: Traces
    resolved: ResolvedModel
    columns: Mapping[str, Tensor]
    learned: Tensor
    held_out: Tensor

    @classmethod
    def open(cls, options: TraceChoice, run: TrainingRun, *, own: bool = True, heads: bool = True) -> TrainingSet:
        """Open the trace, and hold out a tenth of the documents of each stream; ``own``: the result goes to ``path``.

        What learns is a rule that goes by what exits say, unless ``heads`` is false: documents that the exits learned
        from are left out then (:func:`~harness.training.traces.reading.documents_of`).

        Raises:
            ArtefactError: no trace there, one of another model, or without a document of the tasks; or the result
                would replace what was trained for something else.
            DataError: a stream has a single document.
        """
        traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
        if own:
            own_file(options, run, resolved.info)  # to refuse before anything is learned
        run.progress.stage(f"reading {traces.tokens} tokens")
        columns = traces.columns("top", "final", "top1", "entropy", "document")
        tasks = getattr(options, "tasks", ())
        chosen = documents_of(traces, tasks, resolved if heads else None)
        wanted = rows_of(columns["document"], chosen)
        held = held_out_rows(traces, columns["document"], chosen, seed=options.seed)
        return cls(options, run, traces, resolved, columns, wanted & ~held, wanted & held)

    @property
    def exit_points(self) -> tuple[int, ...]:
        """Layers of the exits."""
        return self.traces.exit_points

    @property
    def path(self) -> Path:
        """Where the result goes: ``NAME.json`` in the recipe's folder; raises as :meth:`open`."""
        return own_file(self.options, self.run, self.resolved.info)

    @property
    def documents(self) -> list[Mapping[str, Any]]:
        """Facts of the documents of the recipe's tasks."""
        return [found for found in self.traces.documents if matches(found, getattr(self.options, "tasks", ()))]

    @property
    def held_out_documents(self) -> list[str]:
        """Keys of the documents that are held out, sorted."""
        numbers = set(self.columns["document"][self.held_out].tolist())
        return sorted({str(self.traces.documents[number]["key"]) for number in numbers})

    def identity(self) -> dict[str, Any]:
        """Return the facts by which an artefact knows its model."""
        return identity(self.resolved.info, self.traces.index["tokenizer_fingerprint"])

    def origin(self) -> dict[str, Any]:
        """Return the facts of any artefact that was learned from this; writes the index of all tokens beside it."""
        streams = sorted({found["stream"] for found in self.documents})
        return {
            **self.identity(),
            "trained_on": {"streams": streams, "tokens": int(self.learned.sum())},
            "documents": sorted({found["key"] for found in self.documents}),
            "projects": sorted({found["project"] for found in self.documents if "project" in found}),
            "ngrams": index_of(self.traces, self.options.folder),
            "made": provenance(self.run.command),
        }

    def states(self, observation: Observation, rows: Tensor) -> Tensor:
        """Return what an observation is built from at some tokens, ``[rows, E, hidden_size]`` float16."""
        return exit_states(self.traces, exit_maps(self.traces, self.resolved, observation), rows)

    def right(self, rows: Tensor) -> Tensor:
        """Return whether each exit's token is the last layer's, ``[rows, E]`` bool."""
        return self.columns["top"][rows] == self.columns["final"][rows].unsqueeze(1)

    def scored(self, networks: Mapping[str, Network], observation: Observation) -> tuple[dict[str, Network], Tensor]:
        """Return networks as float16, whose noise is less than that of training, and their scores when held out.

        Raises:
            TrainingError: a weight is no finite number.
        """
        halved = {key: network.to(torch.float16) for key, network in networks.items()}
        rounded = {key: network.to(torch.float32) for key, network in halved.items()}
        require_finite(rounded.values(), "Lower --learning-rate.")
        return halved, score_all(rounded, observation, self.states(observation, self.held_out), self.exit_points)

    def save(
        self,
        networks: Mapping[str, Network],
        observation: Observation,
        recipe: Mapping[str, Any],
        *,
        never: float,
        link: Callable[[Tensor], Tensor] | None = None,
    ) -> SavedController:
        """Replay a controller on the held-out tokens and write it, as float16, with a threshold to begin with.

        Args:
            networks: exit layer as text → network of one output, the score; or ``shared`` → one for all exits.
            observation: what they look at.
            recipe: how they were trained, JSON-able; for the record.
            never: finite threshold that no score reaches, for where no exit keeps the wanted agreement.
            link: from score to what thresholds are compared with; ``None`` for the score itself.

        Raises:
            TrainingError: a weight is no finite number.
        """
        halved, scores = self.scored(networks, observation)
        return self.saved(
            scores if link is None else link(scores),
            recipe,
            lambda path, facts: write_controller(path, self.run.recipe, observation, halved, facts),
            never=never,
        )

    def saved(
        self,
        scores: Tensor,
        recipe: Mapping[str, Any],
        write: Callable[[Path, Mapping[str, Any]], Artefact],
        *,
        never: float,
    ) -> SavedController:
        """Choose a threshold by the scores of the held-out tokens, ``[held-out, E]``, and write what was trained.

        ``write`` takes the path of the artefact's JSON and the facts to be kept; the rest is as for :meth:`save`.
        """
        options, points, layers = self.options, self.exit_points, self.resolved.info.num_layers
        assert isinstance(options, ControllerOptions)
        right = self.right(self.held_out)
        rows = tuple(replay_rows(scores, right, points, layers))
        kept = threshold_keeping(scores, right, points, layers, options.keep)
        facts = {
            **self.origin(),
            "threshold": kept["threshold"] if kept else never,
            "recipe": dict(recipe),
            "seed": options.seed,
            "held_out_documents": self.held_out_documents,
            "replayed": {"held_out_tokens": len(right), "rows": list(rows), "keep": options.keep, "kept": kept},
        }
        return SavedController(write(self.path, facts), rows, kept, len(right), options.keep)


def require_finite(networks: Iterable[Network], cure: str) -> None:
    """Raise :class:`TrainingError` where a weight is no finite number."""
    if not all(network.finite for network in networks):
        raise TrainingError(f"training left weights that are no numbers. {cure}")


def score_all(
    networks: Mapping[str, Network], observation: Observation, states: Tensor, exit_points: Sequence[int]
) -> Tensor:
    """Return the scores of every token at every exit point, ``[n, exits]``; of three actions ``[n, exits, 3]``."""
    each = [networks[str(point) if str(point) in networks else "shared"] for point in exit_points]
    parts = []
    for some in torch.split(states, 4096):
        x = observation.build_all(some)
        parts.append(torch.stack([network(x[:, e]) for e, network in enumerate(each)], dim=1))
    return torch.cat(parts).squeeze(-1)
