"""The optimum of a reward on traced tokens, by backward induction, and how far an agent is from it.

On given tokens an episode is one token's walk through its exits, then the next one's: no decision changes what a later
exit or token will say. So with discount 0 an agent faces a contextual bandit, with discount 1 optimal stopping. A trace
says what every exit would have answered, so that values are averaged and not explored. Small heads estimate how likely
each exit is right from what the exit heads have said of the token so far, and from the last exit backwards the least
chance is found at which exiting earns more than going on (Longstaff and Schwartz 2001: by what tokens then earn, not by
what they are expected to). Both are fitted on other documents than they decide. That is the optimum among policies of
exit and chance. What it reads is a function of the states, so that an agent that sees these could do as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.contracts.recipes import Progress
from harness.models.controllers import Observation
from harness.records.estimate import Estimate, Interval
from harness.training.agents.episodes import Episodes
from harness.training.agents.reward import CONTINUE, EXIT
from harness.training.heads import Targets, fit
from harness.training.recipes import HeadRecipe
from harness.training.traces.training_set import exit_places, score_all, threshold_keeping
from reports.statistics.intervals import draws, replicate_interval

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
FOLDS = 5
SWEEPS = 3
HEADS = HeadRecipe(hidden=16, epochs=8, batch=128, learning_rate=1e-2, auxiliary=0.0)
KEEPS = (0.90, 0.95, 0.98, 0.99)
PRICES = np.geomspace(0.25, 100, 40)
"""Of a wrong exit, beside the layers that exiting saves, as a share of what the first exit point does."""


def folds_of(documents: Places, seed: int) -> Places:
    """Return the fold of each token's document, ``[n]``; there are at least two different ``documents``."""
    numbers, document = np.unique(documents, return_inverse=True)
    fold: Places = (np.random.default_rng(seed).permutation(len(numbers)) % min(FOLDS, len(numbers)))[document]
    return fold


def readings(top: Tensor, top1: Tensor, entropy: Tensor) -> Tensor:
    """Return what the exit heads said so far at each exit point, ``[n, exits, 5]`` float32, of trace columns.

    The logit of the token's probability, entropy, whether the token is that of the exit before, the logit there, and
    the highest one before.
    """
    logit = torch.logit(top1.float().clamp(1e-4, 1 - 1e-4))
    before = torch.cat((logit[:, :1].new_full((len(logit), 1), -10), logit[:, :-1]), dim=1)
    same = torch.cat((torch.zeros(len(top), 1), (top[:, 1:] == top[:, :-1]).float()), dim=1)
    return torch.stack((logit, entropy.float(), same, before, before.cummax(1).values), dim=-1)


def chances(said: Tensor, right: Tensor, fold: Places, seed: int, progress: Progress) -> Tensor:
    """Return how likely each exit is right by heads that learned from the other folds, ``[n, exits]``.

    They read :func:`readings`, ``[n, exits, 5]``; ``right`` is ``[n, exits]`` bool.
    """
    found, points = torch.empty(right.shape), range(right.shape[1])
    for part in range(fold.max() + 1):
        inside = torch.from_numpy(fold == part)
        targets = Targets(right[~inside].float())
        heads = fit(said[~inside], Observation(), targets, points, HEADS, seed=seed, progress=progress)
        found[inside] = torch.sigmoid(score_all(heads, Observation(), said[inside], points))
    return found


def fit_optimum(scores: Floats, rewards: Floats, discount: float = 1.0) -> Floats:
    """Return from which score on to exit at each exit point, ``[exits]``; infinity where going on is worth more.

    Backwards from the last one, each maximises the mean return of rewards ``[n, exits, 2]``, ``discount`` 0 the next
    reward alone, given those behind it: first of all tokens, then again of those that come so far.
    """
    exits = scores.shape[1]
    least = np.full(exits, np.inf)
    order = np.argsort(-scores, axis=0, kind="stable")
    for _ in range(SWEEPS):
        ahead = np.zeros(len(scores))  # what each token earns behind this exit; nothing at the last layer
        for place in range(exits - 1, -1, -1):
            leave, go_on = rewards[:, place, EXIT], rewards[:, place, CONTINUE] + discount * ahead
            comes = (scores[:, :place] < least[:place]).all(1)
            score = scores[order[:, place], place]
            gain = ((leave - go_on) * comes)[order[:, place]].cumsum()
            ends = np.append(np.diff(score) != 0, True)  # tokens of one score go together
            best = int(np.where(ends, gain, -np.inf).argmax())
            if comes.any():
                least[place] = score[best] if gain[best] > 0 else np.inf
            ahead = np.where(scores[:, place] >= least[place], leave, go_on)
    return least


