"""``harness train shortcut``: linear maps from every exit to the last layer, in closed form from a trace.

They make any model exit-capable in about a minute, without tuning (Yom Din 2024, arXiv 2303.09435). Each token counts
with the inverse square of its last hidden state's root mean square: the final norm divides by it anyway, and without
the weight a few tokens with enormous activations (the first of a sequence) would decide the fit.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from harness.contracts import ModelInfo
from harness.contracts.recipes import Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.models.artefacts import Artefact, write_artefact
from harness.models.controllers import controllers_of
from harness.models.trained import find, shortcut_path
from harness.training.recipes import Shortcut
from harness.training.traces.reading import exit_states
from harness.training.traces.training_set import TrainingSet

logger = logging.getLogger(__name__)

CHECKED = 4096
"""Held-out tokens the agreement is measured on at most: each costs an LM-head evaluation per exit."""


class ShortcutMoments:
    """Weighted second moments of (hidden state at an exit, hidden state after the last layer)."""

    def __init__(self, exit_points: Sequence[int], hidden_size: int) -> None:
        self._inputs = {e: torch.zeros(hidden_size + 1, hidden_size + 1, dtype=torch.float64) for e in exit_points}
        self._outputs = {e: torch.zeros(hidden_size + 1, hidden_size, dtype=torch.float64) for e in exit_points}
        self.tokens = 0

    def add(self, states: Mapping[int, Tensor], last: Tensor) -> None:
        """Take in hidden states ``[n, hidden_size]`` at every exit, and after the last layer, before the norm."""
        target = last.float()
        weight = target.pow(2).mean(-1, keepdim=True).rsqrt()
        target = target * weight
        self.tokens += len(target)
        for layer, state in states.items():
            rows = torch.cat((state.float() * weight, weight), dim=-1)
            self._inputs[layer] += (rows.t() @ rows).double()
            self._outputs[layer] += (rows.t() @ target).double()

    def solve(self, *, ridge: float = 1e-4) -> dict[int, tuple[Tensor, Tensor]]:
        """Return exit layer → (weight ``[out, in]``, bias ``[out]``); ``ridge`` is relative to the diagonal's mean."""
        maps = {}
        for layer, moments in self._inputs.items():
            damped = moments + ridge * moments.diagonal()[:-1].mean() * torch.eye(len(moments), dtype=torch.float64)
            damped[-1, -1] = moments[-1, -1] * (1 + ridge)
            solution = torch.linalg.solve(damped, self._outputs[layer])
            maps[layer] = (solution[:-1].t().contiguous().float(), solution[-1].contiguous().float())
        return maps


def train_shortcut(options: Shortcut, run: TrainingRun) -> Trained:
    """Fit shortcuts on a trace and write them to ``NAME.json`` in the folder; see :func:`shortcut_path`."""
    data = TrainingSet.open(options, run, own=False)
    info, points, progress = data.resolved.info, data.exit_points, run.progress
    path = options.folder / f"{options.name or run.recipe}.json"
    if not options.overwrite:
        path = shortcut_path(path, info.fingerprint, points)
    _warn_of_heads(info, path)
    moments = ShortcutMoments(points, info.hidden_size)
    progress.begin("fitting shortcuts", int(data.learned.sum()))
    for shard in data.traces.shards("hidden", "last", rows=data.learned):
        moments.add({point: shard["hidden"][:, e] for e, point in enumerate(points)}, shard["last"])
        progress.step(moments.tokens)
    maps = moments.solve(ridge=options.ridge)
    progress.stage("measuring the shortcuts on held-out documents")
    backbone = data.resolved.load("cpu").backbone
    check = data.held_out.nonzero().squeeze(1)
    chance = torch.Generator().manual_seed(options.seed)
    check = check[torch.randperm(len(check), generator=chance)[:CHECKED]].sort().values
    hidden = exit_states(data.traces, {}, torch.zeros_like(data.held_out).index_fill(0, check, True))
    before = data.right(check).float().mean(0)
    agreement: dict[int, tuple[float, float]] = {}
    tensors: dict[str, Tensor] = {}
    for e, (point, (weight, bias)) in enumerate(maps.items()):
        same = _top(backbone, hidden[:, e].float() @ weight.t() + bias) == data.columns["final"][check]
        agreement[point] = (round(before[e].item(), 4), round(same.float().mean().item(), 4))
        tensors |= {f"{point}.weight": weight.bfloat16(), f"{point}.bias": bias.bfloat16()}
    facts = {
        **data.origin(),
        "ridge": options.ridge,
        "held_out": {"tokens": len(check), "agreement": {str(k): v for k, v in agreement.items()}},
    }
    made = write_artefact(path, "shortcut", tensors, facts)
    rows = [f"| {layer} | {before:.3f} | {after:.3f} |" for layer, (before, after) in agreement.items()]
    report = "\n".join(["| exit layer | agreement before | with the maps |", "|--:|--:|--:|", *rows])
    return Trained(report, f"{len(check)} held-out tokens. The maps are in {made.path}")


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
def _top(backbone: Backbone, states: Tensor) -> Tensor:
    dtype = backbone.dtype
    return torch.cat([backbone.logits(rows.to(dtype)).argmax(-1) for rows in torch.split(states, 256)])
