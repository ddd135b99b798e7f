"""``harness train shortcut``: what leads from every exit to the last layer, from a trace, with weights that stay.

In closed form, a linear map (Yom Din 2023, arXiv 2303.09435) that makes any model exit-capable in about a minute. Each
token counts with the inverse square of its last hidden state's root mean square: the final norm divides by it anyway,
and without the weight a few tokens with enormous activations (the first of a sequence) would decide the fit. Any exit
module begins near that map and, where steps are given, learns on by gradient descent, with LITE's loss of its exits.
The states are those that the trace kept, so that the model itself has run once, whatever is tried on them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.contracts import ExitModule, LinearFit, ModelInfo
from harness.contracts.recipes import Progress, Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.blocks import Linear
from harness.errors import TrainingError
from harness.host.files import replace_files
from harness.models.artefacts import Artefact, write_artefact
from harness.models.controllers import controllers_of
from harness.models.exit_modules import chosen, module_from, shapes_of, shortcut_bytes
from harness.models.trained import find, shortcut_path
from harness.registry import WEIGHTS_FORMATS
from harness.training.lite.lite_model import exit_losses
from harness.training.prompt_exits import cosine
from harness.training.recipes import Shortcut
from harness.training.traces.reading import exit_states
from harness.training.traces.training_set import TrainingSet, exit_places

logger = logging.getLogger(__name__)

CHECKED = 4096
"""Held-out tokens the agreement is measured on at most: each costs an LM-head evaluation per exit."""
EXITS = 3
"""Random exits that a step of gradient descent reads, as LITE's default."""
RECIPE = {"exit_module", "ridge", "steps", "batch", "learning_rate", "distill"}
"""Options that an artefact records."""


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

    def solve(self, *, ridge: float = 1e-4) -> dict[int, LinearFit]:
        """Return exit layer → the map; ``ridge`` is relative to the diagonal's mean."""
        fits = {}
        for layer, moments in self._inputs.items():
            damped = moments + ridge * moments.diagonal()[:-1].mean() * torch.eye(len(moments), dtype=torch.float64)
            damped[-1, -1] = moments[-1, -1] * (1 + ridge)
            solution = torch.linalg.solve(damped, self._outputs[layer])
            spread = moments[:-1, :-1] / moments[-1, -1]
            fits[layer] = LinearFit(solution[:-1].t().contiguous().float(), solution[-1].contiguous().float(), spread)
        return fits


def train_shortcut(options: Shortcut, run: TrainingRun) -> Trained:
    """Fit exit modules on a trace and write them to ``NAME.json`` in the folder; see :func:`shortcut_path`."""
    data = TrainingSet.open(options, run, own=False, heads=False)
    info, points, progress = data.resolved.info, data.exit_points, run.progress
    text, (kind, size) = options.exit_module, chosen(options.exit_module)
    shapes_of(text, info.hidden_size)  # refused now, not after the fit
    path = options.folder / f"{options.name or run.recipe}.json"
    if not options.overwrite:
        path = shortcut_path(path, info.fingerprint, points)
    _warn_of_heads(info, path)
    moments = ShortcutMoments(points, info.hidden_size)
    progress.begin("fitting shortcuts", int(data.learned.sum()))
    for shard in data.traces.shards("hidden", "last", rows=data.learned):
        moments.add({point: shard["hidden"][:, e] for e, point in enumerate(points)}, shard["last"])
        progress.step(moments.tokens)
    tensors = {point: dict(kind.begin(fit, size)) for point, fit in moments.solve(ridge=options.ridge).items()}
    backbone = data.resolved.load("cpu").backbone
    if options.steps:
        _descend(options, data, backbone, tensors, progress)
    stored = {point: {name: part.bfloat16() for name, part in own.items()} for point, own in tensors.items()}
    progress.stage("measuring the shortcuts on held-out documents")
    made = {
        point: module_from(text, {name: part.float() for name, part in own.items()}) for point, own in stored.items()
    }
    held_out = measure(data, backbone, made)
    cost = shortcut_bytes(text, info.hidden_size, info.dtype, WEIGHTS_FORMATS.load(info.weights_format))
    facts = {
        **data.origin(),
        "exit_module": text,
        "recipe": options.model_dump(include=RECIPE),
        "seed": options.seed,
        "layers": round(cost / info.layer_bytes, 4),
        "held_out": held_out,
    }
    named = {f"{point}.{name}": part for point, own in stored.items() for name, part in own.items()}
    written = write_artefact(path, "shortcut", named, facts)
    rows = [f"| {point} | {before:.3f} | {after:.3f} |" for point, (before, after) in held_out["agreement"].items()]
    report = "\n".join(["| exit layer | agreement before | with the maps |", "|--:|--:|--:|", *rows])
    before, after = held_out["oracle_layers"]
    note = (
        f"{held_out['tokens']} held-out tokens, of which the last layer foresees {held_out['accuracy']:.3f}. An oracle "
        f"runs {before:.1f} of {info.num_layers} layers before, {after:.1f} with the maps; each costs "
        f"{facts['layers']:.3f} layers to read."
    )
    replace_files({path.with_suffix(".md"): f"{report}\n\n{note}\n".encode()})
    return Trained(report, f"{note} The maps are in {written.path}")


