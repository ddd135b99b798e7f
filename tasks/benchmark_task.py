"""The base of tasks of published benchmarks: rows with a gap, read from a folder, for evaluation alone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from harness.contracts import Corpus, Split, TaskData, TaskRequest, Tokenizer
from harness.errors import DataError
from tasks.code_completion import CodeCompletion
from tasks.rows import Rows
from tasks.sandbox import isolation
from tasks.sources import HubDataset
from tasks.sources.benchmark import Benchmark, open_benchmark

_NOT_RUN = "not run: no pass@1 without --allow-code-execution"


class BenchmarkTask(CodeCompletion):
    """A task over a published benchmark; subclass it and set the class attributes.

    Attributes:
        benchmark: where its rows lie and what they are.
        tests: whether its rows come with tests that judge a completion by running it.
    """

    benchmark: ClassVar[Benchmark]
    tests: ClassVar[bool] = False

    @property
    def row_format(self) -> str:
        """Files that ``--source PATH`` may hold, in words."""
        return self.benchmark.row_format

    def load(self, request: TaskRequest, tokenizer: Tokenizer) -> TaskData:
        """Draw the samples, and say whether their tests are run."""
        data = super().load(request, tokenizer)
        if not self.tests:
            return data
        tests = f"run; {isolation()}" if request.allow_code_execution else _NOT_RUN
        return replace(data, source=replace(data.source, detail={**data.source.detail, "tests": tests}))

    def _open(self, source: str, dataset: HubDataset | None, split: Split) -> Rows:
        return open_benchmark(source, self.benchmark)

    def corpus(self, source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> Corpus:
        """Refuse: what a model is tested on is nothing to learn from."""
        raise DataError(f"the task '{self.name}' is for evaluation: nothing is learned from it. Train on py150.")
