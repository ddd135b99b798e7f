"""Linear maps from each exit to the last layer, fitted in closed form.

Closed-form linear maps from an exit's hidden state to the last layer's (Yom Din 2024, arXiv 2303.09435).

Only moments are kept (``hidden_size`` squared per exit), so tokens can stream by in any number. Each token counts
with the inverse square of its last hidden state's root mean square: the final norm divides by it anyway, and without
the weight a few tokens with enormous activations (the first of a sequence) would decide the fit.

``harness train shortcut``: linear maps from every exit to the last layer, in closed form from a trace.

Makes any model exit-capable in about a minute, without tuning (Yom Din 2024, arXiv 2303.09435).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.contracts.recipes import TrainingRun
from harness.decoding.backbone import Backbone
from harness.models.artefacts import Artefact, write_artefact
from harness.models.controllers import controllers_of
from harness.models.trained import find, shortcut_path
from harness.training.identity import identity, provenance
from harness.training.options import ShortcutOptions
from harness.training.traces.reading import exit_states, held_out_rows, index_of, open_traces


class ShortcutMoments:
    """Weighted second moments of (hidden state at an exit, hidden state after the last layer).

    Args:
        exit_points: exits to map from.
        hidden_size: width of the residual stream.
    """

    def __init__(self, exit_points: Sequence[int], hidden_size: int) -> None:
        self._inputs = {e: torch.zeros(hidden_size + 1, hidden_size + 1, dtype=torch.float64) for e in exit_points}
        self._outputs = {e: torch.zeros(hidden_size + 1, hidden_size, dtype=torch.float64) for e in exit_points}
        self.tokens = 0

    def add(self, states: Mapping[int, Tensor], last: Tensor) -> None:
        """Take tokens in.

        Args:
            states: exit layer → hidden states ``[n, hidden_size]``, one entry per exit point.
            last: hidden states after the last layer, before the final norm, same shape.
        """
        target = last.float()
        weight = target.pow(2).mean(-1, keepdim=True).rsqrt()
        target = target * weight
        self.tokens += len(target)
        for layer, state in states.items():
            rows = torch.cat((state.float() * weight, weight), dim=-1)
            self._inputs[layer] += (rows.t() @ rows).double()
            self._outputs[layer] += (rows.t() @ target).double()

    def solve(self, *, ridge: float = 1e-4) -> dict[int, tuple[Tensor, Tensor]]:
        """Return exit layer → (weight ``[out, in]``, bias ``[out]``), float32.

        Args:
            ridge: added to the diagonal, relative to its mean.
        """
        maps = {}
        for layer, moments in self._inputs.items():
            damped = moments + ridge * moments.diagonal()[:-1].mean() * torch.eye(len(moments), dtype=torch.float64)
            damped[-1, -1] = moments[-1, -1] * (1 + ridge)
            solution = torch.linalg.solve(damped, self._outputs[layer])
            maps[layer] = (solution[:-1].t().contiguous().float(), solution[-1].contiguous().float())
        return maps


logger = logging.getLogger(__name__)

CHECKED = 4096
"""Held-out tokens the agreement is measured on at most: each costs an LM-head evaluation per exit."""


@dataclass(frozen=True)
class ShortcutResult:
    """The result of fitting shortcuts.

    Attributes:
        artefact: the shortcuts.
        agreement: exit layer → (share of held-out tokens equal to the last layer's with the trace's exit head, the
            same with the new ones).
        tokens: held-out tokens.
    """

    artefact: Artefact
    agreement: dict[int, tuple[float, float]]
    tokens: int


def train_shortcut(options: ShortcutOptions, run: TrainingRun) -> ShortcutResult:
    """Fit shortcuts on a trace and write them to ``NAME.json`` in the folder; see :func:`shortcut_path`.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    seed, progress = options.seed, run.progress
    traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
    path = options.folder / f"{options.name or run.recipe}.json"
    if not options.overwrite:
        path = shortcut_path(path, resolved.info.fingerprint, traces.exit_points)
    _warn_of_heads(resolved.info, path)
    columns = traces.columns("top", "final", "document")
    held = held_out_rows(traces, columns["document"], seed=seed)
    moments = ShortcutMoments(traces.exit_points, resolved.info.hidden_size)
    progress.begin("fitting shortcuts", traces.tokens)
    start = 0
    for shard in traces.shards("hidden", "last"):
        rows = ~held[start : start + len(shard["last"])]
        start += len(shard["last"])
        states = {point: shard["hidden"][rows, e] for e, point in enumerate(traces.exit_points)}
        moments.add(states, shard["last"][rows])
        progress.step(start)
    maps = moments.solve(ridge=options.ridge)
    progress.stage("measuring the shortcuts on held-out documents")
    backbone = resolved.load("cpu").backbone
    check = held.nonzero().squeeze(1)
    check = check[torch.randperm(len(check), generator=torch.Generator().manual_seed(seed))[:CHECKED]].sort().values
    hidden = exit_states(traces, {}, torch.zeros_like(held).index_fill(0, check, True))
    before = (columns["top"][check] == columns["final"][check].unsqueeze(1)).float().mean(0)
    agreement: dict[int, tuple[float, float]] = {}
    for e, point in enumerate(traces.exit_points):
        weight, bias = maps[point]
        same = _top(backbone, hidden[:, e].float() @ weight.t() + bias) == columns["final"][check]
        agreement[point] = (round(before[e].item(), 4), round(same.float().mean().item(), 4))
    tensors: dict[str, torch.Tensor] = {}
    for point, (weight, bias) in maps.items():
        tensors |= {f"{point}.weight": weight.bfloat16(), f"{point}.bias": bias.bfloat16()}
    facts: dict[str, Any] = {
        **identity(resolved.info, traces.index["tokenizer_fingerprint"]),
        "ridge": options.ridge,
        "trained_on": {"streams": sorted({d["stream"] for d in traces.documents}), "tokens": moments.tokens},
        "documents": sorted({d["key"] for d in traces.documents}),
        "ngrams": index_of(traces, options.folder),
        "held_out": {"tokens": len(check), "agreement": {str(k): v for k, v in agreement.items()}},
        "made": provenance(run.command),
    }
    made = write_artefact(path, "shortcut", tensors, facts)
    first = find("shortcut", replace(resolved.info, exit_points=traces.exit_points), [options.folder])
    if isinstance(first, Artefact) and first.path != path:
        logger.warning("runs take %s before %s: it leads from these exit points, too", first.path, path)
    return ShortcutResult(made, agreement, len(check))


def _warn_of_heads(model: ModelInfo, path: Path) -> None:
    """Say which controllers runs use today and will refuse once there are shortcuts at ``path``."""
    folders = tuple(dict.fromkeys((path.parent, *map(Path, model.artefacts))))
    found = find("shortcut", model, folders)
    today = found if isinstance(found, Artefact) else None
    if today is not None and today.path != path:
        return  # those stay the ones that runs find
    head = "shared" if today is None else f"shortcut:{today.sha256[:16]}"
    orphans = controllers_of(replace(model, exit_head=head), folders)
    if orphans:
        keep = "use them with --exit-head shared, or " if today is None else ""
        logger.warning(
            "trained for exit head %s: %s. With %s, runs take its maps and refuse these: %strace and train again.",
            *(head, ", ".join(map(str, orphans)), path, keep),
        )


@torch.inference_mode()
def _top(backbone: Backbone, states: torch.Tensor) -> torch.Tensor:
    dtype = backbone.dtype
    return torch.cat([backbone.logits(rows.to(dtype)).argmax(-1) for rows in torch.split(states, 256)])
