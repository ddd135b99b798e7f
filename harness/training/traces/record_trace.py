"""``harness trace``: run a model once at full depth over documents and keep what its exits said.

Of several processes, process r of N traces every N-th document from the r-th on, into ``parts/r-of-N``; merged in the
order of the documents, they are the trace that one process would have made.
"""

from __future__ import annotations

import heapq
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.config import BASELINE, StrategySpec
from harness.config.options import build_strategy
from harness.contracts import Document, Tokenizer, document_key
from harness.contracts.models import with_bos
from harness.contracts.recipes import Progress
from harness.decoding.engine import Engine
from harness.decoding.readings import not_finite
from harness.errors import ArtefactError, ConfigError, DataError
from harness.host.libraries import resolve_device
from harness.models.model import resolve
from harness.registry import TASKS
from harness.training.corpus import read_corpora
from harness.training.identity import identity
from harness.training.options import TraceCommand
from harness.training.processes import is_main, own_device, rank, together, wait_for_all, world_size
from harness.training.traces.store import COLUMNS, Traces, TraceWriter

CHUNK = 64
"""Tokens whose logits exist at the same time: few enough to stay in the caches from pass to pass."""
CONTEXT = (0.2, 0.6)
"""GREEN-CODE section IV-F: how much of a document is context, as a share of its tokens."""
FIRST = 8  # before that the model has seen next to nothing
PARTS = "parts"


def trace(options: TraceCommand, progress: Progress) -> Traces:
    """Trace documents into a folder; see :mod:`harness.training.traces.store` for what it holds.

    Several processes share the documents; all need the same folder.
    """
    if options.device_map is not None and world_size() > 1:
        raise ConfigError(
            f"--device-map spreads the layers of one process, and {world_size()} would each take all devices. Use one "
            "process, or leave it out."
        )
    out, device = options.folder, own_device(resolve_device(options.device))
    tasks = [TASKS.load(name)() for name in options.tasks]
    resolved = resolve(options.request())
    info, tokenizer = resolved.info, resolved.tokenizer
    if not info.exit_points:
        raise ConfigError(f"{info.name} has no exit points to trace. Give --exit-points.")
    length = min(options.length, info.max_positions)
    if options.new_tokens >= length:
        raise ConfigError(
            f"--new-tokens {options.new_tokens} leaves no room for a context: documents have {length} tokens."
        )
    facts = {
        **identity(info, tokenizer.fingerprint),
        "exit_module": info.exit_module,
        "weights": info.weights,
        "dtype": options.dtype,
        "split": options.split,
        "length": length,
        "new_tokens": options.new_tokens,
        "seed": options.seed,
    }
    wanted = [
        # names repeat, in files of several sources
        (f"{stream}, {document.sample_id}, {document_key(document.text)[:12]}", stream, document)
        for task, corpus in read_corpora(
            tasks, options.sources, options.split, limit=options.documents, seed=options.seed, note=progress.stage
        )
        for stream in [f"{task}, {corpus.source.label}"]
        for document in corpus.documents
    ]
    part = own_part(out, rank(), world_size(), resume=options.resume)
    whole = TraceWriter(out, facts, resume=options.resume)
    writer = whole if world_size() == 1 else TraceWriter(part, facts, resume=options.resume)
    progress.stage(f"loading {info.name}")
    engine = Engine(resolved.load(device, progress.stage).backbone, info)
    done = {*whole.documents, *writer.documents}
    own = wanted[rank() :: world_size()]
    progress.begin("tracing", len(own), sum(identifier in done for identifier, *_ in own))
    with together():
        for number, (identifier, stream, document) in enumerate(own, start=1):
            if identifier in done:
                continue
            read = with_bos(tokenizer, tokenizer.encode(document.text))[:length]
            if len(read) > FIRST + 1:
                described = {
                    "id": identifier, "stream": stream, "key": document_key(document.text), "length": len(read)
                }  # fmt: skip
                if document.project is not None:
                    described["project"] = document.project
                first = FIRST
                if options.new_tokens:
                    read, first = _generated(document, read, tokenizer, engine, options)
                    described["prompt"] = " ".join(map(str, read[: first + 1]))
                writer.add(described, exit_columns(engine, read, first))
            progress.step(number, f"{writer.traced} tokens")
        writer.flush()
        wait_for_all()
        if is_main():
            if writer is not whole:
                merge_parts(out, whole, [identifier for identifier, *_ in wanted])
            if not whole.documents:
                with suppress(OSError):
                    out.rmdir()  # empty
                raise DataError(f"not one document is longer than {FIRST + 1} tokens. Give other data with --source.")
        wait_for_all()
        return Traces.open(out)


def _generated(
    document: Document, token_ids: Sequence[int], tokenizer: Tokenizer, engine: Engine, options: TraceCommand
) -> tuple[list[int], int]:
    """Return a context of a document with what the model makes of it, and the first position to keep."""
    chance = random.Random(f"context of {document.sample_id}, seed {options.seed}")
    context = max(FIRST, round(chance.uniform(*CONTEXT) * len(token_ids)))
    prompt = token_ids[: min(context, engine.info.max_positions - options.new_tokens)]
    full = build_strategy(StrategySpec(BASELINE))
    (made,) = engine.decode(
        [prompt], full, kv=full.default_kv, max_new_tokens=[options.new_tokens], eos_token_ids=tokenizer.eos_token_ids
    )
    if made.failure is not None:
        raise made.failure
    # Nothing reads the last token; the prompt's last one yields the first generated token.
    return [*prompt, *made.token_ids[:-1]], len(prompt) - 1


