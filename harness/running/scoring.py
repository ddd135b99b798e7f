"""Scores the corpora of a run, in parallel processes where that is worth their start.

The processes are fresh interpreters running this module (:mod:`harness.host.interpreter`), each with its share of the
corpora in a file and its scores in another. What a process cannot do (a task that only this interpreter knows, a
grammar that is missing) is done again here, so that the result, or the refusal, is that of one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import IO, Any

from harness.host.interpreter import fresh_interpreter
from harness.registry import TASKS
from reports.summary.quality import Corpus

__all__ = ["SERIAL_SAMPLES", "CorpusScores", "score_corpora"]

SERIAL_SAMPLES = 4_000
"""Fewer samples than this are scored here: a process takes a second to start and scores some 2,000 in that time."""

Scores = dict[str, float | None]


class CorpusScores:
    """The scores of known corpora, as the callback that reports ask for them.

    Args:
        corpora: what will be asked about.
        processes: how many to use at most; default: the processor cores this process may use.

    Raises:
        HarnessError: a task is unknown, or cannot score.
    """

    def __init__(self, corpora: Sequence[Corpus], processes: int | None = None) -> None:
        self._scores = dict(zip(corpora, score_corpora(corpora, processes), strict=True))
        self._tasks = tuple(dict.fromkeys(corpus.task for corpus in corpora))

    def missing(self) -> tuple[str, ...]:
        """Return what the tasks of the known corpora say of scores that cannot be made here, each sentence once."""
        return tuple(dict.fromkeys(said for name in self._tasks for said in _missing(_task(name))))

    def __call__(self, task: str, texts: Sequence[str], references: Sequence[str]) -> Scores:
        """Return the scores of one corpus; one that was not announced is scored now."""
        corpus = Corpus(task, tuple(texts), tuple(references))
        if corpus not in self._scores:
            self._scores[corpus] = _score(corpus)
        return self._scores[corpus]


def score_corpora(corpora: Sequence[Corpus], processes: int | None = None) -> list[Scores]:
    """Return the scores of each corpus; the same as scoring them one after the other.

    Arguments and errors as :class:`CorpusScores`.
    """
    processes = min(processes or _usable_cores(), len(corpora))
    if processes < 2 or sum(len(corpus.texts) for corpus in corpora) < SERIAL_SAMPLES:
        return [_score(corpus) for corpus in corpora]
    shares = _shares(corpora, processes)
    found: dict[int, Scores] = {}
    workers: list[_Worker] = []
    try:
        workers = [_Worker([corpora[index] for index in share]) for share in shares[1:]]
        found.update((index, _score(corpora[index])) for index in shares[0])
        for share, worker in zip(shares[1:], workers, strict=True):
            results = worker.results() or [_score(corpora[index]) for index in share]
            found.update(zip(share, results, strict=True))
    finally:
        for worker in workers:  # an interrupt leaves no process behind
            worker.close()
    return [found[index] for index in range(len(corpora))]


class _Worker:
    """A process that scores its share; its files vanish when they are closed."""

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._count = len(corpora)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        with tempfile.TemporaryFile() as task:
            task.write(json.dumps([[c.task, c.texts, c.references] for c in corpora]).encode())
            task.seek(0)
            self._process = fresh_interpreter(
                "harness.running.scoring", stdin=task, stdout=self._output, stderr=subprocess.DEVNULL
            )

    def results(self) -> list[Scores] | None:
        """Wait; return one result per corpus, or ``None`` when the process failed."""
        if self._process.wait() != 0:
            return None
        self._output.seek(0)
        try:
            results: Any = json.loads(self._output.read())
        except ValueError:
            return None
        return results if isinstance(results, list) and len(results) == self._count else None

    def close(self) -> None:
        """Stop the process if it still runs."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def _shares(corpora: Sequence[Corpus], count: int) -> list[list[int]]:
    """Indices for each process: the largest corpus first, always to whoever has least to do."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(corpora)), key=lambda index: -len(corpora[index].texts)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += len(corpora[index].texts)
    return shares


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _score(corpus: Corpus) -> Scores:
    scores: Scores = _task(corpus.task).score_corpus(list(corpus.texts), list(corpus.references))
    return scores


def _missing(task: Any) -> Sequence[str]:
    """A third-party task may be older than this part of the contract."""
    return task.missing_scores() if hasattr(task, "missing_scores") else ()


@lru_cache(maxsize=16)
def _task(name: str) -> Any:
    return TASKS.load(name)()


def _main(source: IO[bytes], target: IO[bytes]) -> None:
    corpora: Iterable[Any] = json.loads(source.read())
    results = [_score(Corpus(task, tuple(texts), tuple(references))) for task, texts, references in corpora]
    target.write(json.dumps(results).encode())


if __name__ == "__main__":
    _main(sys.stdin.buffer, sys.stdout.buffer)
