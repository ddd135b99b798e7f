"""Scores of completions, per sample and per corpus. All lie in 0…1; ``None`` means not defined.

Both see the text with CodeXGLUE's literal placeholders restored (:func:`tasks.scores.text.restore_literals`), which
changes nothing in raw code. A sample's scores cannot all be averaged into the corpus's: BLEU and CodeBLEU pool their
counts over the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from harness.contracts import Score
from tasks.scores.code_bleu import code_bleu, why_absent
from tasks.scores.match import edit_similarity, exact_match, token_accuracy
from tasks.scores.overlap import chrf, corpus_bleu, corpus_chrf, rouge_l, sentence_bleu
from tasks.scores.text import restore_literals

__all__ = ["CORPUS_SCORES", "corpus_scores", "missing_scores", "sample_scores"]

CORPUS_SCORES = (
    "exact_match",
    "edit_similarity",
    "bleu",
    "rouge_l",
    "codebleu",
    "syntax",
    "dataflow",
    "dataflow_defined",
    "chrf",
)
"""Names of the corpus-level scores."""


def sample_scores(
    text: str, reference: str, token_ids: Sequence[int], reference_ids: Sequence[int]
) -> dict[str, Score]:
    """Return ``exact_match edit_similarity token_accuracy bleu rouge_l chrf`` of one completion.

    Args:
        text: the completion, cut as its protocol cuts it.
        reference: the ground truth.
        token_ids: generated tokens.
        reference_ids: ground-truth tokens.
    """
    text, reference = restore_literals(text), restore_literals(reference)
    return {
        "exact_match": exact_match(text, reference),
        "edit_similarity": edit_similarity(text, reference) / 100,
        "token_accuracy": token_accuracy(token_ids, reference_ids),
        "bleu": sentence_bleu(text, reference),
        "rouge_l": rouge_l(text, reference),
        "chrf": chrf(text, reference),
    }


def corpus_scores(texts: Sequence[str], references: Sequence[str], language: str) -> dict[str, Score]:
    """Return the corpus-level scores under the names of :class:`harness.records.summary.SummaryRow`.

    ``exact_match``, ``edit_similarity`` and ``rouge_l`` are means over samples; ``bleu``, ``chrf`` and the parts of
    ``codebleu`` pool their counts. Of an empty corpus every score is ``None``.

    Args:
        texts: completions.
        references: ground truths, as many.
        language: of the code; the CodeBLEU scores of one that the library does not know are ``None``, and so are
            all of them where the library is not installed (:func:`missing_scores`).
    """
    pairs = [
        (restore_literals(text), restore_literals(reference)) for text, reference in zip(texts, references, strict=True)
    ]
    if not pairs:
        return dict.fromkeys(CORPUS_SCORES)
    structure = code_bleu(pairs, language)
    return {
        "exact_match": fmean(exact_match(*pair) for pair in pairs),
        "edit_similarity": fmean(edit_similarity(*pair) for pair in pairs) / 100,
        "bleu": corpus_bleu(pairs),
        "rouge_l": fmean(rouge_l(*pair) for pair in pairs),
        "codebleu": structure.score if structure else None,
        "syntax": structure.syntax if structure else None,
        "dataflow": structure.dataflow if structure else None,
        "dataflow_defined": structure.dataflow_defined if structure else None,
        "chrf": corpus_chrf(pairs),
    }


def missing_scores() -> tuple[str, ...]:
    """Return one sentence for each score that this installation cannot make: what, why, and the remedy."""
    reason = why_absent()
    return () if reason is None else (f"CodeBLEU, syntax and data flow are not shown: {reason}.",)
