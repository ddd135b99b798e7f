"""lm-eval's generation requests as the samples of a run, so that a run's own session measures them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Real
from pathlib import Path
from typing import Any

from harness.contracts import Sample, SourceInfo, TaskData
from harness.errors import ConfigError
from harness.lm_eval.model import EarlyExitLM
from harness.lm_eval.options import LmEvalOptions
from harness.lm_eval.requests import Ask, cut, stop_rule
from harness.models.model import ResolvedModel
from harness.records import TaskRecord
from harness.running.plan import PlannedTask, prompts_digest

DEFINED_BY = "lm_eval"
"""Package that defines tasks, protocol and scores; names of its scores begin with it."""
PROTOCOL = "lm-eval"
LANGUAGE = "text"
FILES = frozenset({"json", "csv", "parquet", "text", "arrow"})
"""Readers of local files that pass for the name of a data set."""


def planned_tasks(
    lm: EarlyExitLM, model: ResolvedModel, asks: Sequence[Ask], tasks: Mapping[str, Any], options: LmEvalOptions
) -> tuple[PlannedTask, ...]:
    """Return the tasks of some requests, each with its samples in the order asked, repetitions left out.

    Args:
        lm: spells answers.
        model: whose tokens they are.
        asks: all requests to generate.
        tasks: name → lm-eval's task.
        options: that lm-eval made the prompts with.

    Raises:
        ConfigError: requests of one task that end at different texts.
    """
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
    targets = [_target(task, ask) for ask in asks]
    samples = tuple(
        Sample(ask.sample_id, ask.prompt_ids, target, tuple(model.tokenizer.encode(target)), ask.limit)
        for ask, target in zip(asks, targets, strict=True)
    )
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
        TaskData(samples, (), source),
        stop_rule(model.tokenizer, until),
        record,
        _Scores(lm, task, {ask.sample_id: ask for ask in asks}),
    )


@dataclass(frozen=True)
class _Judge:
    """Cuts texts as lm-eval does."""

    until: tuple[str, ...]
    language: str = LANGUAGE

    def completion(self, protocol: str, text: str, around: tuple[str, str] = ("", "")) -> str:
        """Return what stands before the first stop text."""
        return cut(text, self.until)


@dataclass(frozen=True)
class _Scores:
    """Scores one completion as lm-eval scores a document: by the task's filters and its own metrics.

    Nothing for documents of several requests, which are scored together, and for metrics that are not a number per
    document (perplexity's weights, the pairs of a corpus' BLEU); those stand in lm-eval's results alone. A number that
    is not finite is not defined.
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


def _target(task: Any, ask: Ask) -> str:
    """Return a document's first right answer as text; empty where the task has none in words."""
    target = task.doc_to_target(ask.instance.doc)
    if isinstance(target, list | tuple):
        target = target[0] if target else ""
    return str(target)


def _source(name: str, task: Any, asks: Sequence[Ask], options: LmEvalOptions) -> SourceInfo:
    path = str(task.config.dataset_path or "")
    local = path in FILES or not path or Path(path).exists()
    rows = json.dumps([[ask.sample_id, ask.instance.doc] for ask in asks], sort_keys=True, default=str)
    hub = f"{path}/{task.config.dataset_name}" if task.config.dataset_name else path
    return SourceInfo(
        "path" if local else "hub",
        f"lm-eval's {name}, version {task.VERSION}" + ("" if local else f", {hub}"),
        hashlib.sha256(rows.encode()).hexdigest(),
        {
            DEFINED_BY: version("lm_eval"),
            "dataset_path": path,
            "split": str(task.config.test_split or task.config.validation_split or ""),
            "num_fewshot": str(_examples(task.config.num_fewshot, options.num_fewshot)),
            "apply_chat_template": str(options.apply_chat_template),
        },
    )


def _examples(own: int | None, asked: int | None) -> int:
    """Return how many examples lm-eval puts before each document; a task's own 0 it never overrides."""
    return (own or 0) if asked is None or own == 0 else asked
