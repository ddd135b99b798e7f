"""``harness train shortlist``: which tokens a train split has most often (FR-Spec, arXiv 2502.14856)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.contracts import Corpus, ModelRequest, Tokenizer, document_key
from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import DataError
from harness.models.artefacts import write_artefact
from harness.models.model import resolve
from harness.registry import TASKS, keeping_folder
from harness.training.cheap_heads.options import ShortlistOptions
from harness.training.identity import provenance

__all__ = ["count_tokens", "rank"]

HELD_OUT = 0.1
"""Share of each stream's documents on which coverage is measured; they are counted nowhere."""
STEPS = (4096, 8192, 16384)


@dataclass(frozen=True)
class _Stream:
    """One task's documents from one source.

    Attributes:
        name: task and source.
        corpus: the documents.
        texts: their tokens, ``[n]`` int64 each; the first ``held_out`` are not counted.
        held_out: how many.
    """

    name: str
    corpus: Corpus
    texts: Sequence[Tensor]
    held_out: int


def count_tokens(options: ShortlistOptions, run: TrainingRun) -> Trained:
    """Rank the tokens of train splits by frequency and write ``shortlist.json`` in the folder.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    resolved = resolve(ModelRequest(options.model, weights="auto", seed=options.seed))
    info, tokenizer = resolved.info, resolved.tokenizer
    streams = list(_read(options, tokenizer, run))
    held = {document_key(one.text) for stream in streams for one in stream.corpus.documents[: stream.held_out]}
    counts = [_count(_counted(stream, held), info.vocab_size) for stream in streams]
    ranked = rank(counts)[: options.size]
    covered = {stream.name: _coverage(stream, ranked) for stream in streams}
    documents = {document_key(one.text) for stream in streams for one in stream.corpus.documents}
    facts = {
        "model": info.name,
        "base_fingerprint": info.base_fingerprint,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "seed": options.seed,
        "data": [
            {
                "stream": stream.name,
                "fingerprint": stream.corpus.source.fingerprint,
                "documents": len(stream.texts),
                "tokens": int(count.sum()),
            }
            for stream, count in zip(streams, counts, strict=True)
        ],
        "documents": sorted(documents),
        "order": False,
        "held_out": {name: dict(zip(map(str, STEPS), shares, strict=False)) for name, shares in covered.items()},
        "made": provenance(run.command),
    }
    artefact = write_artefact(options.folder / f"{run.recipe}.json", run.recipe, {"token_ids": ranked.int()}, facts)
    rows = [f"| {name} | {' | '.join(f'{share:.4f}' for share in shares)} |" for name, shares in covered.items()]
    steps = [step for step in STEPS if step <= len(ranked)] or [len(ranked)]
    header = [f"| held-out tokens of | {' | '.join(f'in the first {step:,}' for step in steps)} |"]
    lines = [*header, f"|---|{'--:|' * len(steps)}", *rows]
    total = sum(int(count.sum()) for count in counts)
    return Trained("\n".join(lines), f"{total:,} tokens were counted. The shortlist is {artefact.path}")


def rank(counts: Sequence[Tensor]) -> Tensor:
    """Return all tokens from the most frequent on, streams in equal shares; of those alike, the smaller id first.

    Tokenizers number the tokens they learned first, which are the more frequent ones, lower.

    Args:
        counts: of each stream, ``[vocab_size]``.
    """
    shares = torch.stack([count.double() / count.sum() for count in counts]).mean(0)
    return shares.sort(descending=True, stable=True).indices


def _read(options: ShortlistOptions, tokenizer: Tokenizer, run: TrainingRun) -> Iterator[_Stream]:
    for task in (TASKS.load(name)() for name in options.tasks):
        for source in options.sources:
            run.progress.stage(f"counting tokens of {task.name} from {source}")
            with keeping_folder(f"the task '{task.name}' was read"):
                corpus: Corpus = task.corpus(source, "train", limit=options.documents, seed=options.seed)
            texts = [torch.tensor(tokenizer.encode(document.text)) for document in corpus.documents]
            held_out = max(1, round(HELD_OUT * len(texts)))
            if sum(map(len, texts[held_out:])) == 0 or sum(map(len, texts[:held_out])) == 0:
                raise DataError(
                    f"{corpus.source.label} ({task.name}, train) has {len(texts)} document(s): not one to count and "
                    "one to check on. Give more documents."
                )
            yield _Stream(f"{task.name}, {corpus.source.label}", corpus, texts, held_out)


def _counted(stream: _Stream, held: Collection[str]) -> list[Tensor]:
    """Return the documents that are counted: no copy of one that is held out of any stream.

    Raises:
        DataError: there is none.
    """
    pairs = zip(stream.corpus.documents, stream.texts, strict=True)
    found = [text for document, text in pairs if len(text) and document_key(document.text) not in held]
    if not found:
        raise DataError(f"{stream.name}: every document is a copy of one that is held out. Give other documents.")
    return found


def _count(texts: Sequence[Tensor], vocab_size: int) -> Tensor:
    return torch.bincount(torch.cat([text.long() for text in texts]), minlength=vocab_size)


def _coverage(stream: _Stream, ranked: Tensor) -> list[float]:
    """Return the share of held-out tokens in the first so many, for each of the steps."""
    tokens = torch.cat([text.long() for text in stream.texts[: stream.held_out]])
    place = torch.full((int(max(ranked.max(), tokens.max())) + 1,), len(ranked))
    place[ranked] = torch.arange(len(ranked))
    steps = [step for step in STEPS if step <= len(ranked)] or [len(ranked)]
    return [round((place[tokens] < step).float().mean().item(), 4) for step in steps]
