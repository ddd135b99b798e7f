"""Training of the supervised controllers on traces: classifier heads (CALM) and learning-to-exit heads (BERxiT).

All exits learn at once, as one batched network. Besides the label (is the exit's token the last layer's?) a head also
predicts the exit's confidence and entropy, which the trace holds: two smoother targets of which the label is a noisy
sign. Those two outputs are discarded afterwards. Measured on 19,000 tokens of SmolLM2-135M (width 256, 20 epochs):
98 % agreement at mean layer 25.1 with them, 25.5 without them at width 64; normalising the input changed nothing.

Checkpoints of heads in training: weights, moments, learning rate, and where the order of the tokens stood.

From a trace to trained heads and their artefact.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from harness.contracts.recipes import Progress, TrainingRun
from harness.errors import TrainingError
from harness.models.controllers import OBSERVATIONS, Network, Observation
from harness.training.checkpoints import Checkpoints, damaged, network_tensors, restore_network, stop_on_interrupt
from harness.training.options import HeadOptions, HeadRecipe, ReturnRecipe
from harness.training.traces.training_set import SavedController, TrainingSet


@dataclass(frozen=True)
class HeadCheckpoint:
    """State of a checkpoint besides the heads, their optimiser and its schedule.

    Attributes:
        steps: done so far.
        order: state of the random generator from which the order of the last step's epoch was drawn.
    """

    steps: int
    order: Tensor


class HeadCheckpoints(Checkpoints):
    """The checkpoints of one training of heads; the last two stay."""

    def save(self, heads: nn.Module, optimiser: Optimizer, schedule: LRScheduler, at: HeadCheckpoint) -> None:
        """Write one, and remove all but it and the one before."""
        tensors = network_tensors("heads", heads, optimiser) | {"order": at.order}
        rates = [{"lr": group["lr"], "betas": group["betas"]} for group in optimiser.param_groups]
        self.write(at.steps, tensors, {"rates": rates, "schedule": schedule.state_dict()})

    def load(self, heads: nn.Module, optimiser: Optimizer, schedule: LRScheduler) -> HeadCheckpoint:
        """Read the latest into heads, optimiser and schedule.

        Raises:
            TrainingError: there is none, or it is of another training; gives both values.
        """
        found = self.read()
        tensors = found.tensors()
        restore_network(found.path, tensors, "heads", heads, optimiser)
        with damaged(found.path):
            for group, rates in zip(optimiser.param_groups, found.facts["rates"], strict=True):
                (first, second), rate = map(float, rates["betas"]), float(rates["lr"])
                group.update({"lr": rate, "betas": (first, second)})
            if not _alike(json.loads(json.dumps(schedule.state_dict())), found.facts["schedule"]):
                raise ValueError("the schedule of the learning rate is another one's")
            schedule.load_state_dict(found.facts["schedule"])
            return HeadCheckpoint(int(found.facts["steps"]), tensors["order"])


def _alike(ours: object, theirs: object) -> bool:
    """Tell whether two JSON values have the same form: keys, lengths and types, a whole number counting as a number."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(_alike(ours[name], theirs[name]) for name in ours)
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(_alike, ours, theirs))
    if type(ours) in (int, float):
        return type(theirs) in (int, float)
    return type(ours) is type(theirs)


SAVE_SECONDS = 30.0
"""Between checkpoints: what a kill may cost. Epochs take from less than a second to minutes."""


@dataclass(frozen=True, slots=True)
class HeadTargets:
    """Training targets and inputs of heads, each ``[n, exits]`` float32.

    Attributes:
        right: 1 where the exit's token is the last layer's, else 0; of actions, their number: exit, stop, continue.
        confidence: logit of the exit's best probability, standardised.
        entropy: of the exit's distribution, standardised.
        num_layers: of the model, which the return reads.
    """

    right: Tensor
    confidence: Tensor
    entropy: Tensor
    num_layers: int = 0

    @classmethod
    def of(cls, top: Tensor, final: Tensor, top1: Tensor, entropy: Tensor) -> HeadTargets:
        """Make them from trace columns."""
        confidence = torch.logit(top1.float().clamp(1e-3, 1 - 1e-3))
        return cls((top == final.unsqueeze(1)).float(), _standard(confidence), _standard(entropy.float()))


