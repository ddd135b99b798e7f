"""CrossCodeEval: the rest of a statement that needs another file of its repository."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from harness.contracts import LONGEST_ID
from tasks.benchmark_task import BenchmarkTask
from tasks.languages import CSHARP, JAVA, PYTHON, TYPESCRIPT
from tasks.rows import FieldError, Fragment, GapRow, field_text
from tasks.sources.benchmark import Benchmark, Part, texts

_FILE = "line_completion_rg1_unixcoder_cosine_sim"
"""Input of the authors' own example: fragments retrieved by the code before the gap."""


def _row(language: str, part: str, number: int, record: Mapping[str, object]) -> GapRow:
    found = texts(record, "prompt", "groundtruth")
    metadata = record["metadata"]
    if not isinstance(metadata, Mapping):
        raise FieldError("'metadata' is no object with a 'task_id'")
    sample_id = field_text("metadata.task_id", metadata.get("task_id"), LONGEST_ID)
    if sample_id.startswith("project_cc_") and not sample_id.startswith(f"project_cc_{language}"):
        raise FieldError(f"'{sample_id}' is a row of another language than {language}")
    if not found["prompt"].strip() or not found["groundtruth"].strip():
        raise FieldError("'prompt' or 'groundtruth' is empty")
    return GapRow(
        number,
        sample_id,
        before=found["prompt"],
        answer=found["groundtruth"],
        after=field_text("right_context", record.get("right_context") or ""),
        fragments=_fragments(record.get("crossfile_context")),
        project=metadata["repository"] if isinstance(metadata.get("repository"), str) else None,
    )


def _fragments(context: object) -> tuple[Fragment, ...]:
    if context is None:
        return ()
    chunks = context.get("list") if isinstance(context, Mapping) else None
    if not isinstance(chunks, list) or not all(isinstance(chunk, Mapping) for chunk in chunks):
        raise FieldError("'crossfile_context' has no 'list' of {filename, retrieved_chunk}")
    return tuple(
        Fragment(
            field_text("crossfile_context.filename", chunk.get("filename")),
            field_text("crossfile_context.retrieved_chunk", chunk.get("retrieved_chunk")),
        )
        for chunk in chunks
    )


def _benchmark(language: str) -> Benchmark:
    file = f"{language}/{_FILE}.jsonl"
    homes = ("", "crosscodeeval_data/", "data/", "data/crosscodeeval_data/")
    return Benchmark(
        title=f"CrossCodeEval ({language})",
        parts=(Part(language, tuple(f"{home}{file}" for home in homes)),),
        columns=("prompt", "groundtruth", "metadata"),
        parse=partial(_row, language),
        origin="github.com/amazon-science/cceval",
        download="git clone https://github.com/amazon-science/cceval FOLDER && "
        "tar -xJf FOLDER/data/crosscodeeval_data.tar.xz -C FOLDER/data",
    )


class _CrossCodeEval(BenchmarkTask):
    offers: ClassVar[frozenset[str]] = frozenset({"crosscodeeval"})
    default_protocol: ClassVar[str] = "crosscodeeval"


class CrossCodeEvalPython(_CrossCodeEval):
    """Rest of a Python statement that uses another file (CrossCodeEval); for evaluation alone.

    Source: Ding et al., "CrossCodeEval: A Diverse and Multilingual Benchmark for Cross-File Code Completion", NeurIPS
    2023, arXiv 2310.11248; github.com/amazon-science/cceval (Apache-2.0), data/crosscodeeval_data.tar.xz.

    Rows (JSONL): prompt, groundtruth, right_context, metadata {task_id, …}, crossfile_context {text, list of
    {filename, retrieved_chunk, score}}. A folder is read at python/line_completion_rg1_unixcoder_cosine_sim.jsonl, the
    retrieval of the authors' example; another of its files (line_completion.jsonl has no other files' code,
    line_completion_oracle_… retrieves by the answer) is given as ``--source``.
    Protocols: crosscodeeval, crosscodeeval-fim.
    """

    name = "crosscodeeval-python"
    code = PYTHON
    benchmark = _benchmark("python")


class CrossCodeEvalJava(_CrossCodeEval):
    """Rest of a Java statement that uses another file (CrossCodeEval); see crosscodeeval-python."""

    name = "crosscodeeval-java"
    code = JAVA
    benchmark = _benchmark("java")


class CrossCodeEvalCSharp(_CrossCodeEval):
    """Rest of a C# statement that uses another file (CrossCodeEval); see crosscodeeval-python."""

    name = "crosscodeeval-csharp"
    code = CSHARP
    benchmark = _benchmark("csharp")


class CrossCodeEvalTypeScript(_CrossCodeEval):
    """Rest of a TypeScript statement that uses another file (CrossCodeEval); see crosscodeeval-python."""

    name = "crosscodeeval-typescript"
    code = TYPESCRIPT
    benchmark = _benchmark("typescript")
