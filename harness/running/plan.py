"""A run as planned: the one value that says everything found for it, and how its samples are drawn."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from harness.config import RunConfig
from harness.contracts import ModelInfo, Sample, StopRule, Task, TaskData, TaskRequest
from harness.errors import DataError
from harness.models.model import ResolvedModel
from harness.models.model import resolve as find_model
from harness.records import Manifest, ObservedThreshold, TaskRecord
from harness.records.guarantee import CalibratedPoint
from harness.records.record import Record
from harness.registry import PROTOCOLS, TASKS, keeping_folder
from harness.running.operating_points import Built, OperatingPoint, operating_points
from harness.running.scoring import score_names

if TYPE_CHECKING:
    from harness.models.ngrams import NgramIndex

logger = logging.getLogger(__name__)

SHOWN_BAD_ROWS = 5  # the samples file has them all


class Judge(Protocol):
    """The part of a task that is needed once its samples are drawn."""

    @property
    def language(self) -> str:
        """Which scores apply."""

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return the part of generated text that is scored."""


@dataclass(frozen=True)
class PlannedTask:
    """One task with its samples; ``score`` has further scores of a sample and the tokens generated for it."""

    task: Judge
    data: TaskData
    stop: StopRule
    record: TaskRecord
    score: Callable[[Sample, Sequence[int]], Mapping[str, float | None]] = lambda sample, token_ids: {}


Draw: TypeAlias = Callable[[ResolvedModel], tuple[PlannedTask, ...]]
"""Draws the samples of all tasks for a model."""


@dataclass(frozen=True)
class Plan:
    """A checked run, as :func:`harness.running.resolve.resolve` leaves it: nothing below it looks anything up again.

    Attributes:
        config: what was asked for, with a number for every percentile and the text of every calibrated point.
        built, points: its strategies and operating points, full depth first.
        observed: thresholds that were percentiles.
        calibrated: operating points that came with a guarantee, and the file that each was read from.
        before: the manifest of the run that goes on; ``None`` for a new one.
    """

    config: RunConfig
    device: str
    built: Built
    points: tuple[OperatingPoint, ...]
    model: ResolvedModel
    tasks: tuple[PlannedTask, ...]
    observed: tuple[ObservedThreshold, ...] = ()
    calibrated: tuple[tuple[Path, CalibratedPoint], ...] = ()
    before: Manifest | None = None

    @cached_property
    def devices(self) -> str:
        """All devices that multiply, as a meter takes them."""
        return self.model.devices(self.device)

    @cached_property
    def placement(self) -> Mapping[str, str]:
        """Which layers are where, in words; empty where all are on one device."""
        return self.model.placement(self.device)

    @property
    def formats(self) -> Sequence[str]:
        """The weights formats to load: those of the run that goes on, whatever ``auto`` would choose now."""
        return self.config.weights_formats if self.before is None else self.before.model.formats

    def stored_in(self, models: Sequence[ModelInfo]) -> Plan:
        """Return the plan with the operating points of a model that was loaded, in each weights format."""
        return replace(self, points=operating_points(self.built, self.config, models))


def shared_fields(source: object, record: type[Record]) -> dict[str, Any]:
    """Return the facts of an object that a record has under the same names."""
    return {name: getattr(source, name) for name in record.model_fields if hasattr(source, name)}


def registered_draw(config: RunConfig, *, by_length: bool = True) -> Draw:
    """Load the tasks that a configuration names, and their protocols; return what draws their samples."""
    tasks: list[Task] = [TASKS.load(name)() for name in config.tasks]
    for protocol in {_protocol(task, config) for task in tasks}:
        PROTOCOLS.load(protocol)
    score_names(task.language for task in tasks)  # imports them: what cannot be scored is not measured for hours

    def draw(model: ResolvedModel) -> tuple[PlannedTask, ...]:
        ngrams = model.seen.ngrams()
        return tuple(_draw(task, config, model, ngrams, by_length) for task in tasks)

    return draw


