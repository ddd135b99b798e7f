"""Which reward ``harness train rl`` is told to use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from harness.errors import ConfigError
from harness.registry import TASKS
from harness.training.agents.options import AgentOptions
from harness.training.agents.reward import REWARDS, Reward
from harness.training.traces.store import Traces

__all__ = ["choose_reward", "traced_tasks"]


def choose_reward(options: AgentOptions, traces: Traces) -> Reward:
    """Return the reward of the options; ``auto`` goes by the language of the trace's documents.

    Raises:
        ConfigError: a coefficient that the reward has not.
    """
    name = options.reward
    if name == "auto":
        names = traced_tasks(traces, options.tasks)
        languages = {TASKS.load(name)().language for name in names if name in TASKS}
        name = languages.pop() if len(languages) == 1 else "python"
    reward = REWARDS.get(name, REWARDS["python"])
    given = options.coefficients
    for key in given.keys() - asdict(reward).keys():
        raise ConfigError(f"--{key} is no part of the {name} reward, which has {', '.join(asdict(reward))}.")
    return replace(reward, **given)  # type: ignore[arg-type]  # the keys were checked


def traced_tasks(traces: Traces, wanted: Sequence[str]) -> list[str]:
    """Return the tasks a trace's documents come from."""
    names = {str(document["stream"]).partition(",")[0] for document in traces.documents}
    return sorted(name for name in names if not wanted or name in wanted)
