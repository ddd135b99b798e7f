"""``harness train rl --optimum``: a policy fitted to a reward by backward induction, and how far an agent is from it.

A trace says what every exit point would have answered, whatever is decided, so that the value of each decision can be
averaged instead of explored. The policy knows the exit point, the bin of a score there, and the highest bin that the
score was in before at this token (Eq. 2 and 3 punish leaving behind the first right exit, so the past matters). It is
the optimum among policies of this state, a lower bound of what a policy that sees the hidden state could earn, and it
maximises GREEN-CODE's Eq. 4: the sum of a token's rewards without discount. Held to an agreement by a threshold on its
preference it is no optimum: plain thresholds may earn more. Cross-fitted over documents, its returns are out of sample.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import ArtefactError, ConfigError, DataError
from harness.host.files import replace_files
from harness.models.controllers import Controller, find_controller
from harness.models.model import ResolvedModel
from harness.records.estimate import Estimate, Interval
from harness.training.agents.reward import CONTINUE, EXIT, choose_reward, describe, reward_table
from harness.training.identity import identity, provenance
from harness.training.recipes import Agent
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


Ranged = tuple[float, Interval | None]
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

    def advantages(self, price: float, seed: int) -> Tensor:
        """Return cross-fitted advantages of exiting where a wrong exit costs something more, ``[n, exits]``."""
        priced = self.rewards.double().numpy().copy()
        priced[:, :, EXIT] -= price * (~self.right).numpy()
        probability, document = self.probability.double().numpy(), self.document.long().numpy()
        return torch.from_numpy(cross_fitted_advantages(probability, priced, document, seed=seed))


def beside_optimum(
    tokens: TracedTokens,
    looked_at: Tensor,
    scores: Mapping[str, Tensor],
    *,
    agent: Tensor | None,
    keep: float,
    seed: int,
) -> dict[str, Any]:
    """Compare policies on some tokens, the optimum fitted on all tokens of other documents.

    Args:
        tokens: of the trace.
        looked_at: tokens to compare on, ``[n]`` bool; none that the agent or a score has learned from.
        scores: name → score there, for plain thresholds, ``[looked_at, exits]``.
        agent: logit(exit) − logit(continue) there, ``[looked_at, exits]``.
        keep: agreement at which mean layers are compared.
        seed: decides the folds.

    Returns:
        JSON-able: ``keep``, ``tokens`` and ``documents`` looked at; ``rows``, each of a ``policy`` (``optimum`` of the
        reward; ``constrained optimum``, the one that keeps the wanted agreement by itself, since a wrong exit costs
        more; ``agent``; or the name of a score), whether its threshold is the loosest that keeps the agreement
        (``kept``; else it is the policy as it is), and the share of tokens equal to the last layer's (``agreement``),
        mean layers (``exit_layer``) and mean sum of a token's rewards (``reward``), each a :data:`Ranged`; and
        ``distance``, an agent less the optimum, paired by document: of the ``reward`` as they are, and of the
        ``exit_layer`` where both keep the agreement, ``None`` where one cannot.
    """
    rule = _Rule(tokens, looked_at)
    optimum = tokens.advantages(0.0, seed)[looked_at]
    low, high = 0.0, HIGHEST_PRICE
    while high - low > 0.25:
        middle = (low + high) / 2
        if rule(tokens.advantages(middle, seed)[looked_at], 0.0)["agreement"].sum() / rule.count.sum() >= keep:
            high = middle
        else:
            low = middle
    constrained = {"constrained optimum": tokens.advantages(high, seed)[looked_at]}
    decided = {"optimum": optimum} if agent is None else {"optimum": optimum, "agent": agent}
    asis = {name: rule(score, 0.0) for name, score in decided.items()}
    kept = {}
    for name, score in {**decided, **constrained, **scores}.items():
        found = threshold_keeping(score, rule.right, tokens.exit_points, tokens.num_layers, keep)
        if found is not None:
            kept[name] = rule(score, found["threshold"])
    distance = None
    if agent is not None:
        both = {"optimum", "agent"} <= kept.keys()
        distance = {
            "reward": rule.ranged(asis["agent"]["reward"] - asis["optimum"]["reward"]),
            "exit_layer": rule.ranged(kept["agent"]["exit_layer"] - kept["optimum"]["exit_layer"]) if both else None,
        }
    rows = [
        {"policy": name, "kept": held, **{figure: rule.ranged(sums[figure]) for figure in FIGURES}}
        for held, policies in ((False, asis), (True, kept))
        for name, sums in policies.items()
    ]
    told = {"keep": keep, "tokens": int(looked_at.sum()), "documents": len(rule.count)}
    return {**told, "rows": rows, "distance": distance}


class _Rule:
    """Exits where a score is high enough, and adds up per document what that brings."""

    def __init__(self, tokens: TracedTokens, looked_at: Tensor) -> None:
        self.right, self._rewards = tokens.right[looked_at], tokens.rewards.double().numpy()[looked_at.numpy()]
        self._layers = torch.tensor([*tokens.exit_points, tokens.num_layers])
        self._document = np.unique(tokens.document[looked_at].numpy(), return_inverse=True)[1]
        self.count = np.bincount(self._document).astype(float)
        self._drawn = draws(len(self.count))

    def __call__(self, scores: Tensor, threshold: float) -> dict[str, Floats]:
        """Return the sums of :data:`FIGURES` over each document's tokens, ``[documents]`` each."""
        places = exit_places(scores >= threshold)
        always = torch.cat((self.right, torch.ones(len(places), 1, dtype=torch.bool)), dim=1)
        right = always.gather(1, places.unsqueeze(1)).squeeze(1)
        earned = returns(self._rewards, places.numpy())
        values = (right.double().numpy(), self._layers[places].double().numpy(), earned)
        return {
            name: np.bincount(self._document, value).astype(float) for name, value in zip(FIGURES, values, strict=True)
        }

    def ranged(self, sums: Floats) -> Ranged:
        """Return a mean per token with its interval."""
        replicates = (self._drawn @ sums) / (self._drawn @ self.count)
        return float(sums.sum() / self.count.sum()), replicate_interval(replicates, len(self.count))