def _descend(
    options: Shortcut, data: TrainingSet, backbone: Backbone, tensors: Mapping[int, dict[str, Tensor]],
    progress: Progress,
) -> None:  # fmt: skip
    """Train the tensors of exit modules in place: AdamW on the mean loss of random exits of random tokens.

    Losses are over the tokens that the trace has, as what follows or as what the last layer says: a fifth of the
    vocabulary at most, and of the time.

    Raises:
        TrainingError: the loss is not finite.
    """
    head = backbone.lm_head
    assert isinstance(head, Linear)
    rows, labels = _followed(data, data.learned)
    said = data.columns["final"][rows].long()
    classes, places = torch.unique(torch.cat((labels, said)), return_inverse=True)  # others would teach little
    labels, weight = places[: len(labels)], head.weight[classes]
    bias = None if head.bias is None else head.bias[classes]
    points, hidden = data.exit_points, exit_states(data.traces, {}, rows)
    last = data.traces.columns("last")["last"][rows]
    parameters = [part.requires_grad_() for own in tensors.values() for part in own.values()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    schedule = cosine(optimizer, options.steps)
    chance = torch.Generator().manual_seed(options.seed)
    read = min(EXITS, len(points))
    progress.begin("training the exits", options.steps)
    for step in range(1, options.steps + 1):
        picked = torch.randint(len(labels), (options.batch,), generator=chance)
        states = []
        for e in torch.randperm(len(points), generator=chance)[:read].tolist():
            module = module_from(options.exit_module, tensors[points[e]])
            states.append(backbone.head_states(module(hidden[picked, e].float()).to(backbone.dtype)))
        states.append(backbone.head_states(last[picked].to(backbone.dtype)))
        weights = (*(1 / read,) * read, 0.0)  # the last layer only teaches
        loss, _ = exit_losses(states, weight, bias, labels[picked], weights, distill=options.distill)
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss is {loss.item()} at step {step}. Lower --learning-rate.")
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        progress.step(step, f"{loss.item():.3f} nats")
    for part in parameters:
        part.requires_grad_(False)


def _followed(data: TrainingSet, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of the wanted tokens ``[n]`` bool have a next one in their document, and that of each, int64."""
    columns = data.traces.columns("input", "document")
    follows = torch.cat((columns["document"][1:] == columns["document"][:-1], torch.tensor([False])))
    rows = wanted & follows
    return rows, columns["input"].roll(-1)[rows].long()


def measure(data: TrainingSet, backbone: Backbone, modules: Mapping[int, ExitModule]) -> dict[str, Any]:
    """Return what exits say of held-out tokens, :data:`CHECKED` at most, as the trace read them and through modules.

    That is: ``tokens``, how many; ``agreement`` with the last layer by exit, and the mean depth ``oracle_layers`` of
    leaving at the first exit that agrees, each before and with them; and ``accuracy``, the last layer's share of right
    next tokens.
    """
    check = data.held_out.nonzero().squeeze(1)
    chance = torch.Generator().manual_seed(data.options.seed)
    check = check[torch.randperm(len(check), generator=chance)[:CHECKED]].sort().values
    hidden = exit_states(data.traces, {}, torch.zeros_like(data.held_out).index_fill(0, check, True))
    final = data.columns["final"][check]
    tops = [best_tokens(backbone, module(hidden[:, e].float())) for e, module in enumerate(modules.values())]
    layers = torch.tensor([*data.exit_points, data.resolved.info.num_layers], dtype=torch.float32)
    both = data.right(check), torch.stack(tops, dim=1) == final.unsqueeze(1)
    shares = torch.stack([right.float().mean(0) for right in both], dim=1).tolist()
    followed, following = _followed(data, data.held_out)
    return {
        "tokens": len(check),
        "agreement": {
            str(point): [round(share, 4) for share in pair]
            for point, pair in zip(data.exit_points, shares, strict=True)
        },
        "oracle_layers": [round(layers[exit_places(right)].mean().item(), 3) for right in both],
        "accuracy": round((data.columns["final"][followed] == following).float().mean().item(), 4),
    }


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
def best_tokens(backbone: Backbone, states: Tensor) -> Tensor:
    """Return the LM head's best tokens of final-norm inputs ``[n, hidden_size]``, ``[n]`` int64."""
    dtype = backbone.dtype
    return torch.cat([backbone.logits(rows.to(dtype)).argmax(-1) for rows in torch.split(states, 256)])