def own_part(out: Path, rank: int, count: int, *, resume: bool) -> Path:
    """Return the folder of one process's part, of ``count``; refuse parts of another number of processes."""
    for found in sorted((out / PARTS).glob("*-of-*")):
        theirs = found.name.rpartition("-")[2]
        if not resume and (found / "index.json").is_file():
            raise ArtefactError(
                f"{out} holds parts of a trace by {theirs} processes. Add --resume to go on, or give another --out."
            )
        if theirs != str(count):
            raise ArtefactError(
                f"{out} holds parts of a trace by {theirs} processes, and now there are {count}. Go on with {theirs}, "
                f"or remove {out / PARTS} and trace what is in it again."
            )
    return out / PARTS / f"{rank}-of-{count}"


def merge_parts(out: Path, writer: TraceWriter, order: Sequence[str]) -> None:
    """Append what the parts hold to the whole trace, in the order of all ids, and remove them.

    A kill in between leaves both; ``--resume`` merges what is missing.
    """
    parts = (Traces.open(file.parent) for file in sorted((out / PARTS).glob("*-of-*/index.json")))
    merged = set(writer.documents)
    place = {identifier: number for number, identifier in enumerate(order)}
    read = map(_read_part, parts)
    for facts, columns in heapq.merge(*read, key=lambda document: place.get(document[0]["id"], -1)):
        if facts["id"] not in merged:
            writer.add({name: value for name, value in facts.items() if name != "tokens"}, columns)
    writer.flush()
    with suppress(FileNotFoundError):
        shutil.rmtree(out / PARTS)


def _read_part(traces: Traces) -> Iterator[tuple[Mapping[str, Any], dict[str, Tensor]]]:
    """Yield the facts of every document and its columns, ``document`` left out; one lies in one shard."""
    numbers = iter(traces.documents)
    for shard in traces.shards(*COLUMNS):
        lengths = torch.unique_consecutive(shard.pop("document"), return_counts=True)[1].tolist()
        split = {name: torch.split(column, lengths) for name, column in shard.items()}
        for number in range(len(lengths)):
            yield next(numbers), {name: parts[number] for name, parts in split.items()}


def exit_columns(engine: Engine, token_ids: Sequence[int], first: int) -> dict[str, Tensor]:
    """Run one sequence and return the trace columns of its positions from ``first`` on, ``document`` left out."""
    states, readings = read_exits(engine, token_ids, first)
    *exits, final = (
        {name: column.half() if column.is_floating_point() else column for name, column in reading.items()}
        for reading in readings
    )
    return {
        "hidden": torch.stack(states[:-1], dim=1).half().cpu(),
        "last": states[-1].half().cpu(),
        **{name: torch.stack([exit_[name] for exit_ in exits], dim=1) for name in exits[0]},
        "final": final["top"],
        "final1": final["top1"],
        "input": torch.tensor(token_ids[first:], dtype=torch.int32),
        "position": torch.arange(first, len(token_ids), dtype=torch.int32),
    }


@torch.inference_mode()
def read_exits(
    engine: Engine, token_ids: Sequence[int], first: int = 0
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Run one sequence and return what every exit point, and last full depth, says at its positions from ``first`` on.

    Returns:
        Hidden states of each exit, ``[n, hidden_size]``; and of each exit the columns ``top`` (token), ``top1`` and
        ``top2`` (the two best probabilities) and ``entropy`` (nats), ``[n]`` on the CPU.
    """
    backbone = engine.backbone
    layers = (*engine.info.exit_points, backbone.num_layers)
    states = [state[first:] for state in engine.read(token_ids, layers)]
    exits = [backbone.exit_state(state, layer) for state, layer in zip(states[:-1], layers, strict=False)]
    readings = [_read_out(engine, state) for state in (*exits, states[-1])]
    for layer, reading in zip(layers, readings, strict=True):
        lost = reading["top1"].isnan().nonzero()
        if len(lost):
            raise not_finite("logits", layer, first + int(lost[0]) + 1, backbone.dtype)
    return states, readings


def _read_out(engine: Engine, states: Tensor) -> dict[str, Tensor]:
    """Return the exit head's token, two best probabilities and entropy for states ``[n, hidden_size]``, in chunks."""
    parts: list[dict[str, Tensor]] = []
    for rows in torch.split(states, CHUNK):
        logits = engine.backbone.logits(rows).float()
        best, top = logits.max(-1, keepdim=True)
        second = logits.scatter(1, top, -torch.inf).max(-1, keepdim=True).values
        shifted = logits.sub_(best)
        weights = shifted.exp()
        total = weights.sum(-1, keepdim=True)
        entropy = total.log() - torch.linalg.vecdot(weights, shifted).unsqueeze(1) / total
        read = {"top": top.int(), "top1": 1 / total, "top2": (second - best).exp() / total, "entropy": entropy}
        parts.append({name: column[:, 0].cpu() for name, column in read.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
