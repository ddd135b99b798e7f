"""Results in the formats of others: rows of one engine's speed, Every Eval Ever's records, the hub's ``.eval_results``.

Also the other way: what Spec-Bench's and SPEED-Bench's engines wrote becomes such rows, so that they stand beside ours.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from harness.contracts import Metric
from harness.errors import ConfigError, DataError, UnknownNameError
from harness.records import SampleRecord
from harness.records.estimate import Estimate
from harness.records.record import Record
from harness.records.summary import SummaryRow
from harness.registry import SCORES
from reports.metrics.vocabulary import metrics_of
from reports.recorded import RecordedRun

LIBRARY = "early-exit-harness"
PLACES = 8
"""Places of a draft whose acceptance is told."""

SPEEDS = ("speedup", "decode_speedup", "tokens_per_verification", "acceptance")
EVERY_EVAL_EVER = "0.3.0"
"""Version of the schema of evaleval/every_eval_ever that records follow."""


class Value(Record):
    """A number.

    Attributes:
        value: it.
        low, high: its 95 % interval, if it has one.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, found: Estimate | None) -> Value | None:
        """Return an estimate so; ``None`` where nothing was measured."""
        return None if found is None else cls(value=found.value, low=found.low, high=found.high)


class SpeedRow(Record):
    """How fast one way of decoding is on one kind of text: what any engine can say, a JSON object a line.

    Attributes:
        row_version: of this format.
        engine, engine_version, method: what decoded, and how, in its own words.
        model, numbers: what was decoded, and the number format of its weights.
        lossless: whether tokens are those of the baseline; ``None`` where nobody says.
        task, data, samples: what text, and how many requests.
        batch_size: requests at a time.
        baseline: what speed-ups are over.
        speedup: of whole requests. decode_speedup: behind the first token.
        tokens_per_second: of whole requests, where only that is known.
        tokens_per_verification: tokens that one pass of the whole model yields.
        acceptance: share of drafted tokens that stood.
        acceptance_by_place: of drafts whose tokens before stood, the share whose first, second … token stood.
        machine, date: where and when (ISO 8601).
        source: of a row that another tool's file became: which.
    """

    row_version: Literal[1] = 1
    engine: str
    engine_version: str = ""
    method: str
    model: str
    numbers: str = ""
    lossless: bool | None = None
    task: str
    data: str = ""
    samples: int
    batch_size: int = 1
    baseline: str
    speedup: Value | None = None
    decode_speedup: Value | None = None
    tokens_per_second: float | None = None
    tokens_per_verification: Value | None = None
    acceptance: Value | None = None
    acceptance_by_place: Annotated[tuple[float, ...], Field(max_length=PLACES)] = ()
    machine: str = ""
    date: str = ""
    source: str = ""


def speed_rows(run: RecordedRun) -> Iterator[SpeedRow]:
    """Yield the rows of a run, bounds that know the answer left out."""
    manifest = run.manifest
    for row in _candidates(run):
        cell = run.cells[row.task, row.operating_point]
        yield SpeedRow(
            engine=LIBRARY,
            engine_version=_version(run),
            method=row.operating_point,
            model=row.model,
            numbers=row.numbers,
            lossless=row.lossless or row.strategy == "full",
            task=row.task,
            data=f"{row.source}, {row.protocol}",
            samples=row.n,
            batch_size=row.batch_size,
            baseline=f"full depth, {row.baseline_format} weights",
            speedup=Value.of(row.estimate("speedup")),
            decode_speedup=Value.of(row.estimate("decode_speedup")),
            tokens_per_verification=Value.of(row.estimate("tokens_per_verification")),
            acceptance=Value.of(row.estimate("acceptance")),
            acceptance_by_place=by_place(cell.samples.values()),
            machine=run.summary.machine,
            date=manifest.created[:10],
        )


def by_place(samples: Iterable[SampleRecord]) -> tuple[float, ...]:
    """Return the share of first, second … tokens of drafts that stood, of drafts whose tokens before stood."""
    stood, fell = Counter[int](), Counter[int]()
    for sample in samples:
        rejected, place = {one.place for one in sample.discarded}, 0
        for number, accepted in enumerate(sample.accepted):
            if accepted:
                place += 1
                stood[place] += 1
                continue
            fell[place + 1] += number in rejected
            place = 0
    told = (stood[place] + fell[place] for place in range(1, PLACES + 1))
    return tuple(stood[place] / count for place, count in enumerate(told, 1) if count)


