"""An exit policy fitted to a reward, by backward induction on a trace.

A trace says what every exit point would have answered, whatever is decided, so that the value of each decision can be
averaged instead of explored. The policy knows the exit point, the bin of a score there, and the highest bin that the
score was in before at this token (Eq. 2 and 3 punish leaving behind the first right exit, so the past matters). It is
the optimum among policies of this state, a lower bound of what a policy that sees the hidden state could earn, and it
maximises GREEN-CODE's Eq. 4: the sum of a token's rewards without discount. Held to an agreement by a threshold on its
preference it is no optimum: plain thresholds may earn more. Cross-fitted over documents, its returns are out of sample.

Reward and agreement of an agent on traced tokens, beside the optimum of its own reward and plain thresholds.

``harness train rl --optimum``: a policy fitted to a reward on a trace, and how far an agent is from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import ArtefactError, ConfigError, DataError
from harness.host.files import replace_files
from harness.models.controllers import Controller, find_controller
from harness.models.model import ResolvedModel
from harness.training.agents.reward import CONTINUE, EXIT, choose_reward, describe, reward_table
from harness.training.identity import identity, provenance
from harness.training.options import AgentOptions
from harness.training.traces.reading import exit_maps, exit_states, open_traces, rows_of_tasks, unseen_rows
from harness.training.traces.store import Traces
from harness.training.traces.training_set import exit_places, score_all, threshold_keeping
from reports.statistics.intervals import draws, replicate_interval

Floats = NDArray[np.float64]
Places = NDArray[np.int64]

BINS = 24
FOLDS = 5
PRIOR = 20.0
"""Tokens that the mean over all pasts weighs beside those of one past."""


@dataclass(frozen=True, eq=False)
class BinnedPolicy:
    """A policy on binned scores.

    Attributes:
        edges: inner edges of the bins of each exit point, ``[exits, bins - 1]``.
        advantages: value of exiting less that of going on, ``[exits, bins, bins]``: by bin, and by the highest bin at
            the exit points before (0 at the first). The optimum exits where it is at least 0.
    """

    edges: Floats
    advantages: Floats

    def __call__(self, scores: Floats) -> Floats:
        """Return the advantage of exiting at every exit point of some tokens, ``[n, exits]`` → ``[n, exits]``."""
        bins, before = _states(scores, self.edges)
        return self.advantages[np.arange(scores.shape[1]), bins, before]


def fit_optimum(scores: Floats, rewards: Floats, *, bins: int = BINS, prior: float = PRIOR) -> BinnedPolicy:
    """Return the policy with the highest mean return on some tokens.

    Args:
        scores: of every exit point, ``[n, exits]``.
        rewards: of :data:`CONTINUE` and :data:`EXIT` there, ``[n, exits, 2]``.
        bins: of equal counts, at each exit point.
        prior: tokens by which a state's means are drawn to those of its bin, whatever came before; 0 for none.
    """
    exits = scores.shape[1]
    edges = np.quantile(scores, np.arange(1, bins) / bins, axis=0).T
    current, before = _states(scores, edges)
    advantages = np.zeros((exits, bins, bins))
    ahead = np.zeros(len(scores))  # value of where each token is next; 0 at the last layer
    for exit_ in range(exits - 1, -1, -1):
        place = current[:, exit_] * bins + before[:, exit_]
        leave = _means(place, rewards[:, exit_, EXIT], bins, prior)
        go_on = _means(place, rewards[:, exit_, CONTINUE] + ahead, bins, prior)
        advantages[exit_] = leave - go_on
        ahead = np.maximum(leave, go_on).reshape(-1)[place]
    return BinnedPolicy(edges, advantages)


def cross_fitted_advantages(
    scores: Floats, rewards: Floats, documents: Places, *, seed: int = 0, folds: int = FOLDS
) -> Floats:
    """Return the advantage of exiting at every exit point, by policies fitted on other documents, ``[n, exits]``.

    Args:
        scores: ``[n, exits]``.
        rewards: ``[n, exits, 2]``.
        documents: number of each token's document, ``[n]``; at least two different ones.
        seed: decides which documents go together.
        folds: parts; no more than there are documents.
    """
    numbers, document = np.unique(documents, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(numbers)) % min(folds, len(numbers))
    found = np.empty_like(scores)
    for part in range(fold.max() + 1):
        inside = fold[document] == part
        found[inside] = fit_optimum(scores[~inside], rewards[~inside])(scores[inside])
    return found


def returns(rewards: Floats, places: Places) -> Floats:
    """Return the sum of the rewards of tokens that stop at some exits, ``[n]``.

    Args:
        rewards: ``[n, exits, 2]``.
        places: where each stops, ``[n]``; ``exits`` for the last layer.
    """
    passed = np.concatenate((np.zeros((len(rewards), 1)), rewards[:, :, CONTINUE].cumsum(1)), axis=1)
    leave = np.concatenate((rewards[:, :, EXIT], np.zeros((len(rewards), 1))), axis=1)
    rows = np.arange(len(rewards))
    summed: Floats = passed[rows, places] + leave[rows, places]
    return summed


def _states(scores: Floats, edges: Floats) -> tuple[Places, Places]:
    """Return each token's bin at every exit point, and the highest one before, ``[n, exits]`` each."""
    bins = np.stack(
        [np.searchsorted(edge, column, side="right") for edge, column in zip(edges, scores.T, strict=True)], axis=1
    )
    before = np.zeros_like(bins)
    before[:, 1:] = np.maximum.accumulate(bins, axis=1)[:, :-1]
    return bins, before


