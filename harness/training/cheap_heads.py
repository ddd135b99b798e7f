"""The material of cheap heads: the tokens that are read most often, and the directions of states that move logits.

``harness train shortlist``: which tokens a train split has most often (FR-Spec, arXiv 2502.14856).

``harness train lowrank``: in closed form from a trace. The product A B of rank r with the least E|W h − A B h|² over
states h is that of the truncated singular value decomposition of W R₀, R₀R₀ᵀ = E hhᵀ (the reduced-rank regression of
Izenman 1975). With R = R₀ V, V the right singular vectors from the largest value on, A is the first r columns of W R,
and B the first r rows of R⁻¹: so R serves every r.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from harness.contracts import Corpus, ModelRequest, Tokenizer, document_key
from harness.contracts.recipes import Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.heads.lowrank import LowRank
from harness.decoding.readings import HeadReading, lm_head_of
from harness.errors import DataError
from harness.models.artefacts import write_artefact
from harness.models.model import resolve
from harness.registry import TASKS
from harness.training.corpus import read_corpora
from harness.training.identity import provenance
from harness.training.recipes import LowRankHead, TokenShortlist
from harness.training.traces.training_set import TrainingSet

RIDGE = 1e-6
"""Added to the moments' diagonal, relative to its mean: the root is inverted."""
RANKS = (32, 64, 128)
SURE = 0.9
"""A check's threshold in the table of agreement."""
CHECKED = 2048
"""Held-out tokens of the table, at every exit point."""
PART = 256
HELD_OUT = 0.1
"""Share of each stream's documents on which coverage is measured; they are counted nowhere."""
STEPS = (4096, 8192, 16384)


@torch.inference_mode()
def fit_lowrank(options: LowRankHead, run: TrainingRun) -> Trained:
    """Fit the root on a trace and write ``lowrank.json`` in the folder."""
    data = TrainingSet.open(options, run, own=False, heads=False)
    run.progress.stage(f"loading {data.resolved.info.name}")
    backbone = data.resolved.load("cpu").backbone
    lm_head = lm_head_of(backbone)
    moments = torch.zeros(lm_head.width, lm_head.width, dtype=torch.float64)
    tokens, done = int(data.learned.sum()), 0
    run.progress.begin("reading states", tokens)
    for shard in data.traces.shards("hidden", rows=data.learned):
        for states in _head_states(backbone, data.exit_points, shard["hidden"]):
            moments += (states.t() @ states).double()
        done += len(shard["hidden"])
        run.progress.step(done)
    root = root_of(lm_head.rows(None), moments / tokens / len(data.exit_points))
    run.progress.stage("checking on held-out documents")
    table = _agreement(backbone, data, root)
    facts = {
        **data.origin(),
        "seed": options.seed,
        "held_out": {str(rank): share for rank, share in table.items()},
    }
    artefact = write_artefact(options.folder / f"{run.recipe}.json", run.recipe, {"root": root}, facts)
    lines = [f"| directions | {SURE} reached as by the LM head |", "|--:|--:|"]
    lines += [f"| {rank} | {share:.4f} |" for rank, share in table.items()]
    return Trained("\n".join(lines), f"Held-out tokens at every exit point. The directions are in {artefact.path}")


def root_of(rows: Tensor, moments: Tensor) -> Tensor:
    """Return R of the module's docstring, ``[width, width]`` float32, of the LM head's rows and of E hhᵀ (float64)."""
    damped = moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    values, vectors = torch.linalg.eigh(damped)
    first = vectors * values.sqrt()
    gram = first.t() @ (rows.t() @ rows).double() @ first
    directions = torch.linalg.eigh(gram).eigenvectors.flip(1)
    root: Tensor = (first @ directions).float()
    return root


def _head_states(backbone: Backbone, exit_points: Sequence[int], hidden: Tensor) -> list[Tensor]:
    """Return what the LM head multiplies at each exit point, ``[n, exits, hidden_size]`` → ``[n, width]`` each."""
    return [
        backbone.head_states(backbone.exit_state(hidden[:, place].to(backbone.dtype), layer)).float()
        for place, layer in enumerate(exit_points)
    ]


