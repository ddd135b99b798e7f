"""``harness train rl``: from a trace to an agent that decides, with what it would have done on held-out documents."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.host.files import replace_files
from harness.models.controllers import OBSERVATIONS, Network, write_controller
from harness.registry import TASKS
from harness.training.agents.episodes import Episodes, read_episodes, split
from harness.training.agents.exit_env import ExitVecEnv
from harness.training.agents.optimum import beside_optimum, readings, render_optimum
from harness.training.agents.ppo import AgentCheckpoints, learn
from harness.training.agents.reward import CONTINUE, EXIT, choose_reward, describe
from harness.training.checkpoints import stop_on_interrupt
from harness.training.identity import exit_head_note
from harness.training.recipes import Agent, AgentSettings
from harness.training.traces.reading import exit_maps
from harness.training.traces.training_set import (
    ReplayRow,
    TrainingSet,
    render_replay,
    replay_rows,
    sample,
    threshold_keeping,
)


@torch.inference_mode()
def agent_scores(policy: Network, episodes: Episodes) -> Tensor:
    """Return logit(exit) − logit(continue) at every exit of some documents' tokens, ``[n, exits]``."""
    rows = episodes.rows()
    parts = [
        policy(torch.from_numpy(episodes.observations[rows[begin : begin + 1024]]).float()).squeeze(-1)
        for begin in range(0, len(rows), 1024)
    ]
    return torch.cat(parts)


def replay_agent(scores: Tensor, held_out: Episodes, keep: float) -> tuple[dict[str, Any], float, str]:
    """Return what an agent with these scores would have done on held-out documents, a threshold, and both as Markdown.

    The threshold is the loosest that keeps the agreement, or 1 (never exit).
    """
    rows = held_out.rows()
    right = torch.from_numpy(held_out.right[rows])
    points, num_layers = held_out.exit_points, held_out.num_layers
    inclined = scores[scores >= 0]  # below, it prefers to continue, whatever the threshold
    thresholds = [0.0]
    if len(inclined):
        shares = torch.arange(1, 20) / 20
        thresholds += torch.quantile(sample(inclined), shares).tolist()
    table = replay_rows(scores, right, points, num_layers, sorted(set(thresholds)))
    least = threshold_keeping(scores, right, points, num_layers, keep)
    threshold = 1.0 if least is None else _probability(max(0.0, least["threshold"]))
    table = [ReplayRow(**{**row, "threshold": _probability(row["threshold"])}) for row in table]
    agreement = dict(zip(map(str, points), right.float().mean(0).tolist(), strict=True))
    optimal = torch.tensor([*points, num_layers], dtype=torch.float32)[torch.from_numpy(held_out.optimal[rows])]
    replayed = {
        "documents": len(held_out.documents),
        "tokens": len(rows),
        "thresholds": table,
        "fixed_exits": agreement,
        "best_exits": optimal.mean().item(),
        "keep": keep,
    }
    said = "it never exits by default" if least is None else f"default threshold {threshold:.4f}"
    report = [
        render_replay(table),
        "",
        f"{len(rows)} tokens of {len(held_out.documents)} held-out documents; {said}, for {keep:.0%} agreement.",
        f"First right exits: mean layer {optimal.mean().item():.2f}. Agreement of fixed exits: "
        + ", ".join(f"{layer}: {share:.3f}" for layer, share in agreement.items()),
    ]
    return replayed, threshold, "\n".join(report)


def _probability(difference: float) -> float:
    """Return softmax's share of exit, from the difference of the logits."""
    return 1 / (1 + math.exp(-difference))


AGENT_OBSERVATIONS = {
    name: observation if name == "paper" else replace(observation, place=True)
    for name, observation in OBSERVATIONS.items()
}
"""Observations of an agent: ``paper`` is the raw hidden state (GREEN-CODE section IV-B); the others are told which
exit point this is as well, since one network decides at all of them."""


def train_agent(options: Agent, run: TrainingRun) -> Trained:
    """Train an agent on a trace.

    The folder receives the agent (``NAME.json``, ``NAME.safetensors``), ``NAME-training.jsonl``, ``NAME.md`` and
    ``NAME-checkpoint/``.
    """
    for task in options.tasks:
        TASKS.load(task)
    progress, kind, seed = run.progress, run.recipe, options.seed
    name = options.name or kind
    settings = AgentSettings.part_of(options)
    observation = AGENT_OBSERVATIONS[options.observation]
    data = TrainingSet.open(options, run)
    traces, number = data.traces, data.columns["document"]
    reward = choose_reward(options, traces)
    maps = exit_maps(traces, data.resolved, observation)
    used = data.learned | data.held_out
    chosen = set(number[used].tolist())
    everything = read_episodes(traces, chosen, options.tokens, observation, maps, reward)
    learning, held_out = split(everything, set(number[data.held_out].tolist()))
    facts = {
        **data.identity(),
        "observation": observation.as_dict(),
        "reward": describe(reward),
        "ppo": {name: value for name, value in settings if name != "steps"},
        "seed": seed,
        "trained_on": {
            "streams": sorted({document.stream for document in learning.documents}),
            "documents": len(learning.documents),
            "tokens": learning.tokens,
            "episode_tokens": learning.length,
            "live": False,
        },
    }
    checkpoints = AgentCheckpoints(options.folder / f"{name}-checkpoint", kind, facts)
    layers, log = [*traces.exit_points, data.resolved.info.num_layers], f"{name}-training.jsonl"
    with stop_on_interrupt() as stop:
        learned = learn(
            ExitVecEnv(learning, settings.envs, seed), settings, layers, seed=seed, checkpoints=checkpoints,
            log=options.folder / log,
            save_steps=options.save_steps, resume=options.resume, progress=progress, stop=stop,
        )  # fmt: skip
    if not learned.finished:
        return Trained(finished=False)
    policy = learned.policy.difference(EXIT, CONTINUE)
    scores = agent_scores(policy, held_out)
    replayed, threshold, report = replay_agent(scores, held_out, options.keep)
    said = readings(*(data.columns[key][used] for key in ("top", "top1", "entropy")))
    optimum = beside_optimum(everything, held_out, said, scores, keep=options.keep, seed=seed, progress=progress)
    report += f"\n\n{render_optimum(optimum, describe(reward))}"
    described = {
        **data.origin(),
        **facts,
        "threshold": threshold,
        "temperature": 1.0,
        "steps": learned.steps,
        "held_out_documents": data.held_out_documents,
        "optimal_exits": dict(zip(map(str, layers), learned.tally.optimal.tolist(), strict=True)),
        "replayed": replayed,
        "optimum": optimum,
    }
    write_controller(data.path, kind, observation, {"shared": policy}, described)
    replace_files({data.path.with_suffix(".md"): f"{report}\n".encode()})
    head = exit_head_note(facts["exit_head"])
    return Trained(report, f"The agent is {data.path}; {log} beside it has its rewards. {head}")