def spec_bench_rows(
    answers: Path, baseline: Path, *, categories: Sequence[str] = (), engine: str = "Spec-Bench"
) -> Iterator[SpeedRow]:
    """Yield a row of two files of Spec-Bench's answers: a method's, and vanilla decoding's.

    Tokens a second are the mean over questions, as in Spec-Bench's ``speed.py``, but that the baseline's tokens are
    counted by the engine, too, and not by a tokenizer.

    Args:
        answers: a JSON object a line with ``question_id``, ``category``, ``model_id`` and ``choices``.
        baseline: the same questions, decoded one token at a time.
        categories: of questions that count; all without any.
        engine: what the row is labelled with.

    Raises:
        DataError: a file is something else, or the two answer other questions.
    """
    first, other = (_spec_bench(file, categories) for file in (answers, baseline))
    if first.keys() != other.keys():
        raise DataError(f"{answers} and {baseline} do not answer the same questions. Give the baseline of that run.")
    rates, plain = ([of[question]["rate"] for question in first] for of in (first, other))
    passes = [length for each in first.values() for length in each["lengths"]]
    names = sorted({each["model"] for each in first.values()})
    yield SpeedRow(
        engine=engine,
        method=", ".join(names),
        model=", ".join(sorted({each["model"] for each in other.values()})),
        task=f"Spec-Bench: {', '.join(categories) or 'overall'}",
        samples=len(rates),
        baseline="vanilla decoding of the same engine",
        speedup=_mean_ratio(rates, plain),
        tokens_per_second=sum(rates) / len(rates),
        tokens_per_verification=Value(value=sum(passes) / len(passes)) if passes else None,
        source=f"{answers.name}, over {baseline.name}",
    )


def speed_bench_rows(folder: Path, baseline: Path | None, *, categories: Sequence[str] = ()) -> Iterator[SpeedRow]:
    """Yield a row of a folder that SPEED-Bench's ``run.py --save_dir`` wrote, or one per category, without speeds.

    Speed-ups are ratios of what the engine says of all requests together, so that they have no intervals.

    Args:
        folder: with ``configuration.json``, ``timing.json`` and ``acceptance_rate.json``.
        baseline: the same requests with ``--speculative_algorithm NONE``; no speed-ups without it.
        categories: of questions.

    Raises:
        DataError: a folder is something else, or the two are of another model, data set or concurrency.
    """
    told, plain = _SpeedBench(folder), None if baseline is None else _SpeedBench(baseline)
    if plain is not None:
        for key in ("engine", "model_dir", "dataset_path", "concurrency"):
            if told.setup.get(key) != plain.setup.get(key):
                mine, theirs = told.setup.get(key), plain.setup.get(key)
                raise DataError(f"{key} of {folder} is {mine}, of {baseline} {theirs}. Give the baseline of that run.")
    setup, lengths = told.setup, told.accepted["Request_AL"]
    row = SpeedRow(
        engine=f"SPEED-Bench, {setup['engine']}",
        engine_version=str(setup.get("engine_version") or ""),
        method=" ".join(str(setup[key]) for key in ("speculative_algorithm", "draft_model_dir") if setup.get(key)),
        model=str(setup["model_dir"]),
        task="SPEED-Bench: overall",
        data=str(setup.get("dataset_path") or ""),
        samples=len(lengths),
        batch_size=told.batch_size,
        baseline="vanilla decoding of the same engine" if plain else "none",
        machine=str(setup.get("gpu") or ""),
        source=f"{folder.name}, over {baseline.name}" if baseline else folder.name,
    )
    if not categories:
        speeds = {
            name: Value(value=mine / theirs)
            for name, mine, theirs in zip(("speedup", "decode_speedup"), told.speeds, plain.speeds, strict=True)
        } if plain else {}  # fmt: skip
        yield row.model_copy(
            update={
                **speeds,
                "tokens_per_second": told.speeds[0],
                "tokens_per_verification": Value(value=told.accepted["Average_AL"]),
                "acceptance_by_place": told.places[:PLACES],
            }
        )
    found = told.accepted.get("Category_AL", {})
    for name in categories:
        if name not in found:
            raise UnknownNameError("category", name, found)
        length = Value(value=found[name])
        yield row.model_copy(update={"task": f"SPEED-Bench: {name}", "tokens_per_verification": length})


