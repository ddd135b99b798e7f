"""Training of small heads on a trace: what each kind looks at, learns and is thresholded by, and the one fit of all.

================  ======================  ===============================  ==========================================
recipe            looks at                learns                           exits or stops from
================  ======================  ===============================  ==========================================
classifier, lte,  the state at an exit    whether the exit's token is the  the loosest threshold that keeps so many
consistent                                last layer's                     held-out tokens (``--keep``)
sec               the same                to exit, stop or continue        the same; stops: so many wrong
predictor         a few candidate tokens  whether the token is right, and  the same
                  of the LM head          a candidate
hash              the token that is read  shares of right tokens, counted  the same
excess            the state of any depth  whether a function ends here     the least that is precise on held-out text
================  ======================  ===============================  ==========================================

All exits learn at once, as one batched network. A head also predicts the exit's confidence and entropy, which are
discarded afterwards: two smoother targets of which the label is a noisy sign (SmolLM2-135M, 19,000 tokens: 98 %
agreement at mean layer 25.1 with them, 25.5 without). Labels of excess are the documents' own syntax: 1 where the
innermost function ends with the token that was read, white space apart, 0 inside a function, none elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

from harness.contracts import HeadChoice, Tokenizer
from harness.contracts.recipes import Progress, Trained, TrainingRun
from harness.decoding.backbone import Backbone
from harness.decoding.generation import Transcript
from harness.decoding.readings import HeadReading, Heads
from harness.errors import TrainingError
from harness.models.artefacts import write_artefact
from harness.models.controllers import OBSERVATIONS, Network, Observation, candidate_features, write_controller
from harness.registry import TASKS
from harness.training.identity import exit_head_note
from harness.training.recipes import (
    ActionHeads,
    CandidatePredictors,
    ExcessHeads,
    HeadOptions,
    HeadRecipe,
    NetworkSize,
    ReturnRecipe,
    TokenTable,
)
from harness.training.traces.reading import by_document
from harness.training.traces.store import Traces
from harness.training.traces.training_set import TrainingSet, require_finite, score_all
from tasks.stops.excess import SEES
from tasks.stops.syntax import function_ends

# -------------------------------------------------------------------------------------------------- the one fit


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets of heads, each ``[n, exits]`` float32."""

    right: Tensor  # 1 where the exit's token is the last layer's, else 0; of actions, their number
    further: tuple[Tensor, ...] = ()  # standardised logit of the exit's best probability, and entropy
    depths: Tensor | None = None  # of the exits, as shares of all layers, [exits]; for the expected return

    @classmethod
    def of(cls, top: Tensor, final: Tensor, top1: Tensor, entropy: Tensor, depths: Tensor | None = None) -> Targets:
        """Make them from trace columns."""
        further = (torch.logit(top1.float().clamp(1e-3, 1 - 1e-3)), entropy.float())
        standard = tuple((values - values.mean()) / values.std().clamp_min(1e-6) for values in further)
        return cls((top == final.unsqueeze(1)).float(), standard, depths)


class Objective(NamedTuple):
    """A loss of outputs ``[exits, rows, 3]`` and targets ``[exits, rows]``, besides recipe and depths; the link from
    outputs to what thresholds are compared with; and a threshold that no score reaches.
    """

    loss: Callable[[Tensor, Tensor, HeadRecipe, Tensor | None], Tensor]
    link: Callable[[Tensor], Tensor] | None
    never: float


def _expected_loss(out: Tensor, right: Tensor, recipe: HeadRecipe, depths: Tensor | None) -> Tensor:
    assert isinstance(recipe, ReturnRecipe)
    assert depths is not None
    return -expected_return(out[..., 0], right, depths, recipe.saving)


OBJECTIVES = {
    "likelihood": Objective(
        lambda out, right, *_: F.binary_cross_entropy_with_logits(out[..., 0], right), torch.sigmoid, 1.0
    ),
    "certainty": Objective(lambda out, right, *_: F.mse_loss(out[..., 0], right), None, 2.0),
    "return": Objective(_expected_loss, torch.sigmoid, 1.0),
    "actions": Objective(lambda out, right, *_: F.cross_entropy(out.flatten(0, 1), right.flatten().long()), None, 1.0),
}


