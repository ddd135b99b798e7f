"""A trace opened for training: the model it belongs to, what exits saw, and the documents kept out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.contracts import ModelRequest
from harness.decoding.blocks import Linear
from harness.errors import ArtefactError, ConfigError, DataError
from harness.models.controllers import Observation
from harness.models.model import ResolvedModel, resolve
from harness.models.ngrams import NgramIndex, write_index
from harness.models.weights import read_shortcuts
from harness.training.traces.store import Traces, beside, trace_command

HELD_OUT = 0.1
"""Share of a trace's documents that heads never learn from: the replayed comparison is of them."""


def open_traces(model: str, folder: Path, *, artefacts: str | None) -> tuple[Traces, ResolvedModel]:
    """Open a trace and find the model it was taken from, with the trace's own weights, exit points and exit head.

    Raises:
        ArtefactError: no trace there, one of another model, or the adapter or shortcuts of it are not there any more.
    """
    traces = Traces.open(folder, model)
    points = ",".join(map(str, traces.exit_points))
    try:
        resolved = resolve(
            ModelRequest(
                model,
                weights="auto" if traces.index["weights"] == "tuned" else traces.index["weights"],
                dtype=traces.index["dtype"],
                exit_points=points,
                exit_head="shared" if traces.index["exit_head"] == "shared" else "auto",  # checked below
                artefacts=artefacts,
                seed=traces.index["seed"],
            )
        )
    except ConfigError as error:
        if "--exit-points" not in str(error):
            raise
        raise ArtefactError(
            f"{folder} is a trace of {traces.index['model']} at exit points {points}, which {model} cannot have. Trace "
            "again:",
            [trace_command(model, beside(folder))],
        ) from None
    tokenizer = resolved.tokenizer
    traces.check(resolved.info, tokenizer.fingerprint)
    return traces, resolved


def exit_maps(traces: Traces, resolved: ResolvedModel, observation: Observation) -> Mapping[int, Linear]:
    """Return exit layer → the map that makes an observation's state of a hidden state; empty where it is itself."""
    if observation.state != "exit" or resolved.shortcut is None:
        return {}
    width = resolved.info.hidden_size
    return read_shortcuts(resolved.shortcut, traces.exit_points, torch.float32, "cpu", hidden_size=width)


def exit_states(traces: Traces, maps: Mapping[int, Linear], rows: Tensor | None = None) -> Tensor:
    """Return the hidden states, through :func:`exit_maps`, as ``[n, exits, hidden_size]`` float16 in memory.

    Args:
        traces: whose; read shard by shard.
        maps: exit layer → map; empty for none.
        rows: which are wanted, bool, one for each of the trace; ``None`` for all.
    """
    parts, start = [], 0
    for shard in traces.shards("hidden"):
        hidden = shard["hidden"]
        if maps:
            mapped = [maps[point](hidden[:, e].float()) for e, point in enumerate(traces.exit_points)]
            hidden = torch.stack(mapped, dim=1).half()
        parts.append(hidden if rows is None else hidden[rows[start : start + len(hidden)]])
        start += len(hidden)
    return torch.cat(parts)


def index_of(traces: Traces, folder: Path) -> dict[str, Any]:
    """Write the index of all tokens that were traced into a folder; return what an artefact says of it, as ``ngrams``.

    A controller that learned from a part of the trace has the index of the whole. What was generated stands behind the
    prompt that it was generated from, whose last token is the first that has a row.
    """
    columns = traces.columns("input", "document")
    ends = columns["document"].diff().nonzero().flatten() + 1
    numbers = columns["document"][torch.cat([torch.zeros(1, dtype=torch.long), ends])].tolist()
    prompts = [[int(token) for token in str(traces.documents[at].get("prompt", "")).split()][:-1] for at in numbers]
    texts = zip(prompts, columns["input"].tensor_split(ends), strict=True)
    return write_index(folder, NgramIndex.of(np.array([*prompt, *text.tolist()]) for prompt, text in texts))