class _SpeedBench:
    """A folder of its results: what was run, tokens a second of all and behind the first, what was accepted."""

    def __init__(self, folder: Path) -> None:
        try:
            self.setup, (*_, timing), (*_, self.accepted) = (
                json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
                for name in ("configuration", "timing", "acceptance_rate")
            )  # a list has an entry for each run into that folder
            self.speeds = timing["Output TPS"], float(timing["Request Generation Tokens Per Second"]["mean"])
            rates = {int(key): float(rate) for key, rate in self.accepted["Conditional_Acceptance_Rate"].items()}
            self.places = tuple(rates[place] for place in sorted(rates) if place > 1)  # the first token is no draft
            self.batch_size = int(self.setup["concurrency"])
            _ = self.setup["engine"], self.setup["model_dir"], self.accepted["Average_AL"], self.accepted["Request_AL"]
            if not min(self.speeds) > 0:
                raise ValueError("no tokens a second")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} is no folder of SPEED-Bench's results ({type(error).__name__}: {error}). Give what its "
                "run.py wrote to --save_dir."
            ) from None


def _mean_ratio(rates: Sequence[float], plain: Sequence[float]) -> Value:
    """Return the ratio of mean rates, with the interval of a ratio of paired means (delta method, normal)."""
    count, value = len(rates), sum(rates) / sum(plain)
    if count < 8:
        return Value(value=value)
    mean = sum(plain) / count
    spread = sum((mine - value * theirs) ** 2 for mine, theirs in zip(rates, plain, strict=True)) / (count - 1)
    half = 1.96 * math.sqrt(spread / count) / mean
    return Value(value=value, low=value - half, high=value + half)


