"""PPO on the early-exit environment: the loop around stable-baselines3's algorithm, and its checkpoints.

The loop calls ``learn`` for one rollout at a time and seeds all chance from the run's seed and the step before each, so
that a run that was stopped and resumed is the run that was not. Checkpoints are safetensors and JSON, never
stable-baselines3's pickles.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed

from harness.contracts.recipes import Progress
from harness.errors import ResumeError, TrainingError
from harness.host.libraries import library_border
from harness.models.controllers import Network
from harness.training.agents.exit_env import ExitVecEnv, Tally
from harness.training.checkpoints import Checkpoints, cut_log
from harness.training.recipes import AgentSettings


class AgentCheckpoints(Checkpoints):
    """The checkpoints of one agent in training; the last two stay."""

    def save(self, policy: Any, steps: int, env: Mapping[str, NDArray[Any]], tally: Tally, goal: int) -> None:
        """Write stable-baselines3's policy with its optimiser, where episodes stand, and what they came to."""
        tensors = {f"policy.{name}": tensor for name, tensor in policy.state_dict().items()}
        for number, moments in policy.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        tensors |= {f"env.{name}": torch.from_numpy(array) for name, array in env.items()}
        tensors |= {"tally.exits": torch.from_numpy(tally.exits), "tally.optimal": torch.from_numpy(tally.optimal)}
        facts = {"episodes": tally.episodes, "episode_rewards": tally.reward, "goal": goal}
        self.write(steps, tensors, facts)

    def load(self, policy: Any, env: ExitVecEnv) -> tuple[int, Tally]:
        """Read the latest into a policy, its optimiser and an environment; return its steps and tally."""
        found = self.read()
        with library_border(f"{found.path} is damaged", "Omit --resume to begin anew.", ResumeError):
            parts: dict[str, dict[str, torch.Tensor]] = {}
            for name, tensor in found.tensors().items():
                part, _, rest = name.partition(".")
                parts.setdefault(part, {})[rest] = tensor
            policy.load_state_dict(parts["policy"])
            state = policy.optimizer.state_dict()
            for name, value in parts.get("optimizer", {}).items():
                number, _, moment = name.partition(".")
                state["state"].setdefault(int(number), {})[moment] = value
            policy.optimizer.load_state_dict(state)
            env.restore({name: value.numpy() for name, value in parts["env"].items()})
            tally = Tally(
                parts["tally"]["exits"].numpy(), parts["tally"]["optimal"].numpy(),
                int(found.facts["episodes"]), float(found.facts["episode_rewards"]),
            )  # fmt: skip
            return int(found.facts["steps"]), tally


@dataclass(frozen=True)
class Learned:
    """Logits of continue and exit, the number of decisions they were learned from, and the tally of all episodes; not
    finished when it was stopped, and the checkpoint continues it.
    """

    policy: Network
    steps: int
    finished: bool
    tally: Tally


def policy_network(policy: Any) -> Network:
    """Return the part of a stable-baselines3 policy that decides: two outputs, the logits of continue and exit."""
    return Network.of_module([*policy.mlp_extractor.policy_net, policy.action_net])