class _Heads(nn.Module):
    """``groups`` networks side by side: ``[groups, n, width]`` → ``[groups, n, 3]``."""

    def __init__(self, groups: int, width: int, hidden: int, chance: torch.Generator) -> None:
        super().__init__()
        sizes = [(width, hidden), (hidden, 3)] if hidden else [(width, 3)]
        self.weights = nn.ParameterList(torch.randn(groups, i, o, generator=chance) / math.sqrt(i) for i, o in sizes)
        self.biases = nn.ParameterList(torch.zeros(groups, 1, o) for _, o in sizes)

    def forward(self, x: Tensor) -> Tensor:
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, torch.relu(x) if place else x, weight)
        return x

    @property
    def finite(self) -> bool:
        """Whether all weights are numbers."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.parameters())

    def network(self, group: int, mean: Tensor, deviation: Tensor, outputs: int) -> Network:
        """Return one group's first outputs, with the standardisation of its input folded into its first map."""
        layers = [
            (weight[group].detach().t().contiguous(), bias[group, 0].detach().clone())
            for weight, bias in zip(self.weights, self.biases, strict=True)
        ]
        weight, bias = layers[0]
        layers[0] = (weight / deviation, bias - (weight / deviation) @ mean)
        weight, bias = layers[-1]
        layers[-1] = (weight[:outputs].contiguous(), bias[:outputs].contiguous())
        return Network(tuple(layers), "relu")