def matches(document: Mapping[str, Any], tasks: Sequence[str]) -> bool:
    """Tell whether a traced document belongs to one of these tasks; to any if there are none."""
    return not tasks or str(document["stream"]).partition(",")[0] in tasks


def held_out_rows(traces: Traces, document: Tensor, *, seed: int, tasks: Sequence[str] = ()) -> Tensor:
    """Return which rows belong to held-out documents, ``[n]`` bool; at least one document of each stream.

    Args:
        traces: whose rows.
        document: number of each row's document, ``[n]``.
        seed: decides which documents.
        tasks: only their streams; all if empty.

    Raises:
        DataError: a stream has a single document.
    """
    streams: dict[str, list[int]] = {}
    for number, facts in enumerate(traces.documents):
        if matches(facts, tasks):
            streams.setdefault(facts["stream"], []).append(number)
    chance = torch.Generator().manual_seed(seed)
    held: set[str] = set()
    for stream, numbers in streams.items():
        if len(numbers) < 2:
            raise DataError(
                f"the trace has one document of {stream}: none is left to check on. Trace more --documents."
            )
        order = torch.randperm(len(numbers), generator=chance)[: max(1, round(HELD_OUT * len(numbers)))]
        held |= {str(traces.documents[numbers[place]]["key"]) for place in order.tolist()}
    # by key, so that a copy of a held-out document is not learned from
    chosen = [number for number, facts in enumerate(traces.documents) if facts["key"] in held]
    if len(chosen) == len(traces.documents):
        raise DataError(f"all documents of {traces.folder} are copies of one another. Trace other data.")
    return torch.isin(document.long(), torch.tensor(chosen))


def keys_of(traces: Traces, document: Tensor, rows: Tensor) -> list[str]:
    """Return the keys of the documents that some rows are of, sorted.

    Args:
        traces: whose rows.
        document: number of each row's document, ``[n]``.
        rows: which, ``[n]`` bool.
    """
    return sorted({str(traces.documents[number]["key"]) for number in set(document[rows].tolist())})


def unseen_rows(traces: Traces, document: Tensor, facts: Mapping[str, Any]) -> Tensor:
    """Return which rows belong to documents that a controller has not learned from, ``[n]`` bool.

    A controller records the keys of all documents that it was given, and which of them it held out. One of an earlier
    version does not say the latter: of its own trace the held-out ones are found again by its seed; of another trace
    those count that it has never met.

    Args:
        traces: whose rows.
        document: number of each row's document, ``[n]``.
        facts: of the controller's artefact.

    Raises:
        ArtefactError: it does not say what it learned from.
    """
    try:
        streams = {str(stream) for stream in facts["trained_on"]["streams"]}
        met, seed = set(facts["documents"]), int(facts["seed"])
    except (KeyError, TypeError) as error:
        raise ArtefactError(
            f"a controller of {facts.get('model')} does not say what it learned from ({error}). Train it again."
        ) from None
    keys = {str(found["key"]) for found in traces.documents}
    of_streams = {str(found["key"]) for found in traces.documents if found["stream"] in streams}
    if held_out := facts.get("held_out_documents"):
        met -= set(held_out)
    elif met in (keys, of_streams):
        tasks = sorted({stream.partition(",")[0] for stream in streams})
        return held_out_rows(traces, document, seed=seed, tasks=tasks)
    unmet = [number for number, found in enumerate(traces.documents) if found["key"] not in met]
    return torch.isin(document.long(), torch.tensor(unmet, dtype=torch.long))


def rows_of_tasks(traces: Traces, document: Tensor, tasks: Sequence[str]) -> Tensor:
    """Return which rows belong to documents of some tasks, ``[n]`` bool; all if there are none.

    Raises:
        ArtefactError: none does.
    """
    chosen = [number for number, facts in enumerate(traces.documents) if matches(facts, tasks)]
    if not chosen:
        known = sorted({facts["stream"] for facts in traces.documents})
        raise ArtefactError(
            f"the trace {traces.folder} has no document of {', '.join(tasks)}; it has {'; '.join(known)}."
        )
    return torch.isin(document.long(), torch.tensor(chosen))
