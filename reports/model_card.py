"""Model cards: what an exported folder says of itself to people, and to hubs as ``model-index``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.appearance.visible_text import one_line
from harness.contracts import Metric
from harness.records.summary import Summary, SummaryRow
from harness.registry import SCORES
from reports.metrics.depth import EXIT_LAYER
from reports.metrics.vocabulary import metrics_of
from reports.tables.table import Column, Table
from reports.tables.writers import escape_markdown, markdown_code, to_markdown

TAGS = ["early-exit", "code", "early-exit-harness"]


def model_card(
    name: str, base_model: str, exported: Mapping[str, Any], read: Mapping[str, Any], summaries: Sequence[Summary]
) -> str:
    """Return README.md of an exported folder: YAML with ``base_model`` and ``model-index``, then the same in words.

    Times and energies are left out: they belong to the machine that they were measured on.
    """
    rows = [row for summary in summaries for row in summary.rows if not row.rehearsed and row.n]
    shown = [metric for metric in metrics_of(rows) if metric.name in SCORES or metric is EXIT_LAYER]
    adapter, head = exported["adapter_sha256"], "an exit module each, then its own head"
    tuned = f", with the LITE adapter `{adapter[:12]}` merged into the weights" if adapter else ""
    points = ", ".join(map(str, exported["exit_points"])) or "none"
    head = "the model's own head" if exported["exit_head"] == "shared" else head
    data = ["The weights are the base model's: nothing was tuned.\n"]
    if read:
        data = [
            f"- {escape_markdown(str(one.get('stream', '?')))} ({one.get('split', '?')}): {one.get('documents', '?')} "
            f"documents, {one.get('tokens', '?')} tokens"
            for one in read.get("data", ())
        ]
        known = len(read.get("documents", ()))
        data.append(f"\n`early_exit` has the keys of all {known} documents that tuning read or held out.\n")
    parts = [
        f"---\n{_metadata(name, base_model, rows, shown)}\n---\n",
        f"# {escape_markdown(name)}\n",
        f"{markdown_code(base_model)}{tuned}, in {exported['dtype']}. Tokens may leave after layers {points} of "
        f"{exported['num_layers']}; an exit is read by {head}.\n",
        "transformers reads the folder as any other model and decodes at full depth. `harness run --model FOLDER` of "
        "early-exit-harness finds the exits, with everything that was trained for them in `early_exit/`, and skips "
        "samples that the weights have read.\n",
        "## Training data\n",
        *data,
        *([_results(rows, shown)] if rows else []),
        "## Licence\n\nThe weights stay under the licence of the base model, code they read under its own.\n",
    ]
    return "\n".join(parts)


def _metadata(name: str, base_model: str, rows: Sequence[SummaryRow], shown: Sequence[Metric]) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row.task,
            dataset_name=one_line(f"{row.task}, {row.protocol}, {row.source}"),
            metric_type=metric.name,
            metric_name=one_line(f"{metric.title}, {row.operating_point}, {row.decode}, {row.numbers}"),
            metric_value=value,
        )
        for row in rows
        for metric in shown
        if (value := row.value(metric)) is not None
    ]
    data = ModelCardData(
        base_model=one_line(base_model), library_name="transformers", pipeline_tag="text-generation", tags=TAGS,
        model_name=one_line(name), eval_results=results or None,
    )  # fmt: skip
    return data.to_yaml()


def _results(rows: Sequence[SummaryRow], shown: Sequence[Metric]) -> str:
    used = [metric for metric in shown if any(row.value(metric) is not None for row in rows)]
    headers: tuple[str | Column, ...] = (
        "task",
        Column(header="operating point", kind="label"),
        *(Column(header=header, kind="text") for header in ("tokens", "numbers")),
        Column(header="samples", form=".0f"),
        *(Column(header=metric.title, form=".4g") for metric in used),
    )
    cells = [(row.task, row.operating_point, row.decode, row.numbers, row.n, *map(row.value, used)) for row in rows]
    note = "Lossless rows have the tokens of full depth; in lossy rows exits change them."
    return "\n".join(["## Results", *to_markdown([Table.of_rows("", headers, cells, notes=(note,))]), ""])