def _means(place: Places, values: Floats, bins: int, prior: float) -> Floats:
    """Return the mean value of each state, ``[bins, bins]``, shrunk to its bin's, and that to the mean of all."""
    count = np.bincount(place, minlength=bins * bins).reshape(bins, bins).astype(float)
    total = np.bincount(place, values, minlength=bins * bins).reshape(bins, bins)
    overall = values.mean()
    by_bin = _divide(total.sum(1) + prior * overall, count.sum(1) + prior, overall)
    return _divide(total + prior * by_bin[:, None], count + prior, by_bin[:, None])


def _divide(total: Floats, count: Floats, otherwise: Floats | float) -> Floats:
    empty = count == 0
    return np.where(empty, otherwise, total / np.where(empty, 1, count))


Ranged = tuple[float, tuple[float, float] | None]
"""A value and its 95 % interval over documents, ``None`` where they are too few."""

FIGURES = ("agreement", "exit_layer", "reward")
POLICIES = ("optimum", "constrained optimum", "agent")
HIGHEST_PRICE = 32.0
"""Of a wrong exit: 98 % agreement takes 4 to 10 with the rewards there are."""


@dataclass(frozen=True, eq=False)
class TracedTokens:
    """Tokens of a trace, with what every exit decision on them would have brought.

    Attributes:
        probability: of the exit head's token, ``[n, exits]``.
        right: whether it is the last layer's, ``[n, exits]`` bool.
        rewards: of both actions, ``[n, exits, 2]``.
        document: number of each token's document, ``[n]``.
        exit_points: layers of the exits.
        num_layers: decoder layers.
    """

    probability: Tensor
    right: Tensor
    rewards: Tensor
    document: Tensor
    exit_points: tuple[int, ...]
    num_layers: int


class PolicyRow(TypedDict):
    """One policy on the tokens that are looked at.

    ``policy``: ``optimum`` of the reward; ``constrained optimum``, the one that keeps the wanted
    agreement by itself (Lagrangian: a wrong exit costs more); ``agent``; or the name of a score, for a threshold on it.
    ``kept``: whether its threshold is the loosest that keeps the wanted agreement; else it is the policy as it is.
    ``agreement``: share of tokens equal to the last layer's. ``exit_layer``: mean layers. ``reward``: mean sum of a
    token's rewards.
    """

    policy: str
    kept: bool
    agreement: Ranged
    exit_layer: Ranged
    reward: Ranged


