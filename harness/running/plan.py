"""Everything a run needs, checked before the first weight is read.

A plan is made in the order of cost: names and options first, then the model's facts, the tokenizer and the
samples. Whatever is wrong is refused here, and nothing has been written yet.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, TypeAlias

from harness.config import RunConfig, demo_strategies, parse_all
from harness.config.stops import NO_STOP
from harness.contracts import (
    OWN_FORMAT,
    BlackBox,
    ModelInfo,
    ModelRequest,
    Sample,
    StopRule,
    Task,
    TaskData,
    TaskRequest,
)
from harness.decoding import packing
from harness.errors import ArtefactError, ConfigError, DataError, EndpointError, OutOfReachError
from harness.host.device import resolve_device
from harness.models.model import ResolvedModel, foresee, resolve
from harness.models.placement import check_format
from harness.records import Manifest, TaskRecord
from harness.registry import KV_POLICIES, PROTOCOLS, TASKS, keeping_folder
from harness.running.operating_points import (
    Built,
    OperatingPoint,
    black_box,
    build_all,
    operating_points,
    usable,
    with_baseline,
)
from harness.running.scoring import score_names

if TYPE_CHECKING:
    from harness.models.ngrams import NgramIndex

__all__ = ["Draw", "Judge", "Plan", "PlannedTask", "drawn_again", "make_plan", "prompts_digest"]

logger = logging.getLogger(__name__)

SHOWN_BAD_ROWS = 5  # the samples file has them all


class Judge(Protocol):
    """What is asked of a task once its samples are drawn."""

    @property
    def language(self) -> str:
        """Which scores apply."""

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return the part of generated text that is scored."""


@dataclass(frozen=True)
class PlannedTask:
    """One task with its samples.

    Attributes:
        task: what it was drawn from; cuts completions.
        data: samples, bad rows, source.
        stop: ends a completion.
        record: what the manifest says of it.
        score: further scores of a sample and the tokens generated for it, beside the registered ones.
    """

    task: Judge
    data: TaskData
    stop: StopRule
    record: TaskRecord
    score: Callable[[Sample, Sequence[int]], Mapping[str, float | None]] = lambda sample, token_ids: {}


Draw: TypeAlias = Callable[[ResolvedModel], tuple[PlannedTask, ...]]
"""Draws the samples of all tasks for a model."""


@dataclass(frozen=True)
class Plan:
    """A checked run.

    Attributes:
        config: what was asked for.
        device: resolved torch device.
        built: its strategies, full depth first.
        points: operating points, full depth first.
        model: facts, tokenizer, and where the weights are.
        tasks: tasks with samples.
    """

    config: RunConfig
    device: str
    built: Built
    points: tuple[OperatingPoint, ...]
    model: ResolvedModel
    tasks: tuple[PlannedTask, ...]

    def stored_in(self, models: Sequence[ModelInfo]) -> Plan:
        """Return the plan with the operating points of a model that was loaded, in each weights format."""
        return replace(self, points=operating_points(self.built, self.config, models))


def make_plan(config: RunConfig, draw: Draw | None = None, *, begins: bool = True) -> Plan:
    """Check a configuration and gather what it names; reads no weights and writes nothing.

    Args:
        config: what to run.
        draw: in place of the registered tasks and protocol that it names.
        begins: a black box that is down is refused; later its samples fail, and the run goes on.

    Raises:
        HarnessError: anything that cannot be run, in one line with the remedy.
    """
    _refuse_contradictions(config)
    specs = build_all(config.specs())
    draw = draw or _registered(config)
    device = resolve_device(config.device)
    for spec, strategy in specs:
        if isinstance(strategy, BlackBox):
            black_box(spec, strategy)
            if begins:
                _reach(strategy)
    model = _find_model(config.request(config.seed), specs)
    if config.kv_input == "shortcut" and model.shortcut is None:
        raise ConfigError(
            "--kv-input shortcut needs the exits' shortcuts, and this run has the shared exit head. Use --exit-head "
            "shortcut, which says how to make them where there are none."
        )
    if not config.strategies:
        specs = usable(build_all(parse_all(demo_strategies(model.info.exit_points), in_run=True)), model.info)
    built = with_baseline(specs)
    formats = config.weights_formats
    for name in formats:
        check_format(model.info, name)
        if name not in ("auto", OWN_FORMAT[model.info.dtype]):
            packing.usable(name, device)
    points = operating_points(built, config, [replace(model.info, weights_format=name) for name in formats])
    planned = draw(model)
    for stop in {point.stop.written: point.stop for point in points if point.stop is not None}.values():
        for task in planned:
            stop.check(model.info, task.task.language)
    return Plan(config, device, built, points, model, planned)


def drawn_again(manifest: Manifest) -> tuple[PlannedTask, ...]:
    """Return the tasks of a run with the samples it was made of, drawn from where it drew them.

    Raises:
        DataError: the rows are others by now; names the task.
        HarnessError: the model's tokenizer or a source cannot be had.
    """
    config = RunConfig.build({key: value for key, value in manifest.config.items() if key != "out"})
    planned = _registered(config)(resolve(config.request(config.seed)))
    for task, before in zip(planned, manifest.tasks, strict=True):
        if (task.record.fingerprint, task.record.prompts) != (before.fingerprint, before.prompts):
            raise DataError(
                f"{before.name}: {task.record.source} has other rows than the run read from {before.source}, and its "
                "samples are scored with what stands there. Give the run's own rows back."
            )
    return planned


