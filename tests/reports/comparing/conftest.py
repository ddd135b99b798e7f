"""Two runs to compare, made of the small builder of the reports' tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from harness.records import MeterRecord
from reports.recorded import RecordedRun

LAYERS = 10


@dataclass
class Recipe:
    """A run of n prompts in blocks; seconds per request and point, decoding four fifths of them."""

    seconds: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"full": [1.0] * 8, "fixed:layer=5": [0.5] * 8}
    )
    layers: Mapping[str, int] = field(default_factory=lambda: {"fixed:layer=5": 5})
    scores: Mapping[str, Sequence[float]] = field(default_factory=dict)
    tokens: Mapping[str, Sequence[tuple[int, ...]]] = field(default_factory=dict)
    prompts: Callable[[int], tuple[int, ...]] = lambda index: (index, 7, 7)
    sample_id: Callable[[int], str] = lambda index: f"s{index}"
    reference: str = "x"
    errors: frozenset[str] = frozenset()
    energy: tuple[str, float] | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    task: str = "py150"
    samples: int | None = None
    block: int = 1


@pytest.fixture
def recorded(build: type[Any]) -> Callable[..., RecordedRun]:
    """``recorded(name, **recipe)`` makes a run as it would be read, each begun in a second of its own."""
    second = count()

    def make(name: str, **given: Any) -> RecordedRun:
        recipe = Recipe(**given)
        meter = MeterRecord(source="rapl", description="made up", sensor_period_s=0.001, measured=True)
        run = build(points=tuple(recipe.seconds), tasks=(recipe.task,), **({"meter": meter} if recipe.energy else {}))
        for point, times in recipe.seconds.items():
            for start in range(0, len(times), recipe.block):
                samples = [_sample(recipe, point, at) for at in range(start, min(start + recipe.block, len(times)))]
                seconds = sum(times[start : start + recipe.block])
                more = {} if recipe.energy is None else {
                    "energy_source": recipe.energy[0], "energy_j": recipe.energy[1] * seconds,
                }  # fmt: skip
                failed = len(samples) if point in recipe.errors else 0
                block = start // recipe.block
                run.window(point, *samples, block=block, duration=seconds, task=recipe.task, failed=failed, **more)
        manifest = run.manifest
        manifest = manifest.model_copy(
            update={
                "created": f"2025-01-01T00:00:{next(second):02d}Z",
                "environment": {**manifest.environment, **recipe.environment},
                "model": manifest.model.model_copy(update=recipe.model),
                "tasks": tuple(
                    task.model_copy(update={"samples": recipe.samples or len(next(iter(recipe.seconds.values())))})
                    for task in manifest.tasks
                ),
                **recipe.manifest,
            }
        )
        return RecordedRun(Path(name), manifest, tuple(run.windows), tuple(run.samples), run.summary())

    return make


def _sample(recipe: Recipe, point: str, index: int) -> dict[str, Any]:
    seconds = recipe.seconds[point][index]
    tokens = recipe.tokens[point][index] if point in recipe.tokens else (1, 2, 3, 4)
    ran = recipe.layers.get(point, LAYERS)
    if point in recipe.errors:
        return {"sample_id": recipe.sample_id(index), "error": "it broke"}
    return {
        "sample_id": recipe.sample_id(index),
        "token_ids": tokens,
        "exit_layers": (LAYERS, *[ran] * (len(tokens) - 1)),
        "token_times_s": tuple(seconds * (0.2 + 0.8 * k / (len(tokens) - 1)) for k in range(len(tokens))),
        "latency_s": seconds,
        "ttft_s": 0.2 * seconds,
        "prompt_ids": recipe.prompts(index),
        "reference": recipe.reference,
        "scores": {"edit_similarity": recipe.scores[point][index]} if point in recipe.scores else {},
    }