class Distance(TypedDict):
    """An agent less the optimum, paired by document.

    ``reward``: of a token, both as they are. ``exit_layer``: where both keep the wanted agreement; ``None`` where one
    of them cannot.
    """

    reward: Ranged
    exit_layer: Ranged | None


class BesideOptimum(TypedDict):
    """The comparison, JSON-able; ``distance`` is ``None`` without an agent."""

    keep: float
    tokens: int
    documents: int
    rows: list[PolicyRow]
    distance: Distance | None


def beside_optimum(
    tokens: TracedTokens,
    looked_at: Tensor,
    scores: Mapping[str, Tensor],
    *,
    agent: Tensor | None,
    keep: float,
    seed: int,
) -> BesideOptimum:
    """Compare policies on some tokens, the optimum fitted on all tokens of other documents.

    Args:
        tokens: of the trace.
        looked_at: tokens to compare on, ``[n]`` bool; none that the agent or a score has learned from.
        scores: name → score there, for plain thresholds, ``[looked_at, exits]``.
        agent: logit(exit) − logit(continue) there, ``[looked_at, exits]``.
        keep: agreement at which mean layers are compared.
        seed: decides the folds.
    """
    rewards = tokens.rewards.double().numpy()
    rule = _Rule(tokens, looked_at, rewards[looked_at.numpy()], keep)
    optimum = _advantages(tokens, rewards, 0.0, seed)[looked_at]
    decided = {"optimum": optimum} if agent is None else {"optimum": optimum, "agent": agent}
    asis = {name: rule(score, 0.0) for name, score in decided.items()}
    constrained = {"constrained optimum": _constrained(tokens, looked_at, rewards, rule, seed)}
    held = {name: rule.keeping(score) for name, score in {**decided, **constrained, **scores}.items()}
    kept = {name: sums for name, sums in held.items() if sums is not None}
    rows = [_row(name, False, sums, rule) for name, sums in asis.items()]
    rows += [_row(name, True, sums, rule) for name, sums in kept.items()]
    distance: Distance | None = None
    if agent is not None:
        both = {"optimum", "agent"} <= kept.keys()
        distance = {
            "reward": rule.ranged(asis["agent"]["reward"] - asis["optimum"]["reward"]),
            "exit_layer": rule.ranged(kept["agent"]["exit_layer"] - kept["optimum"]["exit_layer"]) if both else None,
        }
    return {
        "keep": keep,
        "tokens": int(looked_at.sum()),
        "documents": rule.documents,
        "rows": rows,
        "distance": distance,
    }


def _advantages(tokens: TracedTokens, rewards: Floats, price: float, seed: int) -> Tensor:
    """Return cross-fitted advantages of exiting where a wrong exit costs something more, ``[n, exits]``."""
    priced = rewards.copy()
    priced[:, :, EXIT] -= price * (~tokens.right).numpy()
    probability, document = tokens.probability.double().numpy(), tokens.document.long().numpy()
    return torch.from_numpy(cross_fitted_advantages(probability, priced, document, seed=seed))


def _constrained(tokens: TracedTokens, looked_at: Tensor, rewards: Floats, rule: _Rule, seed: int) -> Tensor:
    """Return the advantages of the optimum at the least price of wrong exits that makes it keep the agreement."""
    low, high = 0.0, HIGHEST_PRICE
    while high - low > 0.25:
        middle = (low + high) / 2
        if rule.agreement(_advantages(tokens, rewards, middle, seed)[looked_at]) >= rule.keep:
            high = middle
        else:
            low = middle
    return _advantages(tokens, rewards, high, seed)[looked_at]