def render_optimum(found: Mapping[str, Any], reward: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown; ``reward`` as :func:`harness.training.agents.reward.describe` returns it."""
    keep = f"{found['keep']:.0%}"
    lines = ["| policy (replayed) | agreement | mean exit layer | mean reward of a token |", "|:--|--:|--:|--:|"]
    for row in found["rows"]:
        name = row["policy"] if row["policy"] in POLICIES else f"threshold on the {row['policy']}"
        name += f", held to {keep}" if row["kept"] else " as it is"
        cells = (_text(row[figure], decimals) for figure, decimals in zip(FIGURES, (3, 2, 3), strict=True))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    coefficients = ", ".join(f"{name} {value:g}" for name, value in reward.items() if name != "rule")
    lines += [
        "",
        f"Reward: {reward['rule']} ({coefficients}). Optimum: backward induction on binned probabilities, cross-fitted "
        f"over documents; {found['tokens']} tokens of {found['documents']} documents, 95 % intervals over documents. "
        "Held: from the loosest preference on that keeps the agreement, chosen on the same tokens. Constrained: wrong "
        "exits are priced so that the optimum keeps it by itself.",
    ]
    if found["distance"] is not None:
        earned, layers = found["distance"]["reward"], found["distance"]["exit_layer"]
        held = (
            f", {_text(layers, 2, '+')} layers at {keep} agreement." if layers else f"; one of them cannot hold {keep}."
        )
        lines.append(
            f"Distance of the agent to the optimum of its reward: {_text(earned, 3, '+')} reward a token{held}"
        )
    return "\n".join(lines)


def _text(ranged: Ranged, decimals: int, sign: str = "") -> str:
    return Estimate.of(*ranged).text(f"{{:{sign}.{decimals}f}}", f"{{:.{decimals}f}}")


def find_optimum(options: Agent, run: TrainingRun) -> Trained:
    """Compare the optimum of a reward with the model's agent for that reward, where it has one.

    They are compared on documents the agent has not learned from, all those of the tasks without an agent. The folder
    receives ``optimum-NAME.json``.
    """
    traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
    reward = choose_reward(options, traces)
    facts = describe(reward)
    run.progress.stage(f"reading {traces.tokens} tokens of {options.traces}")
    columns = traces.columns("top", "final", "top1", "document")
    wanted = rows_of_tasks(traces, columns["document"], options.tasks)
    document = columns["document"][wanted]
    if bool((document == document[0]).all()):
        raise DataError(
            f"{options.traces} has one document of these tasks, and the optimum is fitted on others. Trace more "
            "--documents."
        )
    right = columns["top"] == columns["final"].unsqueeze(1)
    points, num_layers = traces.exit_points, resolved.info.num_layers
    rewards, _ = reward_table(right[wanted], points, num_layers, reward)
    tokens = TracedTokens(columns["top1"][wanted], right[wanted], rewards, document, points, num_layers)
    agents = _controllers(resolved, f"{run.recipe}*.json", run.recipe)
    agent = next((found for found in agents if found.artefact.facts.get("reward") == facts), None)
    looked_at = wanted
    if agent is not None:
        looked_at = wanted & unseen_rows(traces, columns["document"], agent.artefact.facts)
        if not looked_at.any():
            raise ConfigError(
                f"{agent.artefact.path} has learned from every document of {options.traces}. Trace others: another "
                "--seed, or more --documents."
            )
    scores = {"probability": columns["top1"][looked_at]}
    for controller in _controllers(resolved, "*.json"):
        kind = controller.artefact.kind
        if kind == run.recipe:
            continue
        unseen = unseen_rows(traces, columns["document"], controller.artefact.facts)
        if not (looked_at & ~unseen).any():
            with suppress(ArtefactError):  # of three actions, which no threshold orders
                scores[kind] = _scores(controller, traces, resolved, looked_at)
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


def _controllers(resolved: ResolvedModel, pattern: str, kind: str = "") -> Iterator[Controller]:
    """Yield the model's controllers in files of a name, of a kind, or of the kind that the file is named after."""
    for folder in resolved.info.artefacts:
        for path in sorted(Path(folder).glob(pattern)):
            with suppress(ArtefactError):  # no controller, or of other weights or exit points
                yield find_controller(kind or path.stem, str(path), resolved.info)


def _scores(controller: Controller, traces: Traces, resolved: ResolvedModel, rows: Tensor) -> Tensor:
    networks, points = controller.networks(), traces.exit_points
    states = exit_states(traces, exit_maps(traces, resolved, controller.observation), rows)
    with torch.inference_mode():
        return score_all(networks, controller.observation, states, points)