def drawn_again(manifest: Manifest) -> tuple[PlannedTask, ...]:
    """Return the tasks of a run with the samples it was made of, drawn again; other rows by now are refused."""
    asked = {"allow_overlap": True, **manifest.config}  # runs of before December 2026 did not ask
    config = RunConfig.build({key: value for key, value in asked.items() if key != "out"})
    by_length = all(task.prompt_tokens_mean is not None for task in manifest.tasks)  # nor drew it by length
    planned = registered_draw(config, by_length=by_length)(find_model(config.request(config.seed)))
    for task, before in zip(planned, manifest.tasks, strict=True):
        if (task.record.fingerprint, task.record.prompts) != (before.fingerprint, before.prompts):
            raise DataError(
                f"{before.name}: {task.record.source} has other rows than the run read from {before.source}, and its "
                "samples are scored with what stands there. Give the run's own rows back."
            )
    return planned


def _protocol(task: Task, config: RunConfig) -> str:
    return config.protocol or (task.session_protocol if config.session else task.default_protocol)


def _draw(
    task: Task, config: RunConfig, model: ResolvedModel, ngrams: NgramIndex | None, by_length: bool
) -> PlannedTask:
    protocol = _protocol(task, config)
    request = TaskRequest(
        protocol=protocol,
        source=config.source,
        limit=None if config.limit is None else config.skip + config.limit,
        seed=config.seed,
        by_length=by_length,
        max_new_tokens=config.max_new_tokens,
        max_positions=model.info.max_positions,
        vocab_size=model.info.vocab_size,
        seen=model.seen.documents,
        seen_projects=frozenset() if config.allow_overlap else model.seen.projects,
        was_read=None if ngrams is None else ngrams.has_run_of,
        duplicates=config.duplicates,
        allow_code_execution=config.allow_code_execution,
        session=config.session,
    )
    with keeping_folder(f"the task '{task.name}' was drawn"):
        data = task.load(request, model.tokenizer)
    if not data.samples:
        reason = f" First reason: {data.bad_rows[0].reason}" if data.bad_rows else ""
        raise DataError(f"{task.name}: no row of {data.source.label} can be used.{reason}")
    if config.skip:
        data = _after(config.skip, data, task.name)
    for row in data.bad_rows[:SHOWN_BAD_ROWS]:
        logger.warning("%s: %s", task.name, row.reason)
    if len(data.bad_rows) > SHOWN_BAD_ROWS:
        logger.warning("%s: %d further rows cannot be used", task.name, len(data.bad_rows) - SHOWN_BAD_ROWS)
    prompts = [len(sample.prompt_ids) for sample in data.samples]
    record = TaskRecord(
        name=task.name,
        language=task.language,
        protocol=protocol,
        source_kind=data.source.kind,
        source=data.source.label,
        fingerprint=data.source.fingerprint,
        prompts=prompts_digest(data.samples),
        samples=len(data.samples),
        prompt_tokens_mean=fmean(prompts),
        prompt_tokens_median=median(prompts),
        bad_rows=len(data.bad_rows),
        duplicates=data.duplicates,
        overlapping=sum(sample.project in model.seen.projects for sample in data.samples),
        unknown_projects=sum(sample.project is None for sample in data.samples),
        unindexed=tuple(sorted({file.stem for file in model.seen.unindexed})),
        detail=dict(data.source.detail),
    )
    return PlannedTask(task, data, task.stop_rule(protocol, model.tokenizer), record)


def _after(skip: int, data: TaskData, task: str) -> TaskData:
    """Leave out the first samples, or sessions, which another run drew."""
    counted = list(dict.fromkeys(sample.session or sample.sample_id for sample in data.samples))
    left_out, source = set(counted[:skip]), data.source
    samples = tuple(sample for sample in data.samples if (sample.session or sample.sample_id) not in left_out)
    if not samples:
        what = "sessions" if data.samples[0].session else "samples"
        raise DataError(
            f"{task}: {source.label} has {len(counted)} {what}, and --skip {skip} leaves none. Use a smaller one."
        )
    kept = any(sample.duplicate for sample in data.samples)
    fingerprint = hashlib.sha256(f"{source.fingerprint} after {skip}".encode()).hexdigest()
    source = replace(source, fingerprint=fingerprint, detail={**source.detail, "left_out_first": str(skip)})
    return replace(
        data,
        samples=samples,
        source=source,
        duplicates=sum(sample.duplicate for sample in samples) if kept else data.duplicates,
    )


def prompts_digest(samples: Sequence[Sample]) -> str:
    """Return a hash over what is decoded and what it is scored against, in the order drawn."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.sample_id, list(sample.prompt_ids), list(sample.reference_ids))).encode())
        if sample.session:
            digest.update(repr((sample.session, sample.overtaken_requests, sample.typing_s)).encode())
    return digest.hexdigest()
