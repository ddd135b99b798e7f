"""Computes every registered score that applies, of a sample and of the corpora of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from harness.contracts import Completion, Score
from harness.contracts.scores import registered_scores
from harness.errors import reason
from harness.registry import SCORES, without_exit
from reports.summary.measured import Corpus

Scores = dict[str, float | None]
Found = dict[str, float | str | None]
"""Scores by name, with what is wrong in place of one of a plug-in that fails."""


def score_sample(completion: Completion, only: Collection[str] | None = None) -> Found:
    """Return every score, or those named, that is defined for a completion; ``None`` where it has no value here."""
    found: Found = {}
    for name, score in _scores(completion.language).items():
        if only is not None and name not in only:
            continue
        try:
            with without_exit():
                if score.scores_samples and score.judges(completion):
                    found[name] = None if score.unavailable() else _defined(score, score.sample(completion))
        except Exception as error:
            if not (wrong := _wrong(name, error)):
                raise
            found[name] = wrong
    return found


def score_names(languages: Iterable[str]) -> list[str]:
    """Return the names of the scores that can judge one of these languages."""
    return list(dict.fromkeys(name for language in languages for name in _scores(language)))


def missing_scores(languages: Collection[str] | None = None) -> tuple[str, ...]:
    """Return a sentence for the scores, of some languages, that cannot be computed here for the same reason."""
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

    A plug-in's score that fails on one has no value there; one of this project's that does raises.
    """

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        self._scores = {corpus: score_corpus(corpus) for corpus in corpora}
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
            self._scores[corpus] = score_corpus(corpus)
        return {name: None if isinstance(value, str) else value for name, value in self._scores[corpus].items()}


def score_corpus(corpus: Corpus) -> Found:
    """Return every score that is defined for a corpus, by name; ``None`` where it has no value here."""
    pairs = tuple(zip(corpus.texts, corpus.references, strict=True))
    found: Found = {}
    for name, score in _scores(corpus.language).items():
        try:
            with without_exit():
                if score.scores_corpora:
                    found[name] = None if score.unavailable() else _defined(score, score.corpus(pairs, corpus.language))
        except Exception as error:
            if not (wrong := _wrong(name, error)):
                raise
            found[name] = wrong
    return found


def _wrong(name: str, error: BaseException) -> str:
    """Return what is wrong with a plug-in's score that raised; nothing for our own."""
    package = SCORES.plugin(name)
    return f"the score '{name}' of {package} fails: {reason(error)}" if package else ""


def _defined(score: Score, value: float | None) -> float | None:
    """Return a number that records can hold; one that is not finite is not defined."""
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
