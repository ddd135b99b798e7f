"""``harness lm-eval``: lm-eval's evaluation of full depth and of each operating point, measured as a run.

What is to be generated comes from lm-eval all at once. It becomes the samples of a run, whose session decodes them at
every operating point in interleaved windows; lm-eval then scores each point by the answers that stand in the records.
Texts that are only scored are read once, for all points: a strategy decides nothing about them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import evaluator

from harness.config import BASELINE, RunConfig
from harness.config.model import ModelConfiguration
from harness.contracts import OWN_FORMAT, Sample, SourceInfo, TaskData
from harness.errors import ConfigError, DataError, HarnessError, ModelError, reason
from harness.host.files import real_path
from harness.lm_eval.model import EarlyExitLM, Encoded
from harness.lm_eval.options import LmEvalOptions
from harness.lm_eval.requests import Ask, FoundTasks, cut, find_tasks, own_metrics, stop_rule
from harness.lm_eval.results import facts_of_row, write_results
from harness.models.model import ResolvedModel
from harness.records import OperatingPointRecord, SampleRecord, TaskRecord
from harness.running.operating_points import OperatingPoint, operating_points, with_baseline
from harness.running.plan import PlannedTask, prompts_digest
from harness.running.reading import read_run
from harness.running.runner import execute
from harness.running.session import Observer
from harness.store.run_directory import fresh_directory, refuse_occupied
from reports.recorded import RecordedRun

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        directory: the run directory, with lm-eval's results of each operating point in ``lm-eval``.
        results: operating point → what ``lm_eval.simple_evaluate`` returned, samples left out; full depth first.
        run: its records; ``None`` where no task generates, so that there is no run.
    """

    directory: Path
    results: dict[str, dict[str, Any]]
    run: RecordedRun | None


def evaluate(options: LmEvalOptions, observer: Observer) -> Evaluation:
    """Evaluate a model on lm-eval's tasks, at full depth and with each strategy."""
    out = options.out or fresh_directory(f"{real_path(options.model).name}-{PROTOCOL}")
    if out.exists():
        refuse_occupied(out)
    if not any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
        evaluator.get_git_commit_hash = lambda: None  # git would complain on the screen
    lm = _MeasuredLM(options, out, observer)
    if options.apply_chat_template:
        lm.check_chat_template()
    observer.stage("loading the tasks of lm-eval")
    lm.found = find_tasks(options.names, options.include_path)
    logging.getLogger(lm_eval.__name__).setLevel(logging.ERROR)  # what it says of tasks was said when they were loaded
    results: dict[str, dict[str, Any]] = {}
    try:
        results[BASELINE] = _simple_evaluate(lm, options)
        for record in () if lm.run is None else lm.run.manifest.operating_points[1:]:
            lm.answering = record
            observer.stage(f"scoring {record.name}")
            results[record.name] = _simple_evaluate(lm, options)
    finally:
        lm.close()
    if lm.run is None and options.strategies:
        logger.warning(
            "no task generates text, so there was nothing for a strategy to decide: %s is left out",
            ", ".join(options.strategies),
        )
    write_results(out, results)
    return Evaluation(out, results, lm.run)


def _simple_evaluate(lm: _MeasuredLM, options: LmEvalOptions) -> dict[str, Any]:
    with own_metrics():
        try:
            found: dict[str, Any] = lm_eval.simple_evaluate(
                lm,
                tasks=lm.found.names,
                task_manager=lm.found.manager,
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                apply_chat_template=options.apply_chat_template,
                batch_size=options.batch_size,
                log_samples=False,
            )
        except (HarnessError, MemoryError):
            raise
        except Exception as error:  # the task's own, its data set's, lm-eval's, or a defect of ours
            frames = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
            if any(name.partition(".")[0] == __name__.partition(".")[0] for name in frames[1:]):
                raise  # lm-eval called the model
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"lm-eval cannot evaluate {', '.join(options.names)}: {reason(error)} ({place.filename}, line "
                f"{place.lineno}). Check the task's YAML file, its functions and its data."
            ) from error
    found["config"]["model"] = lm.config.model
    return found


