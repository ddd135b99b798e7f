"""What is scored together: the completions of one operating point on one task, first repeat only.

Later repeats generate the same text again. What scores of completions become is in :mod:`reports.metrics.scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reports.summary.measured import Measured

__all__ = ["Corpus", "CorpusScorer", "corpora", "scored_by"]

CorpusScorer: TypeAlias = Callable[[str, Sequence[str], Sequence[str]], dict[str, float | None]]
"""``(language, texts, references) -> scores``: every registered score of a corpus, by name."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The completions of one operating point on one task.

    Attributes:
        language: of the code.
        texts: completions. references: ground truths, as many.
    """

    language: str
    texts: tuple[str, ...]
    references: tuple[str, ...]


def corpora(cells: Iterable[Measured]) -> list[Corpus]:
    """Return each different corpus that :func:`scored_by` will ask about, so that they can be scored together."""
    return list(dict.fromkeys(_corpus(cell) for cell in cells if cell.scored))


def scored_by(score_corpus: CorpusScorer) -> Callable[[Measured], dict[str, float | None]]:
    """Return what scores the completions of one operating point together."""

    def score(cell: Measured) -> dict[str, float | None]:
        asked = _corpus(cell)
        return score_corpus(asked.language, list(asked.texts), list(asked.references))

    return score


def _corpus(cell: Measured) -> Corpus:
    scored = cell.scored
    return Corpus(
        cell.task.language, tuple(sample.text for sample in scored), tuple(sample.reference for sample in scored)
    )
