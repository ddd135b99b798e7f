"""``harness train rl``: from a trace to an agent that decides, with what it would have done on held-out documents.

With ``--live`` a model runs while the agent learns. Each token takes one pass through all layers, so that every exit's
token and the last layer's are known; an exit then fills the deeper layers' keys and values from its hidden state
(``propagate``), and its token is read next. Later tokens therefore see what real exits leave behind, which a trace
cannot show. One episode at a time, and slow: a token costs a full pass and an LM-head evaluation per exit. Nothing of
it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

from harness.contracts import KVBatch, KVPolicy, Split, document_key
from harness.contracts.models import with_bos
from harness.contracts.recipes import Progress, Trained, TrainingRun
from harness.decoding.cache import KVCache
from harness.decoding.engine import Engine
from harness.decoding.generation import Generation
from harness.decoding.step import PrefixPass, TokenPass
from harness.errors import DataError, TrainingError
from harness.host.files import replace_files
from harness.host.libraries import resolve_device
from harness.models.controllers import OBSERVATIONS, Network, Observation, write_controller
from harness.models.model import ResolvedModel
from harness.registry import TASKS, keeping_folder
from harness.training.agents.episodes import CONTEXT, Episodes, read_episodes, split
from harness.training.agents.exit_env import ExitEnv, ExitVecEnv, Token
from harness.training.agents.optimum import TracedTokens, beside_optimum, render_optimum
from harness.training.agents.ppo import AgentCheckpoints, learn
from harness.training.agents.reward import CONTINUE, EXIT, Reward, choose_reward, describe, reward_table, traced_tasks
from harness.training.checkpoints import stop_on_interrupt
from harness.training.identity import exit_head_note
from harness.training.recipes import Agent, AgentSettings
from harness.training.traces.reading import exit_maps
from harness.training.traces.store import Traces
from harness.training.traces.training_set import (
    ReplayRow,
    TrainingSet,
    render_replay,
    replay_rows,
    threshold_keeping,
)


@torch.inference_mode()
def agent_scores(policy: Network, episodes: Episodes) -> Tensor:
    """Return logit(exit) − logit(continue) at every exit of some documents' tokens, ``[n, exits]``.

    Args:
        policy: the difference of the logits.
        episodes: the documents.
    """
    rows = episodes.rows()
    parts = [
        policy(torch.from_numpy(episodes.observations[rows[begin : begin + 1024]]).float()).squeeze(-1)
        for begin in range(0, len(rows), 1024)
    ]
    return torch.cat(parts)


def replay_agent(scores: Tensor, held_out: Episodes, keep: float) -> tuple[dict[str, Any], float, str]:
    """Return what an agent would have done on held-out documents, its default threshold, and both as Markdown.

    Args:
        scores: of the agent there, see :func:`agent_scores`.
        held_out: documents it has not learned from.
        keep: least agreement with the last layer that the default threshold must have; the loosest such one is taken,
            1 (never exit) if there is none.
    """
    rows = held_out.rows()
    right = torch.from_numpy(held_out.right[rows])
    points, num_layers = held_out.exit_points, held_out.num_layers
    inclined = scores[scores >= 0]  # below, it prefers to continue, whatever the threshold
    thresholds = [0.0]
    if len(inclined):
        shares = torch.arange(1, 20) / 20
        thresholds += torch.quantile(inclined[:: len(inclined) // 1_000_000 + 1], shares).tolist()
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
        render_replay("threshold", table),
        "",
        f"{len(rows)} tokens of {len(held_out.documents)} held-out documents; {said}, for {keep:.0%} agreement.",
        f"First right exits: mean layer {optimal.mean().item():.2f}. Agreement of fixed exits: "
        + ", ".join(f"{layer}: {share:.3f}" for layer, share in agreement.items()),
    ]
    return replayed, threshold, "\n".join(report)


def _probability(difference: float) -> float:
    """Return softmax's share of exit, from the difference of the logits."""
    return 1 / (1 + math.exp(-difference))