def train_heads(
    states: Tensor,
    observation: Observation,
    targets: HeadTargets,
    exit_points: Sequence[int],
    recipe: HeadRecipe,
    *,
    seed: int,
    progress: Progress,
    checkpoints: HeadCheckpoints | None = None,
    resume: bool = False,
    stop: threading.Event | None = None,
) -> dict[str, Network] | None:
    """Train heads.

    Args:
        states: what the observation is built from, ``[n, exits, hidden_size]``.
        observation: what the heads look at.
        targets: what they learn.
        exit_points: layers of the exits.
        recipe: how.
        seed: decides initial weights and order.
        progress: is told how it goes on.
        checkpoints: where they go; ``None`` for none.
        resume: go on from the last checkpoint, as if nothing had been in between.
        stop: set it to stop after the next step.

    Returns:
        ``shared``, or one network per exit point, named by its layer; one output each, three of actions. ``None`` where
        it was stopped.

    Raises:
        TrainingError: the loss is not finite, or there is no checkpoint to resume from.
    """
    chance = torch.Generator().manual_seed(seed)
    tokens, exits, _ = states.shape
    mean, deviation = _moments(states, observation, shared=recipe.shared)
    heads = _Heads(1 if recipe.shared else exits, mean.shape[1], recipe.hidden, chance)
    each = math.ceil(tokens / recipe.batch)
    total, done = recipe.epochs * each, 0
    optimiser, schedule = _optimiser(heads, recipe, total)
    if resume and checkpoints is not None:
        begun = checkpoints.load(heads, optimiser, schedule)
        done = begun.steps
        chance.set_state(begun.order)
    progress.begin("training heads", total, done)
    saved = time.monotonic()
    for epoch in range(max(0, done - 1) // each, recipe.epochs):
        order = chance.get_state()
        batches = torch.split(torch.randperm(tokens, generator=chance), recipe.batch)
        for step, rows in enumerate(batches, epoch * each + 1):
            if step <= done:
                continue
            x = ((observation.build_all(states[rows]) - mean) / deviation).transpose(0, 1)
            out = heads(x.reshape(1, -1, x.shape[-1])) if recipe.shared else heads(x)
            loss = _loss(out.view(exits, len(rows), 3), targets, rows, recipe, exit_points)
            if not math.isfinite(loss.item()):
                raise TrainingError(f"the loss is {loss.item()} in epoch {epoch + 1}. Lower --learning-rate.")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            progress.step(step, f"loss {loss.item():.3f}")
            stopped = stop is not None and stop.is_set()
            if stopped or step == total or time.monotonic() - saved >= SAVE_SECONDS:
                if not heads.finite:
                    raise TrainingError("training left weights that are no numbers. Lower --learning-rate.")
                if checkpoints is not None:
                    checkpoints.save(heads, optimiser, schedule, HeadCheckpoint(step, order))
                saved = time.monotonic()
            if stopped and step < total:
                return None
    if recipe.shared:
        return {"shared": heads.network(0, mean[0], deviation[0], 1)}
    outputs = 3 if recipe.objective == "actions" else 1
    return {str(point): heads.network(e, mean[e], deviation[e], outputs) for e, point in enumerate(exit_points)}


def _optimiser(heads: _Heads, recipe: HeadRecipe, steps: int) -> tuple[AdamW, OneCycleLR]:
    optimiser = AdamW(heads.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    # torch divides by zero where the warm-up has one step
    return optimiser, OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps + 12, pct_start=0.1)


def expected_return(logits: Tensor, right: Tensor, depths: Tensor, saving: float) -> Tensor:
    """Return what policies are expected to earn with ConsistentEE's reward, a mean over tokens.

    A token that exits at e earns 1 if that is right, less α (1 − m) d_e: d its depth, and m the depth of its memorised
    layer, from which on every exit is right: what is hard is to be right, what is easy is to be early.

    Args:
        logits: of exiting once an exit is reached, ``[exits, n]``.
        right: 1 where the exit's token is the last layer's, ``[exits, n]``.
        depths: of the exits, as shares of all layers, ``[exits]``.
        saving: α.
    """
    last = torch.ones_like(right[:1])
    right = torch.cat((right, last))
    depths = torch.cat((depths, torch.ones(1)))
    stays_right = right.flip(0).cumprod(0).flip(0)
    memorised = depths[(stays_right > 0).int().argmax(0)]
    reward = right - saving * (1 - memorised) * depths.unsqueeze(1)
    leaves, reached = F.logsigmoid(logits), F.logsigmoid(-logits).cumsum(0)
    chances = torch.cat((leaves, 0 * last)) + torch.cat((0 * last, reached))
    return (chances.exp() * reward).sum(0).mean()


def _loss(out: Tensor, targets: HeadTargets, rows: Tensor, recipe: HeadRecipe, exit_points: Sequence[int]) -> Tensor:
    right = targets.right[rows].t()
    if recipe.objective == "actions":
        return F.cross_entropy(out.flatten(0, 1), right.flatten().long())
    if isinstance(recipe, ReturnRecipe):
        depths = torch.tensor(exit_points) / targets.num_layers
        loss = -expected_return(out[..., 0], right, depths, recipe.saving)
    elif recipe.objective == "likelihood":
        loss = F.binary_cross_entropy_with_logits(out[..., 0], right)
    else:
        loss = F.mse_loss(out[..., 0], right)
    for place, further in ((1, targets.confidence), (2, targets.entropy)):
        loss = loss + recipe.auxiliary * F.mse_loss(out[..., place], further[rows].t())
    return loss


def _moments(states: Tensor, observation: Observation, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the observation, ``[exits, width]``, from 20,000 tokens; of all exits if shared."""
    sample = observation.build_all(states[:: max(1, len(states) // 20_000)])
    mean, deviation = sample.mean(0), sample.std(0).clamp_min(1e-4)
    if shared:
        deviation = (deviation.pow(2) + (mean - mean.mean(0)).pow(2)).mean(0, keepdim=True).sqrt().expand_as(mean)
        mean = mean.mean(0, keepdim=True).expand_as(mean)
    return mean, deviation


def _standard(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std().clamp_min(1e-6)


NEVER = {"likelihood": 1.0, "certainty": 2.0, "return": 1.0}
"""Thresholds that no score reaches."""


def train_on_trace(options: HeadOptions, run: TrainingRun) -> SavedController | None:
    """Train heads on a trace and write them to ``NAME.json`` in the folder, checkpoints to ``checkpoints/heads-NAME/``.

    Returns:
        ``None`` where it was interrupted; the checkpoint continues it.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    data = TrainingSet.open(options, run)
    observation = OBSERVATIONS[options.observation]
    recipe = ReturnRecipe.part_of(options) if isinstance(options, ReturnRecipe) else HeadRecipe.part_of(options)
    how = {
        "kind": run.recipe,
        **recipe.model_dump(),
        "observation": observation.as_dict(),
        "seed": options.seed,
        "trace": _fingerprint(data),
        "streams": data.streams,
    }
    folder = options.folder / "checkpoints" / f"heads-{options.name or run.recipe}"
    checkpoints = HeadCheckpoints(folder, "heads", data.identity() | how)
    if options.resume:
        checkpoints.read()  # to refuse before the states are read, which takes long
    columns = [data.columns[key][data.learned] for key in ("top", "final", "top1", "entropy")]
    targets = replace(HeadTargets.of(*columns), num_layers=data.resolved.info.num_layers)
    states = data.states(observation, data.learned)
    with stop_on_interrupt() as stop:
        networks = train_heads(
            states, observation, targets, data.exit_points, recipe,
            seed=options.seed, progress=run.progress, checkpoints=checkpoints, resume=options.resume, stop=stop,
        )  # fmt: skip
    if networks is None:
        return None
    link = None if recipe.objective == "certainty" else torch.sigmoid  # thresholds are probabilities
    return data.save(networks, observation, recipe.model_dump(), never=NEVER[recipe.objective], link=link)


def _fingerprint(data: TrainingSet) -> str:
    """Return what tells a trace from another: a hash of its index, which has those of its shards."""
    return hashlib.sha256(json.dumps(data.traces.index, sort_keys=True).encode()).hexdigest()[:16]