def expected_return(logits: Tensor, right: Tensor, depths: Tensor, saving: float) -> Tensor:
    """Return what policies are expected to earn with ConsistentEE's reward, a mean over tokens.

    A token that exits at e earns 1 if that is right, less α (1 − m) d_e: d its depth, and m the depth of its memorised
    layer, from which on every exit is right: what is hard is to be right, what is easy is to be early. ``logits`` of
    exiting once an exit is reached, and ``right``: ``[exits, n]``; ``depths``, as shares of all layers: ``[exits]``.
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


class _Heads:
    """``groups`` networks side by side: ``[groups, n, width]`` → ``[groups, n, 3]``."""

    def __init__(self, groups: int, width: int, hidden: int, chance: torch.Generator) -> None:
        sizes = [(width, hidden), (hidden, 3)] if hidden else [(width, 3)]
        self.weights = [(torch.randn(groups, i, o, generator=chance) / math.sqrt(i)).requires_grad_() for i, o in sizes]
        self.biases = [torch.zeros(groups, 1, o, requires_grad=True) for _, o in sizes]

    def __call__(self, x: Tensor) -> Tensor:
        for place, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, torch.relu(x) if place else x, weight)
        return x

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


def fit(
    states: Tensor,
    observation: Observation,
    targets: Targets,
    exit_points: Sequence[int],
    recipe: HeadRecipe,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Network]:
    """Fit heads that observe states ``[n, exits, hidden_size]``; the seed decides initial weights and order.

    Returns:
        ``shared``, or one network per exit point, named by its layer; one output each, three of actions.
    """
    chance = torch.Generator().manual_seed(seed)
    tokens, exits, _ = states.shape
    mean, deviation = _moments(states, observation, shared=recipe.shared)
    heads = _Heads(1 if recipe.shared else exits, mean.shape[1], recipe.hidden, chance)
    steps = recipe.epochs * math.ceil(tokens / recipe.batch)
    optimiser = AdamW([*heads.weights, *heads.biases], lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    # torch divides by zero where the warm-up has one step
    schedule = OneCycleLR(optimiser, recipe.learning_rate, total_steps=steps + 12, pct_start=0.1)
    progress.begin("training heads", steps)
    done = 0
    for epoch in range(1, recipe.epochs + 1):
        for rows in torch.split(torch.randperm(tokens, generator=chance), recipe.batch):
            x = ((observation.build_all(states[rows]) - mean) / deviation).transpose(0, 1)
            out = (heads(x.reshape(1, -1, x.shape[-1])) if recipe.shared else heads(x)).view(exits, len(rows), 3)
            loss = OBJECTIVES[recipe.objective].loss(out, targets.right[rows].t(), recipe, targets.depths)
            for place, further in enumerate(targets.further, start=1):
                loss = loss + recipe.auxiliary * F.mse_loss(out[..., place], further[rows].t())
            if not math.isfinite(loss.item()):
                raise TrainingError(f"the loss is {loss.item()} in epoch {epoch}. Lower --learning-rate.")
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            done += 1
            progress.step(done, f"loss {loss.item():.3f}")
    names = ["shared"] if recipe.shared else list(map(str, exit_points))
    outputs = 3 if recipe.objective == "actions" else 1
    found = {name: heads.network(e, mean[e], deviation[e], outputs) for e, name in enumerate(names)}
    require_finite(found.values(), "Lower --learning-rate.")
    return found


def _moments(states: Tensor, observation: Observation, *, shared: bool) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the observation, ``[exits, width]``, from 20,000 tokens; of all exits if shared."""
    sample = observation.build_all(states[:: max(1, len(states) // 20_000)])
    mean, deviation = sample.mean(0), sample.std(0).clamp_min(1e-4)
    if shared:
        deviation = (deviation.pow(2) + (mean - mean.mean(0)).pow(2)).mean(0, keepdim=True).sqrt().expand_as(mean)
        mean = mean.mean(0, keepdim=True).expand_as(mean)
    return mean, deviation


def precise_threshold(scores: Tensor, hits: Tensor, precision: float) -> float | None:
    """Return the least of the scores ``[n]`` from which on such a share are hits ``[n]``; ``None`` where none is."""
    order = scores.sort(descending=True)
    enough = (hits[order.indices].cumsum(0) / torch.arange(1, len(hits) + 1) >= precision).nonzero().flatten()
    return float(order.values[int(enough[-1])]) if len(enough) else None


# ------------------------------------------------------------------------------- classifier, lte and consistent


def train_heads(options: HeadOptions, run: TrainingRun) -> Trained:
    """Train heads that tell where an exit is right, and write them."""
    data = TrainingSet.open(options, run)
    recipe = ReturnRecipe.part_of(options) if isinstance(options, ReturnRecipe) else HeadRecipe.part_of(options)
    observation, objective = OBSERVATIONS[options.observation], OBJECTIVES[recipe.objective]
    depths = torch.tensor(data.exit_points) / data.resolved.info.num_layers
    top, final, top1, entropy = (data.columns[key][data.learned] for key in ("top", "final", "top1", "entropy"))
    targets = Targets.of(top, final, top1, entropy, depths)
    networks = _fitted(data, data.states(observation, data.learned), observation, targets, recipe)
    return data.save(networks, observation, recipe.model_dump(), never=objective.never, link=objective.link).said()


def _fitted(
    data: TrainingSet, states: Tensor, observation: Observation, targets: Targets, recipe: HeadRecipe
) -> dict[str, Network]:
    how: dict[str, Any] = {"seed": data.options.seed, "progress": data.run.progress}
    return fit(states, observation, targets, data.exit_points, recipe, **how)


def _plain(objective: str, options: NetworkSize) -> HeadRecipe:
    """Return a recipe without further targets."""
    return HeadRecipe(objective=objective, auxiliary=0.0, **NetworkSize.part_of(options).model_dump())  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------------- sec

EXIT, STOP, CONTINUE = 0.0, 1.0, 2.0


def train_actions(options: ActionHeads, run: TrainingRun) -> Trained:
    """Train heads that tell where an exit is right, and where no layer will be (Sun 2024), and write them."""
    data = TrainingSet.open(options, run)
    if data.traces.index.get("new_tokens"):
        raise TrainingError(f"{data.traces.folder} has what the model generates, and no truth. Trace documents.")
    truth = data.traces.columns("input")["input"].roll(-1).long()
    document = data.columns["document"]
    known = document == document.roll(-1)  # the last token of a document has no truth
    known[-1] = False
    actions = actions_of(data.columns["top"].long(), data.columns["final"].long(), truth)
    observation, rows, recipe = OBSERVATIONS[options.observation], data.learned & known, _plain("actions", options)
    networks = _fitted(data, data.states(observation, rows), observation, Targets(actions[rows]), recipe)
    halved, scores = data.scored(networks, observation)
    chances = scores.softmax(-1)
    wrong, told = (actions == STOP)[data.held_out].all(1), known[data.held_out]
    surest = chances[told][..., 1].amax(1)
    never = OBJECTIVES[recipe.objective].never
    least = precise_threshold(surest, wrong[told], options.precision)
    stopped = 0.0 if least is None else float((surest >= least).float().mean())
    stop = never if least is None else least
    said = data.saved(
        torch.where(chances[..., 0] >= chances.amax(-1), chances[..., 0], -torch.inf),
        {**recipe.model_dump(), "precision": options.precision},
        lambda path, facts: write_controller(path, run.recipe, observation, halved, {**facts, "stop": stop}),
        never=never,
    ).said()
    return Trained(said.report, f"{said.note} Stops from probability {stop:.4f} on: {stopped:.1%} of held-out tokens.")


def actions_of(top: Tensor, final: Tensor, truth: Tensor) -> Tensor:
    """Return what would be right at each exit, ``[n, exits]`` float32: exit, stop or continue.

    Tokens are int64: ``[n, exits]`` of each exit, ``[n]`` of the last layer and of the document.
    """
    right = top == truth.unsqueeze(1)
    later = torch.cat((right, (final == truth).unsqueeze(1)), dim=1)
    some = later.flip(1).cumsum(1).flip(1)[:, 1:] > 0  # a layer behind this exit is right
    return torch.where(right, EXIT, torch.where(some, CONTINUE, STOP))


# ---------------------------------------------------------------------------------------------------- predictor

PART = 256
"""Tokens that are read at a time: heads make logits of the whole vocabulary."""


def train_predictors(options: CandidatePredictors, run: TrainingRun) -> Trained:
    """Train SpecEE's predictors on what a trace's states make of a few candidate tokens, and write them."""
    data = TrainingSet.open(options, run)
    run.progress.stage(f"loading {data.resolved.info.name}")
    backbone = data.resolved.load("cpu").backbone
    features, candidates = read_candidates(data, backbone, HeadChoice.of(options.head), options.candidates)
    among = (data.columns["top"].long().unsqueeze(2) == candidates.unsqueeze(1)).any(2)
    right = data.right(data.learned) & among[data.learned]
    recipe = _plain("likelihood", options)
    networks = _fitted(data, features[data.learned], Observation(), Targets(right.float()), recipe)
    scores = torch.sigmoid(score_all(networks, Observation(), features[data.held_out], data.exit_points))
    scores = scores.masked_fill(~among[data.held_out], -torch.inf)  # where the head would not confirm, nothing exits
    tensors = {name: tensor for key, network in networks.items() for name, tensor in network.tensors(key).items()}
    kept = {"candidates": options.candidates, "head": options.head}
    return data.saved(
        scores,
        {**kept, **recipe.model_dump()},
        lambda path, facts: write_artefact(path, run.recipe, tensors, {**facts, **kept, "activation": "relu"}),
        never=OBJECTIVES[recipe.objective].never,
    ).said()


@torch.inference_mode()
def read_candidates(data: TrainingSet, backbone: Backbone, head: HeadChoice, count: int) -> tuple[Tensor, Tensor]:
    """Return what predictors look at, ``[n, exits, 3 · count]`` float32, and the candidates, ``[n, count]`` int64."""
    heads, points = Heads(backbone), data.exit_points
    features, tokens = [], []
    data.run.progress.begin("reading candidates", data.traces.tokens)
    done = 0
    for shard in data.traces.shards("hidden"):
        for some in torch.split(shard["hidden"], PART):
            states = [backbone.exit_state(some[:, e].to(backbone.dtype), point) for e, point in enumerate(points)]
            if head.is_full:
                candidates = backbone.logits(states[0]).topk(count, dim=-1).indices
            else:
                candidates = HeadReading.of(heads.read(head, states[0])).best_tokens(count)
            logits = [heads.logits_of(candidates, state) for state in states]
            pairs = zip(logits, [None, *logits[:-1]], strict=True)
            features.append(torch.stack([candidate_features(now, before) for now, before in pairs], dim=1))
            tokens.append(candidates)
        done += len(shard["hidden"])
        data.run.progress.step(done)
    return torch.cat(features).clone(), torch.cat(tokens).clone()


# --------------------------------------------------------------------------------------------------------- hash


def count_agreement(options: TokenTable, run: TrainingRun) -> Trained:
    """Count how often each exit says what the last layer says, by the token that was read, and write the table."""
    data = TrainingSet.open(options, run)
    read = data.traces.columns("input")["input"].long()
    token_ids, shares = shares_of(read[data.learned], data.right(data.learned), options.least)
    place = torch.full((int(read.max()) + 1,), len(token_ids))
    place[token_ids] = torch.arange(len(token_ids))
    shares = shares.half()
    return data.saved(
        torch.cat((shares.float(), torch.zeros(1, shares.shape[1])))[place[read[data.held_out]]],
        {"least": options.least},
        lambda path, facts: write_artefact(path, run.recipe, {"token_ids": token_ids.int(), "shares": shares}, facts),
        never=1.0,  # a token that was read n times has n / (n + 1) at most, which is kept as 1 from 4096 on
    ).said()


def shares_of(read: Tensor, right: Tensor, least: int) -> tuple[Tensor, Tensor]:
    """Return tokens, ascending ``[m]`` int64, and how often each exit was right after each, ``[m, exits]`` float32.

    Of the tokens that were read, ``[n]``, those that were so ``least`` times. One that was read n times counts as read
    once more, and wrong then at every exit.
    """
    token_ids, inverse, counts = torch.unique(read, return_inverse=True, return_counts=True)
    hits = torch.zeros(len(token_ids), right.shape[1]).index_add_(0, inverse, right.float())
    often = counts >= least
    return token_ids[often], (hits / (counts + 1).unsqueeze(1))[often]


# ------------------------------------------------------------------------------------------------------- excess

FEWEST = 8
"""Ends of functions, learned from and held out, without which nothing can be told."""
NEVER = 30.0
"""Subtracted from a head's logit where no threshold is precise enough."""


def train_excess(options: ExcessHeads, run: TrainingRun) -> Trained:
    """Train heads that tell where a function ends, so that what follows is excess (CodeFast), and write them."""
    data = TrainingSet.open(options, run)
    traces = data.traces
    if traces.index.get("new_tokens"):
        raise TrainingError(f"{traces.folder} has what the model generates, and no whole functions. Trace documents.")
    run.progress.stage(f"reading where functions end in {len(traces.documents)} documents")
    found: list[float] = []
    for number, ids in by_document(traces):
        task = str(traces.documents[number]["stream"]).partition(",")[0]
        found += labels_of(ids.tolist(), data.resolved.tokenizer, TASKS.load(task)().language)
    labels = torch.tensor(found)
    learned, checked = data.learned & ~labels.isnan(), data.held_out & ~labels.isnan()
    for rows, what in ((learned, "to learn from"), (checked, "held out")):
        if (ends := int(labels[rows].sum())) < FEWEST:
            raise TrainingError(f"{traces.folder} has {ends} ends of functions {what}. Trace more --documents.")
    layers = (*traces.exit_points, data.resolved.info.num_layers)
    run.progress.begin("training", len(layers))
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for number, layer in enumerate(layers):
        x, y = (SEES.build(_states(traces, number, rows), None, 0, 1) for rows in (learned, checked))
        head = logistic_regression(x, labels[learned], options.l2)
        head, facts = calibrated(head, head(y).squeeze(1), labels[checked], options.precision)
        told.append({"layer": layer, **facts})
        tensors |= head.to(torch.float16).tensors(str(layer))
        run.progress.step(number + 1)
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise TrainingError("training left weights that are no numbers. Raise --l2.")
    ends, tokens = int(labels[checked].sum()), int(checked.sum())
    origin = data.origin()
    facts = {
        **origin,
        "threshold": 0.5,
        "recipe": {"l2": options.l2, "precision": options.precision},
        "seed": options.seed,
        "trained_on": {**origin["trained_on"], "tokens": int(learned.sum()), "ends": int(labels[learned].sum())},
        "held_out_documents": data.held_out_documents,
        "replayed": {"held_out_tokens": tokens, "ends": ends, "rows": told},
    }
    artefact = write_artefact(data.path, run.recipe, tensors, facts)
    lines = []
    for row in told:
        shares = ("–" if row[share] is None else f"{row[share]:.3f}" for share in ("found", "precision"))
        lines.append(f"| {row['layer']} | {' | '.join(shares)} |")
    report = "\n".join(["| layers | ends found | stops that are ends |", "|--:|--:|--:|", *lines])
    note = (
        f"{ends} ends among {tokens} held-out tokens, on which the thresholds were chosen. The result is "
        f"{artefact.path}. {exit_head_note(facts['exit_head'])}"
    )
    return Trained(report, note)


def labels_of(token_ids: Sequence[int], tokenizer: Tokenizer, language: str) -> list[float]:
    """Return for each token of a document whether a function ends with it: 1, inside a function 0, elsewhere NaN."""
    spelled = Transcript(tokenizer, ())
    ends = []
    for count in range(1, len(token_ids) + 1):
        spelled.follow(token_ids[:count])
        ends.append(len(spelled.text.encode(errors="replace")))
    source = spelled.finish()
    return function_ends(source, ends, language)


def logistic_regression(x: Tensor, labels: Tensor, l2: float) -> Network:
    """Return the logistic regression of labels ``[n]`` on inputs ``[n, width]``.

    Minimises the mean cross-entropy plus ``l2`` times the squared weights, which has one minimum.
    """
    weight, bias = torch.zeros(1, x.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.binary_cross_entropy_with_logits((x @ weight.T + bias).squeeze(1), labels)
        found = found + l2 * weight.square().sum()
        found.backward()  # type: ignore[no-untyped-call]
        return found

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return Network(((weight.detach(), bias.detach()),))


def calibrated(head: Network, logits: Tensor, labels: Tensor, precision: float) -> tuple[Network, dict[str, Any]]:
    """Return a head of one layer, shifted so that from 0.5 on its stops are precise, and what it then finds.

    ``logits`` and ``labels`` are those of held-out tokens, ``[n]``.
    """
    least = precise_threshold(logits, labels, precision)
    ((weight, bias),) = head.layers
    stops = logits >= (math.inf if least is None else least)
    right = float(labels[stops].sum())
    facts = {
        "found": right / float(labels.sum()),
        "precision": right / int(stops.sum()) if stops.any() else None,
    }
    return Network(((weight, bias - (NEVER if least is None else least)),), head.activation), facts


def _states(traces: Traces, place: int, rows: Tensor) -> Tensor:
    """Return the states at an exit point, or behind all of them after the last layer, ``[rows, hidden_size]``."""
    if place == len(traces.exit_points):
        return torch.cat([shard["last"] for shard in traces.shards("last", rows=rows)]).float()
    return torch.cat([shard["hidden"][:, place] for shard in traces.shards("hidden", rows=rows)]).float()