class _MeasuredLM(EarlyExitLM):
    """Has everything generated in one run, at every operating point, and answers for one of them."""

    found: FoundTasks

    def __init__(self, options: LmEvalOptions, out: Path, observer: Observer) -> None:
        model = ModelConfiguration.model_fields.keys()
        given = {name: getattr(options, name) for name in (*model, *_OF_RUNS)}
        given["weights_format"] = options.weights_format or OWN_FORMAT[options.dtype]
        config = RunConfig.build(
            {
                **given,
                "strategies": options.strategies or (BASELINE,),
                "tasks": options.names or (PROTOCOL,),
                "protocol": PROTOCOL,
                "source": PROTOCOL,
                "limit": options.limit or 0,
                "out": out,
            }
        )
        super(EarlyExitLM, self).__init__()
        self._options = options
        self.configure(config, options.max_gen_toks, options.loglikelihood_exit)
        self.run: RecordedRun | None = None
        self.answering: OperatingPointRecord | None = None
        self._observer = observer
        self._known: dict[tuple[tuple[int, ...], tuple[int, ...]], tuple[float, bool]] = {}

    @property
    def operating_point(self) -> OperatingPointRecord:
        """The model that results belong to."""
        if self.answering is None:
            return self.point.record if self.run is None else self.run.manifest.operating_points[0]
        return self.answering

    def facts(self) -> dict[str, dict[str, Any]]:
        """Cost of scoring, and of generation as the records have it."""
        found = super().facts()
        if self.run is not None:
            name = self.operating_point.name
            for row in self.run.summary.rows:
                if row.operating_point == name:
                    cell = self.run.cells[row.task, name]
                    tokens = sum(len(sample.token_ids) for sample in cell.samples.values())
                    found.setdefault(row.task, {})["generated"] = facts_of_row(row, tokens)
        return found

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As there; what was scored for full depth is known for all, and shows no progress."""
        return super().loglikelihood(requests, disable_tqdm or self.answering is not None)

    def _generate(self, asks: Sequence[Ask], disable_tqdm: bool) -> list[Sequence[int]]:
        if self.run is None:
            self.__dict__.pop("engine", None)  # the run loads its own, and there may not be room for both
            result = execute(
                self.config,
                observer=self._observer,
                draw=lambda model: planned_tasks(self, model, asks, self.found.tasks, self._options),
            )
            self.run = read_run(result.directory, stored=True)
        name = self.operating_point.name
        return [self._answer(ask, name) for ask in asks]

    def _answer(self, ask: Ask, point: str) -> Sequence[int]:
        sample = self._answers[ask.task, point, ask.sample_id]
        if sample.error is not None:
            raise ModelError(f"{point}: {ask.task}, document {ask.sample_id}: {sample.error}")
        return sample.token_ids

    @cached_property
    def _answers(self) -> dict[tuple[str, str, str], SampleRecord]:
        assert self.run is not None
        return {
            (*key, sample.sample_id): sample
            for key, cell in self.run.cells.items()
            for sample in (*cell.samples.values(), *cell.failed.values())
        }

    @cached_property
    def point(self) -> OperatingPoint:
        """Full depth: what scores texts where nothing is generated."""
        return operating_points(with_baseline([]), self.config, [self.engine.info])[0]

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, **settings: Any
    ) -> list[tuple[float, bool]]:
        keys = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        new = [request for key, request in zip(keys, requests, strict=True) if key not in self._known]
        known = [len(key[1]) for key in keys if key in self._known]
        if known and self.answering is None:  # from another task
            layers = [self._scoring_layer] * sum(known)
            self.spent_on("scored", self._task).count(len(known), sum(known), layers, known=True)
        if new:
            scored = super()._loglikelihood_tokens(new, disable_tqdm, **settings)
            fresh = [(tuple(context), tuple(continuation)) for _, context, continuation in new]
            self._known.update(zip(fresh, scored, strict=True))
        return [self._known[key] for key in keys]


_OF_RUNS = ("kv", "decode", "draft_head", "draft_max", "prompt_exit", "batch_size", "strict", "seed")
"""Options that a run has as well."""


DEFINED_BY = "lm_eval"
"""Package that defines tasks, protocol and scores; names of its scores begin with it."""
PROTOCOL = "lm-eval"
LANGUAGE = "text"
FILES = frozenset({"json", "csv", "parquet", "text", "arrow"})
"""Readers of local files that pass for the name of a data set."""


def planned_tasks(
    lm: EarlyExitLM, model: ResolvedModel, asks: Sequence[Ask], tasks: Mapping[str, Any], options: LmEvalOptions
) -> tuple[PlannedTask, ...]:
    """Return the tasks of some requests, each with its samples in the order asked, repetitions left out."""
    by_task: dict[str, dict[str, Ask]] = {}
    for ask in asks:
        by_task.setdefault(ask.task, {}).setdefault(ask.sample_id, ask)
    return tuple(_planned(lm, model, name, list(each.values()), tasks[name], options) for name, each in by_task.items())


def _planned(
    lm: EarlyExitLM, model: ResolvedModel, name: str, asks: list[Ask], task: Any, options: LmEvalOptions
) -> PlannedTask:
    untils = {ask.until for ask in asks}
    if len(untils) > 1:
        raise ConfigError(
            f"requests of the task {name} end at different texts, and a run has one rule per task. Omit it, or use "
            "harness.lm_eval.EarlyExitLM from Python."
        )
    (until,) = untils
    samples = []
    for ask in asks:
        target = task.doc_to_target(ask.instance.doc)
        target = str((target[0] if target else "") if isinstance(target, list | tuple) else target)
        ids = tuple(model.tokenizer.encode(target))
        samples.append(Sample(ask.sample_id, ask.prompt_ids, target, ids, ask.limit))
    source = _source(name, task, asks, options)
    record = TaskRecord(
        name=name,
        language=LANGUAGE,
        protocol=PROTOCOL,
        source_kind=source.kind,
        source=source.label,
        fingerprint=source.fingerprint,
        prompts=prompts_digest(samples),
        samples=len(samples),
        bad_rows=0,
        detail=dict(source.detail),
        defined_by=DEFINED_BY,
    )
    return PlannedTask(
        _Judge(until),
        TaskData(tuple(samples), (), source),
        stop_rule(model.tokenizer, until),
        record,
        _Scores(lm, task, {ask.sample_id: ask for ask in asks}),
    )


@dataclass(frozen=True)
class _Judge:
    until: tuple[str, ...]
    language: str = LANGUAGE

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return what stands before the first stop text."""
        return cut(text, self.until)