def _spec_bench(file: Path, categories: Sequence[str]) -> dict[Any, dict[str, Any]]:
    found: dict[Any, dict[str, Any]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    for number, line in enumerate(filter(None, lines), 1):
        try:
            answer = json.loads(line)
            choice = answer["choices"][0]
            if categories and answer["category"] not in categories:
                continue
            tokens, seconds = sum(choice["new_tokens"]), sum(choice["wall_time"])
            lengths = [float(one) for one in choice.get("accept_lengths", ())]
            found[answer["question_id"]] = {
                "rate": tokens / seconds, "lengths": lengths, "model": str(answer["model_id"])
            }  # fmt: skip
        except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
            raise DataError(
                f"{file}, line {number}, is no answer of Spec-Bench ({type(error).__name__}: {error}). Give a file "
                "that its evaluation wrote."
            ) from None
    if not found:
        raise DataError(f"{file} answers no question{' of these categories' if categories else ''}.")
    return found


def every_eval_ever(run: RecordedRun, organisation: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a file name and a record of evaleval/every_eval_ever's schema for each operating point."""
    created = run.manifest.created
    for row in _candidates(run):
        details = {
            "deployment_type": "self_deployed", "model_availability": "open_weights",
            "operating_point": row.operating_point, "decode": row.decode, "kv": row.kv, "weights": row.weights,
            "numbers": row.numbers, "exit_head": row.exit_head, "machine": run.summary.machine,
        }  # fmt: skip
        record = {
            "schema_version": EVERY_EVAL_EVER,
            "evaluation_id": f"{row.task}/{row.model}/{row.operating_point}/{created}",
            "evaluation_timestamp": created,
            "retrieved_timestamp": f"{datetime.fromisoformat(created).timestamp():.0f}",
            "source_metadata": {
                "source_name": LIBRARY, "source_type": "evaluation_run", "source_organization_name": organisation,
                "evaluator_relationship": "third_party",
            },
            "eval_library": {"name": LIBRARY, "version": _version(run)},
            "model_info": {
                "name": row.model, "id": row.model, "inference_engine": {"name": LIBRARY, "version": _version(run)},
                "additional_details": details,
            },
            "evaluation_results": [_result(row, metric, run) for metric in _told(row)],
        }  # fmt: skip
        yield f"{_plain(f'{row.task}-{row.operating_point}')}.json", record


def _told(row: SummaryRow) -> list[Metric]:
    """Return the metrics that say what a row gives and what it brings."""
    shown = [
        metric for metric in metrics_of([row]) if metric.name in SCORES or metric.name in (*SPEEDS, "exact_prefix")
    ]
    return [metric for metric in shown if row.value(metric) is not None]


def _result(row: SummaryRow, metric: Metric, run: RecordedRun) -> dict[str, Any]:
    found = row.estimate(metric)
    assert found is not None
    fraction = metric.form == "fraction" and not metric.unit
    details: dict[str, Any] = {"score": found.value, "details": {"operating_point": row.operating_point}}
    uncertainty: dict[str, Any] = {"num_samples": row.n}
    if found.low is not None and found.high is not None:
        uncertainty["confidence_interval"] = {
            "lower": found.low, "upper": found.high, "confidence_level": 0.95, "method": "over documents"
        }  # fmt: skip
    return {
        "evaluation_name": f"{row.task}, {metric.title or metric.term}",
        "source_data": {"dataset_name": row.source, "source_type": "other", "additional_details": {"task": row.task}},
        "evaluation_timestamp": run.manifest.created,
        "metric_config": {
            "evaluation_description": metric.meaning, "lower_is_better": metric.better == "lower",
            "score_type": "continuous", "min_score": 0.0, "max_score": 1.0 if fraction else sys.float_info.max,
        },
        "score_details": details | {"uncertainty": uncertainty},
        "generation_config": {
            "generation_args": {"temperature": 0.0},
            "additional_details": {"protocol": row.protocol, "strategy": row.strategy},
        },
    }  # fmt: skip


def hub_results(run: RecordedRun, dataset: str, metric: str) -> Iterator[tuple[str, str]]:
    """Yield a file name for ``.eval_results/`` and its YAML for each operating point: one score, as a hub shows it.

    Args:
        run: what was measured.
        dataset: hub id of the benchmark.
        metric: the score.

    Raises:
        ConfigError: no row has that score.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    from huggingface_hub.utils._fixes import yaml_dump

    rows = [row for row in _candidates(run) if row.value(metric) is not None]
    if not rows:
        known = ", ".join(dict.fromkeys(one.name for row in _candidates(run) for one in _told(row)))
        raise ConfigError(f"no row of {run.directory} has the score '{metric}'. Known: {known}.")
    for row in rows:
        entry = EvalResultEntry(
            dataset_id=dataset, task_id=row.task, value=row.value(metric), date=run.manifest.created[:10],
            notes=f"{metric}; {row.operating_point}, {row.numbers}, n = {row.n}; {LIBRARY} {_version(run)}",
        )  # fmt: skip
        text = yaml_dump(eval_result_entries_to_yaml([entry]))
        yield f"{_plain(f'{row.task}-{row.operating_point}')}.yaml", text


def hub_benchmark(run: RecordedRun, dataset: str) -> str:
    """Return ``eval.yaml`` of a benchmark's dataset: its tasks, and what evaluates them."""
    from huggingface_hub.utils._fixes import yaml_dump

    tasks = [{"id": task.name, "config": "default", "split": "test"} for task in run.manifest.tasks]
    facts = {
        "name": dataset.rpartition("/")[2],
        "description": f"{', '.join(task.name for task in run.manifest.tasks)} as early-exit-harness runs them.",
        "evaluation_framework": LIBRARY,
        "tasks": tasks,
    }
    return yaml_dump(facts)


def _candidates(run: RecordedRun) -> list[SummaryRow]:
    return [row for row in run.summary.rows if row.n and not row.rehearsed]


def _version(run: RecordedRun) -> str:
    packages: Mapping[str, Any] = run.manifest.environment.get("packages", {})
    return str(packages.get(LIBRARY, "unknown"))


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_.=" else "-" for letter in name)
