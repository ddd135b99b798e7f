"""Estimated time of runs, alone or of a study: from a few requests at full depth, measured where they will run.

For each kind of run (model, task, source, budget, batch) a small run is made once, below the study's folder, and kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import RunConfig
from harness.contracts.executors import Executor, Happened, Job
from harness.errors import HarnessError
from harness.host.files import replace_files
from harness.running.plan import PlannedTask
from harness.running.resolve import resolve
from harness.store.run_directory import RunDirectory
from harness.study.grid import Point
from harness.study.ledger import PROBES, StudyDirectory, is_measured
from harness.study.steps import filled_settings

PROBE_REQUESTS = 8
_OF_A_KIND = (
    *("model", "weights", "dtype", "device", "exit_points", "exit_head", "artefacts", "threads", "weights_format"),
    *("device_map", "tasks", "scenario", "source", "protocol", "max_new_tokens", "batch_size", "energy", "tdp_w"),
    "duplicates",
)
_OF_A_DRAW = tuple({*RunConfig.panels["The model"], *RunConfig.panels["On which samples"]} - {"seed"})
"""Settings that decide how many samples a point has; its seed decides which."""
Z_95 = 1.96


@dataclass(frozen=True)
class Estimate:
    """Estimated cost of a point; numbers are ``None`` where nothing could be measured.

    Attributes:
        requests: samples × operating points × repeats.
        seconds: expected, and the half width of a 95 % interval of the mean of its requests.
        joules: by the meter of the runs.
        memory_bytes: most that its process held of the machine's own memory, a GPU's apart.
        refused: why it cannot run here. waits: the steps that have to be made first.
    """

    point: Point
    requests: int | None = None
    seconds: tuple[float, float] | None = None
    joules: float | None = None
    memory_bytes: int | None = None
    refused: str = ""
    waits: str = ""


@dataclass(frozen=True)
class _Measured:
    request_s: float
    error_s: float
    request_j: float | None
    memory_bytes: int | None


def estimates(
    study: StudyDirectory, points: Sequence[Point], executor: Executor, told: Callable[[Happened], None]
) -> Iterator[Estimate]:
    """Yield an estimate for each point; the executor measures the small runs, and ``told`` hears how these go on."""
    counts: dict[str, tuple[int, int] | str] = {}
    drawn: dict[str, tuple[PlannedTask, ...]] = {}
    kinds: dict[str, _Measured | str] = {}
    for point in points:
        if unmade := [step.title for step in point.steps.values() if not study.is_done(step)]:
            yield Estimate(point, waits=", ".join(unmade))
            continue
        inputs = study.inputs(point)
        planned = _key(point, [name for name in point.settings if name != "seed"])
        if planned not in counts:
            counts[planned] = _count(point, inputs, drawn)
        count = counts[planned]
        if isinstance(count, str):
            yield Estimate(point, refused=count)
            continue
        kind = _key(point, _OF_A_KIND)
        if kind not in kinds:
            kinds[kind] = _measure(study.path / PROBES / kind, point, inputs, executor, told)
        measured, requests = kinds[kind], math.prod(count)
        if isinstance(measured, str):
            yield Estimate(point, requests, refused=measured)
            continue
        seconds = (requests * measured.request_s, Z_95 * requests * measured.error_s)
        joules = None if measured.request_j is None else requests * measured.request_j
        yield Estimate(point, requests, seconds, joules, measured.memory_bytes)


def _key(point: Point, names: Sequence[str]) -> str:
    chosen = {name: point.settings[name] for name in sorted(names) if name in point.settings}
    if point.steps:
        chosen = filled_settings(chosen, {name: step.identity for name, step in point.steps.items()})
    return hashlib.sha256(json.dumps(chosen, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _count(
    point: Point, inputs: Mapping[str, Path], drawn: dict[str, tuple[PlannedTask, ...]]
) -> tuple[int, int] | str:
    """Return samples, and operating points times repeats; or why the point cannot run."""
    key = _key(point, _OF_A_DRAW)
    try:
        plan = resolve(point.config(inputs), (lambda model: drawn[key]) if key in drawn else None)
    except HarnessError as error:
        return str(error)
    tasks = drawn.setdefault(key, plan.tasks)
    return sum(len(task.data.samples) for task in tasks), len(plan.points) * plan.config.repeats


def _measure(
    directory: Path, point: Point, inputs: Mapping[str, Path], executor: Executor, told: Callable[[Happened], None]
) -> _Measured | str:
    kept = {name: point.settings[name] for name in _OF_A_KIND if name in point.settings}
    batch = int(point.settings.get("batch_size", 1))
    settings = {**kept, "strategies": ["full"], "limit": PROBE_REQUESTS * batch, "block_size": batch, "idle_s": 0}
    peak = directory.with_name(f"{directory.name}.memory")  # of the process that measured it, which is not this one
    if not is_measured(directory):
        executor.start(Job(directory.name, directory, settings, point.model, inputs=inputs))
        while not (event := executor.wait()).ended:
            told(event)
        if event.how != "done":
            return event.text
        if event.memory_bytes is not None:
            replace_files({peak: str(event.memory_bytes).encode()})
    with RunDirectory.read(directory) as store:
        windows = [window for window in store.windows() if not (window.warmup or window.idle or window.superseded)]
    each = [seconds / window.samples for window in windows if (seconds := window.duration_s) is not None]
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    known = [window.energy_j for window in windows if window.energy_j is not None]
    energy = sum(known) / sum(window.samples for window in windows) if len(known) == len(windows) else None
    memory_bytes = int(peak.read_text()) if peak.exists() else None
    return _Measured(statistics.fmean(each), error, energy, memory_bytes)
