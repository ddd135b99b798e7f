"""``harness train rl``: from a trace to an agent that decides, with what it would have done on held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from harness.contracts import Split, document_key
from harness.contracts.recipes import Progress, TrainingRun
from harness.decoding.engine import Engine
from harness.errors import ConfigError, DataError
from harness.host.atomic_files import replace_files
from harness.host.device import resolve_device
from harness.models.controllers import OBSERVATIONS, Observation, write_controller
from harness.models.model import ResolvedModel
from harness.registry import TASKS
from harness.training.agents.agent_checkpoints import AgentCheckpoints
from harness.training.agents.episodes import Episodes, read_episodes, split
from harness.training.agents.exit_env import ExitEnv
from harness.training.agents.exit_vec_env import ExitVecEnv
from harness.training.agents.live_tokens import LiveTokens
from harness.training.agents.options import AgentOptions, AgentSettings
from harness.training.agents.ppo import learn
from harness.training.agents.replay_agent import replay_agent
from harness.training.agents.reward import CONTINUE, EXIT, REWARDS, Reward, describe
from harness.training.identity import identity, provenance
from harness.training.interrupt import stop_on_interrupt
from harness.training.traces.reading import exit_maps, held_out_rows, open_traces
from harness.training.traces.store import Traces

__all__ = ["AGENT_OBSERVATIONS", "AgentResult", "train_agent"]

AGENT_OBSERVATIONS = {
    name: observation if name == "paper" else replace(observation, place=True)
    for name, observation in OBSERVATIONS.items()
}
"""What an agent may look at: ``paper`` is the raw hidden state (GREEN-CODE section IV-B); the others are told which
exit point this is as well, since one network decides at all of them."""


@dataclass(frozen=True)
class AgentResult:
    """What training leaves.

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
    reward = _reward(options, traces)
    progress.stage(f"reading {traces.tokens} tokens of {options.traces}")
    maps = exit_maps(traces, resolved, observation)
    everything = read_episodes(traces, options.tasks, options.tokens, observation, maps, reward)
    number = traces.columns("document")["document"]
    held = set(number[held_out_rows(traces, number, seed=seed, tasks=options.tasks)].tolist())
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
    path = options.folder / f"{name}.json"
    if not learned.finished:
        return AgentResult(False, "", path)
    policy = learned.policy.difference(EXIT, CONTINUE)
    replayed, threshold, report = replay_agent(policy, held_out, options.keep)
    described = {
        **facts,
        "threshold": threshold,
        "temperature": 1.0,
        "steps": learned.steps,
        "documents": sorted({str(document["key"]) for document in traces.documents}),
        "optimal_exits": dict(zip(map(str, layers), learned.tally.optimal.tolist(), strict=True)),
        "replayed": replayed,
        "made": provenance(run.command),
    }
    write_controller(path, kind, observation, {"shared": policy}, described)
    replace_files({path.with_suffix(".md"): f"{report}\n".encode()})
    return AgentResult(True, report, path)


def _reward(options: AgentOptions, traces: Traces) -> Reward:
    name = options.reward
    if name == "auto":
        names = _tasks(traces, options.tasks)
        languages = {TASKS.load(name)().language for name in names if name in TASKS}
        name = languages.pop() if len(languages) == 1 else "python"
    reward = REWARDS.get(name, REWARDS["python"])
    given = options.coefficients
    for key in given.keys() - asdict(reward).keys():
        raise ConfigError(f"--{key} is no part of the {name} reward, which has {', '.join(asdict(reward))}.")
    return replace(reward, **given)  # type: ignore[arg-type]  # the keys were checked


def _tasks(traces: Traces, wanted: Sequence[str]) -> list[str]:
    """Return the tasks a trace's documents come from."""
    names = {str(document["stream"]).partition(",")[0] for document in traces.documents}
    return sorted(name for name in names if not wanted or name in wanted)


def _trained_on(episodes: Episodes, options: AgentOptions) -> dict[str, Any]:
    return {
        "streams": sorted({document.stream for document in episodes.documents}),
        "documents": len(episodes.documents),
        "tokens": episodes.tokens,
        "episode_tokens": episodes.length,
        "live": options.live,
    }


def _live(
    resolved: ResolvedModel, traces: Traces, learning: Episodes, observation: Observation,
    reward: Reward, options: AgentOptions, progress: Progress,
) -> VecEnv:  # fmt: skip
    """Return an environment that steps the model, on those of the trace's documents that are learned from."""
    keys = {document.key for document in learning.documents}
    split: Split = traces.index.get("split", "train")
    cut = int(traces.index.get("length", resolved.info.max_positions))
    texts: dict[str, str] = {}
    for task in (TASKS.load(name)() for name in _tasks(traces, options.tasks)):
        for source in options.sources:
            progress.stage(f"reading {task.name} from {source}")
            for document in task.corpus(source, split, seed=int(traces.index.get("seed", 0))).documents:
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
    loaded = resolved.load(resolve_device(options.device))
    tokens = LiveTokens(
        Engine(loaded.backbone, resolved.info), [tokenizer.encode(texts[key])[:cut] for key in sorted(texts)],
        options.tokens, observation, reward, tokenizer.eos_token_ids,
    )  # fmt: skip
    return DummyVecEnv([lambda: ExitEnv(tokens)])
