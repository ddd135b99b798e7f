"""GREEN-CODE's grid as runs: model, data and agent of each run, its scale, and what it measures.

The paper (Ilager et al. 2025, section VI): Llama-3.2-3B and OPT-2.7B on JavaCorpus and PY150, 1,000 samples, the first
20 % of a file as context, 15 new tokens, no KV cache; full depth untuned and tuned, and the agent at five thresholds.
Here every tuned run also has the same points with a KV cache, and the agent at a threshold that it never reaches:
full depth and the cost of asking. What is scaled down is the number of samples and the model; never the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.config import BASELINE, RunConfig
from harness.contracts import WeightsChoice
from harness.errors import ConfigError
from harness.records.record import Record

__all__ = [
    "AGENTS",
    "NEVER",
    "PAPER_MODELS",
    "SMALL_SAMPLES",
    "STAND_IN",
    "GridRun",
    "GridSettings",
    "fixed_layers",
    "plan",
    "read_scale",
]

PAPER_MODELS: Mapping[str, str] = {"llama-3.2-3b": "Llama-3.2-3B", "opt-2.7b": "OPT-2.7B"}
"""Catalogue name → the paper's."""

STAND_IN = "smollm2-135m"
"""Stands in for both of the paper's models where they are too large."""

AGENTS: Mapping[str, str] = {"javacorpus": "rl-java", "py150": "rl-python"}
"""Task → the agent that was trained with the paper's reward for it, in the order in which tasks are run."""

PAPER_SAMPLES = 1000
SMALL_SAMPLES = 6
"""Samples per task of the default scale: one more than the minimum for intervals."""

NEVER = 1.0
"""A threshold that no agent reaches: every exit point is checked, and every layer runs."""

FIXED_DEPTHS = (0.3, 0.5, 0.6)
"""Share of the layers that the paper's agent runs at thresholds 0.6, 0.9 and 0.92, rounded, over its four settings."""

NEW_TOKENS = 15


class GridSettings(Record):
    """Settings of the grid; ``plan.json`` in its folder, so that ``--resume`` needs nothing else.

    Attributes:
        paper: ``green-code``.
        scale: as asked for.
        samples: per task.
        models: catalogue names, hub ids or folders.
        tasks: registered names.
        thresholds: of the agent.
        agents: task → trained agent.
        fixed_layers: model → layers of the fixed exits beside the agent, as deep as the paper's agent on average: what
            its points are compared with where ours does not go as deep.
        weights: of the runs with the agent: ``tuned``, or ``pretrained`` and ``random`` without an untuned run beside.
        source, dtype, energy, artefacts, seed, threads: as in :class:`harness.config.RunConfig`.
        new_tokens: generated per sample.
    """

    paper: str = "green-code"
    scale: str
    samples: int
    models: tuple[str, ...]
    tasks: tuple[str, ...]
    thresholds: tuple[float, ...]
    agents: dict[str, str]
    fixed_layers: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    weights: WeightsChoice = "auto"
    source: str = "embedded"
    dtype: str = "bfloat16"
    energy: str = "auto"
    artefacts: str | None = None
    new_tokens: int = NEW_TOKENS
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class GridRun:
    """One run directory of the grid.

    Attributes:
        folder: its name below the grid's.
        kind: ``tuned`` (full depth and the agent, uncached and cached) or ``base`` (untuned full depth, cached).
        model, task: what runs on what.
        stands_for: the paper's models it is compared with.
        config: of the run.
        points: operating points it measures.
    """

    folder: str
    kind: Literal["tuned", "base"]
    model: str
    task: str
    stands_for: tuple[str, ...]
    config: RunConfig
    points: int

    @property
    def requests(self) -> int:
        """Completions to be decoded, without warm-up."""
        return (self.config.limit or 0) * self.points

    @property
    def title(self) -> str:
        """Label of the run in progress messages."""
        return f"{Path(self.model).name}, {self.task}, {'tuned' if self.kind == 'tuned' else 'untuned'}"


def read_scale(text: str) -> tuple[int, bool]:
    """Return samples per task and whether a ``--scale`` asks for the paper's own models.

    Raises:
        ConfigError: neither ``small`` nor ``full`` nor a fraction of the paper's 1,000 samples.
    """
    if text in ("small", "full"):
        return (PAPER_SAMPLES, True) if text == "full" else (SMALL_SAMPLES, False)
    try:
        fraction = float(text)
    except ValueError:
        fraction = 0.0
    if not 0 < fraction <= 1 or round(fraction * PAPER_SAMPLES) < 1:
        raise ConfigError(
            f"--scale '{text}' is not a scale. Use small, full, or a fraction of the paper's {PAPER_SAMPLES:,} samples "
            "from 0.001 to 1."
        )
    return round(fraction * PAPER_SAMPLES), False


def plan(settings: GridSettings) -> tuple[GridRun, ...]:
    """Return the runs in order: model by model, task by task, the tuned one first."""
    return tuple(
        run
        for model in settings.models
        for task in settings.tasks
        for run in (_tuned(settings, model, task), _base(settings, model, task))
        if run is not None
    )


def fixed_layers(exit_points: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Return the exit points nearest to :data:`FIXED_DEPTHS`, each once, the shallowest first."""
    nearest = {
        min(exit_points, key=lambda point: (abs(point - share * num_layers), point))
        for share in FIXED_DEPTHS
        if exit_points
    }
    return tuple(sorted(nearest))


def _tuned(settings: GridSettings, model: str, task: str) -> GridRun:
    agent = settings.agents[task]
    thresholds = ",".join(f"{threshold:g}" for threshold in (*settings.thresholds, NEVER))
    config = _config(
        settings,
        model,
        task,
        strategies=(
            BASELINE,
            f"rl:agent={agent}:threshold={thresholds}",
            *_fixed(settings.fixed_layers.get(model, ())),
        ),
        kv=("propagate", "none"),  # the fair baseline comes first
        weights=settings.weights,
        exit_head="auto",
    )
    points = len(config.kv_policies) * len(config.specs())
    return GridRun(_folder(model, task, "tuned"), "tuned", model, task, _stands_for(model), config, points)


def _fixed(layers: Sequence[int]) -> tuple[str, ...]:
    return (f"fixed:layer={','.join(map(str, layers))}",) if layers else ()


def _base(settings: GridSettings, model: str, task: str) -> GridRun | None:
    """Untuned full depth; with a cache, since at full depth that changes time and no token."""
    if settings.weights in ("random", "pretrained"):
        return None  # the weights would be the same
    config = _config(
        settings, model, task, strategies=(BASELINE,), kv="propagate", weights="pretrained", exit_head="shared"
    )
    return GridRun(_folder(model, task, "base"), "base", model, task, _stands_for(model), config, 1)


def _config(settings: GridSettings, model: str, task: str, **given: Any) -> RunConfig:
    return RunConfig.build(
        {
            "model": model,
            "tasks": (task,),
            "protocol": "green-code",
            "source": settings.source,
            "limit": settings.samples,
            "max_new_tokens": settings.new_tokens,
            "dtype": settings.dtype,
            "energy": settings.energy,
            "artefacts": settings.artefacts,  # of the base run too: they decide which samples were not trained on
            "seed": settings.seed,
            "threads": settings.threads,
            **given,
        }
    )


def _folder(model: str, task: str, kind: str) -> str:
    return f"{Path(model).name}-{task}-{kind}"


def _stands_for(model: str) -> tuple[str, ...]:
    """The paper's model it is, else both."""
    return (PAPER_MODELS[model],) if model in PAPER_MODELS else tuple(PAPER_MODELS.values())
