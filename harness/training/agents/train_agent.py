"""``harness train rl``: from a trace to an agent that decides, with what it would have done on held-out documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from harness.contracts import Split, document_key
from harness.decoding.engine import Engine
from harness.errors import ConfigError, DataError
from harness.models.controllers import OBSERVATIONS, Observation, write_controller
from harness.models.model import ResolvedModel
from harness.registry import TASKS
from harness.training.agents.agent_checkpoints import AgentCheckpoints
from harness.training.agents.episodes import Episodes, read_episodes, split
from harness.training.agents.exit_env import ExitEnv
from harness.training.agents.exit_vec_env import ExitVecEnv
from harness.training.agents.live_tokens import LiveTokens
from harness.training.agents.ppo import PRESETS, AgentSettings, learn
from harness.training.agents.replay_agent import replay_agent
from harness.training.agents.reward import CONTINUE, EXIT, REWARDS, Reward, describe
from harness.training.identity import identity, provenance
from harness.training.interrupt import stop_on_interrupt
from harness.training.traces.reading import exit_maps, held_out_rows, open_traces
from harness.training.traces.store import Traces
from harness.training.watch import Watch

__all__ = ["AGENT_OBSERVATIONS", "AgentRequest", "AgentResult", "build_settings", "train_rl"]

AGENT_OBSERVATIONS = {
    name: observation if name == "paper" else replace(observation, place=True)
    for name, observation in OBSERVATIONS.items()
}
"""What an agent may look at: ``paper`` is the raw hidden state (GREEN-CODE section IV-B); the others are told which
exit point this is as well, since one network decides at all of them."""


@dataclass(frozen=True, slots=True)
class AgentRequest:
    """What to train.

    Attributes:
        name: of the files.
        observation: key of :data:`AGENT_OBSERVATIONS`.
        reward: key of :data:`REWARDS`, or ``auto``: the language of the documents, ``python`` where they have several.
        coefficients: reward coefficient → value that replaces the preset's; ``None`` for the preset's own.
        tasks: keep documents of these tasks; empty for all.
        length: tokens of an episode.
        keep: least agreement with the last layer, on held-out documents, of the default threshold.
        live: generate with the model instead of replaying.
        sources: of the trace's documents, for ``live``.
        artefacts: see :func:`harness.models.artefacts.artefact_folders`.
        device: of the model, for ``live``.
        seed: decides everything.
        save_steps: decisions between checkpoints.
        resume: go on from the last checkpoint.
    """

    name: str
    observation: str = "rich"
    reward: str = "auto"
    coefficients: Mapping[str, float | None] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    length: int = 15
    keep: float = 0.98
    live: bool = False
    sources: Sequence[str] = ("embedded",)
    artefacts: str | None = None
    device: str = "cpu"
    seed: int = 0
    save_steps: int = 50_000
    resume: bool = False


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


def build_settings(preset: str, overrides: Mapping[str, Any]) -> AgentSettings:
    """Return a preset's settings with some values replaced; ``None`` values are left alone.

    Raises:
        ConfigError: unknown preset, or a value out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"--preset '{preset}' is unknown. Use {' or '.join(PRESETS)}.")
    return replace(PRESETS[preset], **{name: value for name, value in overrides.items() if value is not None})


def train_rl(
    kind: str, model: str, folder: Path, out: Path, settings: AgentSettings, request: AgentRequest, *,
    command: str, watch: Watch,
) -> AgentResult:  # fmt: skip
    """Train an agent on a trace.

    Args:
        kind: of the artefact.
        model: name of the model; its weights are those of the trace.
        folder: the trace.
        out: receives the agent (``NAME.json``, ``NAME.safetensors``), ``NAME-training.jsonl``, ``NAME.md`` and
            ``NAME-checkpoint/``.
        settings: how PPO learns.
        request: everything else.
        command: as typed, for the record.
        watch: is told how it goes on.

    Raises:
        HarnessError: anything that cannot be done, in one line with the remedy.
    """
    _check(request)
    observation = AGENT_OBSERVATIONS[request.observation]
    traces, resolved = open_traces(model, folder, artefacts=request.artefacts)
    reward = _reward(request, traces)
    watch.stage(f"reading {traces.tokens} tokens of {folder}")
    maps = exit_maps(traces, resolved, observation)
    everything = read_episodes(traces, request.tasks, request.length, observation, maps, reward)
    number = traces.columns("document")["document"]
    held = set(number[held_out_rows(traces, number, seed=request.seed, tasks=request.tasks)].tolist())
    learning, held_out = split(everything, held)
    if request.live:
        settings = replace(settings, envs=1)
        env = _live(resolved, traces, learning, observation, reward, request, watch)
    else:
        env = ExitVecEnv(learning, settings.envs, request.seed)
    how = {
        "observation": observation.as_dict(),
        "reward": describe(reward),
        "ppo": {name: value for name, value in asdict(settings).items() if name != "steps"},
        "seed": request.seed,
        "trained_on": _trained_on(learning, request),
    }
    facts = {**identity(resolved.info, traces.index["tokenizer_fingerprint"]), **how}
    checkpoints = AgentCheckpoints(out / f"{request.name}-checkpoint", kind, facts)
    layers = [*traces.exit_points, resolved.info.num_layers]
    with stop_on_interrupt() as stop:
        learned = learn(
            env, settings, layers, seed=request.seed, checkpoints=checkpoints,
            log=out / f"{request.name}-training.jsonl",
            save_steps=request.save_steps, resume=request.resume, watch=watch, stop=stop,
        )  # fmt: skip
    path = out / f"{request.name}.json"
    if not learned.finished:
        return AgentResult(False, "", path)
    policy = learned.policy.difference(EXIT, CONTINUE)
    replayed, threshold, report = replay_agent(policy, held_out, request.keep)
    described = {
        **facts,
        "threshold": threshold,
        "temperature": 1.0,
        "steps": learned.steps,
        "documents": sorted({str(document["key"]) for document in traces.documents}),
        "optimal_exits": dict(zip(map(str, layers), learned.tally.optimal.tolist(), strict=True)),
        "replayed": replayed,
        "made": provenance(command),
    }
    write_controller(path, kind, observation, {"shared": policy}, described)
    path.with_suffix(".md").write_text(report + "\n", encoding="utf-8")
    return AgentResult(True, report, path)