def learn(
    env: ExitVecEnv,
    settings: AgentSettings,
    layers: Sequence[int],
    *,
    seed: int,
    checkpoints: AgentCheckpoints,
    log: Path,
    save_steps: int,
    resume: bool,
    progress: Progress,
    stop: threading.Event,
) -> Learned:
    """Let PPO learn; the seed decides everything.

    The log has a JSON line per rollout: reward per step and per episode (GREEN-CODE Fig. 6), share of exits for each of
    the layers; the last one counts the best exits of all tokens met (Fig. 7). Where ``stop`` is set at a decision, the
    rollout it falls into is not learned from.
    """
    share_left = [1.0]
    model = _algorithm(env, settings, seed, share_left)
    steps, total = 0, Tally.empty(len(layers) - 1)
    if resume:
        steps, total = checkpoints.load(model.policy, env)
    elif (left := checkpoints.unfinished()) is not None:
        raise TrainingError(
            f"{left} is of this very training, which was interrupted. Add --resume to go on, or remove {left.parent}."
        )
    cut_log(log, lambda line: line["steps"] <= steps and "optimal_exits" not in line)
    model.policy.optimizer.register_step_pre_hook(lambda *_: _refuse_nan(model, steps, checkpoints))
    progress.begin("learning", settings.steps, min(steps, settings.steps))
    callback, kept = _StopWhenAsked(stop), steps
    while steps < settings.steps and not stop.is_set():
        before = env.state()
        share_left[0] = 1 - steps / settings.steps
        chance = (seed * 1_000_003 + steps) % 2**32
        set_random_seed(chance)
        env.seed(chance)
        model.learn(settings.rollout, callback, log_interval=None, reset_num_timesteps=False)
        tally = env.take_tally()
        if callback.stopped:
            checkpoints.save(model.policy, steps, before, total, settings.steps)
            break
        steps += settings.rollout
        total.add(tally)
        line = _line(model, steps, tally, layers)
        _append(log, line)
        mean = sum(share * int(layer) for layer, share in line["exits"].items())
        progress.step(min(steps, settings.steps), f"reward {line['reward_per_step']:+.3f} a step, mean exit {mean:.1f}")
        if steps - kept >= save_steps or steps >= settings.steps or stop.is_set():
            checkpoints.save(model.policy, steps, env.state(), total, settings.steps)
            kept = steps
    finished = steps >= settings.steps
    if finished:
        optimal = dict(zip(map(str, layers), total.optimal.tolist(), strict=True))
        _append(log, {"steps": steps, "optimal_exits": optimal})
    return Learned(policy_network(model.policy), steps, finished, total)


def _algorithm(env: ExitVecEnv, settings: AgentSettings, seed: int, share_left: list[float]) -> Any:
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda _: settings.learning_rate * share_left[0],
        n_steps=settings.rollout // env.num_envs,
        batch_size=settings.batch,
        n_epochs=settings.epochs,
        gamma=settings.discount,
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.entropy,
        policy_kwargs={"net_arch": {"pi": list(settings.hidden), "vf": list(settings.hidden)}},
        seed=seed % 2**32,
        device="cpu",
    )
    model.set_logger(Logger(None, []))
    return model


class _StopWhenAsked(BaseCallback):  # type: ignore[misc]
    def __init__(self, stop: threading.Event) -> None:
        super().__init__()
        self._stop, self.stopped = stop, False

    def _on_step(self) -> bool:
        self.stopped = self._stop.is_set()
        return not self.stopped


def _refuse_nan(model: Any, steps: int, checkpoints: AgentCheckpoints) -> None:
    """Stop before a step that would spoil the policy; gradient clipping makes one NaN every parameter's."""
    gradients = (model.policy.action_net.bias.grad, model.policy.value_net.bias.grad)
    if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return
    kept = checkpoints.latest()
    left = f"the last good checkpoint is {kept}; `--resume` goes on from it" if kept else "no checkpoint is kept"
    raise TrainingError(f"the loss is no number after step {steps}; {left}. Lower --learning-rate, or trace again.")


def _line(model: Any, steps: int, tally: Tally, layers: Sequence[int]) -> dict[str, Any]:
    said = model.logger.name_to_value
    exits = tally.exits / max(1, tally.exits.sum())
    return {
        "steps": steps,
        "reward_per_step": round(float(model.rollout_buffer.rewards.mean()), 5),
        "reward_per_episode": round(tally.reward / tally.episodes, 4) if tally.episodes else None,
        "episodes": tally.episodes,
        "exits": {str(layer): round(float(share), 4) for layer, share in zip(layers, exits, strict=True)},
        "entropy": round(-float(said["train/entropy_loss"]), 4),
        "value_loss": round(float(said["train/value_loss"]), 4),
        "learning_rate": float(said["train/learning_rate"]),
    }


def _append(log: Path, line: dict[str, Any]) -> None:
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
