"""How good the completions are: task scores, and faithfulness to full depth.

Only the first repeat is scored, since the others generate the same text again. A score of a corpus is
computed from its texts; any other is the mean of the samples' scores. Random weights make every number here
meaningless, which the summary's notes say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reports.statistics.intervals import mean, ratio
from reports.summary.measured import Measured

__all__ = ["SCORES", "Corpus", "CorpusScorer", "agreement", "corpora", "quality"]

CorpusScorer: TypeAlias = Callable[[str, Sequence[str], Sequence[str]], dict[str, float | None]]
"""``(language, texts, references) -> scores``: every registered score of a corpus, by name."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What is scored together: the completions of one operating point on one task.

    Attributes:
        language: of the code.
        texts: completions. references: ground truths, as many.
    """

    language: str
    texts: tuple[str, ...]
    references: tuple[str, ...]


SCORES = (
    "exact_match",
    "edit_similarity",
    "token_accuracy",
    "bleu",
    "rouge_l",
    "codebleu",
    "syntax",
    "dataflow",
    "dataflow_defined",
    "chrf",
)


def corpora(cells: Iterable[Measured]) -> list[Corpus]:
    """Return each different corpus that :func:`quality` will ask about, so that they can be scored together."""
    return list(dict.fromkeys(_corpus(cell) for cell in cells if cell.scored))


def quality(cell: Measured, score_corpus: CorpusScorer) -> dict[str, float | None]:
    """Return every score of a summary row by field name; ``None`` where a score is not defined.

    A score the corpus scorer names wins, also when it says ``None``. The scorer is not called when no
    sample finished.
    """
    scored = cell.scored
    if not scored:
        return dict.fromkeys(SCORES)
    asked = _corpus(cell)
    corpus = score_corpus(asked.language, list(asked.texts), list(asked.references))
    row: dict[str, float | None] = {}
    for name in SCORES:
        if name in corpus:
            row[name] = corpus[name]
        else:
            values = (sample.scores.get(name) for sample in scored)
            row[name] = mean(value for value in values if value is not None)
    return row


def _corpus(cell: Measured) -> Corpus:
    scored = cell.scored
    return Corpus(
        cell.task.language, tuple(sample.text for sample in scored), tuple(sample.reference for sample in scored)
    )


def agreement(cell: Measured, full: Measured) -> float | None:
    """Return the share of full depth's tokens that stand at the same place here.

    Tokens over tokens, on the samples both finished. A completion that ended early disagrees at every
    missing place; what it has beyond full depth's end is not compared. With a KV cache the first token
    comes from prefill and always agrees.
    """
    same = total = 0
    for key in cell.shared(full):
        if key[1] == 0:
            reference = full.samples[key].token_ids
            same += sum(a == b for a, b in zip(cell.samples[key].token_ids, reference, strict=False))
            total += len(reference)
    return ratio(same, total)