def _registered(config: RunConfig) -> Draw:
    """Load the tasks that a configuration names, and their protocols."""
    tasks: list[Task] = [TASKS.load(name)() for name in config.tasks]
    for protocol in {_protocol(task, config) for task in tasks}:
        PROTOCOLS.load(protocol)
    score_names(task.language for task in tasks)  # imports them: what cannot be scored is not measured for hours

    def draw(model: ResolvedModel) -> tuple[PlannedTask, ...]:
        ngrams = model.seen.ngrams()
        return tuple(_draw(task, config, model, ngrams) for task in tasks)

    return draw


def _reach(strategy: BlackBox) -> None:
    """Ask a black box for one token: what is down now would fail on every sample.

    Raises:
        EndpointError: it does not complete; with the remedy.
    """
    connection = strategy.connect()
    try:
        connection.complete("def f(x):", 1, lambda _: False)
    except EndpointError as error:
        raise EndpointError(f"{error} {strategy.remedy()}") from None
    finally:
        connection.close()


def _find_model(request: ModelRequest, built: Built) -> ResolvedModel:
    """Find the model; where it is out of reach, say at once what the strategies would lack when it is not.

    Raises:
        HarnessError: it cannot be had.
    """
    try:
        return resolve(request)
    except OutOfReachError as error:
        lacking = _lacking(request, built)
        if not lacking:
            raise
        reasons = "; ".join(each.message.rstrip(":") for each in lacking)
        commands = dict.fromkeys(command for each in lacking for command in each.commands)
        raise OutOfReachError(f"{error} With the model at hand: {reasons}:", commands) from None


def _lacking(request: ModelRequest, built: Built) -> list[ArtefactError]:
    """What a run with a catalogue model would be refused for once the model is in reach."""
    lacking = []
    try:
        info = foresee(request)
        if info is None:
            return []
        for strategy in (strategy for _, strategy in built if not isinstance(strategy, BlackBox)):
            try:
                strategy.exit_points(info)
            except ArtefactError as error:
                lacking.append(error)
    except ArtefactError as error:
        lacking.append(error)
    return lacking


def _refuse_contradictions(config: RunConfig) -> None:
    """Refuse settings that would be measured and then mean nothing together."""
    if config.arrival_rate is not None and config.batch_size > 1:
        raise ConfigError(
            f"--arrival-rate serves one request at a time and --batch-size is {config.batch_size}. Omit one of them."
        )
    if not config.attribute:
        return
    if config.batch_size > 1 or config.arrival_rate is not None:
        raise ConfigError(
            "--attribute counts what single requests did, back to back. Omit --batch-size and --arrival-rate."
        )
    if config.stops != (NO_STOP,):
        raise ConfigError(
            "--attribute compares costs of the same tokens, and a stop rule leaves some out. Omit --stop."
        )
    if config.kv_policies and not any(KV_POLICIES.load(kv).facts.keeps_cache for kv in config.kv_policies):
        raise ConfigError("--attribute needs a KV cache: without one every token is a prefill. Use another --kv.")


def _draw(task: Task, config: RunConfig, model: ResolvedModel, ngrams: NgramIndex | None) -> PlannedTask:
    protocol = _protocol(task, config)
    request = TaskRequest(
        protocol=protocol,
        source=config.source,
        limit=None if config.limit is None else config.skip + config.limit,
        seed=config.seed,
        max_new_tokens=config.max_new_tokens,
        max_positions=model.info.max_positions,
        vocab_size=model.info.vocab_size,
        seen=model.seen.documents,
        was_read=None if ngrams is None else ngrams.has_run_of,
        duplicates=config.duplicates,
        allow_code_execution=config.allow_code_execution,
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
    record = TaskRecord(
        name=task.name,
        language=task.language,
        protocol=protocol,
        source_kind=data.source.kind,
        source=data.source.label,
        fingerprint=data.source.fingerprint,
        prompts=prompts_digest(data.samples),
        samples=len(data.samples),
        bad_rows=len(data.bad_rows),
        duplicates=data.duplicates,
        unindexed=tuple(sorted({file.stem for file in model.seen.unindexed})),
        detail=dict(data.source.detail),
    )
    return PlannedTask(task, data, task.stop_rule(protocol, model.tokenizer), record)


def _after(skip: int, data: TaskData, task: str) -> TaskData:
    """Leave out the first samples, which another run drew."""
    samples, source = data.samples[skip:], data.source
    if not samples:
        raise DataError(
            f"{task}: {source.label} has {len(data.samples)} samples, and --skip {skip} leaves none. Use a smaller one."
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


def _protocol(task: Task, config: RunConfig) -> str:
    """Return the protocol that a task is drawn under: what was asked for, or its own."""
    return task.default_protocol if config.protocol is None else config.protocol


def prompts_digest(samples: Sequence[Sample]) -> str:
    """Return a hash over what is decoded and what it is scored against, in the order drawn."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(repr((sample.sample_id, list(sample.prompt_ids), list(sample.reference_ids))).encode())
    return digest.hexdigest()
