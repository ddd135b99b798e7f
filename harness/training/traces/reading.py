"""A trace opened for training: the model it belongs to, what exits saw, and the documents kept out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contracts import ExitModule, ModelRequest
from harness.errors import ArtefactError, DataError
from harness.models.controllers import Observation
from harness.models.exit_modules import read_shortcuts
from harness.models.model import ResolvedModel, resolve
from harness.models.ngrams import NgramIndex, write_index
from harness.training.corpus import hold_out
from harness.training.traces.store import Traces

logger = logging.getLogger(__name__)

HELD_OUT = 0.1
"""Share of a trace's documents that heads never learn from: the replayed comparison is of them."""

FEWEST = 4
"""Documents of a stream that heads can learn from."""


def open_traces(model: str, folder: Path, *, artefacts: str | None) -> tuple[Traces, ResolvedModel]:
    """Open a trace and find the model it was taken from, with the trace's own weights, exit points and exit head."""
    traces = Traces.open(folder, model)
    resolved = resolve(
        ModelRequest(
            model,
            weights="auto" if traces.index["weights"] == "tuned" else traces.index["weights"],
            dtype=traces.index["dtype"],
            exit_points=",".join(map(str, traces.exit_points)),
            exit_head="shared" if traces.index["exit_head"] == "shared" else "auto",  # checked below
            artefacts=artefacts,
            seed=traces.index["seed"],
        )
    )
    traces.check(resolved.info, resolved.tokenizer.fingerprint)
    return traces, resolved


def exit_maps(traces: Traces, resolved: ResolvedModel, observation: Observation) -> Mapping[int, ExitModule]:
    """Return exit layer → the map that makes an observation's state of a hidden state; empty where it is itself."""
    if observation.state != "exit" or resolved.shortcut is None:
        return {}
    width = resolved.info.hidden_size
    return read_shortcuts(resolved.shortcut, traces.exit_points, torch.float32, "cpu", hidden_size=width)


def mapped(hidden: Tensor, points: Sequence[int], maps: Mapping[int, ExitModule]) -> Tensor:
    """Return hidden states ``[n, exits, hidden_size]`` through :func:`exit_maps`."""
    if not maps:
        return hidden
    return torch.stack([maps[point](hidden[:, e].float()) for e, point in enumerate(points)], dim=1)


def exit_states(traces: Traces, maps: Mapping[int, ExitModule], rows: Tensor | None = None) -> Tensor:
    """Return the mapped states of the wanted tokens, ``[rows, exits, hidden_size]`` float16, read shard by shard."""
    parts, start = [], 0
    for shard in traces.shards("hidden"):
        states = mapped(shard["hidden"], traces.exit_points, maps).half()
        parts.append(states if rows is None else states[rows[start : start + len(states)]])
        start += len(states)
    return torch.cat(parts)


def index_of(traces: Traces, folder: Path) -> dict[str, Any]:
    """Write the index of all tokens that were traced into a folder; return what an artefact says of it, as ``ngrams``.

    A controller that learned from a part of the trace has the index of the whole. What was generated stands behind the
    prompt that it was generated from, whose last token is the first that has a row.
    """
    texts = []
    for number, text in by_document(traces):
        prompt = [int(token) for token in str(traces.documents[number].get("prompt", "")).split()][:-1]
        texts.append(np.array([*prompt, *text.tolist()]))
    return write_index(folder, NgramIndex.of(texts))


def by_document(traces: Traces) -> list[tuple[int, Tensor]]:
    """Return every document's number and the tokens that were read of it, in the order of the rows."""
    columns = traces.columns("input", "document")
    numbers, lengths = torch.unique_consecutive(columns["document"], return_counts=True)
    return list(zip(numbers.tolist(), torch.split(columns["input"], lengths.tolist()), strict=True))


def matches(document: Mapping[str, Any], tasks: Sequence[str]) -> bool:
    """Tell whether a traced document belongs to one of these tasks; to any if there are none."""
    return not tasks or str(document["stream"]).partition(",")[0] in tasks


def held_out_rows(traces: Traces, document: Tensor, chosen: Sequence[int] | None = None, *, seed: int) -> Tensor:
    """Return which rows belong to held-out documents, ``[n]`` bool; see :func:`~harness.training.corpus.hold_out`.

    ``document`` is the column of that name, ``chosen`` are the numbers of the documents that count (all where left
    out); the seed decides.
    """
    streams: dict[str, list[int]] = {}
    for number in range(len(traces.documents)) if chosen is None else chosen:
        streams.setdefault(traces.documents[number]["stream"], []).append(number)
    chance = torch.Generator().manual_seed(seed)
    held: set[str] = set()
    for stream, numbers in streams.items():
        if len(numbers) < 2:
            raise DataError(
                f"the trace has one document of {stream}: none is left to check on. Trace more --documents."
            )
        order = [traces.documents[numbers[place]] for place in torch.randperm(len(numbers), generator=chance).tolist()]
        apart = hold_out([facts.get("project") for facts in order], round(HELD_OUT * len(order)))
        held |= {str(order[place]["key"]) for place in apart}
    # by key, so that a copy of a held-out document is not learned from
    apart = [number for number, facts in enumerate(traces.documents) if facts["key"] in held]
    if len(apart) == len(traces.documents):
        raise DataError(f"all documents of {traces.folder} are copies of one another. Trace other data.")
    return torch.isin(document.long(), torch.tensor(apart))


def documents_of(traces: Traces, tasks: Sequence[str], resolved: ResolvedModel | None = None) -> list[int]:
    """Return the numbers of the documents of some tasks, all if there are none, that the exits did not learn from.

    Of those exits say what full depth says more often than they will of others, so that a rule that learns from them
    trusts too much. Where they learned from nearly all of a stream, all are returned, and a warning says so.

    Args:
        traces: the trace.
        tasks: by name.
        resolved: its model; ``None`` where exits themselves are to learn.
    """
    chosen = [number for number, facts in enumerate(traces.documents) if matches(facts, tasks)]
    if not chosen:
        known = sorted({facts["stream"] for facts in traces.documents})
        raise ArtefactError(
            f"the trace {traces.folder} has no document of {', '.join(tasks)}; it has {'; '.join(known)}."
        )
    read = set() if resolved is None or resolved.shortcut is None else set(resolved.shortcut.facts.get("documents", ()))
    others = [number for number in chosen if traces.documents[number]["key"] not in read]
    counts = Counter(traces.documents[number]["stream"] for number in others)
    if all(counts[traces.documents[number]["stream"]] >= FEWEST for number in chosen):
        return others
    if len(others) < len(chosen):
        logger.warning(
            "the exits learned from %d of these %d documents, and know more of them than of others: thresholds will be "
            "too low. Trace others, with another --seed.",
            *(len(chosen) - len(others), len(chosen)),
        )
    return chosen


def rows_of(document: Tensor, chosen: Sequence[int]) -> Tensor:
    """Return which rows belong to some documents, by number, ``[n]`` bool."""
    return torch.isin(document.long(), torch.tensor(chosen))