class LiveTokens:
    """Generates what :class:`harness.training.agents.exit_env.ExitEnv` steps through. Implements ``TokenSource``.

    Args:
        engine: runs the model.
        documents: tokens of each document; a context is 20–60 % of one.
        length: tokens of an episode; fewer where the model ends its text.
        observation: what the agent looks at.
        reward: what decisions earn.
        eos_token_ids: tokens that end an episode.

    Raises:
        TrainingError: no document.
    """

    def __init__(
        self,
        engine: Engine,
        documents: Sequence[Sequence[int]],
        length: int,
        observation: Observation,
        reward: Reward,
        eos_token_ids: Collection[int] = (),
    ) -> None:
        if not documents:
            raise TrainingError("there is no document to generate from. Give the trace's data with --source.")
        self._engine, self._documents, self._length = engine, documents, length
        self._observation, self._reward, self._eos = observation, reward, eos_token_ids
        self.exits = len(engine.info.exit_points)
        self.width = observation.width(engine.info.hidden_size, self.exits)
        self._cache: KVCache | None = None
        self._batch: KVBatch | None = None
        self._position = self._count = 0
        self._states: list[Tensor] = []
        self._exit_states: list[Tensor] = []
        self._choices: list[int] = []

    @torch.inference_mode()
    def begin(self, generator: np.random.Generator) -> Token:
        """Draw a document and a context, run it, and return the first token the agent is asked about."""
        document = self._documents[int(generator.integers(len(self._documents)))]
        most = self._engine.info.max_positions - self._length
        context = min(max(1, round(float(generator.uniform(*CONTEXT)) * len(document))), most)
        return self.read(document[:context])

    @torch.inference_mode()
    def read(self, prompt: Sequence[int]) -> Token:
        """Begin an episode behind a chosen prompt."""
        backbone = self._engine.backbone
        reach = len(prompt) + self._length
        self._cache = self._engine.cache(1, reach)
        self._batch = self._engine.kv_batch(self._cache, reach, [Generation()])
        state = PrefixPass(backbone, self._engine.rotary(reach), [prompt], [0], cache=self._cache).read()
        self._position, self._count = len(prompt), 0
        return self._run(int(backbone.logits(state).argmax()))

    @torch.inference_mode()
    def follow(self, place: int) -> Token | None:
        """Leave the current token at an exit and run the one it gave."""
        assert self._batch is not None
        token = self._choices[place]
        self._count += 1
        if self._count >= self._length or token in self._eos:
            return None
        if place < self.exits:
            layer = self._engine.info.exit_points[place]
            final = self._exit_states[place] if self._engine.kv_input == "shortcut" else None
            self._batch.fill(layer, [0], [self._position], self._states[place], final)
        self._position += 1
        return self._run(token)

    def _run(self, token: int) -> Token:
        """Take one token through all layers, keeping what every exit sees and says."""
        engine, cache, batch = self._engine, self._cache, self._batch
        backbone, info = engine.backbone, engine.info
        assert cache is not None
        assert batch is not None
        current = TokenPass(
            backbone, engine.rotary(self._position + 1), cache, KVPolicy(batch),
            [0], [[token]], [self._position], [Generation()],
        )  # fmt: skip
        self._states, self._exit_states, self._choices = [], [], []
        for point in info.exit_points:
            current.advance(point)
            state = current.hidden()
            self._states.append(state)
            self._exit_states.append(backbone.exit_state(state, point))
            self._choices.append(int(backbone.logits(self._exit_states[-1]).argmax()))
        current.advance(backbone.num_layers)
        final = int(backbone.logits(current.hidden()).argmax())
        right = torch.tensor([[choice == final for choice in self._choices]])
        self._choices.append(final)
        seen = self._exit_states if self._observation.state == "exit" else self._states
        observations = self._observation.build_all(torch.stack(seen, dim=1))[0].cpu().numpy()
        rewards, best = reward_table(right, info.exit_points, info.num_layers, self._reward)
        return Token(observations, rewards[0].numpy(), int(best[0]))


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
    if options.live:
        settings = settings.replace(envs=1)
    observation = AGENT_OBSERVATIONS[options.observation]
    data = TrainingSet.open(options, run)
    traces, number = data.traces, data.columns["document"]
    reward = choose_reward(options, traces)
    maps = exit_maps(traces, data.resolved, observation)
    everything = read_episodes(traces, options.tasks, options.tokens, observation, maps, reward)
    learning, held_out = split(everything, set(number[data.held_out].tolist()))
    if options.live:
        env = _live(data.resolved, traces, learning, observation, reward, options, progress)
    else:
        env = ExitVecEnv(learning, settings.envs, seed)
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
            "live": options.live,
        },
    }
    checkpoints = AgentCheckpoints(options.folder / f"{name}-checkpoint", kind, facts)
    layers, log = [*traces.exit_points, data.resolved.info.num_layers], f"{name}-training.jsonl"
    with stop_on_interrupt() as stop:
        learned = learn(
            env, settings, layers, seed=seed, checkpoints=checkpoints, log=options.folder / log,
            save_steps=options.save_steps, resume=options.resume, progress=progress, stop=stop,
        )  # fmt: skip
    if not learned.finished:
        return Trained(finished=False)
    policy = learned.policy.difference(EXIT, CONTINUE)
    scores = agent_scores(policy, held_out)
    replayed, threshold, report = replay_agent(scores, held_out, options.keep)
    optimum = _beside_optimum(data, everything, held_out, scores, options)
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


def _beside_optimum(
    data: TrainingSet, everything: Episodes, held_out: Episodes, scores: Tensor, options: Agent
) -> dict[str, Any]:
    """Compare the agent with the optimum of its reward, on the held-out documents."""
    wanted = data.learned | data.held_out
    tokens = TracedTokens(
        data.columns["top1"][wanted], torch.from_numpy(everything.right), torch.from_numpy(everything.rewards),
        data.columns["document"][wanted], everything.exit_points, everything.num_layers,
    )  # fmt: skip
    looked_at = torch.zeros(len(tokens.right), dtype=torch.bool)
    looked_at[torch.from_numpy(held_out.rows())] = True
    probability = {"probability": tokens.probability[looked_at]}
    return beside_optimum(tokens, looked_at, probability, agent=scores, keep=options.keep, seed=options.seed)


def _live(
    resolved: ResolvedModel, traces: Traces, learning: Episodes, observation: Observation,
    reward: Reward, options: Agent, progress: Progress,
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