@dataclass(frozen=True)
class _Scores:
    """Scores one completion as lm-eval scores a document: by the task's filters and its own metrics.

    Nothing for documents of several requests, and for metrics that are not a number per document: those stand in
    lm-eval's results alone. A number that is not finite is not defined.
    """

    lm: EarlyExitLM
    task: Any
    asks: Mapping[str, Ask]

    def __call__(self, sample: Sample, token_ids: Sequence[int]) -> Mapping[str, float | None]:
        ask = self.asks[sample.sample_id]
        if any(other.instance.doc_id == ask.instance.doc_id for other in self.asks.values() if other is not ask):
            return {}
        instance = copy.copy(ask.instance)
        instance.resps = [self.lm.text(ask, token_ids)] * (instance.repeats or 1)
        instance.filtered_resps = {}
        for pipeline in self.task._filters:
            pipeline.apply([instance])
        found: dict[str, float | None] = {}
        for name, answer in instance.filtered_resps.items():
            for metric, value in self.task.process_results(instance.doc, [answer]).items():
                if isinstance(value, Real):
                    label = f"{DEFINED_BY}_{metric}" if name == "none" else f"{DEFINED_BY}_{metric}_{name}"
                    found[label] = float(value) if math.isfinite(value) else None
        return found


def _source(name: str, task: Any, asks: Sequence[Ask], options: LmEvalOptions) -> SourceInfo:
    path = str(task.config.dataset_path or "")
    local = path in FILES or not path or Path(path).exists()
    rows = json.dumps([[ask.sample_id, ask.instance.doc] for ask in asks], sort_keys=True, default=str)
    hub = f"{path}/{task.config.dataset_name}" if task.config.dataset_name else path
    own, asked = task.config.num_fewshot, options.num_fewshot  # a task's own 0 is never overridden
    return SourceInfo(
        "path" if local else "hub",
        f"lm-eval's {name}, version {task.VERSION}" + ("" if local else f", {hub}"),
        hashlib.sha256(rows.encode()).hexdigest(),
        {
            DEFINED_BY: version("lm_eval"),
            "dataset_path": path,
            "split": str(task.config.test_split or task.config.validation_split or ""),
            "num_fewshot": str((own or 0) if asked is None or own == 0 else asked),
            "apply_chat_template": str(options.apply_chat_template),
        },
    )