def cross_fitted_places(scores: Floats, rewards: Floats, fold: Places, discount: float = 1.0) -> Places:
    """Return where each token stops under the policy that is the optimum of the other folds, ``[n]``."""
    found = np.empty(len(fold), dtype=np.int64)
    for part in range(fold.max() + 1):
        inside = fold == part
        leaves = scores[inside] >= fit_optimum(scores[~inside], rewards[~inside], discount)
        found[inside] = exit_places(torch.from_numpy(leaves)).numpy()
    return found


def returns(rewards: Floats, places: Places) -> Floats:
    """Return the sum of the rewards of tokens, ``[n]``, that stop at these places; ``exits`` is the last layer."""
    passed = np.concatenate((np.zeros((len(rewards), 1)), rewards[:, :, CONTINUE].cumsum(1)), axis=1)
    leave = np.concatenate((rewards[:, :, EXIT], np.zeros((len(rewards), 1))), axis=1)
    rows = np.arange(len(rewards))
    summed: Floats = passed[rows, places] + leave[rows, places]
    return summed


def hindsight(right: NDArray[np.bool_], layers: Places, keep: float) -> Places:
    """Return where tokens stop, ``[n]``, with the fewest layers there are to a share kept: chosen knowing all answers.

    Each stops at its first right exit, but those that this costs most at the first exit, until they are 1 − ``keep``.
    """
    places: Places = exit_places(torch.from_numpy(right)).numpy()
    wrong = np.argsort(-layers[places], kind="stable")[: int((1 - keep) * len(places))]
    places[wrong] = 0
    return places


Ranged = tuple[float, Interval | None]
"""A value and its 95 % interval over documents, ``None`` where they are too few."""
FIGURES = ("agreement", "exit_layer", "reward")


