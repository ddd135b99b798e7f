"""``harness train rl``: from a trace to an agent that decides, with what it would have done on held-out documents."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from harness.contracts import Split, document_key
from harness.contracts.models import with_bos
from harness.contracts.recipes import Progress, TrainingRun
from harness.decoding.engine import Engine
from harness.errors import DataError
from harness.host.atomic_files import replace_files
from harness.host.device import resolve_device
from harness.models.controllers import OBSERVATIONS, Observation, write_controller
from harness.models.model import ResolvedModel
from harness.registry import TASKS, keeping_folder
from harness.training.agents.agent_checkpoints import AgentCheckpoints
from harness.training.agents.beside_optimum import BesideOptimum, TracedTokens, beside_optimum, render_optimum
from harness.training.agents.choose_reward import choose_reward, traced_tasks
from harness.training.agents.episodes import Episodes, read_episodes, split
from harness.training.agents.exit_env import ExitEnv
from harness.training.agents.exit_vec_env import ExitVecEnv
from harness.training.agents.live_tokens import LiveTokens
from harness.training.agents.options import AgentOptions, AgentSettings
from harness.training.agents.ppo import learn
from harness.training.agents.replay_agent import agent_scores, replay_agent
from harness.training.agents.reward import CONTINUE, EXIT, Reward, describe
from harness.training.identity import identity, own_file, provenance
from harness.training.interrupt import stop_on_interrupt
from harness.training.traces.reading import (
    exit_maps,
    held_out_rows,
    index_of,
    keys_of,
    matches,
    open_traces,
    rows_of_tasks,
)
from harness.training.traces.store import Traces

__all__ = ["AGENT_OBSERVATIONS", "AgentResult", "train_agent"]

AGENT_OBSERVATIONS = {
    name: observation if name == "paper" else replace(observation, place=True)
    for name, observation in OBSERVATIONS.items()
}
"""Observations of an agent: ``paper`` is the raw hidden state (GREEN-CODE section IV-B); the others are told which
exit point this is as well, since one network decides at all of them."""


@dataclass(frozen=True)
class AgentResult:
    """The result of training.

    Attributes:
        finished: false when it was interrupted; the checkpoint continues it.
        report: what the agent would have done on held-out documents, Markdown.
        path: of the agent's JSON.
    """

    finished: bool
    report: str
    path: Path


def train_agent(options: AgentOptions, run: TrainingRun) -> AgentResult:
    """Train an agent on a trace.

    The folder receives the agent (``NAME.json``, ``NAME.safetensors``), ``NAME-training.jsonl``, ``NAME.md`` and
    ``NAME-checkpoint/``.

    Raises:
        HarnessError: anything that cannot be done, in one line with the remedy.
    """
    for task in options.tasks:
        TASKS.load(task)
    progress, kind, seed = run.progress, run.recipe, options.seed
    name = options.name or kind
    settings = AgentSettings.part_of(options)
    if options.live:
        settings = settings.replace(envs=1)
    observation = AGENT_OBSERVATIONS[options.observation]
    traces, resolved = open_traces(options.model, options.traces, artefacts=options.artefacts)
    path = own_file(options, run, resolved.info)
    reward = choose_reward(options, traces)
    progress.stage(f"reading {traces.tokens} tokens of {options.traces}")
    maps = exit_maps(traces, resolved, observation)
    everything = read_episodes(traces, options.tasks, options.tokens, observation, maps, reward)
    number = traces.columns("document")["document"]
    held_rows = held_out_rows(traces, number, seed=seed, tasks=options.tasks)
    held = set(number[held_rows].tolist())
    learning, held_out = split(everything, held)
    if options.live:
        env = _live(resolved, traces, learning, observation, reward, options, progress)
    else:
        env = ExitVecEnv(learning, settings.envs, seed)
    how = {
        "observation": observation.as_dict(),
        "reward": describe(reward),
        "ppo": {name: value for name, value in settings if name != "steps"},
        "seed": seed,
        "trained_on": _trained_on(learning, options),
    }
    facts = {**identity(resolved.info, traces.index["tokenizer_fingerprint"]), **how}
    checkpoints = AgentCheckpoints(options.folder / f"{name}-checkpoint", kind, facts)
    layers = [*traces.exit_points, resolved.info.num_layers]
    with stop_on_interrupt() as stop:
        learned = learn(
            env, settings, layers, seed=seed, checkpoints=checkpoints,
            log=options.folder / f"{name}-training.jsonl",
            save_steps=options.save_steps, resume=options.resume, progress=progress, stop=stop,
        )  # fmt: skip
    if not learned.finished:
        return AgentResult(False, "", path)
    policy = learned.policy.difference(EXIT, CONTINUE)
    scores = agent_scores(policy, held_out)
    replayed, threshold, report = replay_agent(scores, held_out, options.keep)
    optimum = _beside_optimum(traces, everything, held_out, scores, options)
    report += f"\n\n{render_optimum(optimum, describe(reward))}"
    described = {
        **facts,
        "threshold": threshold,
        "temperature": 1.0,
        "steps": learned.steps,
        "documents": sorted({str(found["key"]) for found in traces.documents if matches(found, options.tasks)}),
        "held_out_documents": keys_of(traces, number, held_rows),
        "ngrams": index_of(traces, options.folder),
        "optimal_exits": dict(zip(map(str, layers), learned.tally.optimal.tolist(), strict=True)),
        "replayed": replayed,
        "optimum": optimum,
        "made": provenance(run.command),
    }
    write_controller(path, kind, observation, {"shared": policy}, described)
    replace_files({path.with_suffix(".md"): f"{report}\n".encode()})
    return AgentResult(True, report, path)


def _trained_on(episodes: Episodes, options: AgentOptions) -> dict[str, Any]:
    return {
        "streams": sorted({document.stream for document in episodes.documents}),
        "documents": len(episodes.documents),
        "tokens": episodes.tokens,
        "episode_tokens": episodes.length,
        "live": options.live,
    }


def _beside_optimum(
    traces: Traces, everything: Episodes, held_out: Episodes, scores: Tensor, options: AgentOptions
) -> BesideOptimum:
    """Compare the agent with the optimum of its reward, on the held-out documents."""
    columns = traces.columns("top1", "document")
    wanted = rows_of_tasks(traces, columns["document"], options.tasks)
    tokens = TracedTokens(
        columns["top1"][wanted], torch.from_numpy(everything.right), torch.from_numpy(everything.rewards),
        columns["document"][wanted], everything.exit_points, everything.num_layers,
    )  # fmt: skip
    looked_at = torch.zeros(len(tokens.right), dtype=torch.bool)
    looked_at[torch.from_numpy(held_out.rows())] = True
    probability = {"probability": tokens.probability[looked_at]}
    return beside_optimum(tokens, looked_at, probability, agent=scores, keep=options.keep, seed=options.seed)


def _live(
    resolved: ResolvedModel, traces: Traces, learning: Episodes, observation: Observation,
    reward: Reward, options: AgentOptions, progress: Progress,
) -> VecEnv:  # fmt: skip
    """Return an environment that steps the model, on those of the trace's documents that are learned from."""
    keys = {document.key for document in learning.documents}
    split: Split = traces.index.get("split", "train")
    cut = int(traces.index.get("length", resolved.info.max_positions))
    texts: dict[str, str] = {}
    for task in (TASKS.load(name)() for name in traced_tasks(traces, options.tasks)):
        for source in options.sources:
            progress.stage(f"reading {task.name} from {source}")
            with keeping_folder(f"the task '{task.name}' was read"):
                corpus = task.corpus(source, split, seed=int(traces.index.get("seed", 0)))
            for document in corpus.documents:
                key = document_key(document.text)
                if key in keys:
                    texts[key] = document.text
    if not texts:
        raise DataError(
            f"none of the documents of {traces.folder} is in {', '.join(options.sources)}. Give the --source it was "
            "traced from."
        )
    tokenizer = resolved.tokenizer
    progress.stage(f"loading {resolved.info.name}, for {len(texts)} of {len(keys)} documents")
    loaded = resolved.load(resolve_device(options.device), progress.stage)
    tokens = LiveTokens(
        Engine(loaded.backbone, resolved.info),
        [with_bos(tokenizer, tokenizer.encode(texts[key]))[:cut] for key in sorted(texts)],
        options.tokens, observation, reward, tokenizer.eos_token_ids,
    )  # fmt: skip
    return DummyVecEnv([lambda: ExitEnv(tokens)])
