"""From a trace to trained heads and their artefact, with a replayed comparison."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from harness.errors import ArtefactError, TrainingError
from harness.models.artefacts import Artefact
from harness.models.controllers import Network, Observation, write_controller
from harness.training.heads.head_checkpoints import HeadCheckpoints
from harness.training.heads.learning import HeadRecipe, HeadTargets, train_heads
from harness.training.identity import identity, provenance
from harness.training.interrupt import stop_on_interrupt
from harness.training.traces.reading import exit_maps, exit_states, held_out_rows, matches, open_traces
from harness.training.traces.store import Traces
from harness.training.traces.thresholds import ReplayRow, replay_rows, threshold_keeping
from harness.training.watch import Watch

__all__ = ["HeadsResult", "score_all", "train_on_traces"]

NEVER = {"likelihood": 1.0, "certainty": 2.0}
"""Thresholds that no score reaches."""


@dataclass(frozen=True)
class HeadsResult:
    """What training heads leaves.

    Attributes:
        artefact: the heads.
        rows: thresholds on held-out documents, replayed.
        kept: the loosest threshold that keeps the wanted agreement, or ``None``.
        tokens: held-out tokens.
    """

    artefact: Artefact
    rows: tuple[ReplayRow, ...]
    kept: ReplayRow | None
    tokens: int


def score_all(
    networks: Mapping[str, Network], observation: Observation, states: Tensor, exit_points: Sequence[int]
) -> Tensor:
    """Return the scores of every token at every exit point, ``[n, exits]``."""
    parts = []
    for some in torch.split(states, 4096):
        x = observation.build_all(some)
        each = [networks.get(str(point), networks.get("shared")) for point in exit_points]
        parts.append(torch.stack([network(x[:, e]).squeeze(-1) for e, network in enumerate(each) if network], dim=1))
    return torch.cat(parts)


def train_on_traces(
    model: str,
    folder: Path,
    out: Path,
    recipe: HeadRecipe,
    observation: Observation,
    *,
    kind: str,
    name: str,
    tasks: Sequence[str],
    keep: float,
    artefacts: str | None,
    seed: int,
    command: str,
    watch: Watch,
    resume: bool = False,
) -> HeadsResult | None:
    """Train heads on a trace and write them to ``out / f"{name}.json"``.

    Args:
        model: whose trace it is.
        artefacts: where its adapter and shortcuts are looked for.
        folder: of the trace.
        out: for the heads, and for ``checkpoints/heads-NAME/``.
        recipe: how.
        observation: what the heads look at.
        kind: of artefact: the strategy that will run on the heads.
        name: file name without its ending.
        tasks: only documents of these tasks; empty for all.
        keep: agreement that the suggested threshold keeps on held-out documents.
        seed: decides everything random.
        command: for the record.
        watch: is told how it goes on.
        resume: go on from the last checkpoint.

    Returns:
        ``None`` where it was interrupted; the checkpoint continues it.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    traces, resolved = open_traces(model, folder, artefacts=artefacts)
    watch.stage(f"reading {traces.tokens} tokens")
    columns = traces.columns("top", "final", "top1", "entropy", "document")
    wanted = _of_tasks(traces, columns["document"], tasks)
    held = held_out_rows(traces, columns["document"], seed=seed, tasks=tasks)
    streams = sorted({d["stream"] for d in traces.documents if matches(d, tasks)})
    belongs = identity(resolved.info, traces.index["tokenizer_fingerprint"])
    seen, trace = observation.as_dict(), _fingerprint(traces, columns)
    how = {"kind": kind, **asdict(recipe), "observation": seen, "seed": seed, "trace": trace, "streams": streams}
    checkpoints = HeadCheckpoints(out / "checkpoints" / f"heads-{name}", "heads", belongs | how)
    if resume:
        checkpoints.read()  # to refuse before the states are read, which takes long
    maps = exit_maps(traces, resolved, observation)
    learn, check = wanted & ~held, wanted & held
    targets = HeadTargets.of(*(columns[key][learn] for key in ("top", "final", "top1", "entropy")))
    states = exit_states(traces, maps, learn)
    with stop_on_interrupt() as stop:
        networks = train_heads(
            states, observation, targets, traces.exit_points, recipe,
            seed=seed, watch=watch, checkpoints=checkpoints, resume=resume, stop=stop,
        )  # fmt: skip
    if networks is None:
        return None
    halved = {key: network.to(torch.float16) for key, network in networks.items()}  # noise of training is larger
    networks = {key: network.to(torch.float32) for key, network in halved.items()}
    if not all(network.finite for network in networks.values()):
        raise TrainingError("training left weights that are no numbers. Lower --learning-rate.")
    scores = score_all(networks, observation, exit_states(traces, maps, check), traces.exit_points)
    if recipe.objective == "likelihood":
        scores = scores.sigmoid()  # thresholds are probabilities
    right = columns["top"][check] == columns["final"][check].unsqueeze(1)
    layers = resolved.info.num_layers
    rows = tuple(replay_rows(scores, right, traces.exit_points, layers))
    kept = threshold_keeping(scores, right, traces.exit_points, layers, keep)
    facts = {
        **belongs,
        "threshold": kept["threshold"] if kept else NEVER[recipe.objective],
        "recipe": asdict(recipe),
        "seed": seed,
        "trained_on": {"streams": streams, "tokens": int(learn.sum())},
        "documents": sorted({d["key"] for d in traces.documents if matches(d, tasks)}),
        "replayed": {"held_out_tokens": len(right), "rows": list(rows), "keep": keep, "kept": kept},
        "made": provenance(command),
    }
    artefact = write_controller(out / f"{name}.json", kind, observation, halved, facts)
    return HeadsResult(artefact, rows, kept, len(right))


def _fingerprint(traces: Traces, columns: Mapping[str, Tensor]) -> str:
    """Return what tells a trace from another: a hash of its index and of columns, all but the hidden states."""
    digest = hashlib.sha256(json.dumps(traces.index, sort_keys=True).encode())
    for name in sorted(columns):
        digest.update(columns[name].contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _of_tasks(traces: Traces, document: Tensor, tasks: Sequence[str]) -> Tensor:
    chosen = [number for number, facts in enumerate(traces.documents) if matches(facts, tasks)]
    if not chosen:
        known = sorted({facts["stream"] for facts in traces.documents})
        raise ArtefactError(
            f"the trace {traces.folder} has no document of {', '.join(tasks)}; it has {'; '.join(known)}."
        )
    return torch.isin(document.long(), torch.tensor(chosen))