def _agreement(backbone: Backbone, data: TrainingSet, root: Tensor) -> dict[int, float]:
    """Return how often each rank says as the LM head whether the best token is :data:`SURE`."""
    kept = data.held_out.nonzero().squeeze(1)
    wanted = torch.zeros_like(data.held_out).index_fill(0, kept[:: max(1, len(kept) // CHECKED)], True)
    hidden = torch.cat([shard["hidden"] for shard in data.traces.shards("hidden", rows=wanted)])
    states = _head_states(backbone, data.exit_points, hidden)
    sure = data.columns["top1"][wanted] >= SURE
    lm_head, found = lm_head_of(backbone), {}
    for rank in (rank for rank in RANKS if rank <= lm_head.width):
        head = LowRank(lm_head, rank, {"root": root})
        alike = []
        for place, exit_states in enumerate(states):
            parts = [HeadReading.of(head(some)).top_probability for some in torch.split(exit_states, PART)]
            alike.append((torch.cat(parts) >= SURE) == sure[:, place])
        found[rank] = round(torch.stack(alike).float().mean().item(), 4)
    return found


class _Stream(NamedTuple):
    """One task's documents from one source, and their tokens; the first ``held_out`` are not counted."""

    name: str
    corpus: Corpus
    texts: list[Tensor]
    held_out: int


def count_tokens(options: TokenShortlist, run: TrainingRun) -> Trained:
    """Rank the tokens of train splits by frequency and write ``shortlist.json`` in the folder."""
    resolved = resolve(ModelRequest(options.model, weights="auto", seed=options.seed))
    info, tokenizer = resolved.info, resolved.tokenizer
    streams = list(_read(options, tokenizer, run))
    held = {document_key(one.text) for stream in streams for one in stream.corpus.documents[: stream.held_out]}
    counts = []
    for stream in streams:  # no copy of what is held out of any stream is counted
        pairs = zip(stream.corpus.documents, stream.texts, strict=True)
        counted = [text for document, text in pairs if len(text) and document_key(document.text) not in held]
        if not counted:
            raise DataError(f"{stream.name}: every document is a copy of one that is held out. Give other documents.")
        counts.append(torch.bincount(torch.cat(counted).long(), minlength=info.vocab_size))
    ranked = rank(counts)[: options.size]
    steps = [step for step in STEPS if step <= len(ranked)] or [len(ranked)]
    covered = {}
    for stream in streams:
        tokens = torch.cat(stream.texts[: stream.held_out]).long()
        covered[stream.name] = [round(torch.isin(tokens, ranked[:step]).float().mean().item(), 4) for step in steps]
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
        "documents": sorted({document_key(one.text) for stream in streams for one in stream.corpus.documents}),
        "projects": sorted({one.project for stream in streams for one in stream.corpus.documents if one.project}),
        "order": False,
        "held_out": {name: dict(zip(map(str, STEPS), shares, strict=False)) for name, shares in covered.items()},
        "made": provenance(run.command),
    }
    artefact = write_artefact(options.folder / f"{run.recipe}.json", run.recipe, {"token_ids": ranked.int()}, facts)
    lines = [f"| held-out tokens of | {' | '.join(f'in the first {step:,}' for step in steps)} |"]
    lines += [f"|---|{'--:|' * len(steps)}"]
    lines += [f"| {name} | {' | '.join(f'{share:.4f}' for share in shares)} |" for name, shares in covered.items()]
    total = sum(int(count.sum()) for count in counts)
    return Trained("\n".join(lines), f"{total:,} tokens were counted. The shortlist is {artefact.path}")


def rank(counts: Sequence[Tensor]) -> Tensor:
    """Return all tokens from the most frequent on, streams in equal shares; of those alike, the smaller id first.

    Tokenizers number the tokens they learned first, which are the more frequent ones, lower.
    """
    shares = torch.stack([count.double() / count.sum() for count in counts]).mean(0)
    return shares.sort(descending=True, stable=True).indices


def _read(options: TokenShortlist, tokenizer: Tokenizer, run: TrainingRun) -> Iterator[_Stream]:
    for task, corpus in read_corpora(
        [TASKS.load(name)() for name in options.tasks], options.sources, "train", limit=options.documents,
        seed=options.seed, note=run.progress.stage,
    ):  # fmt: skip
        texts = [torch.tensor(tokenizer.encode(document.text)) for document in corpus.documents]
        held_out = max(1, round(HELD_OUT * len(texts)))
        if sum(map(len, texts[held_out:])) == 0 or sum(map(len, texts[:held_out])) == 0:
            raise DataError(
                f"{corpus.source.label} ({task}, train) has {len(texts)} document(s): not one to count and one to "
                "check on. Give more documents."
            )
        yield _Stream(f"{task}, {corpus.source.label}", corpus, texts, held_out)
