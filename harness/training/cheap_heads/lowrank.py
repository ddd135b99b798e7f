"""``harness train lowrank``: the directions of states that move logits most, in closed form from a trace.

The product A B of rank r with the least E|W h − A B h|² over states h is that of the truncated singular value
decomposition of W R₀, R₀R₀ᵀ = E hhᵀ (the reduced-rank regression of Izenman 1975). With R = R₀ V, V the right singular
vectors from the largest value on, A is the first r columns of W R, and B the first r rows of R⁻¹: so R serves every r.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.heads.lowrank import LowRank
from harness.decoding.readings import HeadReading, lm_head_of
from harness.models.artefacts import write_artefact
from harness.training.cheap_heads.options import LowRankOptions
from harness.training.identity import identity, provenance
from harness.training.traces.reading import held_out_rows, index_of, open_traces
from harness.training.traces.store import Traces

__all__ = ["fit_lowrank", "root_of"]

RIDGE = 1e-6
"""Added to the moments' diagonal, relative to its mean: the root is inverted."""
RANKS = (32, 64, 128)
SURE = 0.9
"""A check's threshold in the table of agreement."""
CHECKED = 2048
"""Held-out tokens of the table, at every exit point."""
PART = 256


@torch.inference_mode()
def fit_lowrank(options: LowRankOptions, run: TrainingRun) -> Trained:
    """Fit the root on a trace and write ``lowrank.json`` in the folder.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
    columns = traces.columns("document", "top1")
    held = held_out_rows(traces, columns["document"], seed=options.seed)
    run.progress.stage(f"loading {resolved.info.name}")
    backbone = resolved.load("cpu").backbone
    lm_head = lm_head_of(backbone)
    rows = lm_head.rows(None)
    moments = torch.zeros(lm_head.width, lm_head.width, dtype=torch.float64)
    run.progress.begin("reading states", traces.tokens)
    start = 0
    for shard in traces.shards("hidden"):
        learned = ~held[start : start + len(shard["hidden"])]
        start += len(learned)
        for states in _head_states(backbone, traces, shard["hidden"][learned]):
            moments += (states.t() @ states).double()
        run.progress.step(start)
    root = root_of(rows, moments / int((~held).sum()) / len(traces.exit_points))
    run.progress.stage("checking on held-out documents")
    table = _agreement(backbone, traces, held, columns["top1"], root)
    facts = {
        **identity(resolved.info, traces.index["tokenizer_fingerprint"]),
        "seed": options.seed,
        "trained_on": {"streams": sorted({d["stream"] for d in traces.documents}), "tokens": int((~held).sum())},
        "documents": sorted({d["key"] for d in traces.documents}),
        "ngrams": index_of(traces, options.folder),
        "held_out": {str(rank): share for rank, share in table.items()},
        "made": provenance(run.command),
    }
    artefact = write_artefact(options.folder / f"{run.recipe}.json", run.recipe, {"root": root}, facts)
    lines = [f"| directions | {SURE} reached as by the LM head |", "|--:|--:|"]
    lines += [f"| {rank} | {share:.4f} |" for rank, share in table.items()]
    return Trained("\n".join(lines), f"Held-out tokens at every exit point. The directions are in {artefact.path}")


def root_of(rows: Tensor, moments: Tensor) -> Tensor:
    """Return R of the module's docstring, ``[width, width]`` float32.

    Args:
        rows: the LM head's, ``[vocab_size, width]`` float32.
        moments: E hhᵀ, ``[width, width]`` float64.
    """
    damped = moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    values, vectors = torch.linalg.eigh(damped)
    first = vectors * values.sqrt()
    gram = first.t() @ (rows.t() @ rows).double() @ first
    directions = torch.linalg.eigh(gram).eigenvectors.flip(1)
    root: Tensor = (first @ directions).float()
    return root


def _head_states(backbone: Backbone, traces: Traces, hidden: Tensor) -> list[Tensor]:
    """Return what the LM head multiplies at each exit point, ``[n, exits, hidden_size]`` → ``[n, width]`` each."""
    return [
        backbone.head_states(backbone.exit_state(hidden[:, place].to(backbone.dtype), layer)).float()
        for place, layer in enumerate(traces.exit_points)
    ]


def _agreement(backbone: Backbone, traces: Traces, held: Tensor, top1: Tensor, root: Tensor) -> dict[int, float]:
    """Return how often each rank says as the LM head whether the best token is :data:`SURE`."""
    kept = held.nonzero().squeeze(1)
    kept = kept[:: max(1, len(kept) // CHECKED)]
    wanted = torch.zeros_like(held).index_fill(0, kept, True)
    parts, start = [], 0
    for shard in traces.shards("hidden"):
        parts.append(shard["hidden"][wanted[start : start + len(shard["hidden"])]])
        start += len(shard["hidden"])
    states = _head_states(backbone, traces, torch.cat(parts))
    found = {}
    lm_head = lm_head_of(backbone)
    for rank in (rank for rank in RANKS if rank <= lm_head.width):
        head = LowRank(lm_head, rank, {"root": root})
        alike = []
        for place, exit_states in enumerate(states):
            probability = torch.cat(
                [HeadReading.of(head(some)).top_probability for some in torch.split(exit_states, PART)]
            )
            alike.append((probability >= SURE) == (top1[wanted, place] >= SURE))
        found[rank] = round(torch.stack(alike).float().mean().item(), 4)
    return found
