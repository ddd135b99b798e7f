"""A trace by several processes: each writes a part of its own, and the first makes one trace of all.

Process r of N traces every N-th document from the r-th on, into ``parts/r-of-N`` inside the trace's folder. Merged in
the order of the documents, they are the trace that one process would have made.
"""

from __future__ import annotations

import heapq
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import ArtefactError
from harness.training.traces.store import COLUMNS, Traces, TraceWriter

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PARTS", "merge_parts", "own_part"]

PARTS = "parts"


def own_part(out: Path, rank: int, count: int, *, resume: bool) -> Path:
    """Return the folder of one process's part.

    Args:
        out: of the whole trace.
        rank: of the process, from 0.
        count: of the processes.
        resume: go on with parts that are there.

    Raises:
        ArtefactError: parts are there already and ``resume`` is false, or ones of another number of processes.
    """
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
    """Append what the parts hold to the whole trace, and remove them.

    A kill in between leaves both; ``--resume`` merges what is missing.

    Args:
        out: of the whole trace.
        writer: of the whole trace.
        order: ids of all documents that were asked for.

    Raises:
        ArtefactError: a part is damaged, or the disk is full.
    """
    parts = (Traces.open(file.parent) for file in sorted((out / PARTS).glob("*-of-*/index.json")))
    merged = set(writer.documents)
    place = {identifier: number for number, identifier in enumerate(order)}
    read = map(_documents, parts)
    for facts, columns in heapq.merge(*read, key=lambda document: place.get(document[0]["id"], -1)):
        if facts["id"] not in merged:
            writer.add({name: value for name, value in facts.items() if name != "tokens"}, columns)
    writer.flush()
    with suppress(FileNotFoundError):
        shutil.rmtree(out / PARTS)


def _documents(traces: Traces) -> Iterator[tuple[Mapping[str, Any], dict[str, Tensor]]]:
    """Yield the facts of every document and its columns, ``document`` left out; one lies in one shard."""
    import torch

    numbers = iter(traces.documents)
    for shard in traces.shards(*COLUMNS):
        lengths = torch.unique_consecutive(shard.pop("document"), return_counts=True)[1].tolist()
        split = {name: torch.split(column, lengths) for name, column in shard.items()}
        for number in range(len(lengths)):
            yield next(numbers), {name: parts[number] for name, parts in split.items()}
