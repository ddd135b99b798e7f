"""Computes every registered score that applies, of a sample and of the corpora of a run.

Corpora are scored in parallel processes where that is worth their start. These are fresh interpreters running this
module (:mod:`harness.host.interpreter`), each with its share of the corpora in a file and its scores in another. The
share of a process that fails (a grammar that is missing) is scored here, with a warning, so that the result, or the
refusal, is that of one process.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Collection, Iterable, Sequence
from typing import IO, Any

from harness.contracts import Completion, Score
from harness.contracts.scores import registered_scores
from harness.errors import is_out_of_memory, reason
from harness.host.interpreter import fresh_interpreter
from harness.host.processor import core_count
from harness.registry import SCORES
from reports.summary.measured import Corpus

logger = logging.getLogger(__name__)

SERIAL_SAMPLES = 4_000
"""Fewer samples than this are scored here: a process takes a second to start and scores some 2,000 in that time."""

Scores = dict[str, float | None]
Found = dict[str, float | str | None]
"""Scores by name, with what is wrong in place of one of a plug-in that fails."""


def score_sample(completion: Completion, only: Collection[str] | None = None) -> Found:
    """Return every score that is defined for one completion, by name; ``None`` where it has no value here.

    Args:
        completion: what is scored.
        only: names of scores to compute; ``None`` for all.
    """
    found: Found = {}
    for name, score in _scores(completion.language).items():
        if only is not None and name not in only:
            continue
        try:
            if score.scores_samples and score.judges(completion):
                found[name] = None if score.unavailable() else _defined(score, score.sample(completion))
        except (Exception, SystemExit) as error:
            if not (wrong := _wrong(name, error)):
                raise
            found[name] = wrong
    return found


def score_names(languages: Iterable[str]) -> list[str]:
    """Return the names of the scores that can judge one of these languages."""
    return list(dict.fromkeys(name for language in languages for name in _scores(language)))


def missing_scores(languages: Collection[str] | None = None) -> tuple[str, ...]:
    """Return one sentence for the scores that cannot be computed here for the same reason, with what helps.

    Args:
        languages: of the code to score; ``None`` for any.
    """
    titles: dict[str, list[str]] = {}
    for name, score in registered_scores().items():
        with SCORES.leaving_out(name):
            applies = languages is None or any(map(score.applies_to, languages))
            if applies and (reason := score.unavailable()) is not None:
                titles.setdefault(reason, []).append(score.title)
    broken = (f"not shown: {why}." for name, why in SCORES.left_out.items() if name in SCORES)
    return (*(f"not shown: {', '.join(names)}: {reason}." for reason, names in titles.items()), *broken)


class CorpusScores:
    """The scores of known corpora, as the callback that reports ask for them.

    Args:
        corpora: what will be asked about. A plug-in's score that fails on one has no value there.
        processes: how many to use at most; default: the processor cores this process may use.

    Raises:
        HarnessError: one of this project's scores cannot be computed.
    """

    def __init__(self, corpora: Sequence[Corpus], processes: int | None = None) -> None:
        self._scores = dict(zip(corpora, score_corpora(corpora, processes), strict=True))
        self._languages = {corpus.language for corpus in corpora}

    def missing(self) -> tuple[str, ...]:
        """Return which scores of the known corpora cannot be computed here, a sentence per reason."""
        return missing_scores(self._languages)

    @property
    def failures(self) -> dict[str, str]:
        """Score → why it fails, of plug-ins."""
        found = (each for scores in self._scores.values() for each in scores.items())
        return {name: value for name, value in found if isinstance(value, str)}

    def __call__(self, language: str, texts: Sequence[str], references: Sequence[str]) -> Scores:
        """Return the scores of one corpus; one that was not announced is scored now."""
        corpus = Corpus(language, tuple(texts), tuple(references))
        if corpus not in self._scores:
            self._scores[corpus] = _score(corpus)
        return {name: None if isinstance(value, str) else value for name, value in self._scores[corpus].items()}


def score_corpora(corpora: Sequence[Corpus], processes: int | None = None) -> list[Found]:
    """Return the scores of each corpus; the same as scoring them one after the other.

    Arguments and errors as :class:`CorpusScores`.
    """
    processes = min(processes or core_count(), len(corpora))
    if processes < 2 or sum(len(corpus.texts) for corpus in corpora) < SERIAL_SAMPLES:
        return [_score(corpus) for corpus in corpora]
    shares = _shares(corpora, processes)
    found: dict[int, Found] = {}
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
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close()
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - likewise
        with tempfile.TemporaryFile() as task:
            task.write(json.dumps([[c.language, c.texts, c.references] for c in corpora]).encode())
            task.seek(0)
            self._process = fresh_interpreter(
                "harness.running.scoring", stdin=task, stdout=self._output, stderr=self._errors
            )

    def results(self) -> list[Found] | None:
        """Wait; return one result per corpus, or ``None``, with a warning, when the process failed."""
        if code := self._process.wait():
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").split("\n")
            reason = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
            logger.warning("a scoring process ended with exit code %d (%s); its share is scored here", code, reason)
            return None
        self._output.seek(0)
        results: list[Found] = json.loads(self._output.read().rpartition(b"\n")[2])  # behind what start-up printed
        return results

    def close(self) -> None:
        """Stop the process if it still runs."""
        self._process.kill()
        self._process.wait()
        self._output.close()
        self._errors.close()


def _shares(corpora: Sequence[Corpus], count: int) -> list[list[int]]:
    """Indices for each process: the largest corpus first, always to the process with the least work so far."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(corpora)), key=lambda index: -len(corpora[index].texts)):
        least = loads.index(min(loads))
        shares[least].append(index)
        loads[least] += len(corpora[index].texts)
    return shares


def _score(corpus: Corpus) -> Found:
    pairs = tuple(zip(corpus.texts, corpus.references, strict=True))
    found: Found = {}
    for name, score in _scores(corpus.language).items():
        try:
            if score.scores_corpora:
                found[name] = None if score.unavailable() else _defined(score, score.corpus(pairs, corpus.language))
        except (Exception, SystemExit) as error:
            if not (wrong := _wrong(name, error)):
                raise
            found[name] = wrong
    return found


def _wrong(name: str, error: BaseException) -> str:
    """Return what is wrong with a plug-in's score that raised; nothing for our own, or a lack of memory."""
    package = SCORES.plugin(name)
    if not package or is_out_of_memory(error):
        return ""
    return f"the score '{name}' of {package} fails: {reason(error)}"


def _defined(score: Score, value: float | None) -> float | None:
    """Return a number that records can hold; one that is not finite is not defined.

    Raises:
        ValueError: the score cannot have it.
    """
    if value is None or not math.isfinite(value):
        return None
    if not score.allows(value):
        raise ValueError(f"it returned {value:g}, and a score without a unit lies between 0 and 1")
    return float(value)


def _scores(language: str) -> dict[str, Score]:
    """Every score that can judge a language, by name."""
    found: dict[str, Score] = {}
    for name, score in registered_scores().items():
        with SCORES.leaving_out(name):
            if score.applies_to(language):
                found[name] = score
    return found


def _main(source: IO[bytes], target: IO[bytes]) -> None:
    corpora: Iterable[Any] = json.loads(source.read())
    results = [_score(Corpus(language, tuple(texts), tuple(references))) for language, texts, references in corpora]
    target.write(b"\n" + json.dumps(results).encode())  # a line of its own, also behind one that was cut off


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "wb") as parent:
        os.dup2(2, 1)  # a task that prints must not speak to the parent
        _main(sys.stdin.buffer, parent)
