"""HumanEval-Infilling: a gap in a function whose tests tell whether it was filled well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from harness.contracts import LONGEST_ID
from harness.errors import DataError
from tasks.benchmark_task import BenchmarkTask
from tasks.languages import PYTHON
from tasks.rows import FieldError, GapRow, field_text
from tasks.sources.benchmark import Benchmark, Part, texts

_TEXTS = ("entry_point", "prompt", "suffix", "canonical_solution", "test")
_TASKS = {
    "SingleLine": "humaneval-infilling-single",
    "MultiLine": "humaneval-infilling-multi",
    "RandomSpan": "humaneval-infilling-span",
}
"""Kind of gap, as the ids of rows begin → its task. In all else the rows of one are laid out as another's."""


def _row(kind: str, part: str, number: int, record: Mapping[str, object]) -> GapRow:
    sample_id = field_text("task_id", record["task_id"], LONGEST_ID)
    other = next((one for one in _TASKS if sample_id.startswith(f"{one}Infilling")), kind)
    if other != kind:
        raise DataError(
            f"these are rows of {_TASKS[other]}: row {number} is one of {other}Infilling. Use --task {_TASKS[other]}, "
            f"or give the data of {_TASKS[kind]} with --source."
        )
    found = texts(record, *_TEXTS)
    if not found["entry_point"].isidentifier():
        raise FieldError("'entry_point' is no name of a function")
    return GapRow(
        number,
        sample_id,
        before=found["prompt"],
        answer=found["canonical_solution"],
        after=found["suffix"],
        facts={"test": found["test"], "entry_point": found["entry_point"]},
        project=problem[0] if (problem := re.search(r"HumanEval/\d+", sample_id)) else None,
    )


def _benchmark(kind: str) -> Benchmark:
    name = f"HumanEval-{kind}Infilling"
    forms = (f"{name}/test-*.parquet", f"{name}/test/*.parquet", f"{name}/*test*.parquet")
    files = (f"data/{name}.jsonl.gz", f"{name}.jsonl.gz", f"data/{name}.jsonl", f"{name}.jsonl")
    return Benchmark(
        title=name,
        parts=(Part(name, (*forms, *files)),),
        columns=("task_id", *_TEXTS),
        parse=partial(_row, kind),
        origin="github.com/openai/human-eval-infilling (on the hub loubnabnl/humaneval_infilling)",
        download="git clone https://github.com/openai/human-eval-infilling FOLDER",
    )


class _Infilling(BenchmarkTask):
    code = PYTHON
    tests = True
    offers: ClassVar[frozenset[str]] = frozenset({"infilling"})
    default_protocol: ClassVar[str] = "infilling"


class SingleLineInfilling(_Infilling):
    """One line missing in a Python function with tests (HumanEval-Infilling); for evaluation alone.

    Source: Bavarian et al., "Efficient Training of Language Models to Fill in the Middle", 2022, arXiv 2207.14255;
    single and multi line first in Fried et al., "InCoder", 2022, arXiv 2204.05999;
    github.com/openai/human-eval-infilling (MIT), on the hub loubnabnl/humaneval_infilling.

    Rows (JSONL, compressed or not, or Parquet): task_id, entry_point, prompt, suffix, canonical_solution, test.
    Protocols: infilling, for models with tokens for it; infilling-left. pass@1 needs ``--allow-code-execution``.
    """

    name = "humaneval-infilling-single"
    benchmark = _benchmark("SingleLine")


class MultiLineInfilling(_Infilling):
    """Some lines missing in a Python function with tests; see humaneval-infilling-single."""

    name = "humaneval-infilling-multi"
    benchmark = _benchmark("MultiLine")


class RandomSpanInfilling(_Infilling):
    """A random span missing in a Python function with tests; see humaneval-infilling-single."""

    name = "humaneval-infilling-span"
    benchmark = _benchmark("RandomSpan")
