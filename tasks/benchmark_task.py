"""The base of tasks of published benchmarks: rows with a gap, read from a folder, for evaluation alone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import ClassVar

from harness.contracts import Corpus, Split, TaskData, TaskRequest, Tokenizer
from harness.errors import DataError
from tasks.code_completion import CodeCompletion
from tasks.draw import draw
from tasks.sandbox import isolation
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
        """Draw the samples; see :mod:`tasks.draw` for the order.

        Raises:
            DataError: the folder cannot be read, is laid out otherwise or cannot be scored.
            UnknownNameError: no such protocol.
            ConfigError: one for other tasks.
        """
        protocol = self._protocol(request.protocol)
        with closing(open_benchmark(request.source, self.benchmark)) as rows:
            data = draw(rows, protocol, tokenizer, request)
        if not self.tests:
            return data
        tests = f"run; {isolation()}" if request.allow_code_execution else _NOT_RUN
        return replace(data, source=replace(data.source, detail={**data.source.detail, "tests": tests}))

    def corpus(self, source: str, split: Split, *, limit: int | None = None, seed: int = 0) -> Corpus:
        """Refuse: what a model is tested on is nothing to learn from.

        Raises:
            DataError: always.
        """
        raise DataError(f"the task '{self.name}' is for evaluation: nothing is learned from it. Train on py150.")
