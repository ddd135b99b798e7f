"""``harness train rl --optimum``: a policy fitted to a reward on a trace, and how far an agent is from it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from harness.contracts.recipes import Trained, TrainingRun
from harness.errors import ArtefactError, ConfigError, DataError
from harness.host.atomic_files import replace_files
from harness.models.controllers import Controller, find_controller
from harness.models.model import ResolvedModel
from harness.training.agents.beside_optimum import TracedTokens, beside_optimum, render_optimum
from harness.training.agents.choose_reward import choose_reward
from harness.training.agents.options import AgentOptions
from harness.training.agents.reward import describe, reward_table
from harness.training.identity import identity, provenance
from harness.training.traces.reading import exit_maps, exit_states, open_traces, rows_of_tasks, unseen_rows
from harness.training.traces.store import Traces
from harness.training.traces.training_set import score_all

__all__ = ["find_optimum"]


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