def _check(request: AgentRequest) -> None:
    for flag, value, known in (
        ("observation", request.observation, [*AGENT_OBSERVATIONS]),
        ("reward", request.reward, ["auto", *REWARDS]),
    ):
        if value not in known:
            raise ConfigError(f"--{flag} '{value}' is unknown. Use {', '.join(known)}.")
    if request.length < 1:
        raise ConfigError(f"--tokens {request.length} is too small; at least 1.")
    if not 0 < request.keep <= 1:
        raise ConfigError(f"--keep {request.keep:g} must lie in (0, 1].")
    for task in request.tasks:
        TASKS.load(task)


def _reward(request: AgentRequest, traces: Traces) -> Reward:
    name = request.reward
    if name == "auto":
        names = _tasks(traces, request.tasks)
        languages = {TASKS.load(name)().language for name in names if name in TASKS}
        name = languages.pop() if len(languages) == 1 else "python"
    reward = REWARDS.get(name, REWARDS["python"])
    given = {key: value for key, value in request.coefficients.items() if value is not None}
    for key in given.keys() - asdict(reward).keys():
        raise ConfigError(f"--{key} is no part of the {name} reward, which has {', '.join(asdict(reward))}.")
    return replace(reward, **given)  # type: ignore[arg-type]  # the keys were checked


def _tasks(traces: Traces, wanted: Sequence[str]) -> list[str]:
    """Return the tasks a trace's documents come from."""
    names = {str(document["stream"]).partition(",")[0] for document in traces.documents}
    return sorted(name for name in names if not wanted or name in wanted)


def _trained_on(episodes: Episodes, request: AgentRequest) -> dict[str, Any]:
    return {
        "streams": sorted({document.stream for document in episodes.documents}),
        "documents": len(episodes.documents),
        "tokens": episodes.tokens,
        "episode_tokens": episodes.length,
        "live": request.live,
    }


def _live(
    resolved: ResolvedModel, traces: Traces, learning: Episodes, observation: Observation,
    reward: Reward, request: AgentRequest, watch: Watch,
) -> VecEnv:  # fmt: skip
    """Return an environment that steps the model, on those of the trace's documents that are learned from."""
    keys = {document.key for document in learning.documents}
    split: Split = traces.index.get("split", "train")
    cut = int(traces.index.get("length", resolved.info.max_positions))
    texts: dict[str, str] = {}
    for task in (TASKS.load(name)() for name in _tasks(traces, request.tasks)):
        for source in request.sources:
            watch.stage(f"reading {task.name} from {source}")
            for document in task.corpus(source, split, seed=int(traces.index.get("seed", 0))).documents:
                key = document_key(document.text)
                if key in keys:
                    texts[key] = document.text
    if not texts:
        raise DataError(
            f"none of the documents of {traces.folder} is in {', '.join(request.sources)}. Give the --source it was "
            "traced from."
        )
    codec = resolved.tokenizer
    watch.stage(f"loading {resolved.info.name}, for {len(texts)} of {len(keys)} documents")
    loaded = resolved.load(request.device)
    tokens = LiveTokens(
        Engine(loaded.backbone, resolved.info), [codec.encode(texts[key])[:cut] for key in sorted(texts)],
        request.length, observation, reward, codec.eos_token_ids,
    )  # fmt: skip
    return DummyVecEnv([lambda: ExitEnv(tokens)])
