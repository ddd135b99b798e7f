"""Everything a run needs, checked before the first weight is read.

A plan is made in the order of cost: names and options first, then the model's facts, the tokenizer and the
samples. Whatever is wrong is refused here, and nothing has been written yet.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.config import BASELINE, RunConfig, StrategySpec, demo_strategies, parse_all
from harness.contracts import ModelInfo, StopRule, Strategy, Task, TaskData, TaskRequest, TextCodec
from harness.errors import ArtefactError, ConfigError, DataError, OptionError
from harness.models.loading import ResolvedModel, load_codec, resolve
from harness.options import build_strategy, effective_options
from harness.records import OperatingPointRecord, TaskRecord
from harness.registry import TASKS

__all__ = [
    "OperatingPoint",
    "Plan",
    "PlannedTask",
    "default_directory",
    "distinct",
    "make_plan",
    "operating_point",
    "resolve_device",
]

logger = logging.getLogger(__name__)

SHOWN_BAD_ROWS = 5  # the samples file has them all


@dataclass(frozen=True)
class OperatingPoint:
    """One strategy at one setting, ready to decode.

    Attributes:
        strategy: the built strategy.
        record: what the run directory says of it.
    """

    strategy: Strategy
    record: OperatingPointRecord

    @property
    def name(self) -> str:
        """Unique label in the run."""
        return self.record.name


@dataclass(frozen=True)
class PlannedTask:
    """One task with its samples.

    Attributes:
        task: scores completions.
        data: samples, bad rows, source.
        stop: ends a completion.
        record: what the manifest says of it.
    """

    task: Task
    data: TaskData
    stop: StopRule
    record: TaskRecord


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        config: what was asked for.
        device: resolved torch device.
        points: operating points, full depth first.
        model: facts and where the weights are.
        codec: the tokenizer. codec_source: where it came from.
        tasks: tasks with samples.
    """

    config: RunConfig
    device: str
    points: tuple[OperatingPoint, ...]
    model: ResolvedModel
    codec: TextCodec
    codec_source: str
    tasks: tuple[PlannedTask, ...]


def make_plan(config: RunConfig) -> Plan:
    """Check a configuration and gather what it names; reads no weights and writes nothing.

    Raises:
        HarnessError: anything that cannot be run, in one line with the remedy.
    """
    baseline = StrategySpec(BASELINE)
    built = _build(config.specs())
    tasks: list[Task] = [TASKS.load(name)() for name in config.tasks]
    device = resolve_device(config.device)
    model = resolve(
        config.model,
        weights=config.weights,
        dtype=config.dtype,
        exit_points=config.exit_points,
        exit_head=config.exit_head,
        artefacts=config.artefacts,
        seed=config.seed,
    )
    if config.kv_input == "shortcut" and model.shortcut is None:
        raise ConfigError(
            "--kv-input shortcut needs the exits' shortcuts, and this run has the shared exit head. Use --exit-head "
            "shortcut, which says how to make them where there are none."
        )
    if not config.strategies:
        built = _usable(_build(parse_all(demo_strategies(model.info.exit_points))), model.info)
    built = [*_build([baseline]), *(pair for pair in built if pair[0] != baseline)]
    points = tuple(operating_point(spec, strategy, model.info) for spec, strategy in distinct(built))
    codec, codec_source = load_codec(model)
    planned = tuple(_draw(task, config, codec, model) for task in tasks)
    return Plan(config, device, points, model, codec, codec_source, planned)


def resolve_device(name: str) -> str:
    """Return a torch device name: ``auto`` takes CUDA when there is one.

    Raises:
        ConfigError: torch does not know the device, or it is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device '{name}' is unknown to torch. Use cpu, cuda or cuda:N.") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"device '{name}' is not supported. Use cpu, cuda or cuda:N.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device '{name}' is not here: torch sees {torch.cuda.device_count()} CUDA device(s).")
    return name


def _build(specs: Sequence[StrategySpec]) -> list[tuple[StrategySpec, Strategy]]:
    return [(spec, build_strategy(spec)) for spec in specs]


def _usable(built: list[tuple[StrategySpec, Strategy]], info: ModelInfo) -> list[tuple[StrategySpec, Strategy]]:
    """Leave out strategies that nobody asked for by name and nothing was trained for."""
    kept = []
    for spec, strategy in built:
        try:
            strategy.exit_points(info)
        except ArtefactError:
            logger.info("%s is left out: nothing is trained for it and %s", spec, info.name)
        else:
            kept.append((spec, strategy))
    return kept


def distinct(built: list[tuple[StrategySpec, Strategy]]) -> list[tuple[StrategySpec, Strategy]]:
    """Leave out operating points that are earlier ones spelled differently (``layer=04``, a default given)."""
    kept: list[tuple[StrategySpec, Strategy]] = []
    for spec, strategy in built:
        twin = next((other for other, known in kept if other.name == spec.name and known == strategy), None)
        if twin is None:
            kept.append((spec, strategy))
        else:
            logger.warning("%s is %s again and left out", spec, twin)
    return kept


def operating_point(spec: StrategySpec, strategy: Strategy, info: ModelInfo) -> OperatingPoint:
    """Check a built strategy against a model.

    Raises:
        HarnessError: it does not fit, or what it runs on is missing or made for another model.
    """
    points = tuple(strategy.exit_points(info))
    if list(points) != sorted(set(points) & set(info.exit_points)):
        raise OptionError(
            f"{spec} asks to stop after layers {points}, which are not sorted exit points of {info.name} "
            f"(exit points: {', '.join(map(str, info.exit_points)) or 'none'})."
        )
    record = OperatingPointRecord(
        name=str(spec),
        strategy=spec.name,
        options=effective_options(strategy),
        exit_points=points,
        rehearsed=strategy.rehearsed,
        artefacts=dict(strategy.artefacts(info)),
    )
    return OperatingPoint(strategy, record)


def _draw(task: Task, config: RunConfig, codec: TextCodec, model: ResolvedModel) -> PlannedTask:
    request = TaskRequest(
        protocol=config.protocol,
        source=config.source,
        limit=config.limit,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        max_positions=model.info.max_positions,
        seen=model.seen,
    )
    data = task.load(request, codec)
    if not data.samples:
        reason = f" First reason: {data.bad_rows[0].reason}" if data.bad_rows else ""
        raise DataError(f"{task.name}: no row of {data.source.label} can be used.{reason}")
    for row in data.bad_rows[:SHOWN_BAD_ROWS]:
        logger.warning("%s: %s", task.name, row.reason)
    if len(data.bad_rows) > SHOWN_BAD_ROWS:
        logger.warning("%s: %d further rows cannot be used", task.name, len(data.bad_rows) - SHOWN_BAD_ROWS)
    record = TaskRecord(
        name=task.name,
        language=task.language,
        protocol=config.protocol,
        source_kind=data.source.kind,
        source=data.source.label,
        fingerprint=data.source.fingerprint,
        samples=len(data.samples),
        bad_rows=len(data.bad_rows),
        detail=dict(data.source.detail),
    )
    return PlannedTask(task, data, task.stop_rule(config.protocol, codec), record)


def default_directory(config: RunConfig, stamp: str) -> Path:
    """Return a new run directory's path under ``runs/``, named by time, model and tasks."""
    model = Path(config.model).resolve().name  # "." has no name
    return Path("runs") / f"{stamp}-{model}-{'-'.join(config.tasks)}"
