"""Made-up finished runs for the leaderboard: real records, summarised by the real statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.records import Manifest
from reports.recorded import RecordedRun
from reports.summary.summarise import summarise
from tests.reports.conftest import RunBuilder

HASH = "ab" * 32
BLOCKS = 80

Recorded = Callable[..., RecordedRun]


@pytest.fixture(scope="session")
def recorded() -> Recorded:
    """``recorded(name, points={label: seconds}, **what differs)`` is a finished run of 80 blocks, one sample each.

    Every operating point takes its seconds, give or take a little per block; full depth takes one. Scores come from
    ``similarity`` by label, else 0.5. ``cpu``, ``gpus``, ``source`` and ``manifest`` (a dictionary laid over it) differ
    by argument, further arguments are the builder's. What was asked for before is the same run again.
    """
    made: dict[str, RecordedRun] = {}

    def make(name: str = "one", **given: Any) -> RecordedRun:
        asked = repr((name, given))
        if asked not in made:
            made[asked] = make_run(name, **given)
        return made[asked]

    return make


def make_run(
    name: str = "one",
    *,
    blocks: int = BLOCKS,
    points: dict[str, float] | None = None,
    similarity: dict[str, float] | None = None,
    text: str = "x = 1",
    energy: str = "none",
    cpu: str = "Test Chip",
    gpus: tuple[str, ...] = (),
    manifest: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    **options: Any,
) -> RecordedRun:
    points = {"full": 1.0, **(points or {"fixed:layer=5": 0.5, "oracle": 0.4})}
    builder = RunBuilder(points=tuple(points), **options)
    for block in range(blocks):
        for label, seconds in points.items():
            score = (similarity or {}).get(label, 0.5)
            exact = label == "full" or "@lossless" in label
            layers = (10, 10, 10) if exact else (10, 5, 5)
            tokens = (1, 2, 3) if exact else (1, 2, 4)
            drafted = {"drafted_at": (None, 5, None), "accepted": (False, True, False), "drafts": 1, "verifications": 1}
            builder.window(
                label,
                {
                    "scores": {"edit_similarity": score, "exact_match": 0.0},
                    "exit_layers": layers,
                    "token_ids": tokens,
                    "text": text,
                    "token_texts": (text, "\n", "y"),
                    "latency_s": seconds,
                    "token_times_s": (0.1 * seconds, 0.5 * seconds, seconds),
                    "ttft_s": 0.1 * seconds,
                    **(drafted if "@lossless" in label else {}),
                },
                block=block,
                duration=seconds * (1 + 0.01 * ((7 * block + len(label)) % 5)),
                energy_j=None if energy == "none" else 10 * seconds,
                energy_source=energy,
            )
    made = _manifest(builder.manifest, cpu, gpus, model or {}, manifest or {}, energy)
    summary = summarise(made, builder.windows, builder.samples, lambda *_: {})
    return RecordedRun(Path("runs") / name, made, tuple(builder.windows), tuple(builder.samples), summary)


def _manifest(
    made: Manifest, cpu: str, gpus: tuple[str, ...], model: dict[str, Any], over: dict[str, Any], energy: str
) -> Manifest:
    tasks = tuple(task.model_copy(update={"samples": BLOCKS, "fingerprint": HASH}) for task in made.tasks)
    surroundings = {"cpu": cpu, "torch_threads": 2, "usable_cores": 2, "gpus": list(gpus), "python": "3.11.7"}
    kept = {
        "environment": surroundings,
        "tasks": tasks,
        "model": made.model.model_copy(update={"weights_sha256": HASH, **model}),
        "meter": made.meter.model_copy(update={"source": energy}),
    }
    return made.model_copy(update={**kept, **over})
