"""Scores of overlap: BLEU and chrF by sacrebleu, ROUGE-L by rouge-score.

BLEU and ROUGE-L compare the tokens of :func:`tasks.scores.match.code_tokens` and not the libraries' own, which are made
for prose (ROUGE's drops every operator and the case of names). Numbers are therefore comparable within this project,
not with papers that used the defaults. chrF compares characters, white space left out, n-grams up to 6.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, ClassVar

from harness.contracts import Completion, Score
from harness.contracts.scores import Pair
from tasks.scores.match import code_tokens, restored


class Bleu(Score):
    """N-gram precision, BLEU-4 of code tokens; of a corpus with counts pooled."""

    title = "BLEU"
    decides = False
    sections: ClassVar = {}

    def sample(self, completion: Completion) -> float:
        """Return the score of one pair, 0…1: exponential smoothing, orders longer than the text left out."""
        [(text, reference)] = restored([(completion.text, completion.reference)])
        return _fraction(_bleu().sentence_score(_joined(text), [_joined(reference)]))

    def corpus(self, pairs: Sequence[Pair], language: str) -> float:
        """Return the score of pooled counts, 0…1; orders that no text reaches are left out."""
        texts, references = zip(*restored(pairs), strict=True)
        return _fraction(_bleu().corpus_score([*map(_joined, texts)], [[*map(_joined, references)]]))


class RougeL(Score):
    """Longest common subsequence of code tokens, F1."""

    title = "ROUGE-L"
    decides = False
    sections: ClassVar = {"figures": 5}

    def sample(self, completion: Completion) -> float:
        [(text, reference)] = restored([(completion.text, completion.reference)])
        return float(_rouge().score(reference, text)["rougeL"].fmeasure)


class Chrf(Score):
    """Character n-grams, chrF2; of a corpus with counts pooled."""

    title = "chrF"
    decides = False
    sections: ClassVar = {}

    def sample(self, completion: Completion) -> float:
        [(text, reference)] = restored([(completion.text, completion.reference)])
        return _fraction(_chrf().sentence_score(text, [reference]))

    def corpus(self, pairs: Sequence[Pair], language: str) -> float:
        texts, references = zip(*restored(pairs), strict=True)
        return _fraction(_chrf().corpus_score(list(texts), [list(references)]))


def _fraction(result: Any) -> float:
    return min(float(result.score) / 100, 1.0)  # sacrebleu's logarithms can end at 100.00000000000004


def _joined(text: str) -> str:
    return " ".join(code_tokens(text))


class _CodeTokenizer:
    """The interface rouge-score asks of a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return code_tokens(text)


@lru_cache(maxsize=1)
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU  # late: a quarter of a second

    return BLEU(tokenize="none", smooth_method="exp", effective_order=True, force=True)


@lru_cache(maxsize=1)
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


@lru_cache(maxsize=1)
def _rouge() -> Any:
    # It imports all of NLTK, which tries to import these, for 1.3 s, and does without: nothing of them is used here.
    hidden = [name for name in ("scipy", "sklearn") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: they cannot be imported
    try:
        from rouge_score.rouge_scorer import RougeScorer
    finally:
        for name in hidden:
            del sys.modules[name]
    return RougeScorer(["rougeL"], tokenizer=_CodeTokenizer())