def beside_optimum(
    everything: Episodes,
    held_out: Episodes,
    said: Tensor,
    agent: Tensor,
    *,
    keep: float,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Compare an agent with policies on held-out documents, those fitted on all tokens of other documents.

    ``said`` is :func:`readings` of all tokens; ``agent`` has logit(exit) − logit(continue) at the held-out ones,
    ``[n, exits]``; shares kept are :data:`KEEPS` and ``keep``; the seed decides folds.

    Returns:
        JSON-able: ``keep``; ``tokens`` and ``documents`` looked at; ``rows``, each of a ``policy``, the share of tokens
        it is to ``keep`` with the fewest layers (``None``: it is as it is, the optimum that of the agent's own reward),
        the share of tokens equal to the last layer's (``agreement``), mean layers (``exit_layer``) and mean sum of a
        token's rewards (``reward``), each a :data:`Ranged`; and ``distance``, the agent less the optimum, paired by
        document: of the ``reward`` as they are, of the ``exit_layer`` by the share kept. What cannot keep it is left
        out.
    """
    rows, points, num_layers = held_out.rows(), everything.exit_points, everything.num_layers
    documents = np.repeat(np.arange(len(everything.documents)), [found.tokens for found in everything.documents])
    looked_at = np.unique(documents[rows], return_inverse=True)[1]
    count = np.bincount(looked_at).astype(float)
    drawn = draws(len(count))
    right, layers = torch.from_numpy(everything.right[rows]), np.array([*points, num_layers])
    correct = np.concatenate((everything.right[rows], np.ones((len(rows), 1), dtype=bool)), axis=1)
    rewards = everything.rewards.astype(np.float64)
    fold = folds_of(documents, seed)
    chance = chances(said, torch.from_numpy(everything.right), fold, seed, progress)
    scores = chance.double().numpy()

    def sums(places: Places) -> dict[str, Floats]:
        """Add up over each document's tokens what stopping at these places brings, ``[documents]`` each."""
        values = (correct[np.arange(len(rows)), places], layers[places], returns(rewards[rows], places))
        return {name: np.bincount(looked_at, value).astype(float) for name, value in zip(FIGURES, values, strict=True)}

    def ranged(summed: Floats) -> Ranged:
        """Return a mean per token with its interval."""
        return float(summed.sum() / count.sum()), replicate_interval((drawn @ summed) / (drawn @ count), len(count))

    saved = (num_layers - layers[:-1]) / (num_layers - layers[0])

    def priced(price: float) -> Floats:
        """Return rewards of the layers that are saved, less the price of a wrong exit."""
        leave = saved - price * ~everything.right
        return np.stack((np.zeros_like(leave), leave), axis=-1)

    optima = {
        name: [sums(cross_fitted_places(scores, priced(price), fold, discount)[rows]) for price in PRICES]
        for name, discount in (("optimum", 1.0), ("optimum, discount 0", 0.0))
    }
    thresholds = {
        "threshold on the chance": chance[rows],
        "threshold on the probability": said[rows, :, 0],
        "agent": agent,
    }

    def keeping(share: float) -> Iterator[tuple[str, dict[str, Floats]]]:
        """Yield policies with what they bring where they keep a share with the fewest layers."""
        yield "hindsight", sums(hindsight(everything.right[rows], layers, share))
        for name, some in optima.items():
            if mixed := mixture(some, share * len(rows)):
                yield name, mixed
        for name, score in thresholds.items():
            least = threshold_keeping(score, right, points, num_layers, share)
            if least is not None:
                yield name, sums(exit_places(score >= least["threshold"]).numpy())

    asis = {
        "optimum": sums(cross_fitted_places(scores, rewards, fold)[rows]),
        "agent": sums(exit_places(agent >= 0).numpy()),
    }
    kept = {share: dict(keeping(share)) for share in sorted({*KEEPS, keep})}
    found: list[tuple[float | None, dict[str, dict[str, Floats]]]] = [(None, asis), *kept.items()]
    return {
        "keep": keep,
        "tokens": len(rows),
        "documents": len(count),
        "rows": [
            {"policy": name, "keep": share, **{figure: ranged(values[figure]) for figure in FIGURES}}
            for share, policies in found
            for name, values in policies.items()
        ],
        "distance": {
            "reward": ranged(asis["agent"]["reward"] - asis["optimum"]["reward"]),
            "exit_layer": {
                str(share): ranged(policies["agent"]["exit_layer"] - policies["optimum"]["exit_layer"])
                for share, policies in kept.items()
                if {"agent", "optimum"} <= policies.keys()
            },
        },
    }


def mixture(policies: Sequence[dict[str, Floats]], wanted: float) -> dict[str, Floats] | None:
    """Return what tokens bring that are dealt to two policies next to one another so that ``wanted`` of them are kept.

    Of policies under a constraint the best is such a mixture (Altman 1999, Constrained Markov Decision Processes).
    """
    kept = np.array([each["agreement"].sum() for each in policies])
    below = np.flatnonzero(kept < wanted)
    if not len(below):
        return policies[0]
    if below[-1] == len(kept) - 1:
        return None
    low, high = policies[below[-1]], policies[below[-1] + 1]
    share = (wanted - kept[below[-1]]) / (kept[below[-1] + 1] - kept[below[-1]])
    return {name: (1 - share) * low[name] + share * high[name] for name in low}


def render_optimum(found: Mapping[str, Any], reward: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown; ``reward`` as :func:`harness.training.agents.reward.describe` returns it."""
    shares = sorted({row["keep"] for row in found["rows"]} - {None})
    cells = {(row["policy"], row["keep"]): row for row in found["rows"]}
    lines = [
        f"| mean exit layer (replayed) at | {' | '.join(f'{share:.0%}' for share in shares)} |",
        "|:--|" + "--:|" * len(shares),
    ]
    for policy in dict.fromkeys(row["policy"] for row in found["rows"] if row["keep"]):
        layers = (cells.get((policy, share)) for share in shares)
        said = (_text(cell["exit_layer"], 2) if cell else "–" for cell in layers)
        lines.append(f"| {policy} | {' | '.join(said)} |")
    lines += ["", "| as it is | agreement | mean exit layer | mean reward of a token |", "|:--|--:|--:|--:|"]
    for row in found["rows"]:
        if row["keep"] is None:
            said = (_text(row[figure], decimals) for figure, decimals in zip(FIGURES, (3, 2, 3), strict=True))
            lines.append(f"| {row['policy']} | {' | '.join(said)} |")
    coefficients = ", ".join(f"{name} {value:g}" for name, value in reward.items() if name != "rule")
    earned, keep = found["distance"]["reward"], found["keep"]
    layers = found["distance"]["exit_layer"].get(str(keep))
    held = (
        f", {_text(layers, 2, '+')} layers at {keep:.0%} agreement."
        if layers
        else f"; one of them cannot hold {keep:.0%}."
    )
    lines += [
        "",
        f"Reward: {reward['rule']} ({coefficients}). {found['tokens']} tokens of {found['documents']} documents, 95 % "
        "intervals over documents. At a share of tokens kept: the loosest threshold, and a mixture of two prices of a "
        "wrong exit, chosen on the same tokens. Optimum: backward induction over the chance that an exit is right, as "
        "told by all that the exit heads have said, fitted on other documents; as it is, of the agent's reward.",
        f"Distance of the agent to the optimum: {_text(earned, 3, '+')} reward a token{held}",
    ]
    return "\n".join(lines)


def _text(ranged: Ranged, decimals: int, sign: str = "") -> str:
    return Estimate.of(*ranged).text(f"{{:{sign}.{decimals}f}}", f"{{:.{decimals}f}}")
