"""The flat view of a summary, as CSV and for pandas: a row per operating point, a documented column per number.

A metric is the column of its name; what its estimates hold besides follows it (:data:`PARTS`). What was not measured is
empty, in a pandas frame NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from harness.records.estimate import Estimate
from harness.records.summary import Acceptance, Summary, SummaryRow
from reports.metrics.vocabulary import all_metrics, metrics_of
from reports.tables.writers import csv_text

if TYPE_CHECKING:
    from pandas import DataFrame


ACCEPTANCE_FILE = "acceptance.csv"
_ACCEPTANCE_COLUMNS = ("task", "operating_point", *Acceptance.model_fields, "low", "high")

_FIELDS = {
    "machine": "what it was measured on, in one line",
    "operating_point": "label of the operating point",
    "strategy": "registered name of its strategy",
    "options": "the strategy's options, JSON",
    "task": "registered name of the task",
    "language": "programming language",
    "protocol": "how prompts were cut and when completions end",
    "source": "where the data came from",
    "model": "name of the model",
    "weights": "pretrained, tuned or random",
    "exit_head": "what makes logits of an exit's hidden state",
    "kv": "KV policy; empty for a black box",
    "black_box": "the engine does not run it; its weights format is that of the full depth it is held against",
    "batch_size": "samples decoded together",
    "dtype": "number format of the activations",
    "weights_format": "how matrices are stored and multiplied",
    "decode": "lossy; or lossless, with its draft source: full depth verified every token",
    "draft_max": "tokens of a draft at most",
    "stop": "stop rule beside the protocol's own end",
    "keep": "in editor sessions, which keys and values a request leaves to the next",
    "prompt_exit": "how deep the prompt is read; empty for full depth",
    "prefetch": "in editor sessions, what is computed while the user types; empty for nothing",
    "baseline_format": "weights format of the full depth that its tokens and scores are compared with",
    "n": "samples scored",
    "errors": "samples that failed",
    "repeats": "repetitions timed",
    "windows": "measured windows that count",
    "flagged": "those of them in which something else moved the machine",
    "speedup_unflagged": "speedup without flagged windows, of this row and of full depth; empty where there are none",
    "energy_source": "where the energy comes from",
    "energy_measured": "whether a sensor measured it",
    "verdict": "the comparison with full depth, in words",
    "rehearsed": "an upper bound that knows the answer, no candidate",
    "pareto": "on the front of text kept and speed-up",
}
PARTS = {
    "": "{}",
    "low": "lower bound of the 95 % interval of {}",
    "high": "upper bound of the 95 % interval of {}",
    "no_interval": "why {} has no interval",
    "p": "p-value of a paired permutation test: {} is that of full depth",
    "p_holm": "the same after Holm's correction; the family is {} at all tested operating points of the table",
    "n": "independent units that {} rests on",
    "samples": "samples that {} compares",
    "differing": "those of them whose {} is not 0",
}
"""Fields of an estimate besides its value: ending of the column → what it is, of a metric in words."""

_PARTS = tuple(field.name for field in fields(Estimate))


@dataclass(frozen=True, slots=True)
class ColumnFact:
    """Facts about one column; ``unit`` is empty for text and pure numbers, ``better`` is higher, lower or empty."""

    name: str
    unit: str
    meaning: str
    better: str = ""


def column_facts(rows: Iterable[SummaryRow] = ()) -> list[ColumnFact]:
    """Return every column of the flat view with unit and meaning, in order, with the metrics that rows have."""
    found = [ColumnFact(name, "", meaning) for name, meaning in _FIELDS.items()]
    for metric in metrics_of(rows) if rows else all_metrics():
        found.append(ColumnFact(metric.name, metric.unit, metric.meaning, metric.better or ""))
        for part in metric.parts:
            unit = metric.unit if part in ("low", "high") else ""
            found.append(ColumnFact(f"{metric.name}_{part}", unit, PARTS[part].format(metric.term)))
    return found


def flat(summary: Summary) -> Iterator[dict[str, Any]]:
    """Yield each row as column → value; a column without a value is left out."""
    for row in summary.rows:
        values = {"machine": summary.machine, **row.model_dump(mode="json", exclude={"metrics", "acceptances"})}
        values["options"] = json.dumps(values["options"], sort_keys=True)
        for name in (
            "stop",
            "keep",
            "prompt_exit",
            "prefetch",
        ):  # most rows have none, and an empty cell is read as nothing
            values[name] = values[name] or None
        for name, estimate in row.metrics.items():
            found = {part: number for part in _PARTS if (number := getattr(estimate, part)) is not None}
            values |= {name if part == "value" else f"{name}_{part}": number for part, number in found.items()}
        yield values


def summary_csv(summary: Summary) -> str:
    """Return one line per row under a header; the columns are those of :func:`to_frame`."""
    return runs_to_csv([("", summary)])


def runs_to_csv(summaries: Iterable[tuple[str, Summary]]) -> str:
    """Return the lines of several runs under one header; names given to runs are in the first column."""
    named = list(summaries)
    facts = column_facts([row for _, summary in named for row in summary.rows])
    lines = (({"run": name} if name else {}) | values for name, summary in named for values in flat(summary))
    return csv_text([*["run"] * any(name for name, _ in named), *(fact.name for fact in facts)], lines)


def acceptance_csv(summaries: Iterable[tuple[str, Summary]]) -> dict[str, str]:
    """Return name → text of the file of drafted tokens that stood; none where nothing was drafted.

    Names given to runs are in the first column. What a line is all of (sources, layers, kinds) is empty.
    """
    lines = []
    for name, row in ((name, row) for name, summary in summaries for row in summary.rows):
        for one in row.acceptances:
            counts = one.model_dump(exclude={"share"}, exclude_none=True)
            share = {"share": one.share.value, **dict(zip(("low", "high"), one.share.interval or (), strict=False))}
            run = {"run": name} if name else {}
            lines.append({**run, "task": row.task, "operating_point": row.operating_point, **counts, **share})
    named = ["run"] * any("run" in line for line in lines)
    return {ACCEPTANCE_FILE: csv_text([*named, *_ACCEPTANCE_COLUMNS], lines)} if lines else {}


def to_frame(summary: Summary) -> DataFrame:
    """Return the rows as a pandas frame; numbers that were not measured are NaN."""
    import pandas  # late: half a second that no other report needs

    frame = pandas.DataFrame(list(flat(summary)), columns=[fact.name for fact in column_facts(summary.rows)])
    texts = _FIELDS.keys() - {"draft_max", "speedup_unflagged"}
    numbers = [name for name in frame.columns if name not in texts and not name.endswith("_no_interval")]
    return frame.astype(dict.fromkeys(numbers, "float64"))
