"""Packed token sequences to learn from: whole documents of several sources, in equal shares, some held out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.contracts import Corpus, Document, SourceInfo, Split, Task, Tokenizer, document_key
from harness.contracts.models import with_bos
from harness.errors import DataError
from harness.registry import keeping_folder

HELD_OUT = 0.04
"""Share of each stream's documents that training never sees: the tables before and after come from them."""


@dataclass(frozen=True)
class Stream:
    """One task's documents from one source, as packed token sequences."""

    name: str  # task and source
    source: SourceInfo
    sequences: Tensor  # to learn from, [n, length] int32
    held_out: tuple[Tensor, ...]  # the tokens of each document to be measured on, [n] int32
    keys: tuple[str, ...]  # of every document in either
    held_out_keys: tuple[str, ...]
    projects: tuple[str, ...]  # of the documents to learn from, as far as they say theirs


def read_corpora(
    tasks: Sequence[Task], sources: Sequence[str], split: Split, *, limit: int | None, seed: int,
    note: Callable[[str], None],
) -> Iterator[tuple[str, Corpus]]:  # fmt: skip
    """Yield every task's name and documents, at most ``limit`` of each source; ``note`` is told what is being read."""
    for task in tasks:
        for source in sources:
            note(f"reading {task.name} from {source}")
            with keeping_folder(f"the task '{task.name}' was read"):
                corpus = task.corpus(source, split, limit=limit, seed=seed)
            yield task.name, corpus


def hold_out(projects: Sequence[str | None], count: int) -> list[int]:
    """Return the places of about ``count`` documents, one at least, whose projects no other document is of.

    A document that names none is a project of its own. Where every project has more, they are the first documents.
    """
    places: dict[str | int, list[int]] = {}
    for place, project in enumerate(projects):
        places.setdefault(place if project is None else project, []).append(place)
    count, found = max(1, count), list[int]()
    for group in places.values():
        if len(found) + len(group) <= count:
            found += group
    return found or list(range(min(count, len(projects))))


def read_streams(
    tasks: Sequence[Task], sources: Sequence[str], tokenizer: Tokenizer, *, split: Split, length: int,
    documents: int | None, seed: int, note: Callable[[str], None], known: frozenset[str] = frozenset(),
) -> list[Stream]:  # fmt: skip
    """Read every task from every source into sequences of ``length`` tokens.

    The seed decides the order and which documents are held out, see :func:`hold_out`; those with keys in ``known``,
    which the model has learned from, cannot be.
    """
    corpora: list[tuple[str, Corpus, list[Document]]] = []
    unseen: set[str] = set()
    for name, corpus in read_corpora(tasks, sources, split, limit=documents, seed=seed, note=note):
        fresh = [document for document in corpus.documents if document_key(document.text) not in known]
        if not fresh:
            raise DataError(
                f"{corpus.source.label} ({name}, {split}) holds only documents that the model has learned "
                "from, and nothing to measure on. Add others, or give the documents and the --seed of the start."
            )
        apart = hold_out([document.project for document in fresh], round(len(corpus.documents) * HELD_OUT))
        kept = [fresh[place] for place in apart]
        unseen.update(document_key(document.text) for document in kept)
        corpora.append((name, corpus, kept))
    streams = []
    for name, corpus, kept in corpora:
        # a copy of what is held out, here or in another source, is not learned from either
        learned = [document for document in corpus.documents if document_key(document.text) not in unseen]
        texts = (with_bos(tokenizer, tokenizer.encode(document.text)) for document in kept)
        held_out = tuple(torch.tensor(token_ids, dtype=torch.int32) for token_ids in texts if len(token_ids) > 1)
        sequences = pack(learned, tokenizer, length)
        if not len(sequences) or not held_out:
            raise DataError(
                f"{corpus.source.label} ({name}, {split}) is too small: {len(corpus.documents)} documents do "
                f"not fill one packed sequence of {length} tokens to learn from and leave one to measure on. Give more "
                "documents."
            )
        keys, held_out_keys = (
            tuple(sorted({document_key(document.text) for document in some})) for some in (corpus.documents, kept)
        )
        projects = tuple(sorted({document.project for document in learned if document.project}))
        streams.append(
            Stream(f"{name}, {corpus.source.label}", corpus.source, sequences, held_out, keys, held_out_keys, projects)
        )
    return streams


def pack(documents: Sequence[Document], tokenizer: Tokenizer, length: int) -> Tensor:
    """Return the tokens of documents, end-of-text between them, cut into rows ``[n, length]`` int32.

    What does not fill the last row is left out. Where a text begins with the token that ends one, as OPT's does, one of
    them stands between two.
    """
    end = sorted(tokenizer.eos_token_ids - {*tokenizer.start_ids[:1]})[:1]
    tokens: list[int] = []
    for document in documents:
        tokens += [*with_bos(tokenizer, tokenizer.encode(document.text)), *end]
    rows = len(tokens) // length
    return torch.tensor(tokens[: rows * length], dtype=torch.int32).view(rows, length)


class PackedStreams(torch.utils.data.Dataset[dict[str, Tensor]]):
    """``size`` packed sequences: each stream is as often read as any other, and reshuffled when it is used up.

    The seed decides the order, of which ``skip`` sequences were read before.
    """

    def __init__(self, streams: Sequence[Stream], size: int, seed: int, skip: int = 0) -> None:
        self._sequences = [stream.sequences for stream in streams]
        self._order: list[tuple[int, int]] = []
        decks: list[list[int]] = [[] for _ in streams]
        chance = random.Random(seed)
        for number in range(skip + size):
            stream = number % len(decks)
            if not decks[stream]:
                decks[stream] = list(range(len(self._sequences[stream])))
                chance.shuffle(decks[stream])
            self._order.append((stream, decks[stream].pop()))
        self._skip = skip

    def __len__(self) -> int:
        return len(self._order) - self._skip

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one sequence as ``{"input_ids": [length] int64}``."""
        stream, row = self._order[self._skip + index]
        return {"input_ids": self._sequences[stream][row].long()}

    def texts(self) -> Iterator[Tensor]:
        """Yield all there is to be read, the skipped ones included: tokens in a row as one, ``[n]`` int32, each once.

        What was cut apart by packing is whole again where both sides are read.
        """
        for number, sequences in enumerate(self._sequences):
            rows = torch.tensor(sorted({row for stream, row in self._order if stream == number}), dtype=torch.int64)
            cuts = (rows.diff() != 1).nonzero().flatten() + 1
            yield from (sequences[part].flatten() for part in torch.tensor_split(rows, cuts) if len(part))