class _Rule:
    """Exits where a score is high enough, and adds up per document what that brings."""

    def __init__(self, tokens: TracedTokens, looked_at: Tensor, rewards: Floats, keep: float) -> None:
        self._right, self._rewards, self.keep = tokens.right[looked_at], rewards, keep
        self._points, self._layers = tokens.exit_points, tokens.num_layers
        _, self._document = np.unique(tokens.document[looked_at].numpy(), return_inverse=True)
        self._count = np.bincount(self._document).astype(float)
        self._drawn = draws(self.documents)

    @property
    def documents(self) -> int:
        return len(self._count)

    def __call__(self, scores: Tensor, threshold: float) -> dict[str, Floats]:
        """Return the sums of :data:`FIGURES` over each document's tokens, ``[documents]`` each."""
        places = exit_places(scores >= threshold)
        always = torch.cat((self._right, torch.ones(len(places), 1, dtype=torch.bool)), dim=1)
        layers = torch.tensor([*self._points, self._layers])[places]
        right = always.gather(1, places.unsqueeze(1)).squeeze(1)
        values = (right.double().numpy(), layers.double().numpy(), returns(self._rewards, places.numpy()))
        return {
            name: np.bincount(self._document, value).astype(float) for name, value in zip(FIGURES, values, strict=True)
        }

    def agreement(self, scores: Tensor) -> float:
        """Return the share of tokens equal to the last layer's where exits happen from 0 on."""
        return float(self(scores, 0.0)["agreement"].sum() / self._count.sum())

    def keeping(self, scores: Tensor) -> dict[str, Floats] | None:
        """Return the same at the loosest threshold that keeps the agreement; ``None`` if none does."""
        found = threshold_keeping(scores, self._right, self._points, self._layers, self.keep)
        return None if found is None else self(scores, found["threshold"])

    def ranged(self, sums: Floats) -> Ranged:
        """Return a mean per token with its interval."""
        replicates = (self._drawn @ sums) / (self._drawn @ self._count)
        return float(sums.sum() / self._count.sum()), replicate_interval(replicates, self.documents)


def _row(policy: str, kept: bool, sums: Mapping[str, Floats], rule: _Rule) -> PolicyRow:
    agreement, exit_layer, reward = (rule.ranged(sums[name]) for name in FIGURES)
    return {"policy": policy, "kept": kept, "agreement": agreement, "exit_layer": exit_layer, "reward": reward}


def render_optimum(found: BesideOptimum, reward: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown; ``reward`` as :func:`harness.training.agents.reward.describe` returns it."""
    coefficients = ", ".join(f"{name} {value:g}" for name, value in reward.items() if name != "rule")
    return "\n".join(_lines(found, f"{reward['rule']} ({coefficients})"))


def _lines(found: BesideOptimum, rule: str) -> Iterator[str]:
    keep = f"{found['keep']:.0%}"
    yield "| policy (replayed) | agreement | mean exit layer | mean reward of a token |"
    yield "|:--|--:|--:|--:|"
    for row in found["rows"]:
        name = row["policy"] if row["policy"] in POLICIES else f"threshold on the {row['policy']}"
        name += f", held to {keep}" if row["kept"] else " as it is"
        yield f"| {name} | {_text(row['agreement'], 3)} | {_text(row['exit_layer'], 2)} | {_text(row['reward'], 3)} |"
    yield ""
    yield (
        f"Reward: {rule}. Optimum: backward induction on binned probabilities, cross-fitted over documents; "
        f"{found['tokens']} tokens of {found['documents']} documents, 95 % intervals over documents. "
        "Held: from the loosest preference on that keeps the agreement, chosen on the same tokens. Constrained: wrong "
        "exits are priced so that the optimum keeps it by itself."
    )
    if found["distance"] is not None:
        reward, layers = found["distance"]["reward"], found["distance"]["exit_layer"]
        yield f"Distance of the agent to the optimum of its reward: {_text(reward, 3, '+')} reward a token" + (
            f", {_text(layers, 2, '+')} layers at {keep} agreement." if layers else f"; one of them cannot hold {keep}."
        )


def _text(ranged: Ranged, decimals: int, sign: str = "") -> str:
    value, interval = ranged
    text = f"{value:{sign}.{decimals}f}"
    return text if interval is None else f"{text} [{interval[0]:.{decimals}f}, {interval[1]:.{decimals}f}]"


def find_optimum(options: AgentOptions, run: TrainingRun) -> Trained:
    """Compare the optimum of a reward with the model's agent for that reward, where it has one.

    They are compared on documents the agent has not learned from, all those of the tasks without an agent. The folder
    receives ``optimum-NAME.json``.

    Raises:
        HarnessError: in one line, with the remedy.
    """
    traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
    reward = choose_reward(options, traces)
    facts = describe(reward)
    run.progress.stage(f"reading {traces.tokens} tokens of {options.traces}")
    columns = traces.columns("top", "final", "top1", "document")
    wanted = rows_of_tasks(traces, columns["document"], options.tasks)
    document = columns["document"][wanted]
    if bool((document == document[0]).all()):
        raise DataError(f"{options.traces} has one document of these tasks, and the optimum is fitted on others. "
                        "Trace more --documents.")  # fmt: skip
    right = columns["top"] == columns["final"].unsqueeze(1)
    points, num_layers = traces.exit_points, resolved.info.num_layers
    rewards, _ = reward_table(right[wanted], points, num_layers, reward)
    tokens = TracedTokens(columns["top1"][wanted], right[wanted], rewards, document, points, num_layers)
    agent = next(_agents(run.recipe, resolved, facts), None)
    looked_at = wanted
    if agent is not None:
        looked_at = wanted & unseen_rows(traces, columns["document"], agent.artefact.facts)
        if not looked_at.any():
            raise ConfigError(
                f"{agent.artefact.path} has learned from every document of {options.traces}. Trace others: another "
                "--seed, or more --documents."
            )
    scores = {"probability": columns["top1"][looked_at]}
    for name, controller in _others(run.recipe, resolved):
        unseen = unseen_rows(traces, columns["document"], controller.artefact.facts)
        if not (looked_at & ~unseen).any():
            scores[name] = _scores(controller, traces, resolved, looked_at)
    decided = None if agent is None else _scores(agent, traces, resolved, looked_at)
    found = beside_optimum(tokens, looked_at[wanted], scores, agent=decided, keep=options.keep, seed=options.seed)
    described = {
        **identity(resolved.info, traces.index["tokenizer_fingerprint"]),
        "reward": facts,
        "agent": None if agent is None else agent.artefact.path.name,
        **found,
        "made": provenance(run.command),
    }
    path = options.folder / f"optimum-{options.name or run.recipe}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_files({path: (json.dumps(described, indent=1) + "\n").encode()})
    whose = "there is no agent for this reward" if agent is None else f"the agent is {agent.artefact.path}"
    return Trained(render_optimum(found, facts), f"{path} has the figures; {whose}.")


def _agents(kind: str, resolved: ResolvedModel, reward: object) -> Iterator[Controller]:
    """Yield the model's agents that were trained for a reward."""
    for folder in resolved.info.artefacts:
        for path in sorted(Path(folder).glob(f"{kind}*.json")):
            try:
                found = find_controller(kind, str(path), resolved.info)
            except ArtefactError:
                continue  # of other weights or exit points: not this model's
            if found.artefact.facts.get("reward") == reward:
                yield found


def _others(kind: str, resolved: ResolvedModel) -> Iterator[tuple[str, Controller]]:
    """Yield the controllers of other kinds that give one score, each with its kind; those under the kind's own name."""
    for folder in resolved.info.artefacts:
        for path in sorted(Path(folder).glob("*.json")):
            if path.stem == kind:
                continue
            try:
                found = find_controller(path.stem, str(path), resolved.info)
                found.networks()
            except ArtefactError:
                continue  # no controller, none of this model, or one of three actions, which no threshold orders
            yield path.stem, found


def _scores(controller: Controller, traces: Traces, resolved: ResolvedModel, rows: Tensor) -> Tensor:
    networks, points = controller.networks(), traces.exit_points
    states = exit_states(traces, exit_maps(traces, resolved, controller.observation), rows)
    with torch.inference_mode():
        return score_all(networks, controller.observation, states, points)
